"""What holds of each model that is brought into a tree: every number is that of MLX, bit for bit."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten

import frostleaf as fl

TOKENS = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]
X = mx.array([1.0, 2.0, 3.0])


class Base(nn.Module):
    """Sets what it is given, and has a weight."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.weight = mx.ones(3)
        for name, value in values.items():
            setattr(self, name, value)

    def __call__(self, x: mx.array) -> mx.array:
        return self.weight * x


def same(one: Any, other: Any) -> bool:
    """Return whether two trees of arrays are the same in every bit."""
    ours, theirs = fl.tree.leaves(one), fl.tree.leaves(other)
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and a.shape == b.shape and bool(mx.array_equal(a, b, equal_nan=True))
        for a, b in zip(ours, theirs, strict=True)
    )


def close(one: Any, other: Any) -> bool:
    ours, theirs = fl.tree.leaves(one), fl.tree.leaves(other)
    return all(mx.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in zip(ours, theirs, strict=True))


def arrays(model: Any) -> dict[str, mx.array]:
    """Return the parameters of a model of MLX, or of a tree, by name."""
    return dict(tree_flatten(model.parameters()))


def loss(model: Any, tokens: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(tokens[:, :-1]).astype(mx.float32), tokens[:, 1:]).mean()


def forward(build: Callable[[], Any]) -> None:
    model = build()
    tree = fl.from_mlx(model)
    x = mx.array(TOKENS)
    before = dict(tree_flatten(model.state))
    expected = model(x)
    for _ in range(2):
        assert same(tree(x), expected)
    names = [name for name, value in tree_flatten(fl.to_mlx(tree)) if isinstance(value, mx.array)]
    assert names == [name for name, value in tree_flatten(build()) if isinstance(value, mx.array)]
    if not _shares(model):
        assert fl.tree.paths(tree) == [name for name, value in before.items() if isinstance(value, mx.array)]
        assert same(arrays(tree), arrays(build()))
    assert fl.tree.equal(tree, fl.from_mlx(build()))
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(build()))
    assert hash(fl.tree.structure(tree)) == hash(fl.tree.structure(fl.from_mlx(build())))


def _shares(model: nn.Module) -> bool:
    found = [id(value) for _, value in tree_flatten(model) if isinstance(value, mx.array)]
    return len(set(found)) < len(found)


def _runs(function: Callable[..., Any], *args: Any) -> bool:
    """Return whether MLX itself can do it on this machine."""
    try:
        mx.eval(fl.tree.leaves(function(*args)))
    except (RuntimeError, ValueError, AttributeError):
        return False
    return True


def with_cache(build: Callable[[], Any]) -> None:
    from mlx_lm.models.cache import make_prompt_cache

    model = build()
    tree = fl.from_mlx(model)
    caches = make_prompt_cache(model), make_prompt_cache(tree)
    assert [*map(type, caches[0])] == [*map(type, caches[1])]
    for tokens in [[3, 1, 4], [1], [5]]:
        x = mx.array([tokens])
        assert same(tree(x, cache=caches[1]), model(x, cache=caches[0]))


def gradient(build: Callable[[], Any]) -> None:
    model = build().train()
    tree = fl.from_mlx(model)
    x = mx.array(TOKENS)
    if not _runs(lambda: nn.value_and_grad(model, loss)(model, x)):
        return
    value, grads = nn.value_and_grad(model, loss)(model, x)
    ours, tree_grads = fl.value_and_grad(loss)(tree, x)
    assert same(ours, value)
    theirs = dict(tree_flatten(grads))
    shared = _shares(model)
    for name, grad in tree_flatten(tree_grads.parameters()):
        assert shared or same(grad, theirs[name]), name
    optimizer = optim.AdamW(1e-2)
    optimizer.update(model, grads)
    opt = fl.optim.AdamW(1e-2)
    after, _ = opt.update(tree, tree_grads, opt.init(tree))
    if not shared:
        assert same(arrays(after), arrays(model))
        assert same(after(x), model(x))
    assert same(tree(x), fl.from_mlx(build().train())(x))


def partly_frozen(build: Callable[[], Any]) -> None:
    model, x = build().train(), mx.array(TOKENS)
    tree = fl.from_mlx(model).freeze()
    if not _runs(lambda: [model.freeze()][:0]):
        return
    model.apply_to_modules(lambda name, module: module.unfreeze(recurse=False) if "norm" in name else None)
    tree = tree.map_modules(lambda name, module: module.unfreeze(recurse=False) if "norm" in name else None)
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(model))
    if not _runs(lambda: nn.value_and_grad(model, loss)(model, x)):
        return
    _, grads = nn.value_and_grad(model, loss)(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.UncollectedStateWarning)  # that a frozen array was replaced in a call
        _, tree_grads = fl.value_and_grad(loss)(tree, x)
    assert same(arrays(tree_grads), dict(tree_flatten(grads)))
    optim.AdamW(1e-2).update(model, grads)
    opt = fl.optim.AdamW(1e-2)
    after, _ = opt.update(tree, tree_grads, opt.init(tree))
    assert same(arrays(after), arrays(model))
    trained = sum(one is not other for one, other in zip(fl.tree.leaves(after), fl.tree.leaves(tree), strict=True))
    assert trained == len(fl.tree.leaves(tree_grads)) > 0


def edits(build: Callable[[], Any]) -> None:
    model, x = build(), mx.array(TOKENS)
    tree = fl.from_mlx(model)
    half = tree.astype(mx.float16)
    other = build()
    other.set_dtype(mx.float16)
    assert same(half, fl.from_mlx(other))
    if _runs(other, x):
        assert same(half(x), other(x))
    assert half.astype(mx.float16) is half
    frozen = tree.freeze()
    assert fl.tree.leaves(frozen.trainable_parameters()) == []
    other = build()
    if _runs(lambda: [other.freeze()][:0]):
        assert fl.tree.structure(frozen) == fl.tree.structure(fl.from_mlx(other))
        other.unfreeze()
        assert fl.tree.structure(frozen.unfreeze()) == fl.tree.structure(fl.from_mlx(other))
    assert fl.tree.structure(tree.train()) == fl.tree.structure(fl.from_mlx(build().train()))
    name = fl.tree.paths(tree)[0]
    edited = tree.at(name).apply(lambda array: array + 1)
    assert [change.path for change in fl.tree.diff(tree, edited)] == [name]
    assert len(tree.at(nn.Module).paths()) >= 1
    repr(tree)


def files(build: Callable[[], Any], folder: Any) -> None:
    x = mx.array(TOKENS)
    tree = fl.from_mlx(build())
    fl.save(os.path.join(folder, "tree"), tree)
    loaded = fl.load(os.path.join(folder, "tree"), like=fl.from_mlx(build()))
    assert fl.tree.equal(loaded, tree)
    tree.save_weights(os.path.join(folder, "w.safetensors"))
    model = build()
    if not _shares(model):
        model.load_weights(os.path.join(folder, "w.safetensors"))
        assert same(model(x), tree(x))
    zeros = fl.tree.map(mx.zeros_like, tree)
    private = [path for path in fl.tree.paths(tree) if any(part.startswith("_") for part in path.split("."))]
    loaded = zeros.load_weights(os.path.join(folder, "w.safetensors"))
    if not private:
        assert same(loaded(x), tree(x))


def round_trip(build: Callable[[], Any]) -> None:
    tree, x = fl.from_mlx(build()), mx.array(TOKENS)
    back = fl.to_mlx(tree)
    assert type(back) is type(build())
    assert same(fl.from_mlx(back), tree)
    assert fl.tree.structure(fl.from_mlx(back)) == fl.tree.structure(tree)
    assert repr(back) == repr(build())
    assert same(back(x), tree(x))


def converted(build: Callable[[], Any]) -> None:
    tree, x = fl.from_mlx(build()), mx.array(TOKENS)
    native = fl.convert(tree)
    assert native.at(fl.nn.Linear).paths()
    assert fl.tree.paths(native) == fl.tree.paths(tree)
    assert same(native(x), tree(x))
    back = fl.to_mlx(native)
    assert fl.tree.equal(fl.from_mlx(back), tree)
    assert same(back(x), tree(x))


def jitted(build: Callable[[], Any]) -> None:
    tree, x = fl.from_mlx(build()), mx.array(TOKENS)
    call = fl.jit(lambda model, x: model(x))
    expected = tree(x)
    if not _runs(mx.compile(lambda x: build()(x)), x):
        return
    assert close(call(tree, x), expected)
    assert close(call(fl.from_mlx(build()), x), expected)
    assert call.trace_count == 1
    assert same(tree(x), expected)


def jitted_step(build: Callable[[], Any]) -> None:
    tree, x, opt = fl.from_mlx(build()).train(), mx.array(TOKENS), fl.optim.SGD(1e-2)
    model = build().train()
    if not _runs(lambda x: mx.compile(lambda x: nn.value_and_grad(model, loss)(model, x))(x)[0], x):
        return

    def step(tree: Any, state: Any, x: mx.array) -> Any:
        value, grads = fl.value_and_grad(loss)(tree, x)
        return value, *opt.update(tree, grads, state)

    compiled = fl.jit(step)
    value, after, state = step(tree, opt.init(tree), x)
    for _ in range(2):
        ours, found, _ = compiled(tree, opt.init(tree), x)
        assert close([ours, found], [value, after])
    compiled(found, state, x)
    assert compiled.trace_count == 1


CHECKS: dict[str, Callable[..., None]] = {
    "forward": forward,
    "with a cache": with_cache,
    "gradient": gradient,
    "partly frozen": partly_frozen,
    "edits": edits,
    "files": files,
    "round trip": round_trip,
    "converted": converted,
    "jit": jitted,
}
# For which MLX compiles much.
SLOW_CHECKS: dict[str, Callable[..., None]] = {"jitted step": jitted_step}
