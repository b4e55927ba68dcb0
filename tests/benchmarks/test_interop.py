"""A module of ``mlx.nn`` brought into a tree beside the module itself: 12 blocks of a small Llama, 160 modules, 110 arrays."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import frostleaf as fl

X = mx.array([[1, 2, 3]])


@pytest.fixture
def model():
    llama = pytest.importorskip("mlx_lm.models.llama")
    sizes = {"hidden_size": 64, "num_hidden_layers": 12, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 100}
    model = llama.Model(llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, **sizes))
    mx.eval(model.parameters())
    return model


def evaluate(result):
    mx.eval(result) if isinstance(result[1], nn.Module) else fl.eval(result)


def loss(model, x):
    return model(x).square().mean()


def test_bringing_a_module(model, table, interleaved):
    (taken,) = interleaved(lambda: fl.from_mlx(model), rounds=100)
    table.note(f"fl.from_mlx of {len(model.modules())} modules, at most 5 ms", f"{sorted(taken)[len(taken) // 2] * 1e3:.2f} ms")
    tree = fl.from_mlx(model)
    (taken,) = interleaved(lambda: fl.to_mlx(tree), rounds=100)
    table.note("fl.to_mlx of the same", f"{sorted(taken)[len(taken) // 2] * 1e3:.2f} ms")


def test_calls(model, table, interleaved):
    tree = fl.from_mlx(model)
    leaves, structure = fl.tree.flatten(tree)
    fresh = iter([fl.tree.unflatten(structure, leaves) for _ in range(303)])
    same, anew, theirs = interleaved(lambda: tree(X), lambda: next(fresh)(X), lambda: model(X), rounds=300)
    table.add("graph of a call, the same tree again / the module", same, theirs, limit=1.1)
    table.add("graph of a call, a fresh tree / the module", anew, theirs, limit=1.25)
    converted = fl.convert(tree)
    ours, theirs = interleaved(lambda: converted(X), lambda: model(X), rounds=300)
    table.add("graph of a call, native layers inside / the module", ours, theirs)
    same, theirs = interleaved(lambda: mx.eval(tree(X)), lambda: mx.eval(model(X)), rounds=300)
    table.add("a call with its evaluation, the same tree / the module", same, theirs)


def test_a_step(model, table, interleaved):
    tree, optimizer, theirs = fl.from_mlx(model), fl.optim.AdamW(1e-3), optim.AdamW(1e-3)
    theirs.init(model.trainable_parameters())
    now = [tree, optimizer.init(tree)]

    def eager():
        _, grads = fl.value_and_grad(loss)(now[0], X)
        now[:] = optimizer.update(now[0], grads, now[1])
        return now

    @fl.jit
    def step(model, state, x):
        value, grads = fl.value_and_grad(loss)(model, x)
        return value, *optimizer.update(model, grads, state)

    def jitted():
        value, *now[:] = step(*now, X)
        return value, now

    def in_place(x=X):
        value, grads = nn.value_and_grad(model, loss)(model, x)
        theirs.update(model, grads)
        return value, model.state, theirs.state

    ours, mlx = interleaved(eager, in_place, rounds=100, between=evaluate)
    table.add("host time of an eager AdamW step / in place", ours, mlx)
    captured = [model.state, theirs.state]
    compiled = mx.compile(lambda x: in_place(x)[0], inputs=captured, outputs=captured)
    ours, mlx = interleaved(
        jitted,
        lambda: (compiled(X), model.state, theirs.state),
        rounds=150,
        between=evaluate,
    )
    table.add("host time of a jitted AdamW step / MLX's captured state", ours, mlx, limit=1.05)
