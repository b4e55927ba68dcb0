"""Optimizers as values. The update rules and the schedules are those of ``mlx.optimizers``."""

from mlx.optimizers import cosine_decay, exponential_decay, join_schedules, linear_schedule, step_decay

from .optimizer import Optimizer, OptimizerState, wrap
from .rules import SGD, Adam, AdamW

__all__ = [
    "SGD", "Adam", "AdamW", "Optimizer", "OptimizerState", "cosine_decay", "exponential_decay", "join_schedules",
    "linear_schedule", "step_decay", "wrap",
]  # fmt: skip
