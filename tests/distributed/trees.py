"""Checks of what exchanges whole trees, run by each of several ranks."""

import functools
import math

import mlx.core as mx
import mlx.nn
import ranks

import frostleaf as fl
from frostleaf.transforms import collectives

GROUP = fl.distributed.init()
RANK, SIZE = GROUP.rank(), GROUP.size()
EVERY = SIZE * (SIZE + 1) // 2
DTYPES = [
    mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.uint32, mx.int32, mx.uint64, mx.int64, mx.float16, mx.bfloat16,
    mx.float32, mx.complex64,
]  # fmt: skip


class Net(fl.Module):
    layers: tuple[fl.nn.Linear, ...]
    frozen: fl.nn.Linear

    def __init__(self):
        self.layers = [fl.nn.Linear(4, 8), fl.nn.Linear(8, 2)]
        self.frozen = fl.nn.Linear(2, 2).freeze()

    def __call__(self, x):
        for layer in self.layers:
            x = fl.nn.relu(layer(x))
        return self.frozen(x)


def net():
    mx.random.seed(3)
    return Net()


def loss(model, x):
    return model(x).square().mean()


def batch(step, rank=RANK):
    return mx.random.normal((4, 4), key=mx.random.key(100 * step + rank))


def check_one_object():
    assert fl.distributed.init() is GROUP
    assert fl.distributed.init(strict=True, backend="ring") is GROUP
    assert isinstance(GROUP, fl.distributed.Group)
    fl.distributed.barrier()
    fl.distributed.barrier(GROUP.mlx)


def check_extremes_are_nan_where_one_is_nan():
    places = mx.arange(7)
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        x = places.astype(dtype) * (RANK + 1)
        assert mx.isnan(fl.distributed.all_max(mx.where(places % SIZE == RANK, math.nan, x))).all()
        for rank in range(SIZE):
            hole = (places % SIZE == rank) & (rank == RANK)
            tree = {"x": mx.where(hole, math.nan, x), "low": mx.full(3, -math.inf), "high": mx.full(3, math.inf)}
            for extreme, times in ((fl.distributed.all_max, SIZE), (fl.distributed.all_min, 1)):
                found = extreme(tree)
                expected = mx.where(places % SIZE == rank, math.nan, places * times).astype(dtype)
                assert mx.array_equal(found["x"], expected, equal_nan=True)
                assert found["x"].dtype == dtype
                assert (found["low"].tolist(), found["high"].tolist()) == ([-math.inf] * 3, [math.inf] * 3)


def check_reductions_of_trees():
    mine = {"a": [mx.full(3, RANK + 1.0), None, mx.array(RANK)], "b": mx.array([RANK, 1], mx.int32), "name": "run"}
    total = fl.distributed.all_sum(mine)
    highest = fl.distributed.all_max(mine, group=GROUP)
    lowest = fl.distributed.all_min(mine, GROUP.mlx)
    if RANK:
        fl.eval(lowest)
    assert total["a"][0].tolist() == [EVERY] * 3
    assert total["a"][2].item() == total["b"][0].item() == EVERY - SIZE
    assert total["name"] == "run"
    assert (highest["a"][0][0].item(), highest["b"][0].item()) == (SIZE, SIZE - 1)
    assert (lowest["a"][0][0].item(), lowest["b"][0].item()) == (1, 0)
    for tree in (total, highest, lowest):
        assert fl.eval_shape(lambda tree=tree: tree) == fl.eval_shape(lambda: mine)
    assert fl.distributed.all_sum(()) == ()


def check_averages_are_those_of_mlx():
    arrays = [mx.random.normal((5, size), key=mx.random.key(RANK + size)) for size in range(1, 9)]
    for dtype in (mx.float32, mx.bfloat16):
        given = [array.astype(dtype) for array in arrays]
        for limit in (0, 60, 300, 32 * 1024**2):
            expected = mlx.nn.average_gradients(given, all_reduce_size=limit)
            mx.eval(expected)
            found = fl.distributed.average_gradients(given, all_reduce_size=limit)
            assert fl.tree.equal(found, expected), (dtype, limit)
    mixed = [array.astype([mx.float32, mx.float16][at % 2]) for at, array in enumerate(arrays)]
    expected = [mlx.nn.average_gradients(mixed[first::2], all_reduce_size=60) for first in (0, 1)]
    mx.eval(expected)
    found = fl.distributed.average_gradients(mixed, all_reduce_size=60)
    assert fl.tree.equal([found[0::2], found[1::2]], expected)


def check_steps_are_those_of_mlx():
    def average_of_mlx(grads, **options):
        leaves, structure = fl.tree.flatten(grads)  # the order in which they are laid end to end is that of the sums
        return fl.tree.unflatten(structure, mlx.nn.average_gradients(leaves, **options))

    def run(average, compiled, steps=20):
        optimizer = fl.optim.chain(average, fl.optim.clip_by_global_norm(0.1), fl.optim.AdamW(1e-2))

        def step(model, state, x):
            value, grads = fl.value_and_grad(loss)(model, x)
            model, state = optimizer.update(model, grads, state)
            return model, state, value

        step = fl.jit(step) if compiled else step
        model = net()
        state = optimizer.init(model)
        for number in range(steps):
            model, state, value = step(model, state, batch(number))
            if number % SIZE == RANK:  # a loss that one rank looks at
                value.item()
            fl.eval(model, state)
        assert not compiled or step.trace_count == 1
        return model

    for compiled in (False, True):
        model = run(fl.distributed.average_gradients, compiled)
        fl.distributed.require_same(model)
        assert fl.tree.equal(model, run(average_of_mlx, compiled))
    one_by_one = functools.partial(fl.distributed.average_gradients, group=GROUP, all_reduce_size=0)
    assert fl.tree.equal(run(one_by_one, True), run(functools.partial(average_of_mlx, all_reduce_size=0), True))


def check_averages_equal_one_process_with_the_whole_batch():
    model = net()
    grads = fl.grad(loss)(model, batch(0))
    assert grads.frozen.weight is None
    averaged = fl.distributed.average_gradients(grads)
    assert averaged.frozen.weight is None
    whole = fl.grad(loss)(model, mx.concatenate([batch(0, rank) for rank in range(SIZE)]))
    assert fl.tree.allclose(averaged, whole, atol=1e-6)


def check_shards_are_left_alone():
    model = fl.distributed.broadcast(fl.nn.Sequential(fl.nn.Linear(4, 4 * SIZE), fl.nn.Linear(4 * SIZE, 2)))
    model = model.at("layers.0").apply(fl.distributed.fully_shard)
    grads = fl.tree.map(lambda leaf: mx.full(leaf.shape, RANK + 1.0), fl.grad(loss)(model, batch(0)))
    averaged = fl.distributed.average_gradients(grads)
    optimizer = fl.optim.chain(fl.distributed.average_gradients, fl.optim.SGD(1.0))
    step = optimizer.update(model, grads, optimizer.init(model))[0]
    for path, before, average, after in zip(
        fl.tree.paths(model), fl.tree.leaves(model), fl.tree.leaves(averaged), fl.tree.leaves(step), strict=True
    ):
        expected = RANK + 1 if path.startswith("layers.0") else EVERY / SIZE
        assert (average == expected).all(), path
        assert mx.allclose(before - after, mx.array(expected)), path


def check_broadcast_is_exact():
    bits = mx.random.randint(0, 2**32, (5, 8), mx.uint32, key=mx.random.key(RANK))
    mine = {str(dtype): bits.view(dtype) if dtype != mx.bool_ else bits % 2 == 0 for dtype in DTYPES}
    mine |= {"nan": mx.array([mx.nan, -0.0, RANK]), "none": None, "n": 1, "empty": mx.zeros((0, 2)), "scalar": mx.array(RANK)}
    for src in range(SIZE):
        given = mine if src == RANK else fl.eval_shape(lambda: mine)
        sent = fl.distributed.broadcast(given, src)
        fl.distributed.require_same(sent)
        assert (sent["scalar"].item(), sent["n"], sent["none"]) == (src, 1, None)
        if src == RANK:
            for name, array in mine.items():
                if isinstance(array, mx.array) and array.size:
                    assert (sent[name].reshape(-1).view(mx.uint8) == array.reshape(-1).view(mx.uint8)).all(), name
    model = fl.distributed.broadcast(Net() if RANK == 0 else fl.eval_shape(Net))
    fl.distributed.require_same(model)
    assert isinstance(model, Net)


def check_require_same_names_what_differs():
    model = net()
    fl.distributed.require_same((model, mx.array(mx.nan), "text"))
    other = model.at("layers.1.bias").apply(lambda bias: bias + RANK)
    ranks.everywhere(lambda: fl.distributed.require_same(other), r"layers\.1\.bias", "hash", r"rank 1")
    ranks.everywhere(lambda: fl.distributed.require_same({"n": RANK}), r"n is 0 on rank 0 and 1 on rank 1")


def check_what_can_not_be_is_an_error_on_every_rank():
    d = fl.distributed
    x = mx.zeros((2 * SIZE, 3))
    ranks.everywhere(lambda: d.broadcast(x, SIZE), "src is the rank that sends")
    ranks.everywhere(lambda: d.broadcast(x, RANK), "src is 0 on rank 0 and 1 on rank 1")
    ranks.everywhere(lambda: d.broadcast({"a": mx.zeros(2 + RANK)}), r"a is f32\[2\] on rank 0 and f32\[3\] on rank 1")
    ranks.everywhere(lambda: d.broadcast(fl.ShapeDtypeStruct((2,))), r"rank 0.*shape without values")
    for exchange in (d.all_sum, d.all_max, d.all_min, d.average_gradients):
        ranks.everywhere(
            lambda exchange=exchange: exchange({"w": x, "b": x.astype([mx.float32, mx.float16][RANK % 2])}), r"\bb is"
        )
        ranks.everywhere(lambda exchange=exchange: exchange([x, *[x] * RANK]), r"1 is nothing on rank 0 and f32.* on rank 1")
        ranks.everywhere(lambda exchange=exchange: exchange({"f": object()} if RANK == 1 else x), "on rank")
        ranks.everywhere(lambda exchange=exchange: exchange(fl.ShapeDtypeStruct((2,)) if RANK == 1 else x[0, :2]), "on rank 1")
    ranks.everywhere(lambda: d.average_gradients(x, all_reduce_size=RANK), "all_reduce_size is 0 on rank 0 and 1 on rank 1")
    ranks.everywhere(lambda: d.average_gradients(x, all_reduce_size="large"), "all_reduce_size is a number")
    ranks.everywhere(
        lambda: d.shard_batch({"x": x, "y": mx.zeros(SIZE + 1)}), r"y is f32\[\d\], whose first axis", f"{SIZE} ranks"
    )
    ranks.everywhere(lambda: d.shard_batch([mx.array(1.0)]), r"0 is f32\[\]")
    ranks.everywhere(lambda: d.shard_batch(mx.zeros(2 * SIZE + RANK)), "the array")
    many = {f"w{n}": mx.zeros(2 + RANK) for n in range(50)}
    ranks.everywhere(lambda: d.all_sum(many), r"\.\.\.$")


def check_parts_of_a_batch():
    tree = {"x": mx.arange(6 * SIZE).reshape(2 * SIZE, 3), "y": mx.arange(SIZE), "name": "train"}
    mine = fl.distributed.shard_batch(tree)
    assert mine["x"].tolist() == tree["x"][2 * RANK : 2 * RANK + 2].tolist()
    assert mine["y"].tolist() == [RANK]
    assert mine["name"] == "train"


def check_keys():
    key = mx.random.key(1)
    mine = fl.distributed.local_key(key)
    assert fl.tree.equal(mine, mx.random.split(key, SIZE)[RANK])
    gathered = collectives.all_gather(mine[None])
    assert len({tuple(each) for each in gathered.tolist()}) == SIZE


def check_nothing_is_exchanged_for_shapes():
    if RANK == 0:  # alone
        shape = fl.eval_shape(fl.distributed.average_gradients, {"w": mx.zeros(3)})
        assert shape == {"w": fl.ShapeDtypeStruct((3,))}
    assert fl.distributed.all_sum(mx.array(RANK + 1)).item() == EVERY


def check_a_rank_that_traces_alone():
    @fl.jit
    def step(x):
        return fl.distributed.all_sum(x.sum(0))

    for rows in (1, 2, 2):  # of rank 1 always 1
        mine = 1 if RANK == 1 else rows
        assert step(mx.ones((mine, 3))).tolist() == [1 + (SIZE - 1) * rows] * 3
    assert step.trace_count == (1 if RANK == 1 else 2)


if __name__ == "__main__":
    ranks.run(globals())
