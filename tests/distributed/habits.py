"""Checks of what people write from habit, run by each of several ranks."""

import functools
import itertools
import re
import tempfile
import warnings

import mlx.core as mx
import mlx.nn
import numpy as np
import ranks
from mlx.nn.layers.distributed import shard_linear

import frostleaf as fl

d = fl.distributed
GROUP = d.init()
RANK, SIZE = GROUP.rank(), GROUP.size()


def check_numbers_are_refused():
    for exchange in (d.all_sum, d.all_max, d.all_min, d.average_gradients, d.all_gather):
        for number in (3.0, RANK, True, np.float32(RANK)):
            call = functools.partial(exchange, {"loss": mx.array(2.0), "count": number})
            ranks.everywhere(call, r"count is the number", r"mx\.array\(")


def check_what_is_no_array_is_the_same_on_all_ranks():
    batch = mx.zeros((SIZE, 2))
    for exchange in (d.all_sum, d.all_max, d.all_min, d.average_gradients, d.all_gather, d.broadcast, d.shard_batch):
        call = functools.partial(exchange, {"x": batch, "name": f"rank{RANK}"})
        ranks.everywhere(call, r"name is 'rank0' on rank 0 and 'rank1' on rank 1")
        assert exchange({"x": batch, "name": "run"})["name"] == "run"
    ranks.everywhere(lambda: d.broadcast(5 if RANK == 0 else 0), "the value is 5 on rank 0 and 0 on rank 1", r"mx\.array\(n\)")
    ranks.everywhere(
        lambda: d.broadcast(mx.ones(2) if RANK == 0 else None), "on rank 0 and nothing on rank 1", r"fl\.eval_shape"
    )
    assert d.broadcast({"step": 5}) == {"step": 5}


def check_parts_of_a_batch_are_gathered():
    batch = {"x": mx.arange(6 * SIZE).reshape(2 * SIZE, 3), "y": mx.arange(2 * SIZE) > 1, "name": "run"}
    assert fl.tree.equal(d.all_gather(d.shard_batch(batch)), batch)
    ranks_seen = d.all_gather({"rank": mx.array(RANK)})
    assert ranks_seen["rank"].tolist() == [*range(SIZE)]
    assert fl.tree.equal(fl.jit(lambda x: d.all_gather([x]))(mx.array([RANK])), [mx.arange(SIZE)])
    ranks.everywhere(lambda: d.all_gather({"p": mx.zeros(2 + RANK)}), r"p is f32\[2\] on rank 0 and f32\[3\] on rank 1")
    ranks.everywhere(
        lambda: d.shard_batch({"x": batch["x"], "t": ["a"] * 2 * SIZE}), r"t is a list of \d, as long as the batch"
    )


def models():
    whole = d.broadcast(fl.nn.Sequential(fl.nn.Linear(4, 4 * SIZE), fl.nn.relu, fl.nn.Linear(4 * SIZE, 2 * SIZE)))
    yield d.fully_shard(whole)
    yield whole.at("layers.0").apply(d.fully_shard)
    divided = whole.at("layers.0").apply(lambda layer: d.shard_linear(layer, "all-to-sharded", segments=2))
    yield divided.at("layers.2").apply(lambda layer: d.shard_linear(layer, "sharded-to-all"))
    yield d.shard(whole, "all-to-sharded")
    yield whole


def check_states_are_gathered_as_their_model_is():
    averaging = fl.optim.ema(fl.optim.accumulate(fl.optim.SGD(0.1, momentum=0.9), 2), 0.9)
    for optimizer in (averaging, fl.optim.multi({"**.weight": fl.optim.Adam(0.1), "**.bias": fl.optim.SGD(0.1, momentum=0.9)})):
        for model in models():
            start = d.gather(model)
            _, state = optimizer.update(model, model, optimizer.init(model))  # of gradients only the numbers count
            _, expected = optimizer.update(start, start, optimizer.init(start))
            whole = d.gather(state, model)
            assert fl.tree.structure(whole) == fl.tree.structure(expected)
            assert fl.tree.equal(whole, expected)
            assert fl.tree.equal(d.shard(whole, model), state)
    assert fl.tree.equal(d.gather((1, [state]), model)[1][0], whole)


def check_a_state_without_its_model_is_refused():
    model = next(models())
    state = fl.optim.Adam(0.1).init(model)
    for call in (lambda: d.gather(state), lambda: d.gather((model, state)), lambda: d.shard(state, lambda *_: 0)):
        ranks.everywhere(call, r"fl\.distributed\.gather\(state, model\)")
    sharded = fl.optim.shard(fl.optim.Adam(0.1), average=False)
    ranks.everywhere(lambda: d.gather(sharded.init(model), model), r"sharded\.gather\(state\)")
    ranks.everywhere(lambda: d.gather(model, model), "has none")
    other = fl.optim.Adam(0.1).init(d.gather(model))
    ranks.everywhere(
        lambda: d.gather(d.shard(other, model), d.fully_shard(fl.nn.Sequential(fl.nn.Linear(2, 4 * SIZE)))), "can't be told"
    )


class Mlp(mlx.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = mlx.nn.Linear(4, 4 * SIZE)
        self.down = mlx.nn.QuantizedLinear(32 * SIZE, 3, group_size=32)
        self.out = mlx.nn.Linear(4 * SIZE, 2)

    def __call__(self, x):
        return self.out(mlx.nn.relu(self.up(x)))


def check_layers_that_mlx_divided_are_known():
    mx.random.seed(0)
    theirs = Mlp()
    whole = fl.from_mlx(theirs)
    theirs.up = shard_linear(theirs.up, "all-to-sharded", group=GROUP.mlx)
    theirs.down = shard_linear(theirs.down, "sharded-to-all", group=GROUP.mlx)
    theirs.out = shard_linear(theirs.out, "sharded-to-all", group=GROUP.mlx)
    divided = fl.from_mlx(theirs)
    x = mx.random.normal((5, 4))
    assert mx.allclose(divided(x), whole(x), atol=1e-6)
    assert type(divided).__mlx__ is Mlp
    assert fl.tree.equal(d.gather(divided), fl.convert(whole))
    d.require_same(divided)
    grads = fl.grad(lambda model: model(x).square().sum())(divided)
    assert fl.tree.equal(d.average_gradients(grads).up, grads.up)
    found, expected = (
        fl.optim.clip_grad_norm(fl.grad(lambda model: model(x).square().sum())(model), 0.1)[1] for model in (divided, whole)
    )
    assert mx.allclose(found, expected)
    alone = mlx.nn.AllToShardedLinear(2, SIZE, group=GROUP.mlx)
    assert fl.from_mlx(alone).weight.shape == (1, 2)
    assert mx.array_equal(fl.to_mlx(fl.from_mlx(alone))(x[:, :2]), alone(x[:, :2]))


SAVED = {
    "save_weights": lambda model, file: model.save_weights(file),
    "save": lambda model, file: fl.save(file, {"model": model, "step": 3}),
}


def check_files_of_parts_are_told_of():
    with tempfile.TemporaryDirectory() as folder:
        for (name, save), (number, model) in itertools.product(SAVED.items(), enumerate(models())):
            file = f"{folder}/{name}{number}.safetensors"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                save(model, file)
                save(d.gather(model), f"{folder}/whole.{name}{number}.safetensors")
            told = [each for each in caught if each.category is fl.PartialWeightsWarning]
            assert len(told) == (number != 4), (name, number, told)  # the last is whole
            for each in told:
                assert re.search(rf"the part of rank {RANK} alone of .*weight.*fl\.distributed\.gather\(", str(each.message))
                assert each.filename == __file__
        whole = fl.lora(d.broadcast(fl.nn.Sequential(fl.nn.Linear(2 * SIZE, 4 * SIZE))), "layers.*", rank=SIZE)
        said = ranks.error_of(lambda: fl.save_adapters(d.fully_shard(whole), folder), ValueError)
        assert re.search(r"lora_a.*, of which each rank has a part.*fl\.distributed\.gather\(model\)", said)
        fl.save_adapters(d.gather(d.fully_shard(whole)), folder)


def check_what_a_divided_layer_does_not_do_says_what_does():
    whole = d.broadcast(fl.nn.Linear(4, 2 * SIZE))
    divided, linear = d.fully_shard(whole), d.shard_linear(whole, "all-to-sharded")
    weights = dict(zip(fl.tree.paths(whole), fl.tree.leaves(whole), strict=True))
    for model in (divided, linear):
        said = ranks.error_of(lambda: model.load_weights(weights), ValueError)  # noqa: B023
        assert "load whole weights into the whole model, and divide that" in said
        assert ".. " not in said
        said = ranks.error_of(lambda: fl.nn.Sequential(model).load_weights(weights), ValueError)  # noqa: B023
        assert re.search(r"[^.]\. Each rank has a part", said)
    assert not hasattr(divided, "weight")
    assert "write .module.weight" in ranks.error_of(lambda: divided.weight, AttributeError)
    assert "model.at('layers.*')" in ranks.error_of(lambda: d.fully_shard(fl.nn.Linear(2, 2 * SIZE + 1)), ValueError)
    for odd in (fl.nn.Linear(2, 2 * SIZE + 1), fl.quantize(fl.nn.Linear(64, 2 * SIZE + 1))):
        said = ranks.error_of(lambda: d.shard_linear(odd, "all-to-sharded"), ValueError)  # noqa: B023
        assert re.search(r"the \d+ of its axis 0 can't be divided.* whole.*\"sharded-to-all\" its inputs", said)
        said = ranks.error_of(lambda: d.shard([odd], "all-to-sharded"), ValueError)  # noqa: B023
        assert "a function of paths and arrays as sharding, which returns None" in said
        assert fl.tree.equal(d.shard([odd], lambda path, array: None), [odd])
    adapted = fl.lora(fl.nn.Sequential(whole), "layers.*", rank=2)
    said = ranks.error_of(lambda: adapted.at("layers.0").apply(lambda each: d.shard_linear(each, "all-to-sharded")), ValueError)
    assert "fl.fuse(model)" in said
    chain = fl.optim.chain(d.average_gradients, fl.optim.Adam(0.1))
    assert "fl.optim.flatten(opt))" in ranks.error_of(lambda: fl.optim.flatten(chain), TypeError)


if __name__ == "__main__":
    ranks.run(globals())
