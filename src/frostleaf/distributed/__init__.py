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
    from .sharing_out import all_gather, local_key, shard_batch
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
            "sharing_out": "all_gather local_key shard_batch",
        },
        instead={
            "DistributedDataParallel": "fl.optim.chain(fl.distributed.average_gradients, optimizer)",
            "FullyShardedDataParallel": "fl.distributed.fully_shard(module)",
            "all_mean": "fl.distributed.average_gradients(tree)",
            "all_reduce": "fl.distributed.all_sum(tree)",
            "get_rank": "fl.distributed.init().rank()",
            "get_world_size": "fl.distributed.init().size()",
            "init_process_group": "fl.distributed.init()",
            "initialize": "fl.distributed.init()",
            "is_available": "mx.distributed.is_available()",
            "pmax": "fl.distributed.all_max(tree)",
            "pmean": "fl.distributed.average_gradients(tree)",
            "pmin": "fl.distributed.all_min(tree)",
            "process_count": "fl.distributed.init().size()",
            "process_index": "fl.distributed.init().rank()",
            "psum": "fl.distributed.all_sum(tree)",
            "rank": "fl.distributed.init().rank()",
            "shard_inplace": "fl.distributed.shard(tree, sharding)",
            "size": "fl.distributed.init().size()",
        },
    )

__all__ = [
    "Group", "PeerLostError", "all_gather", "all_max", "all_min", "all_sum", "average_gradients", "barrier", "broadcast",
    "clip_grad_norm_sharded", "eval", "fully_shard", "gather", "init", "local_key", "require_same", "shard", "shard_batch",
    "shard_linear",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)
