"""frostleaf: functional parameters for MLX."""

from . import nn, optim, tree
from .fields import buffer, parameter, static
from .module import Module
from .transforms.evaluation import async_eval, eval
from .transforms.gradients import grad, value_and_grad
from .transforms.jit import jit
from .transforms.random import next_key, rng
from .transforms.stateful import latest, record, stateful
from .tree.registration import register_pytree_node

__version__ = "0.1.0"

__all__ = [
    "Module", "async_eval", "buffer", "eval", "grad", "jit", "latest", "next_key", "nn", "optim", "parameter", "record",
    "register_pytree_node", "rng", "stateful", "static", "tree", "value_and_grad",
]  # fmt: skip
