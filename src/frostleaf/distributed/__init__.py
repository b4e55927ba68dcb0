"""Trees on several machines."""

from .clipping import clip_grad_norm_sharded
from .sharding import fully_shard, gather, shard, shard_linear

__all__ = ["clip_grad_norm_sharded", "fully_shard", "gather", "shard", "shard_linear"]
