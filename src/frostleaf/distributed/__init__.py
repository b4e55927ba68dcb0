"""Trees on several machines."""

from .sharding import fully_shard, gather, shard, shard_linear

__all__ = ["fully_shard", "gather", "shard", "shard_linear"]
