"""Without a launcher a process is a group of its own, and all exchanges are the identity."""

import copy
import pickle

import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.transforms import collectives
from frostleaf.transforms.group import as_group

TREE = {"x": mx.arange(6.0).reshape(3, 2), "none": None, "name": "run"}
EXCHANGES = {
    "all_sum": fl.distributed.all_sum,
    "all_max": fl.distributed.all_max,
    "all_min": fl.distributed.all_min,
    "average_gradients": fl.distributed.average_gradients,
    "broadcast": fl.distributed.broadcast,
    "shard_batch": fl.distributed.shard_batch,
}


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("group", [None, fl.distributed.init(), mx.distributed.init()], ids=["default", "ours", "mlx"])
def test_an_exchange_is_the_identity(name, group):
    assert EXCHANGES[name](TREE, group=group) is TREE
    assert fl.tree.equal(fl.jit(lambda tree: EXCHANGES[name](tree, group=group))(TREE), TREE)


@pytest.mark.parametrize("name", EXCHANGES)
def test_an_error_is_raised_with_one_process_too(name):
    with pytest.raises((TypeError, ValueError), match="shape"):
        EXCHANGES[name](fl.ShapeDtypeStruct((3,)))


@pytest.mark.parametrize("name", ["all_gather", "all_max", "all_min", "all_sum", "average_gradients"])
@pytest.mark.parametrize("number", [3, 2.0, True, np.float32(3), np.bool_(True)], ids=repr)
def test_a_number_is_no_array(name, number):
    exchange = getattr(fl.distributed, name)
    with pytest.raises(TypeError, match=rf"{name} takes arrays, and a\.0 is the number .*: write mx\.array\("):
        exchange({"a": [number], "b": mx.array(1.0)})
    with pytest.raises(TypeError, match="what was given is the number"):
        fl.jit(lambda x: exchange(number))(mx.array(1.0))
    norm = fl.nn.RMSNorm(2)
    assert exchange({"norm": norm, "name": "run"})["norm"].eps == norm.eps


def test_a_list_as_long_as_the_batch_is_not_left_whole():
    batch = {"x": mx.zeros((4, 2)), "names": ["a", "b", "c", "d"]}
    with pytest.raises(ValueError, match=r"names is a list of 4, as long as the batch.*divide it yourself"):
        fl.distributed.shard_batch(batch)
    for other in ({"x": batch["x"], "size": (28, 28), "name": "train"}, [batch["x"], batch["x"]], (batch["x"],) * 4, ["a"]):
        assert fl.distributed.shard_batch(other) is other


def test_arrays_are_gathered_along_the_first_axis():
    gathered = fl.distributed.all_gather({"x": mx.arange(3), "loss": mx.array(1.0), "none": None})
    assert fl.tree.equal(gathered, {"x": mx.arange(3), "loss": mx.array([1.0]), "none": None})


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("group", [1, "ring"])
def test_a_group_is_a_group(name, group):
    with pytest.raises(TypeError, match=r"a group is one from fl\.distributed\.init\(\)"):
        EXCHANGES[name](TREE, group=group)


@pytest.mark.parametrize("src", [1, -1, True, "0", 0.0])
def test_a_source_is_a_rank(src):
    with pytest.raises(ValueError, match="src is the rank that sends, from 0 to 0"):
        fl.distributed.broadcast(TREE, src)


def test_a_scalar_has_no_part():
    with pytest.raises(ValueError, match=r"a\.0 is f32\[\], whose first axis can't be divided"):
        fl.distributed.shard_batch({"a": [mx.array(1.0)]})


@pytest.mark.parametrize("key", [1, mx.array([1, 2]), mx.zeros((2, 2), mx.uint32)], ids=["int", "int32", "keys"])
def test_a_key_is_a_key(key):
    with pytest.raises(TypeError, match="local_key takes one key"):
        fl.distributed.local_key(key)


def test_nothing_else_is_done():
    assert fl.distributed.barrier() is None
    assert fl.distributed.require_same(TREE) is None
    key = mx.random.key(0)
    assert fl.distributed.local_key(key) is key
    assert collectives.tokens() == []


def test_a_group_is_a_value():
    group = fl.distributed.init()
    for other in (fl.distributed.init(), as_group(mx.distributed.init()), pickle.loads(pickle.dumps(group))):
        assert other is group
    assert copy.copy(group) is copy.deepcopy(group) is group
    assert (group.rank(), group.size(), repr(group)) == (0, 1, "Group(rank=0, size=1)")
    assert {group: 1}[group] == 1
    with pytest.raises(AttributeError):
        group.mlx = None


def test_a_backend_that_is_not_there_is_an_error():
    fl.distributed.init()
    with pytest.raises(RuntimeError):
        fl.distributed.init(strict=True, backend="ring")


def test_an_average_is_a_member_of_a_chain():
    model = fl.nn.Linear(2, 1)
    optimizer = fl.optim.chain(fl.distributed.average_gradients, fl.optim.SGD(0.1))
    assert pickle.loads(pickle.dumps(optimizer)).transforms == (fl.distributed.average_gradients,)
    grads = fl.grad(lambda model: model(mx.ones((1, 2))).sum())(model)
    plain = fl.optim.SGD(0.1)
    expected = plain.update(model, grads, plain.init(model))[0]
    assert fl.tree.equal(optimizer.update(model, grads, optimizer.init(model))[0], expected)
