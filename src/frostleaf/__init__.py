"""frostleaf: functional parameters for MLX."""

from . import nn, optim, tree
from .edits.quantization import quantize
from .fields import buffer, parameter, static
from .io.checkpointer import Checkpointer
from .io.safetensors import CheckpointError
from .io.trees import load, load_metadata, save
from .module import Module
from .nn.dtypes import default_dtype
from .transforms.captured import CapturedArrayWarning
from .transforms.checkpoint import checkpoint
from .transforms.differentials import jvp, vjp
from .transforms.evaluation import async_eval, eval
from .transforms.gradients import grad, value_and_grad
from .transforms.jit import disable_jit, jit
from .transforms.precision import Policy
from .transforms.random import next_key, rng
from .transforms.shapes import ShapeDtypeStruct, eval_shape
from .transforms.stateful import latest, record, stateful
from .transforms.vmap import vmap
from .tree.registration import register_pytree_node

__version__ = "0.1.0"

__all__ = [
    "CapturedArrayWarning", "CheckpointError", "Checkpointer", "Module", "Policy", "ShapeDtypeStruct", "async_eval",
    "buffer", "checkpoint", "default_dtype", "disable_jit", "eval", "eval_shape", "grad", "jit", "jvp", "latest", "load",
    "load_metadata", "next_key", "nn", "optim", "parameter", "quantize", "record", "register_pytree_node", "rng", "save",
    "stateful", "static", "tree", "value_and_grad", "vjp", "vmap",
]  # fmt: skip
