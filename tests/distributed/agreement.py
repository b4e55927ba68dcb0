"""Checks of what is compared before ranks exchange parts of arrays, run by each of several ranks."""

import functools
import re

import mlx.core as mx
import ranks

import frostleaf as fl
from frostleaf.transforms import agreement, collectives

d = fl.distributed
GROUP = d.init()
RANK, SIZE = GROUP.rank(), GROUP.size()
LAST = RANK == SIZE - 1


def on_one(bad, good):
    """Return one of two values, the first of them on the last rank alone."""
    return bad if LAST else good


def differs(call, *parts):
    """Require that a call with arguments that differ is an error on every rank, and that the group goes on working."""
    ranks.everywhere(call, "alike on all ranks", *parts)


def fails_on_one(call, said, kind=ValueError):
    """Require that what fails on one rank alone is its own error there, which the others tell of."""
    if LAST:
        assert said in ranks.error_of(call, kind)
        assert d.all_sum(mx.array(SIZE)).item() == SIZE * (SIZE + 1) // 2
    else:
        ranks.everywhere(call, rf"on rank {SIZE - 1}: .*{re.escape(said)}")


def linear(outputs=2 * SIZE, dtype=mx.float32):
    return fl.nn.Linear(2 * SIZE, outputs, dtype=dtype, key=mx.random.key(0))


def check_gathering():
    whole = linear()
    divided = d.fully_shard(whole)
    differs(lambda: d.gather({on_one("a", "b"): divided}), r"b\.module\.weight is f32\[2,\d\] as .* and nothing on rank")
    differs(lambda: d.gather(on_one([divided, divided], [divided])), r"1\.module\.bias is nothing on rank 0")
    half = d.fully_shard(whole.astype(mx.float16))
    differs(lambda: d.gather(on_one(half, divided)), r"module\.weight is f32.* and f16")
    rows, columns = (d.shard_linear(whole, way) for way in ("all-to-sharded", "sharded-to-all"))
    differs(lambda: d.gather(on_one(rows, columns)), r"weight is .* of axis -1 on rank 0 and .* of axis 0 on rank")
    pair = {"x": rows, "y": rows.at("weight").apply(mx.zeros_like)}
    differs(lambda: d.gather(dict(reversed(pair.items())) if LAST else pair), "the order of the paths differs")
    assert fl.tree.equal(d.gather(pair)["x"], whole)


def check_gathering_states():
    divided = d.fully_shard(linear())
    adam, momentum = fl.optim.Adam(0.1).init(divided), fl.optim.SGD(0.1, momentum=0.9).init(divided)
    differs(lambda: d.gather(on_one(adam, momentum), divided), r"slots\.module\.weight\.m is nothing on rank 0")
    whole = d.gather(adam, divided)
    differs(lambda: d.shard(on_one(d.gather(momentum, divided), whole), divided), r"slots\.weight\.m is f32.* nothing on")
    other = fl.optim.Adam(0.1).init(d.fully_shard(linear(4 * SIZE)))
    fails_on_one(lambda: d.gather(on_one(other, adam), divided), "can't be told")
    fails_on_one(lambda: d.gather(on_one(divided, adam), divided), "has none")
    assert fl.tree.equal(d.shard(whole, divided), adam)


def check_states_that_are_not_by_name_are_refused():
    whole = fl.nn.Sequential(linear(), fl.nn.relu, linear())
    rows = whole.at("layers.0").apply(lambda layer: d.shard_linear(layer, "all-to-sharded"))
    flattened, plain = fl.optim.flatten(fl.optim.Adam(0.1)), fl.optim.Adam(0.1)
    for model in (rows, d.fully_shard(whole), whole.at("layers.2").apply(d.fully_shard)):
        for opt in (flattened, fl.optim.ema(flattened, 0.5)):
            for state in (opt.init(model), (1, [opt.init(model)])):
                ranks.everywhere(lambda: d.gather(state, model), r"vectors\.float32\.m is f32\[\d+\]", "can't be told")  # noqa: B023
        ranks.everywhere(lambda: d.shard(flattened.init(whole), model), "can't be told")  # noqa: B023
        packed = fl.optim.pack(model)
        ranks.everywhere(lambda: d.gather(packed), r"packed\.unpack\(\)")  # noqa: B023
        ranks.everywhere(lambda: d.gather({"a": packed}), "a has some")  # noqa: B023
        ranks.everywhere(lambda: d.gather(flattened.init(packed), packed), r"packed\.unpack\(\)")  # noqa: B023
        fails_on_one(lambda: d.gather(on_one(flattened, plain).init(model), model), "can't be told")  # noqa: B023
    assert d.gather(fl.optim.pack(whole)).layout.places  # of whole arrays
    state = flattened.init(whole)
    assert fl.tree.equal(d.gather(state, whole), state)
    multi = fl.optim.multi({"layers.0.**": plain, "layers.2.**": fl.optim.Adafactor()})
    state, expected = multi.init(rows), multi.init(whole)
    assert fl.tree.structure(d.gather(state, rows)) == fl.tree.structure(expected)
    assert fl.tree.equal(d.gather(state, rows), expected)


def check_dividing():
    way = "all-to-sharded"
    differs(lambda: d.shard_linear(linear(on_one(4, 2) * SIZE), way), r"weight is f32\[2,\d\].* and f32\[4,\d\]")
    differs(lambda: d.shard_linear(linear(), on_one("sharded-to-all", way)), r"sharding is all-to-sharded on rank 0")
    differs(lambda: d.shard_linear(linear(), way, segments=on_one(2, 1)), "segments is 1 on rank 0 and 2 on rank")
    fails_on_one(lambda: d.shard_linear(linear(2 * SIZE + on_one(1, 0)), way), "can't be divided")
    fails_on_one(lambda: d.shard_linear(on_one(fl.nn.ReLU(), linear()), way), "takes a Linear")
    arrays = {"w": mx.zeros((2 * SIZE, 2 * SIZE))}
    differs(lambda: d.shard(arrays, on_one(lambda *_: 1, lambda *_: 0)), r"the part of w is f32\[2,\d\] on rank 0")
    differs(lambda: d.shard({"w": mx.zeros((2 + 2 * LAST) * SIZE)}, lambda *_: 0), r"\bw is f32")
    fails_on_one(lambda: d.shard({"w": mx.zeros(2 * SIZE + LAST)}, lambda *_: 0), "can't shard w")
    fails_on_one(lambda: d.shard(arrays, lambda *_: on_one("0", 0)), "returned '0'")
    fails_on_one(lambda: d.shard(arrays, lambda *_: on_one({}, {1: 0})[1]), "1", KeyError)
    fails_on_one(lambda: d.shard(arrays, on_one("x", way)), "sharding is")
    differs(lambda: d.fully_shard(linear(), on_one(mx.float16, None)), "compute_dtype is None on rank 0 and .*float16")
    differs(lambda: d.fully_shard(linear(dtype=on_one(mx.float16, mx.float32))), r"module\.weight is f32")
    fails_on_one(lambda: d.fully_shard(linear(2 * SIZE + LAST)), "can't shard weight")
    fails_on_one(lambda: d.fully_shard(on_one(3, linear())), "takes a module", TypeError)
    for divide in (functools.partial(d.shard_linear, sharding=way), d.fully_shard):
        assert fl.tree.equal(d.gather(divide(linear())), linear())


def check_traces_and_shapes_compare_nothing():
    if RANK == 0:
        shapes = fl.eval_shape(lambda: d.shard_linear(linear(), "all-to-sharded"))
        assert d.gather(shapes).weight.shape == (2 * SIZE, 2 * SIZE)
        assert d.gather(linear()).weight.shape == (2 * SIZE, 2 * SIZE)
    out = fl.jit(lambda layer: d.gather(layer))(d.fully_shard(linear()))
    assert fl.tree.equal(out, linear())


def check_clipping():
    shards = d.fully_shard(linear())
    for clip, grads in ((d.clip_grad_norm_sharded, {"a": mx.ones(2)}), (fl.optim.clip_grad_norm, shards)):
        differs(lambda: clip(grads, on_one(2.0, 1.0)), "max_norm is 1.0 on rank 0 and 2.0 on rank")  # noqa: B023
        fails_on_one(lambda: clip(grads, on_one(-1.0, 1.0)), "0 or more")  # noqa: B023
    differs(lambda: d.clip_grad_norm_sharded({"a": mx.ones(2 + LAST)}, 1.0), r"a is f32\[2\] on rank 0 and f32\[3\]")
    differs(lambda: d.clip_grad_norm_sharded({"a": on_one(None, mx.ones(2))}, 1.0), r"a is f32\[2\] on rank 0 and nothing")
    one_less = shards.at("module.bias").set(None)
    differs(lambda: fl.optim.clip_grad_norm(on_one(one_less, shards), 1.0), r"module\.bias is f32.* and nothing")


class Net(fl.Module):
    w: mx.array
    b: mx.array | None


def net(size=6 * SIZE, dtype=mx.float32):
    return Net(mx.ones(size, dtype), mx.ones(2 * SIZE, dtype))


def update(opt, model, grads=None, of=None):
    """Return a call of an update."""
    state = opt.init(model if of is None else of)
    return lambda: opt.update(model, model if grads is None else grads, state)


def check_updates_of_sharded_optimizers():
    plain = fl.optim.SGD(0.5)
    for wrap in (
        functools.partial(fl.optim.shard, average=False),
        functools.partial(fl.optim.shard, average=True),
        lambda opt: fl.optim.chain(d.average_gradients, fl.optim.shard(opt)),
        lambda opt: fl.optim.ema(fl.optim.shard(opt, average=False), 0.5),
    ):
        opt, model = wrap(plain), net()
        differs(update(opt, on_one(net(7 * SIZE), model)), r"w is f32\[\d+\] with a gradient .* on rank 0 and f32\[\d+\]")
        differs(update(opt, on_one(net(dtype=mx.float16), model)), r"w is f32.* and f16")
        half = fl.tree.map(lambda array: array.astype(mx.float16), model)
        differs(update(opt, model, on_one(half, model)), r"with a gradient f16\[\d+\]")
        frozen = model.freeze(keys="b")
        differs(update(opt, on_one(frozen, model)), r"b is f32.* on rank 0 and nothing on rank")
        one, other = ({"x": mx.ones(4), "y": mx.zeros(4)}, {"y": mx.zeros(4), "x": mx.ones(4)})
        differs(update(opt, on_one(one, other)), "the order of the paths differs")
        differs(update(opt, on_one({"a": mx.ones(4)}, {"b": mx.ones(4)})), r"b is .* on rank 0 and nothing on rank")
        fails_on_one(update(opt, model, on_one(frozen.at("b").set(None), model)), "there is no gradient for 'b'")
        fails_on_one(update(opt, on_one(frozen, model), model, of=model), "'b' is not trainable")
        state = opt.init(model)
        fails_on_one(lambda: opt.update(model, model, on_one(plain.init(model), state)), "takes the state", TypeError)  # noqa: B023
        differs(lambda: opt.adapt(state, on_one(frozen, model)), r"\bb is f32.* and nothing")  # noqa: B023
        assert fl.tree.equal(opt.update(model, model, state)[0], plain.update(model, model, plain.init(model))[0])
    unlike = fl.optim.SGD(on_one(0.5, 0.25))
    differs(update(fl.optim.shard(unlike, average=False), net()), r"0\.25, .* on rank 0 and .* 0\.5, .* on rank")
    differs(update(fl.optim.shard(plain, average=LAST), net()), "average is False on rank 0 and True on rank")


def check_an_update_compares_once():
    compared = []

    def all_gather(x, group):
        compared.append(x.dtype)
        return collectives.all_gather(x, group)

    agreement.all_gather = all_gather
    model, rest = net(), functools.partial(d.average_gradients, all_reduce_size=60)
    for opt, count in (
        (fl.optim.chain(d.average_gradients, fl.optim.SGD(0.1)), 1),
        (fl.optim.chain(d.average_gradients, fl.optim.shard(fl.optim.SGD(0.1))), 1),
        (fl.optim.shard(fl.optim.SGD(0.1), average=True), 1),
        (fl.optim.chain(rest, fl.optim.shard(fl.optim.SGD(0.1))), 2),
        (fl.optim.SGD(0.1), 0),
    ):
        update(opt, model)()
        assert len(compared) == count, opt
        compared.clear()
    agreement.all_gather = collectives.all_gather


def check_states_of_sharded_optimizers():
    opt, model = fl.optim.shard(fl.optim.Adam(0.1), average=False), net()
    state, other = opt.init(model), opt.init(net(7 * SIZE))
    differs(lambda: opt.gather(on_one(other, state)), r"slots\.w\.m is f32\[6\] of \(\d+,\) on rank 0 and f32\[7\] of")
    whole = opt.gather(state)
    differs(lambda: opt.scatter(on_one(opt.optimizer.init(net(7 * SIZE)), whole)), r"slots\.w\.m is f32")
    fails_on_one(lambda: opt.gather(on_one(whole, state)), "opt.scatter(state)", TypeError)
    fails_on_one(lambda: opt.scatter(on_one(state, whole)), "from opt.gather(state)", TypeError)
    fails_on_one(lambda: opt.scatter(whole, on_one(net(7 * SIZE), model)), "is not the state of this optimizer and model")
    assert fl.tree.equal(opt.scatter(whole), state)


def check_a_compiled_update_compares_nothing():
    opt, model = fl.optim.shard(fl.optim.SGD(0.5), average=False), net()
    step = fl.jit(opt.update)
    assert fl.tree.equal(step(model, model, opt.init(model))[0], opt.update(model, model, opt.init(model))[0])
    if RANK == 0:
        fl.eval_shape(opt.update, model, model, opt.init(model))
    assert step.trace_count == 1


class Named(fl.Module):
    w: mx.array
    value: object = fl.static()


class Opaque:
    """Is told of by its class alone."""


def check_static_values_are_compared():
    layer = d.broadcast(fl.nn.Linear(2, 2))
    double, triple = (lambda x: 2 * x), (lambda x: 3 * x)
    pairs = [
        (fl.nn.Dropout(0.2), fl.nn.Dropout(0.1), r"f\._?\w+ is 0\.\d+ on rank 0 and 0\.\d+ on rank"),
        (fl.nn.Identity(), fl.nn.ReLU(), "f is frostleaf.nn.ReLU on rank 0 and frostleaf.nn.Identity on rank"),
        (layer.freeze(), layer, r"f \(frozen\) is nothing on rank 0 and bias, weight on rank"),
        (layer.eval(), layer, r"f \(mode\) is training on rank 0 and evaluation on rank"),
        (fl.nn.GELU("tanh"), fl.nn.GELU(), "'none' on rank 0 and 'tanh' on rank"),
        (triple, double, r"f is .*<lambda> with code \w+ on rank 0"),
        (1.0, 1, "f is 1 on rank 0 and 1.0 on rank"),
        ("b", "a", "f is 'a' on rank 0 and 'b' on rank"),
        (Named(mx.ones(1), (1, "b")), Named(mx.ones(1), (1, "a")), r"f\.value is \(1, 'a'\) on rank 0"),
        (Named(mx.ones(1), mx.float16), Named(mx.ones(1), mx.float32), r"f\.value is .*float32 on rank 0"),
    ]
    for last, others, said in pairs:
        for compare in (d.require_same, d.broadcast):
            ranks.everywhere(lambda: compare({"f": on_one(last, others)}), said)  # noqa: B023


def check_static_values_of_other_processes_are_the_same():
    values = (
        fl.nn.relu, mx.exp, len, Opaque(), Opaque, functools.partial(fl.nn.gelu, Opaque()), frozenset(map(str, range(40))),
        lambda x: x in {"a", "b", "c"}, {"k": [1, None]}, d.gather, fl.optim.cosine_decay(0.1, 3), GROUP, Opaque().__init__,
        lambda x: [y for y in x if (lambda: y)()], ..., 1j, float("nan"), b"\xff", "\ud800", int, mx.float32, slice(1, 2),
    )  # fmt: skip
    for value in values:
        for tree in (Named(mx.ones(1), value), {"f": value}):
            d.require_same(tree)
            d.broadcast(tree)
    model = fl.nn.Transformer(8, 1, 1, 1)
    d.require_same(d.broadcast(model))
    d.require_same(d.fully_shard(d.broadcast(fl.nn.Linear(2, 2 * SIZE))))
    d.require_same(fl.optim.Adam(0.1).init(d.broadcast(linear())))


def check_what_waits_is_called_outside_of_traces():
    for name, call in (("barrier", lambda x: d.barrier()), ("require_same", d.require_same)):
        said = ranks.error_of(lambda: fl.jit(lambda x: (call(x), x.sum())[1])(mx.ones(2)), ValueError)  # noqa: B023
        assert f"{name} waits for other ranks" in said, said
        assert "mx.where" not in said
        assert d.all_sum(mx.array(1)).item() == SIZE
    d.barrier()


def check_ranks_that_are_out_of_step_are_told_so():
    differs(lambda: d.all_sum(mx.ones(2)) if LAST else d.barrier(), "out of step, as they are if one goes on after an error")


if __name__ == "__main__":
    d.init(timeout=30)
    ranks.run(globals())
