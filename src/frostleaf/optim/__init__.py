"""Optimizers as values. The update rules and the schedules are those of ``mlx.optimizers``."""

from mlx.optimizers import cosine_decay, exponential_decay, join_schedules, linear_schedule, step_decay

from .flattening import Flattened, FlattenedState, flatten
from .optimizer import Optimizer, OptimizerState, wrap
from .packing import Packed, pack
from .rules import SGD, Adam, AdamW

__all__ = [
    "SGD", "Adam", "AdamW", "Flattened", "FlattenedState", "Optimizer", "OptimizerState", "Packed", "cosine_decay",
    "exponential_decay", "flatten", "join_schedules", "linear_schedule", "pack", "step_decay", "wrap",
]  # fmt: skip
