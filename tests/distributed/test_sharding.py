"""Sharding on one rank, which changes no array, and arguments that are refused on any."""

import pickle

import mlx.core as mx
import pytest
from mlx.nn.layers.distributed import _split

import frostleaf as fl
import frostleaf.distributed
from frostleaf.nn.shards import segments_of, shard_of
from frostleaf.transforms.group import as_group
from frostleaf.transforms.shards import Shard, shards_in


class Ranks:
    """Stands for a group of several ranks where nothing is exchanged."""

    def __init__(self, rank, size):
        self.rank, self.size = lambda: rank, lambda: size


@pytest.mark.parametrize("segments", [1, 3, [0.5], [1 / 6, 2 / 3], [4], [2, 8], (0.5, 0.5)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("size", [1, 2])
def test_parts_are_those_of_mlx(segments, axis, size):
    array = mx.random.normal((12, 24))
    for rank in range(size):
        found = shard_of(array, Shard(Ranks(rank, size), axis, segments_of(segments)), "array")
        parts = [_split(part, size, axis)[rank] for part in _split(array, segments, axis)]
        assert mx.array_equal(found, mx.concatenate(parts, axis=axis))
        shape = fl.ShapeDtypeStruct((12, 24), mx.float32)
        assert shard_of(shape, Shard(Ranks(rank, size), axis, segments_of(segments)), "it").shape == found.shape


@pytest.mark.parametrize(
    ("shape", "axis", "segments", "said"),
    [
        ((3, 4), 0, 1, "the 3 of its axis 0 can't be divided among 2 ranks"),
        ((4, 6), 1, 3, None),
        ((4, 6), 0, 3, "the 4 of its axis 0 with segments 3"),
        ((4, 6), 1, (0.5,), "the 6 of its axis 1 with segments (0.5,)"),
        ((4, 6), 1, (4, 2), "segments (4, 2)"),
        ((4,), 1, 1, "which it does not have"),
        ((), 0, 1, "which it does not have"),
    ],
)
def test_what_does_not_divide(shape, axis, segments, said):
    shard = Shard(Ranks(1, 2), axis, segments)
    if said is None:
        assert shard_of(mx.zeros(shape), shard, "layers.0.weight").shape == (4, 3)
        return
    with pytest.raises(ValueError, match="shard layers") as error:
        shard_of(mx.zeros(shape), shard, "layers.0.weight")
    assert said in str(error.value)


@pytest.mark.parametrize("given", [0, -1, [], "3", None, ["a"], 0.5, mx.array([1])], ids=repr)
def test_segments_that_are_none(given):
    with pytest.raises(ValueError, match="segments says"):
        segments_of(given)


def test_one_rank_has_the_whole():
    model = fl.nn.Sequential(fl.nn.Linear(4, 6), fl.nn.LayerNorm(6))
    divided = fl.distributed.shard(model, "sharded-to-all")
    assert all(one is other for one, other in zip(fl.tree.leaves(model), fl.tree.leaves(divided), strict=True))
    assert divided.layers[1] is not model.layers[1]  # it notes what its arrays would be
    assert fl.tree.equal(fl.distributed.gather(divided), model)
    assert fl.distributed.shard(model, lambda path, array: None) is model
    assert fl.distributed.gather(model) is model
    assert fl.distributed.fully_shard(model) is model
    layer = fl.distributed.shard_linear(model.layers[0], "all-to-sharded")
    assert layer.weight is model.layers[0].weight
    assert fl.distributed.gather(layer).weight is layer.weight
    wrapped = fl.nn.FullyShardedModule(model)
    assert wrapped.module.layers[0] is model.layers[0]
    assert fl.distributed.gather(wrapped) is wrapped.module


@pytest.mark.parametrize("layer", [fl.nn.Linear(64, 8), fl.nn.Embedding(8, 64)], ids=["linear", "embedding"])
def test_shards_are_not_quantized(layer):
    divided = fl.distributed.shard(layer, lambda path, array: 0)
    with pytest.raises(ValueError, match="quantize it before it is divided"):
        fl.quantize(divided)
    assert fl.distributed.gather(fl.distributed.shard(fl.quantize(layer), lambda path, array: 0)).bits == 4


def test_a_function_says_how():
    tree = {"layers": [fl.nn.Linear(4, 6)], "step": mx.array(0)}
    asked = []

    def sharding(path, array):
        asked.append((path, array.shape))
        return (1, 2) if array.ndim == 2 else None

    divided = fl.distributed.shard(tree, sharding)
    assert asked == [("layers.0.weight", (6, 4)), ("layers.0.bias", (6,)), ("step", ())]
    told = [[str(each) for each in shards] for shards in shards_in(fl.tree.structure(divided))]
    assert told == [["1/1 of axis 1 with segments 2"], [], []]
    assert pickle.loads(pickle.dumps(divided["layers"][0])).weight.shape == (6, 4)


def test_buffers_that_are_not_saved_stay_whole():
    class Rotary(fl.Module):
        weight: mx.array
        table: mx.array = fl.buffer(persistent=False)

    model = Rotary(mx.ones((2, 2)), mx.ones((3, 3)))
    for divided in fl.distributed.shard(model, lambda path, array: 0), fl.nn.FullyShardedModule(model):
        assert [len(each) for each in shards_in(fl.tree.structure(divided))] == [1, 0]


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda layer: fl.distributed.shard_linear(layer, "all"), ValueError, "'all-to-sharded' or 'sharded-to-all'"),
        (lambda layer: fl.distributed.shard(layer, "all"), ValueError, "'all-to-sharded' or 'sharded-to-all'"),
        (lambda layer: fl.distributed.shard(layer, 3), TypeError, "sharding is a function of a path and an array"),
        (lambda layer: fl.distributed.shard(layer, lambda *_: "0"), ValueError, "returned '0' for 'weight'"),
        (lambda layer: fl.distributed.shard(layer, lambda *_: True), ValueError, "returned True for 'weight'"),
        (lambda layer: fl.distributed.shard(layer, lambda *_: (0, "a")), ValueError, "segments says"),
        (lambda layer: fl.distributed.shard_linear(fl.nn.ReLU(), "all-to-sharded"), ValueError, "takes a Linear or a Quant"),
        (lambda layer: fl.nn.AllToShardedLinear.from_linear(fl.nn.ReLU()), ValueError, "is made of a Linear"),
        (lambda layer: fl.nn.AllToShardedLinear(2, 2, group=3), TypeError, "a group is one from"),
        (lambda layer: fl.nn.FullyShardedModule(3), TypeError, "takes a module of frostleaf"),
        (lambda layer: fl.distributed.fully_shard(3), TypeError, "takes a module of frostleaf"),
        (lambda layer: fl.nn.FullyShardedModule(layer, None, mx.int32), TypeError, "compute_dtype is a floating"),
        (lambda layer: fl.nn.ShardedToAllLinear(0, 2), ValueError, "a positive int as input_dims"),
        (lambda layer: fl.nn.QuantizedAllToShardedLinear(64, 2, mode="mxfp4"), ValueError, "group"),
    ],
)
def test_arguments(call, error, said):
    with pytest.raises(error) as caught:
        call(fl.nn.Linear(2, 4))
    assert said in str(caught.value)


def test_compute_dtype_on_one_rank():
    layer = fl.nn.FullyShardedModule(fl.nn.Linear(2, 4), compute_dtype=mx.float16)
    out, grads = fl.value_and_grad(lambda layer, x: layer(x).sum())(layer, mx.ones((1, 2), mx.float16))
    assert (out.dtype, grads.module.weight.dtype) == (mx.float16, mx.float32)


def test_group_is_that_of_all():
    assert fl.nn.AllToShardedLinear(2, 2).group is as_group(None)
    assert fl.nn.AllToShardedLinear(2, 2, group=mx.distributed.init()).group is as_group(None)


def test_a_layer_of_another_class_is_not_replaced():
    class Scaled(fl.nn.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x)

    for given in (Scaled(4, 4), fl.nn.Embedding(4, 4)):
        with pytest.raises(ValueError, match="takes a Linear or a QuantizedLinear"):
            fl.distributed.shard_linear(given, "all-to-sharded")
