"""Optimizers as values. The update rules and the schedules are those of ``mlx.optimizers``."""

from typing import TYPE_CHECKING

from mlx.optimizers import cosine_decay, exponential_decay, join_schedules, linear_schedule, step_decay

from ..core.lazy import lazily

if TYPE_CHECKING:
    from .accumulating import Accumulate, AccumulateState, accumulate
    from .applying import apply_updates
    from .averaging import EMA, EMAState, ema
    from .chaining import Chain, chain
    from .clipping import ClipByGlobalNorm, ClipByValue, clip_by_global_norm, clip_by_value, clip_grad_norm
    from .flattening import Flattened, FlattenedState, flatten
    from .masking import Masked, masked
    from .multi_optimizer import MultiOptimizer, MultiState, multi
    from .optimizer import Optimizer, SharedArrayWarning, UntrainedParameterWarning
    from .packing import Packed, TrainedArrays, pack
    from .parts import Division
    from .rule import OptimizerState, Rule, wrap
    from .rules import SGD, AdaDelta, Adafactor, Adagrad, Adam, Adamax, AdamW, Lion, Muon, RMSprop
    from .scaling import DynamicLossScale, StaticLossScale
    from .sharding import Sharded, ShardedState, shard
    from .skipping import SkipNonfinite, SkipState, all_finite, skip_nonfinite
else:
    __getattr__ = lazily(
        __name__,
        {
            "accumulating": "Accumulate AccumulateState accumulate",
            "applying": "apply_updates",
            "averaging": "EMA EMAState ema",
            "chaining": "Chain chain",
            "clipping": "ClipByGlobalNorm ClipByValue clip_by_global_norm clip_by_value clip_grad_norm",
            "flattening": "Flattened FlattenedState flatten",
            "masking": "Masked masked",
            "multi_optimizer": "MultiOptimizer MultiState multi",
            "optimizer": "Optimizer SharedArrayWarning UntrainedParameterWarning",
            "packing": "Packed TrainedArrays pack",
            "parts": "Division",
            "rule": "OptimizerState Rule wrap",
            "rules": "SGD AdaDelta Adafactor Adagrad Adam Adamax AdamW Lion Muon RMSprop",
            "scaling": "DynamicLossScale StaticLossScale",
            "sharding": "Sharded ShardedState shard",
            "skipping": "SkipNonfinite SkipState all_finite skip_nonfinite",
        },
        instead={
            "MultiSteps": "fl.optim.accumulate(optimizer, n)",
            "adam": "fl.optim.Adam(...)",
            "adamw": "fl.optim.AdamW(...)",
            "apply_if_finite": "fl.optim.skip_nonfinite(optimizer)",
            "clip": "fl.optim.clip_by_value(...)",
            "cosine_decay_schedule": "fl.optim.cosine_decay(...)",
            "multi_transform": "fl.optim.multi({where: optimizer})",
            "sgd": "fl.optim.SGD(...)",
        },
    )

__all__ = [
    "EMA", "SGD", "Accumulate", "AccumulateState", "AdaDelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Chain",
    "ClipByGlobalNorm", "ClipByValue", "Division", "DynamicLossScale", "EMAState", "Flattened", "FlattenedState", "Lion",
    "Masked", "MultiOptimizer", "MultiState", "Muon", "Optimizer", "OptimizerState", "Packed", "RMSprop", "Rule", "Sharded",
    "ShardedState", "SharedArrayWarning", "SkipNonfinite", "SkipState", "StaticLossScale", "TrainedArrays",
    "UntrainedParameterWarning", "accumulate", "all_finite", "apply_updates", "chain", "clip_by_global_norm", "clip_by_value",
    "clip_grad_norm", "cosine_decay", "ema", "exponential_decay", "flatten", "join_schedules", "linear_schedule", "masked",
    "multi", "pack", "shard", "skip_nonfinite", "step_decay", "wrap",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)
