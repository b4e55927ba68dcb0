from .case import case

CASES = {
    "all_to_sharded": case(lambda nn: nn.AllToShardedLinear(3, 4), (5, 3)),
    "all_to_sharded, no bias": case(lambda nn: nn.AllToShardedLinear(3, 4, False), (2, 5, 3)),
    "all_to_sharded, of a linear": case(lambda nn: nn.AllToShardedLinear.from_linear(nn.Linear(3, 4), segments=2), (5, 3)),
    "sharded_to_all": case(lambda nn: nn.ShardedToAllLinear(3, 4), (5, 3)),
    "sharded_to_all, no bias": case(lambda nn: nn.ShardedToAllLinear(3, 4, False), (3,)),
    "sharded_to_all, of a linear": case(lambda nn: nn.ShardedToAllLinear.from_linear(nn.Linear(4, 3), segments=[0.25]), (5, 4)),
    "quantized_all_to_sharded": case(lambda nn: nn.QuantizedAllToShardedLinear(64, 8), (2, 64)),
    "quantized_all_to_sharded, mxfp4": case(lambda nn: nn.QuantizedAllToShardedLinear(64, 8, False, 32, 4, "mxfp4"), (2, 64)),
    "quantized_all_to_sharded, of a quantized": case(
        lambda nn: nn.QuantizedAllToShardedLinear.from_quantized_linear(nn.QuantizedLinear(64, 8, bits=8)), (2, 64)
    ),
    "quantized_sharded_to_all": case(lambda nn: nn.QuantizedShardedToAllLinear(64, 8), (2, 64)),
    "quantized_sharded_to_all, of a quantized": case(
        lambda nn: nn.QuantizedShardedToAllLinear.from_quantized_linear(nn.QuantizedLinear(64, 8, False, mode="nvfp4")), (2, 64)
    ),
    "fully_sharded": case(lambda nn: nn.FullyShardedModule(nn.Linear(3, 4)), (5, 3)),
    "fully_sharded, in a fully_sharded": case(
        lambda nn: nn.FullyShardedModule(nn.Sequential(nn.Linear(3, 4), nn.FullyShardedModule(nn.Linear(4, 2)))), (5, 3)
    ),
}
