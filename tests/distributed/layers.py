"""Checks of sharded layers against MLX's, run by each of several ranks."""

import gc
import pickle
import tempfile
from itertools import product

import mlx.core as mx
import mlx.nn
import ranks
from mlx.nn.layers.distributed import fully_shard as mlx_fully_shard
from mlx.nn.layers.distributed import shard_inplace
from mlx.nn.layers.distributed import shard_linear as mlx_shard_linear
from mlx.nn.utils import clip_grad_norm_sharded as mlx_clip
from mlx.utils import tree_flatten

import frostleaf as fl
import frostleaf.distributed
from frostleaf.transforms.collectives import all_gather, all_sum
from frostleaf.transforms.group import world
from frostleaf.transforms.shards import shards_in

GROUP = world()
RANK, SIZE = GROUP.rank(), GROUP.size()
WAYS = "all-to-sharded", "sharded-to-all"
FUSED = [1 / 2, 3 / 4]
DTYPES = mx.float32, mx.float16, mx.bfloat16


def bits(tree):
    """Return the names, dtypes, shapes and bytes of the arrays of a tree of dicts and lists."""
    mx.eval(tree)
    return [(name, array.dtype, array.shape, bytes(mx.view(array.flatten(), mx.uint8))) for name, array in tree_flatten(tree)]


def drawn(shape, dtype=mx.float32, seed=0):
    """Return an array that is the same on all ranks."""
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def part(x, segments=1):
    """Return this rank's part of the last axis of an input."""
    cuts = segments if segments == 1 else [int(each * x.shape[-1]) for each in segments]
    return mx.concatenate([mx.split(each, SIZE, axis=-1)[RANK] for each in mx.split(x, cuts, axis=-1)], axis=-1)


def linear(inputs=8 * SIZE, outputs=8 * SIZE, bias=True, dtype=mx.float32):
    """Return a layer that is the same on all ranks, and its twin of MLX."""
    ours = fl.nn.Linear(inputs, outputs, bias, dtype=dtype, key=mx.random.key(1))
    return ours, fl.to_mlx(ours)


def quantized(mode="affine", bias=True):
    ours = fl.nn.QuantizedLinear(64 * SIZE, 8 * SIZE, bias, mode=mode, key=mx.random.key(1))
    ours = ours.replace(bias=drawn((8 * SIZE,))) if bias else ours
    return ours, fl.to_mlx(ours)


def stack():
    return fl.nn.Sequential(
        fl.nn.Linear(4, 4 * SIZE, key=mx.random.key(1)),
        fl.nn.tanh,
        fl.nn.Linear(4 * SIZE, 2 * SIZE, key=mx.random.key(2)),
    )


def loss(model, x):
    return model(x).square().mean()


def compare(ours, theirs, x):
    """Compare outputs and gradients with those of MLX's layer."""
    assert bits(ours.parameters()) == bits(theirs.parameters())
    assert bits(ours.trainable_parameters()) == bits(theirs.trainable_parameters())
    out = theirs(x)
    assert bits(ours(x)) == bits(out)
    weights = drawn(out.shape, out.dtype, RANK)

    def our_loss(parameters, x):
        return (ours.update(parameters)(x) * weights).sum()

    def their_loss(parameters, x):
        theirs.update(parameters)
        return (theirs(x) * weights).sum()

    parameters = theirs.trainable_parameters()
    argnums = [0, 1] if parameters else [1]
    expected = bits(mx.grad(their_loss, argnums)(parameters, x))
    theirs.update(parameters)
    assert bits(mx.grad(our_loss, argnums)(parameters, x)) == expected


def check_linear_layers_are_those_of_mlx():
    for way, dtype, bias, segments in product(WAYS, DTYPES, (True, False), (1, FUSED)):
        if dtype == mx.float32 or bias:
            ours, theirs = linear(16 * SIZE, 16 * SIZE, bias, dtype)
            x = drawn((3, 16 * SIZE), dtype)
            x = x if way == WAYS[0] else part(x, segments)
            sharded = fl.distributed.shard_linear(ours, way, segments)
            compare(sharded, mlx_shard_linear(theirs, way, segments=segments), x)
            assert bits(fl.distributed.gather(sharded).parameters()) == bits(ours.parameters())


def check_quantized_layers_are_those_of_mlx():
    for way, mode, segments in product(WAYS, ("affine", "mxfp4", "nvfp4", "mxfp8"), (1, 2)):
        ours, theirs = quantized(mode, bias=mode != "nvfp4")
        if way == WAYS[1] and segments == 2:  # a group would be cut
            segments = 1
        x = drawn((3, 64 * SIZE))
        x = x if way == WAYS[0] else part(x)
        sharded = fl.distributed.shard_linear(ours, way, segments)
        compare(sharded, mlx_shard_linear(theirs, way, segments=segments), x)
        assert fl.tree.equal(fl.distributed.gather(sharded), ours)


def check_new_layers_draw_what_mlx_draws():
    names = ["AllToShardedLinear", "ShardedToAllLinear", "QuantizedAllToShardedLinear", "QuantizedShardedToAllLinear"]
    for name, bias in product(names, (True, False)):
        mx.random.seed(3)
        ours = getattr(fl.nn, name)(64 * SIZE, 64 * SIZE, bias)
        mx.random.seed(3)
        theirs = getattr(mlx.nn, name)(64 * SIZE, 64 * SIZE, bias)
        assert bits(ours.parameters()) == bits(theirs.parameters())
        assert bits(ours.trainable_parameters()) == bits(theirs.trainable_parameters())


def check_a_key_draws_another_part_on_each_rank():
    key = mx.random.key(4)
    for layer in fl.nn.AllToShardedLinear(4, 2 * SIZE, key=key), fl.nn.ShardedToAllLinear(2 * SIZE, 4, key=key):
        parts = [each.tolist() for each in all_gather(layer.weight[None])]
        assert all(one != other for at, one in enumerate(parts) for other in parts[:at])
    assert bits(all_gather(layer.bias[None])[0]) == bits(layer.bias)


def check_what_was_frozen_is():
    ours, _ = linear()
    frozen = fl.distributed.shard_linear(ours.freeze(keys="bias").eval(), WAYS[0])
    assert list(frozen.trainable_parameters()) == ["weight"]
    assert not frozen.training
    assert fl.tree.equal(fl.distributed.gather(frozen), ours.freeze(keys="bias").eval())
    assert list(fl.distributed.shard_linear(quantized()[0].unfreeze(), WAYS[0]).trainable_parameters()) == ["bias"]


def check_an_edit_of_a_model_computes_what_the_whole_does():
    model = stack()
    split = model.at("layers.0").apply(lambda layer: fl.distributed.shard_linear(layer, WAYS[0]))
    split = split.at("layers.2").apply(lambda layer: fl.distributed.shard_linear(layer, WAYS[1]))
    x = drawn((5, 4))
    for transform in (lambda fn: fn, fl.jit):
        (value, (grads, dx)) = transform(fl.value_and_grad(loss, (0, 1)))(split, x)
        (whole, (whole_grads, whole_dx)) = fl.value_and_grad(loss, (0, 1))(model, x)
        assert fl.tree.allclose(value, whole)
        assert fl.tree.allclose(dx, whole_dx)
        assert fl.tree.allclose(fl.distributed.gather(grads), whole_grads)
    assert fl.tree.equal(fl.distributed.gather(split), model)
    assert type(pickle.loads(pickle.dumps(split)).layers[0].group) is type(GROUP)
    step = fl.jit(lambda model, x: model(x))
    step(split, x)
    step(pickle.loads(pickle.dumps(split)), x)
    assert step.trace_count == 1


def check_the_order_is_that_of_the_program():
    first, second = (fl.distributed.shard_linear(linear()[0].astype(dtype), WAYS[1]) for dtype in (mx.float32, mx.float32))
    inner = fl.distributed.shard_linear(linear()[0], WAYS[0])
    x = drawn((2, 8))
    results = [first(x), fl.grad(lambda x: inner(x).sum())(drawn((2, 8 * SIZE))), second(2 * x), all_sum(mx.array(1.0))]
    expected = [first.replace(bias=None)(x), None, second.replace(bias=None)(2 * x)]
    mx.eval(expected[0], expected[2]) if RANK else mx.eval(expected[2], expected[0])
    for at in range(4) if RANK else range(3, -1, -1):
        mx.eval(results[at])
    assert fl.tree.allclose(results[0], expected[0] + first.bias)
    assert fl.tree.allclose(results[2], expected[2] + first.bias)
    assert results[3].item() == SIZE


def check_arrays_sharded_alone_are_those_of_mlx():
    module = lambda nn: nn.MultiHeadAttention(8 * SIZE, 2)  # noqa: E731
    ours = module(fl.nn)
    for way, segments in [(WAYS[0], 1), (WAYS[1], 1), (WAYS[0], 2), (lambda path, array: (0, 2) if "key" in path else None, 1)]:
        theirs = fl.to_mlx(ours)
        shard_inplace(theirs, way, segments=segments)
        sharded = fl.distributed.shard(ours, way, segments)
        assert bits(sharded.parameters()) == bits(theirs.parameters())
        assert fl.tree.equal(fl.distributed.gather(sharded), ours)
    assert sharded.query_proj is ours.query_proj
    shapes = fl.distributed.shard(fl.eval_shape(lambda: ours), WAYS[0])
    assert shapes.query_proj.weight == fl.ShapeDtypeStruct((8, 8 * SIZE), mx.float32)


def check_a_note_of_what_is_a_shard_goes_with_the_module():
    ours = fl.nn.Sequential(fl.nn.Linear(4, 2 * SIZE, key=mx.random.key(1)), fl.nn.Linear(2, 2).freeze())
    sharded = fl.distributed.shard(ours, lambda path, array: 0 if path.startswith("layers.0") else None)
    told = shards_in(fl.tree.structure(sharded))
    assert [len(each) for each in told] == [1, 1, 0, 0]
    x = drawn((3, 4))
    gradients = fl.grad(lambda model, x: model.layers[0](x).sum())
    step = fl.jit(lambda model, x: (model.astype(mx.float16), gradients(model, x)))
    for each in (
        *step(sharded, x),
        *step(pickle.loads(pickle.dumps(sharded)), x),
        gradients(sharded, x),
        fl.grad(fl.checkpoint(lambda model, x: model.layers[0](x).sum()))(sharded, x),
        sharded.eval(),
        fl.tree.map(lambda leaf: leaf + 1, sharded),
        sharded.at("layers.0.weight").apply(mx.zeros_like),
        sharded.update({"layers": [{"bias": mx.zeros(2)}]}),
    ):
        assert [len(each) for each in shards_in(fl.tree.structure(each))][:2] == [1, 1]
        assert fl.distributed.gather(each).layers[0].weight.shape == (2 * SIZE, 4)
    assert step.trace_count == 1
    step(sharded.replace(layers=ours.layers), x)
    assert step.trace_count == 2
    assert "shards" in step.explain()
    difference = fl.tree.diff(ours.layers[0], fl.tree.map(lambda leaf: leaf, fl.distributed.gather(sharded).layers[0]))
    assert not difference
    (noted,) = [each for each in fl.tree.diff(ours, sharded) if each.kind == "shards"]
    assert noted.after == {f"weight: 1/{SIZE} of axis 0", f"bias: 1/{SIZE} of axis 0"}
    with raises(ValueError, "layers.0.weight", f"1/{SIZE} of axis 0", "gather"):
        fl.distributed.shard(sharded, WAYS[0])
    with raises(ValueError, "gather it first"):
        fl.distributed.shard_linear(sharded.layers[0], WAYS[0])
    wrapped = fl.distributed.shard(fl.from_mlx(fl.to_mlx(ours)), lambda path, array: 0 if path.startswith("layers.0") else None)
    _, after = fl.stateful(wrapped.layers[0], x)
    assert len(shards_in(fl.tree.structure(after))[0]) == 1
    with tempfile.TemporaryDirectory() as folder:
        for tree in sharded, fl.distributed.shard_linear(linear()[0], WAYS[1]), fl.distributed.fully_shard(linear()[0]):
            fl.save(f"{folder}/tree.safetensors", tree)
            assert fl.tree.equal(fl.load(f"{folder}/tree.safetensors", tree), tree)
            with raises(ValueError):
                fl.load(f"{folder}/tree.safetensors", fl.distributed.gather(tree))


def check_weight_files_go_both_ways():
    with tempfile.TemporaryDirectory() as folder:
        for way, make, by_mlx in [
            (WAYS[0], linear, mlx_shard_linear),
            (WAYS[1], linear, mlx_shard_linear),
            (WAYS[0], quantized, mlx_shard_linear),
            (WAYS[1], quantized, mlx_shard_linear),
            (None, linear, lambda module, way: mlx_fully_shard(module)),
        ]:
            ours, theirs = make()
            divide = lambda layer: fl.distributed.shard_linear(layer, way) if way else fl.distributed.fully_shard(layer)  # noqa: B023, E731
            ours, theirs = divide(ours), by_mlx(theirs, way)
            ours.save_weights(f"{folder}/ours.safetensors")
            theirs.save_weights(f"{folder}/theirs.safetensors")
            other = divide(make()[0].apply(mx.zeros_like))
            assert bits(other.load_weights(f"{folder}/theirs.safetensors").parameters()) == bits(theirs.parameters())
            theirs.load_weights(f"{folder}/ours.safetensors")
            assert bits(theirs.parameters()) == bits(ours.parameters())


def check_fully_sharded_forward_is_that_of_mlx():
    for dtype, compute in product(DTYPES, (None, mx.float16, mx.float32)):
        ours, theirs = linear(dtype=dtype)
        ours = fl.distributed.fully_shard(ours, compute)
        theirs = mlx_fully_shard(theirs, compute_dtype=compute)
        assert bits(ours.parameters()) == bits(theirs.parameters())
        x = drawn((3, 8 * SIZE), dtype)
        assert bits(ours(x)) == bits(theirs(x))
        assert bits(fl.distributed.gather(ours).parameters()) == bits(linear(dtype=dtype)[0].parameters())
    table = fl.distributed.fully_shard(fl.nn.Embedding(4 * SIZE, 8))
    assert table.as_linear(drawn((3, 8))).shape == (3, 4 * SIZE)
    assert table(mx.arange(3)).shape == (3, 8)


def mean_gradients(model, x):
    return fl.tree.map(lambda gradient: all_sum(gradient) / SIZE, fl.grad(loss)(model, x))


def check_fully_sharded_training_is_that_of_the_whole():
    whole, x = stack(), drawn((4, 4), seed=RANK)
    each = whole.map_modules(lambda _, module: fl.distributed.fully_shard(module) if isinstance(module, fl.nn.Linear) else None)
    for divided in fl.distributed.fully_shard(whole), each, fl.distributed.fully_shard(each):
        assert bits(fl.distributed.gather(divided).parameters()) == bits(whole.parameters())
        assert max(array.size for array in fl.tree.leaves(divided)) == 8 * SIZE
        for gradient in fl.jit(fl.grad(loss)), fl.grad(fl.checkpoint(loss)):
            found = fl.distributed.gather(gradient(divided, x))
            assert fl.tree.allclose(found, mean_gradients(whole, x), rtol=1e-5, atol=1e-7)
        assert bits(fl.distributed.gather(fl.grad(loss)(divided, x)).parameters()) == bits(
            mean_gradients(whole, x).parameters()
        )
    trained = fl.distributed.fully_shard(whole)
    opt = fl.optim.AdamW(1e-2)
    state, whole_state = opt.init(trained), opt.init(whole)

    @fl.jit
    def step(model, state, x):
        return opt.update(model, fl.grad(loss)(model, x), state)

    for _ in range(3):
        trained, state = step(trained, state, x)
        whole, whole_state = opt.update(whole, mean_gradients(whole, x), whole_state)
    assert fl.tree.allclose(fl.distributed.gather(trained), whole, rtol=1e-5, atol=1e-7)
    assert step.trace_count == 1


def check_fully_sharded_computes_the_gradients_of_mlx_where_it_can():
    """MLX has no sum_scatter on the ring: compare with its own gather, given one that is made of a sum."""
    before = mx.distributed.sum_scatter
    mx.distributed.sum_scatter = lambda x, group: mx.split(mx.distributed.all_sum(x, group=group), SIZE)[RANK]
    try:
        for compute in None, mx.float16:
            ours, theirs = linear()
            ours, theirs = fl.distributed.fully_shard(ours, compute), mlx_fully_shard(theirs, compute_dtype=compute)
            compare(ours, theirs, drawn((3, 8 * SIZE), seed=RANK))
    finally:
        mx.distributed.sum_scatter = before


def check_each_dtype_is_gathered_apart():
    layers = fl.nn.Sequential(
        fl.nn.Linear(64, 4 * SIZE, dtype=mx.bfloat16, key=mx.random.key(1)),
        fl.nn.QuantizedLinear(64, 4 * SIZE, key=mx.random.key(2)),
        fl.nn.Linear(64, SIZE, key=mx.random.key(3)).freeze(),
    )
    divided = fl.distributed.fully_shard(layers)
    x = drawn((2, 64), mx.bfloat16)
    for at, layer in enumerate(layers.layers):
        found = fl.distributed.fully_shard(layer)(x)
        assert found.dtype == layer(x).dtype
        assert fl.tree.allclose(found, layer(x), rtol=1e-5)
        assert fl.tree.equal(fl.distributed.gather(divided).layers[at], layer)
    half = fl.distributed.fully_shard(layers.layers[1], mx.float16)
    assert half(x.astype(mx.float16)).dtype == mx.float16
    assert bits(fl.distributed.gather(half).weight) == bits(layers.layers[1].weight)


class Holder(fl.Module):
    array: mx.array


class Norm(fl.Module):
    norm: fl.nn.BatchNorm
    linear: fl.nn.Linear

    def __call__(self, x):
        return self.linear(self.norm(x))


def check_recorded_statistics_are_divided_again():
    whole = Norm(fl.nn.BatchNorm(2 * SIZE), fl.nn.Linear(2 * SIZE, SIZE))
    x = drawn((6, 2 * SIZE))
    _, after = fl.stateful(whole, x)
    divided = fl.distributed.fully_shard(whole)
    for call in fl.stateful, fl.jit(lambda model, x: fl.stateful(model, x)):
        _, recorded = call(divided, x)
        gathered = fl.distributed.gather(recorded)
        assert fl.tree.allclose(gathered.norm.running_mean, after.norm.running_mean)
        assert fl.tree.allclose(gathered.norm.running_var, after.norm.running_var)
        assert recorded.module.linear is divided.module.linear or call is not fl.stateful
    twice = lambda model, x: (model(x), model(x))  # noqa: E731
    assert fl.tree.allclose(
        fl.distributed.gather(fl.stateful(twice, divided, x)[1]).norm.running_mean,
        fl.stateful(twice, whole, x)[1].norm.running_mean,
    )


def check_a_tree_tells_what_is_a_shard():
    tree = fl.nn.Sequential(
        fl.distributed.shard_linear(linear()[0], WAYS[1], 2), fl.distributed.fully_shard(linear()[0]), fl.nn.LayerNorm(2)
    )
    told = dict(zip(fl.tree.paths(tree), shards_in(fl.tree.structure(tree)), strict=True))
    assert {path: [(each.axis, each.segments) for each in shards] for path, shards in told.items()} == {
        "layers.0.weight": [(-1, 2)],
        "layers.0.bias": [],
        "layers.1.module.weight": [(0, 1)],
        "layers.1.module.bias": [(0, 1)],
        "layers.2.bias": [],
        "layers.2.weight": [],
    }


def raises(kind, *words):
    class Context:
        def __enter__(self):
            pass

        def __exit__(self, cls, error, _):
            assert issubclass(cls or type(None), kind), (cls, error)
            assert all(word in str(error) for word in words), str(error)
            return True

    return Context()


def check_what_cannot_be_is_an_error_on_every_rank():
    odd = fl.nn.Linear(2 * SIZE, SIZE + 1)
    with raises(ValueError, "weight", "axis 0", f"{SIZE} ranks"):
        fl.distributed.shard_linear(odd, WAYS[0])
    with raises(ValueError, "input_dims", str(SIZE)):
        fl.nn.ShardedToAllLinear(SIZE + 1, 2)
    with raises(ValueError, "segments"):
        fl.distributed.shard_linear(linear()[0], WAYS[0], 3 if SIZE != 3 else 5)
    with raises(ValueError, "layers.0.weight", "axis 0"):
        fl.distributed.fully_shard(fl.nn.Sequential(odd))
    with raises(ValueError, "step", "axis"):
        fl.distributed.shard({"step": mx.array(1)}, lambda *_: 0)
    with raises(ValueError, "array", "axis 0"):
        fl.nn.FullyShardedModule(Holder(mx.array(1.0)))
    sharded = fl.distributed.shard_linear(linear()[0], WAYS[0])
    with raises(ValueError, "AllToShardedLinear", f"[..., {8 * SIZE}]"):
        sharded(mx.ones((2, 3)))
    assert all_sum(mx.array(1)).item() == SIZE


def check_clipping():
    local = {"w": drawn((3, 2), seed=RANK), "b": drawn((4,), seed=9 + RANK)}
    for limit in 0.5, 100.0:
        ours, norm = fl.distributed.clip_grad_norm_sharded(local, limit)
        theirs, expected = mlx_clip(local, limit)
        assert bits([ours, norm]) == bits([theirs, expected])
    whole, x = stack(), drawn((4, 4))
    split = whole.at("layers.0").apply(lambda layer: fl.distributed.shard_linear(layer, WAYS[0]))
    split = split.at("layers.2").apply(lambda layer: fl.distributed.shard_linear(layer, WAYS[1]))
    partly = whole.at("layers.2").apply(fl.distributed.fully_shard)
    wanted, expected = fl.optim.clip_grad_norm(fl.grad(loss)(whole, x), 0.01)
    for model in split, partly, fl.distributed.fully_shard(whole), whole:
        clipped, norm = fl.distributed.clip_grad_norm_sharded(fl.grad(loss)(model, x), 0.01)
        assert fl.tree.allclose(norm, expected, rtol=1e-5)
        assert fl.tree.allclose(fl.distributed.gather(clipped), wanted, rtol=1e-4, atol=1e-8)
    large = {"w": mx.full(4, 300.0 / SIZE**0.5, mx.float16)}  # MLX's norm is infinite
    clipped, norm = fl.distributed.clip_grad_norm_sharded(large, 60.0)
    assert clipped["w"].dtype == mx.float16
    assert abs(norm.item() - 600) < 1


def partly_divided():
    """Return a whole model, and the same with one of its layers divided."""
    whole = stack()
    return whole, whole.at("layers.2").apply(fl.distributed.fully_shard)


def check_optimizers_know_what_is_a_shard():
    whole, partly = partly_divided()
    x = drawn((4, 4))
    chain = fl.optim.chain(fl.optim.clip_by_global_norm(0.01), fl.optim.SGD(1.0))
    mixed = fl.optim.multi({"layers.0.**": fl.optim.SGD(0.1), "**": chain})
    for opt in chain, fl.optim.masked(chain, "**.weight"), fl.optim.accumulate(chain, 1), mixed:
        new, _ = opt.update(partly, fl.grad(loss)(partly, x), opt.init(partly))
        expected, _ = opt.update(whole, fl.grad(loss)(whole, x), opt.init(whole))
        assert fl.tree.allclose(fl.distributed.gather(new), expected, rtol=1e-5, atol=1e-7)
    opt = fl.optim.chain(fl.optim.clip_by_global_norm(0.01), fl.optim.flatten(fl.optim.SGD(1.0)))
    new, _ = opt.update(fl.optim.pack(partly), fl.grad(loss)(partly, x), opt.init(fl.optim.pack(partly)))
    expected, _ = opt.update(whole, fl.grad(loss)(whole, x), opt.init(whole))
    assert fl.tree.allclose(fl.distributed.gather(new.unpack()), expected, rtol=1e-5, atol=1e-7)
    assert fl.tree.allclose(
        fl.optim.clip_grad_norm(fl.grad(loss)(partly, x), 1.0)[1], fl.optim.clip_grad_norm(fl.grad(loss)(whole, x), 1.0)[1]
    )


def check_what_all_ranks_have_is_required_to_be_the_same():
    whole, partly = partly_divided()
    fl.distributed.require_same(partly)
    with raises(ValueError, "layers.0.bias"):
        fl.distributed.require_same(partly.at("layers.0.bias").apply(lambda bias: bias + RANK))
    with raises(ValueError, "layers.2.module.weight is a shard"):
        fl.distributed.broadcast(partly)
    assert fl.tree.equal(fl.distributed.broadcast(whole), whole)


def check_a_step_is_skipped_on_all_ranks():
    _, partly = partly_divided()
    grads = fl.grad(loss)(partly, drawn((4, 4)))
    assert fl.optim.all_finite(grads).item()
    odd = grads.at("layers.2.module.bias").apply(lambda bias: bias / (0 if RANK == SIZE - 1 else 1))
    assert not fl.optim.all_finite(odd).item()
    opt = fl.optim.skip_nonfinite(fl.optim.SGD(0.1))
    after, state = opt.update(partly, odd, opt.init(partly))
    assert state.skipped.item() == 1
    assert fl.tree.equal(after, partly)


def check_loading_never_holds_the_whole():
    width = 96 * SIZE
    layer = 4 * width**2

    class Model(fl.Module):
        layers: tuple

        def __init__(self):
            self.layers = [fl.nn.Linear(width, width, bias=False) for _ in range(8 * SIZE)]

    edits = {
        "shard": lambda model: fl.distributed.shard(model, WAYS[0]),
        "fully_shard": fl.distributed.fully_shard,
        "shard_linear": lambda model: model.at(fl.nn.Linear).apply(lambda layer: fl.distributed.shard_linear(layer, WAYS[1])),
    }
    with tempfile.TemporaryDirectory() as folder:
        Model().save_weights(f"{folder}/whole.safetensors")
        for name, edit in edits.items():
            gc.collect()
            mx.clear_cache()
            begun = mx.get_active_memory()
            mx.reset_peak_memory()
            model = edit(fl.eval_shape(Model).load_weights(f"{folder}/whole.safetensors"))
            fl.eval(model, at_once=0)
            assert mx.get_active_memory() - begun <= 8 * layer + 4096, name
            assert mx.get_peak_memory() - begun <= 9 * layer + 4096, (name, mx.get_peak_memory() - begun)
            del model


def check_inside_a_model_of_mlx():
    class Block(mlx.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = mlx.nn.Linear(4, 4 * SIZE), mlx.nn.Linear(4 * SIZE, 4)

        def __call__(self, x):
            return x + self.down(mlx.nn.relu(self.up(x)))

    mx.random.seed(1)
    theirs, x = Block(), drawn((3, 4))
    ours = fl.from_mlx(theirs)
    ours = ours.at("up").apply(lambda layer: fl.distributed.shard_linear(layer, WAYS[0]))
    ours = ours.at("down").apply(lambda layer: fl.distributed.shard_linear(layer, WAYS[1]))
    theirs.up, theirs.down = mlx_shard_linear(theirs.up, WAYS[0]), mlx_shard_linear(theirs.down, WAYS[1])
    compare(ours, theirs, x)
    back = fl.to_mlx(ours)
    assert bits(back(x)) == bits(theirs(x))
    taken = fl.convert(fl.from_mlx(theirs))
    assert type(taken.up) is fl.nn.AllToShardedLinear
    assert bits(taken(x)) == bits(theirs(x))


def check_vmap():
    layer = fl.distributed.shard_linear(linear()[0], WAYS[0])
    x = drawn((3, 2, 8 * SIZE))
    assert fl.tree.allclose(fl.vmap(layer)(x), layer(x))
    whole = linear()[0]
    divided = fl.distributed.fully_shard(whole)
    assert fl.tree.allclose(fl.vmap(divided)(x), whole(x), rtol=1e-5)
    rows = fl.grad(lambda model, x: fl.vmap(model)(x).square().sum())
    assert fl.tree.allclose(fl.distributed.gather(rows(divided, x)), rows(whole, x), rtol=1e-5)
    each = fl.vmap(fl.grad(lambda model, x: model(x).square().sum()), in_axes=(None, 0))
    found, expected = each(divided, x), each(whole, x)
    assert fl.tree.allclose(found.module.bias, mx.split(expected.bias, SIZE, axis=1)[RANK], rtol=1e-5)
    per_row = fl.vmap(fl.grad(lambda x: layer(x).sum()))(x)
    assert fl.tree.allclose(per_row, fl.grad(lambda x: layer(x).sum())(x))


if __name__ == "__main__":
    ranks.run(globals())
