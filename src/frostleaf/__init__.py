"""frostleaf: functional parameters for MLX."""

from .core import versions as _versions  # noqa: F401  # before what older versions lack

# isort: split
from typing import TYPE_CHECKING

from . import tree
from .core.definition import FrozenModuleError
from .core.dropped import DroppedResultWarning
from .core.fields import buffer, parameter, static
from .core.lazy import lazily
from .core.refused import ForeignArrayError, HiddenArrayError
from .core.registration import register_dataclass, register_pytree_node
from .core.shapes import ShapeDtypeStruct
from .core.shown import show_arrays as _show_arrays
from .edits.selection import Selection
from .module import Module

if TYPE_CHECKING:
    from . import distributed, nn, optim
    from .display import plot
    from .display.rows import Summary, SummaryPart, SummaryRow
    from .display.summary import summary
    from .interop.adapter_files import load_adapters, save_adapters
    from .interop.adapters import fuse, lora
    from .interop.convert import convert
    from .interop.from_mlx import from_mlx
    from .interop.to_mlx import to_mlx
    from .io.checkpointer import Checkpointer
    from .io.directory import NoCheckpointError
    from .io.divided import PartialWeightsWarning
    from .io.export import export_function, exporter
    from .io.exported import import_function
    from .io.inventory import CheckpointInfo, CheckpointInfos
    from .io.partial import LoadReport
    from .io.safetensors import CheckpointError
    from .io.trees import OtherStructureError, UncomparedValueWarning, load, load_metadata, save
    from .io.unmatched import UnmatchedWeightsWarning
    from .nn.dtypes import default_dtype
    from .nn.generation import generate
    from .nn.quantization import quantize
    from .optim.rule import OtherHyperparametersWarning
    from .transforms.checkpoint import checkpoint
    from .transforms.differentials import jvp, vjp
    from .transforms.eval_shape import eval_shape
    from .transforms.evaluation import async_eval, eval
    from .transforms.gradients import grad, value_and_grad
    from .transforms.jit import CapturedArrayWarning, Jitted, MutableArgumentWarning, RetraceWarning, disable_jit, jit
    from .transforms.precision import Policy
    from .transforms.random import next_key, rng
    from .transforms.stateful import UncollectedStateWarning, record, recorded, stateful
    from .transforms.vmap import vmap
else:
    __getattr__ = lazily(
        __name__,
        {
            "display": "plot",
            "display.rows": "Summary SummaryPart SummaryRow",
            "display.summary": "summary",
            "distributed": "",
            "interop.adapter_files": "load_adapters save_adapters",
            "interop.adapters": "fuse lora",
            "interop.convert": "convert",
            "interop.from_mlx": "from_mlx",
            "interop.to_mlx": "to_mlx",
            "io.checkpointer": "Checkpointer",
            "io.directory": "NoCheckpointError",
            "io.divided": "PartialWeightsWarning",
            "io.export": "export_function exporter",
            "io.exported": "import_function",
            "io.inventory": "CheckpointInfo CheckpointInfos",
            "io.partial": "LoadReport",
            "io.safetensors": "CheckpointError",
            "io.trees": "OtherStructureError UncomparedValueWarning load load_metadata save",
            "io.unmatched": "UnmatchedWeightsWarning",
            "nn.dtypes": "default_dtype",
            "nn.generation": "generate",
            "nn.quantization": "quantize",
            "optim.rule": "OtherHyperparametersWarning",
            "transforms.checkpoint": "checkpoint",
            "transforms.differentials": "jvp vjp",
            "transforms.eval_shape": "eval_shape",
            "transforms.evaluation": "async_eval eval",
            "transforms.gradients": "grad value_and_grad",
            "transforms.jit": "CapturedArrayWarning Jitted MutableArgumentWarning RetraceWarning disable_jit jit",
            "transforms.precision": "Policy",
            "transforms.random": "next_key rng",
            "transforms.stateful": "UncollectedStateWarning record recorded stateful",
            "transforms.vmap": "vmap",
        },
        instead={
            "apply_updates": "fl.optim.apply_updates(model, updates)",
            "clip_by_global_norm": "fl.optim.clip_by_global_norm(max_norm)",
            "combine": "fl.tree.combine",
            "compile": "fl.jit(fn)",
            "field": "fl.static() for metadata, fl.buffer() or fl.parameter() for arrays",
            "filter": "fl.tree.filter",
            "filter_checkpoint": "fl.checkpoint(fn)",
            "filter_eval_shape": "fl.eval_shape(fn, ...)",
            "filter_grad": "fl.grad(fn)",
            "filter_jit": "fl.jit(fn)",
            "filter_value_and_grad": "fl.value_and_grad(fn)",
            "filter_vmap": "fl.vmap(fn)",
            "freeze": "model = model.freeze(...)",
            "linear_to_lora_layers": "fl.lora(model, where, ...)",
            "load_checkpoint": "fl.Checkpointer(directory).restore(like)",
            "load_weights": "model = model.load_weights(file)",
            "optimizers": "fl.optim",
            "partition": "fl.tree.partition",
            "pmap": "fl.distributed.shard_batch(batch) and fl.distributed.average_gradients(gradients) in each process",
            "save_checkpoint": "fl.Checkpointer(directory).save(step, tree)",
            "save_safetensors": "model.save_weights(file), or fl.save(file, tree)",
            "save_weights": "model.save_weights(file)",
            "savez": "model.save_weights(file), or fl.save(file, tree)",
            "tabulate": "fl.summary(model, x)",
            "tree_at": "model.at(where).set(value)",
            "tree_deserialise_leaves": "fl.load(path, like)",
            "tree_equal": "fl.tree.equal",
            "tree_flatten": "fl.tree.flatten(tree), which returns the leaves and the structure",
            "tree_map": "fl.tree.map",
            "tree_serialise_leaves": "fl.save(path, tree)",
            "tree_unflatten": "fl.tree.unflatten(structure, leaves)",
            "unfreeze": "model = model.unfreeze(...)",
        },
    )

__version__ = "0.1.0"

__all__ = [
    "CapturedArrayWarning", "CheckpointError", "CheckpointInfo", "CheckpointInfos", "Checkpointer", "DroppedResultWarning",
    "ForeignArrayError", "FrozenModuleError", "HiddenArrayError", "Jitted", "LoadReport", "Module",
    "MutableArgumentWarning", "NoCheckpointError", "OtherHyperparametersWarning", "OtherStructureError",
    "PartialWeightsWarning", "Policy", "RetraceWarning", "Selection", "ShapeDtypeStruct", "Summary", "SummaryPart",
    "SummaryRow", "UncollectedStateWarning", "UncomparedValueWarning", "UnmatchedWeightsWarning", "async_eval", "buffer",
    "checkpoint", "convert", "default_dtype", "disable_jit", "distributed", "eval", "eval_shape", "export_function",
    "exporter", "from_mlx", "fuse", "generate", "grad", "import_function", "jit", "jvp", "load", "load_adapters",
    "load_metadata", "lora", "next_key", "nn", "optim", "parameter", "plot", "quantize", "record", "recorded",
    "register_dataclass", "register_pytree_node", "rng", "save", "save_adapters", "stateful", "static", "summary", "to_mlx",
    "tree", "value_and_grad", "vjp", "vmap",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)


_show_arrays()
