"""Trees on several processes. The processes and the exchange of arrays between them are those of ``mx.distributed``."""

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from .averaging import average_gradients
    from .clipping import clip_grad_norm_sharded
    from .evaluation import PeerLostError, eval
    from .jobs import Group, barrier, init
    from .reducing import all_max, all_min, all_sum
    from .sending import broadcast, require_same
    from .sharding import fully_shard, gather, shard, shard_linear
    from .sharing_out import local_key, shard_batch
else:
    __getattr__ = lazily(
        __name__,
        {
            "averaging": "average_gradients",
            "clipping": "clip_grad_norm_sharded",
            "evaluation": "PeerLostError eval",
            "jobs": "Group barrier init",
            "reducing": "all_max all_min all_sum",
            "sending": "broadcast require_same",
            "sharding": "fully_shard gather shard shard_linear",
            "sharing_out": "local_key shard_batch",
        },
    )

__all__ = [
    "Group", "PeerLostError", "all_max", "all_min", "all_sum", "average_gradients", "barrier", "broadcast",
    "clip_grad_norm_sharded", "eval", "fully_shard", "gather", "init", "local_key", "require_same", "shard", "shard_batch",
    "shard_linear",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)
