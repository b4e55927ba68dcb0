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


@pytest.fixture
def mamba():
    mamba = pytest.importorskip("mlx_lm.models.mamba")
    sizes = {"hidden_size": 64, "num_hidden_layers": 12, "intermediate_size": 128, "state_size": 16, "vocab_size": 100}
    rest = {"conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4}
    model = mamba.Model(mamba.ModelArgs(model_type="mamba", **sizes, **rest))
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_decoding(name, request, table, interleaved):
    caches = pytest.importorskip("mlx_lm.models.cache")
    model = request.getfixturevalue("model" if name == "llama" else name)
    tree, theirs = fl.from_mlx(model), caches.make_prompt_cache(model)
    token = mx.array([[1]])
    model(X, cache=theirs)
    cache = [fl.stateful(lambda cache: tree(X, cache=cache), fl.nn.make_cache(tree, 256))[1]]

    @fl.jit
    def step(model, token, cache):
        logits, cache = fl.stateful(lambda cache: model(token, cache=cache), cache)
        return mx.argmax(logits[:, -1], axis=-1), cache

    def ours():
        out, cache[0] = step(tree, token, cache[0])
        mx.eval(out, fl.tree.leaves(cache[0]))

    def mlx():
        mx.eval(mx.argmax(model(token, cache=theirs)[:, -1], axis=-1), [each.state for each in theirs])

    table.add(f"a token of a {name}, jitted with a fixed cache / eager with mlx-lm's", *interleaved(ours, mlx, rounds=200))


def test_generating(model, table, interleaved):
    generate_step = pytest.importorskip("mlx_lm.generate").generate_step
    tree = fl.from_mlx(model)
    ours, theirs = interleaved(
        lambda: [*fl.generate(tree, [1, 2, 3], 64)],
        lambda: [token for token, _ in generate_step(X[0], model, max_tokens=64)],
        rounds=20,
    )
    table.add("64 tokens of fl.generate / generate_step of mlx-lm", ours, theirs, unit="ms")
