"""Checks of exchanges and sharded layers together with the other parts of the library, run by each of several ranks."""

import contextlib
import math
import tempfile
import warnings

import mlx.core as mx
import ranks

import frostleaf as fl

GROUP = fl.distributed.init()
RANK, SIZE = GROUP.rank(), GROUP.size()
EVERY = SIZE * (SIZE + 1) // 2
EXCHANGES = "exchanges arrays with other processes"


def mine(*shape):
    return mx.full(shape, float(RANK + 1))


def drawn(rows):
    return mx.random.normal((rows, 12), key=mx.random.key(rows))


def whole():
    first, second = (fl.nn.Linear(12, 12, key=mx.random.key(1)), fl.nn.Linear(12, 12, key=mx.random.key(2)))
    return fl.nn.Sequential(first, fl.nn.tanh, second)


def split():
    model = whole().at("layers.0").apply(lambda layer: fl.distributed.shard_linear(layer, "all-to-sharded"))
    return model.at("layers.2").apply(lambda layer: fl.distributed.shard_linear(layer, "sharded-to-all"))


def averaged(model, x):
    return fl.distributed.average_gradients(fl.grad(lambda model: model(x).square().mean())(model))


def check_averages_of_the_gradients_of_sharded_layers():
    for model in (whole(), split(), fl.distributed.fully_shard(whole())):
        x = drawn(3)
        for fn in (fl.jit(averaged), fl.jit(averaged, shapeless=True), fl.jit(fl.checkpoint(averaged))):
            with warnings.catch_warnings(action="ignore", category=fl.RetraceWarning):
                assert fl.tree.allclose(fn(model, x), averaged(model, x), rtol=1e-5, atol=1e-7)


def check_traces_for_all_shapes_are_made_for_each():
    for model in (split(), fl.distributed.fully_shard(whole())):
        for fn in (lambda model, x: model(x), averaged):
            step = fl.jit(fn, shapeless=True)
            with warnings.catch_warnings(record=True, action="always") as said:
                for rows in (3, 5, 2):
                    before, found = fl.distributed.all_sum(mine(2)), step(model, drawn(rows))
                    after = fl.distributed.all_sum(mine(2))
                    for each in [(before, found, after), (after, found, before)][RANK % 2]:
                        fl.eval(each)
                    assert before.tolist() == after.tolist() == [EVERY] * 2
                    assert fl.tree.allclose(found, fn(model, drawn(rows)), rtol=1e-5, atol=1e-7)
            assert [type(each.message) for each in said] == [fl.RetraceWarning]
            assert step.trace_count == 3
    with warnings.catch_warnings(action="ignore", category=fl.RetraceWarning):
        of_mlx = fl.jit(lambda x: mx.distributed.all_sum(x.sum(1)), shapeless=True)
        assert [of_mlx(drawn(rows)).shape for rows in (3, 5)] == [(3,), (5,)]


def check_what_was_exchanged_before_a_trace_is_not_exchanged_in_it():
    for options in ({}, {"shapeless": True}):
        total = fl.distributed.all_sum(mine(2))
        if RANK == 0:
            mx.eval(total)
        add = fl.jit(lambda x: x + total * 2, **options)  # noqa: B023
        with warnings.catch_warnings(action="ignore", category=fl.CapturedArrayWarning):
            for number in range(3):
                found, after = add(mine(2)), fl.distributed.all_sum(mine(2))
                for each in [(found, after), (after, found)][RANK % 2]:
                    mx.eval(each)
                assert found.tolist() == [RANK + 1 + 2 * EVERY] * 2, number
                assert after.tolist() == [EVERY] * 2


def check_what_exchanges_is_not_exported():
    functions = [
        (fl.distributed.all_sum, mine(3)),
        (lambda x: fl.vmap(fl.distributed.all_max)(x), mine(3, 2)),
        (lambda x: fl.distributed.broadcast({"x": x}), mine(3)),
        (lambda x: fl.distributed.shard_batch(x), mine(SIZE)),
        (lambda x: mx.distributed.all_sum(x), mine(3)),
        (fl.jit(lambda model, x: model(x)), split(), drawn(3)),
        (lambda model, x: model(x), fl.distributed.fully_shard(whole()), drawn(3)),
        (averaged, whole(), drawn(3)),
        (lambda model, x: model(x), split().layers[0], drawn(3)),  # of which the gradient alone exchanges
    ]
    with tempfile.TemporaryDirectory() as folder:
        for fn, *trees in functions:
            for shapeless in (False, True):
                if RANK == 0:  # the others would wait for it if it exchanged something
                    said = ranks.error_of(
                        lambda: fl.export_function(f"{folder}/f.mlxfn", fn, *trees, shapeless=shapeless),  # noqa: B023
                        ValueError,
                    )
                    assert EXCHANGES in said
                    assert "fl.distributed.gather" in said
                assert fl.distributed.all_sum(mine(2)).tolist() == [EVERY] * 2


def check_one_rank_exports_what_all_have():
    model = fl.distributed.broadcast(whole().at("**").apply(lambda x: x + RANK))
    scale = fl.distributed.all_sum(mine(12))
    gathered = fl.distributed.gather(split())
    if RANK == 0:
        with tempfile.TemporaryDirectory() as folder:
            for fn, *trees in [
                (model, drawn(3)),
                (lambda x: x * scale, drawn(3)),
                (lambda m, x: m(x), gathered, drawn(3)),
            ]:
                fl.export_function(f"{folder}/f.mlxfn", fn, *trees, shapeless=True)
                assert fl.tree.allclose(fl.import_function(f"{folder}/f.mlxfn")(*trees), fn(*trees))
    assert fl.distributed.all_sum(mine(2)).tolist() == [EVERY] * 2


def check_rules_that_look_at_whole_arrays_are_refused_on_shards():
    x = drawn(3)
    rules = [fl.optim.Muon(0.1), fl.optim.Adafactor(0.1)]
    rules += [fl.optim.accumulate(fl.optim.chain(fl.optim.clip_by_value(1.0), rule), 2) for rule in rules]
    for model, name in ((split(), "layers.0.weight"), (fl.distributed.fully_shard(whole()), "module.layers.0.weight")):
        grads = fl.grad(lambda model: model(x).sum())(model)
        for opt in rules:
            state = opt.init(model)
            assert f"{name} is a shard" in ranks.error_of(lambda: opt.update(model, grads, state), ValueError)  # noqa: B023
    alone = fl.nn.Sequential(split(), fl.nn.Linear(12, 4, key=mx.random.key(5)))
    mixed = fl.optim.multi({"layers.1.weight": fl.optim.Muon(0.1), "**": fl.optim.AdamW(0.1)})
    new, _ = mixed.update(alone, fl.grad(lambda model: model(x).sum())(alone), mixed.init(alone))
    fl.distributed.require_same(new)


def check_what_a_mapped_function_exchanges_for_all_indices_is_exchanged_once():
    many, shared = mx.arange(6.0).reshape(3, 2) + RANK, mine(2)
    before = fl.distributed.all_sum(shared)
    total = fl.vmap(lambda x: x + fl.distributed.all_sum(shared))(many)
    alone = fl.vmap(lambda x: (x, fl.distributed.all_sum(shared)), out_axes=(0, None))(many)[1]
    after = fl.distributed.all_sum(shared * 2)
    for each in [(before, total, alone, after), (after, alone, total, before)][RANK % 2]:
        mx.eval(each)
    assert alone.tolist() == before.tolist() == [EVERY] * 2
    assert after.tolist() == [2 * EVERY] * 2
    assert fl.tree.equal(total, many + EVERY)
    inner = fl.vmap(lambda x: fl.vmap(lambda y: y + fl.distributed.all_sum(x))(x))(many)
    assert fl.tree.equal(inner, many[:, :, None] + fl.distributed.all_sum(many)[:, None, :])


def check_a_mapped_function_sends_what_one_rank_has():
    many = mx.arange(6.0).reshape(3, 2) + RANK
    for src in range(SIZE):
        assert fl.tree.equal(fl.vmap(lambda x: fl.distributed.broadcast({"x": x}, src))(many)["x"], many - RANK + src)  # noqa: B023
        assert fl.vmap(lambda x: fl.distributed.broadcast(x.sum(), src))(many).tolist() == (many - RANK + src).sum(1).tolist()  # noqa: B023
    assert fl.distributed.all_sum(mine(2)).tolist() == [EVERY] * 2


def check_ensembles_of_models_that_are_divided():
    models = [fl.nn.Linear(12, 12, key=mx.random.key(seed)) for seed in (1, 2)]
    x = mx.random.normal((2, 3, 12), key=mx.random.key(3))
    divided = fl.tree.stack([fl.distributed.fully_shard(model) for model in models])

    def loss(model, x):
        return model(x).square().sum()

    assert fl.tree.allclose(
        fl.vmap(lambda model, x: model(x))(divided, x),
        fl.vmap(lambda model, x: model(x))(fl.tree.stack(models), x),
        rtol=1e-5,
        atol=1e-5,
    )
    expected = fl.tree.stack(
        [fl.grad(loss)(fl.distributed.fully_shard(model), each) for model, each in zip(models, x, strict=True)]
    )
    assert fl.tree.allclose(fl.vmap(fl.grad(loss))(divided, x), expected, rtol=1e-5, atol=1e-5)
    assert fl.tree.allclose(fl.grad(lambda model: fl.vmap(loss)(model, x).sum())(divided), expected, rtol=1e-5, atol=1e-5)


DIVIDED = {
    "fully sharded": fl.distributed.fully_shard,
    "all to sharded": lambda layer: fl.distributed.shard_linear(layer, "all-to-sharded"),
    "sharded to all": lambda layer: fl.distributed.shard_linear(layer, "sharded-to-all"),
    "arrays": lambda layer: fl.distributed.shard(layer, "all-to-sharded"),
}


def check_stacks_are_divided_and_gathered_one_by_one():
    models = [fl.nn.Linear(12, 12, key=mx.random.key(seed)) for seed in (1, 2)]
    stack = fl.tree.stack(models)
    for name, divide in DIVIDED.items():
        divided = [divide(model) for model in models]
        for axis in (0, -1):
            parts = fl.tree.stack(divided, axis)
            assert fl.tree.equal(fl.vmap(fl.distributed.gather, axis)(parts), stack), name
            for call in (lambda: fl.distributed.gather(parts), lambda: fl.distributed.gather(fl.eval_shape(lambda: parts))):  # noqa: B023
                ranks.everywhere(call, r"can't gather .*weight", r"fl\.vmap\(fl\.distributed\.gather\)\(stack\)")
        assert fl.tree.equal(fl.vmap(divide)(stack), fl.tree.stack(divided))
        grads = fl.grad(lambda model: sum(leaf.square().sum() for leaf in fl.tree.leaves(model)))(fl.tree.stack(divided))
        ranks.everywhere(lambda: fl.distributed.gather(grads), "can't gather")  # noqa: B023
    x, divide = mx.ones((2, 12)), fl.distributed.fully_shard
    for call in (
        lambda: fl.tree.stack([divide(model) for model in models])(x),
        lambda: fl.vmap(lambda model: model(x))(divide(fl.tree.stack(models * SIZE))),
    ):
        ranks.everywhere(call, r"arrays of a stack.*fl\.vmap\(fl\.distributed\.fully_shard\)")
    for name in ("all to sharded", "sharded to all"):
        ranks.everywhere(lambda: DIVIDED[name](stack), r"one Linear, .*fl\.vmap\(divide\)\(stack\)")  # noqa: B023


def check_a_step_that_one_rank_skips_is_skipped_by_all():
    adam, average = fl.optim.Adam(0.1), fl.distributed.average_gradients
    model = whole()
    grads = fl.tree.map(lambda leaf: mx.full(leaf.shape, math.nan if RANK else 1.0), model)
    optimizers = [
        fl.optim.skip_nonfinite(fl.optim.chain(average, adam)),
        fl.optim.chain(average, fl.optim.skip_nonfinite(adam)),
        fl.optim.skip_nonfinite(fl.optim.shard(adam, average=True)),
        fl.optim.shard(fl.optim.skip_nonfinite(adam), average=True),
        fl.optim.skip_nonfinite(fl.optim.masked(fl.optim.chain(average, adam), "layers.0.**")),
    ]
    for optimizer in optimizers:
        for update in (optimizer.update, fl.jit(optimizer.update)):
            after, state = update(model, grads, optimizer.init(model))
            assert fl.tree.equal(after, model)
            after, _ = update(model, fl.tree.map(mx.ones_like, model), state)
            fl.distributed.require_same(after)
            assert not fl.tree.equal(after, model)
    if RANK == 0:  # alone
        alone = fl.optim.skip_nonfinite(adam)
        fl.eval(alone.update(model, grads, alone.init(model)))
    assert fl.distributed.all_sum(mine(2)).tolist() == [EVERY] * 2


def check_an_error_in_a_mapped_function_leaves_the_order_whole():
    def fails(x):
        fl.distributed.all_sum(x)
        raise ArithmeticError

    for fn in (fl.vmap(fails), fl.vmap(fl.grad(fails)), fl.vmap(fl.vmap(fails))):
        ranks.error_of(lambda: fn(mine(3, 2)), ArithmeticError)  # noqa: B023
        assert fl.distributed.all_sum(mine(2)).tolist() == [EVERY] * 2


def check_other_functions_on_other_ranks_are_an_error_on_all():
    calls = [fl.distributed.all_sum, fl.distributed.all_max, fl.distributed.average_gradients]
    said = ranks.error_of(lambda: calls[RANK % 3](mine(2)), ValueError)
    assert "the function is all_sum on rank 0 and all_max on rank 1" in said
    barrier = fl.distributed.barrier if RANK else lambda: fl.distributed.all_sum(mine(2))
    assert "the function is all_sum on rank 0 and barrier on rank 1" in ranks.error_of(barrier, ValueError)
    assert fl.distributed.all_sum(mine(2)).tolist() == [EVERY] * 2


def check_a_function_that_mlx_compiles_is_told_of_and_the_order_goes_on():
    mx.compile(fl.distributed.all_sum)(mine(2))
    assert "Compile it with fl.jit" in ranks.error_of(lambda: fl.distributed.all_sum(mine(2)), RuntimeError)
    assert fl.distributed.all_sum(mine(2)).tolist() == [EVERY] * 2


def check_adapters_are_of_whole_layers():
    x, model = drawn(3), whole()
    adapted = fl.lora(model, fl.nn.Linear, rank=12, key=mx.random.key(3)).at("**.lora_b").apply(lambda array: array + 0.1)
    divided = fl.distributed.fully_shard(adapted)
    assert fl.tree.allclose(divided(x), adapted(x), rtol=1e-5)
    assert fl.tree.equal(fl.fuse(fl.distributed.gather(divided)), fl.fuse(adapted))
    assert "fl.distributed.gather" in ranks.error_of(lambda: fl.fuse(divided), ValueError)
    for each in (fl.distributed.fully_shard(model), fl.distributed.shard(model, "all-to-sharded")):
        said = ranks.error_of(lambda: fl.lora(each, fl.nn.Linear), ValueError)  # noqa: B023
        assert "layers.0.weight is a shard, 1/" in said
    assert "AllToShardedLinear" in ranks.error_of(lambda: fl.lora(split(), "layers.0"), ValueError)


def check_ranks_out_of_step_are_told():
    """The last check: nothing can be exchanged any more."""
    if RANK == 0:
        error = fl.distributed.PeerLostError
        assert "out of step" in ranks.error_of(lambda: fl.distributed.all_sum(mine(64)), error)
        assert "out of step" in ranks.error_of(fl.distributed.barrier, error)
    else:
        with contextlib.suppress(RuntimeError):  # rank 0 may have ended before
            mx.eval(mx.distributed.all_sum(mine(64)))  # as a layer might


if __name__ == "__main__":
    ranks.run(globals())
