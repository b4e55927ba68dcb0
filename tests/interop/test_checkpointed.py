"""Layers of wrapped models that are computed again for their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop.checks import arrays, same

import frostleaf as fl

X = mx.array([[1.0, 2.0, 3.0, 4.0]])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm, self.drop, self.size = nn.Linear(4, 4), nn.BatchNorm(4), nn.Dropout(0.5), 4
        self.calls: list[str] = []

    def __call__(self, x: mx.array, scale: float = 1.0) -> mx.array:
        RAN.append(None)
        return self.drop(mx.tanh(self.lin(x))) * scale

    def project(self, x: mx.array) -> mx.array:
        return self.lin(x)


class Stack(nn.Module):
    def __init__(self, run: Any = None) -> None:
        super().__init__()
        self.layers, self.run = [Block(), Block()], run

    def __call__(self, x: mx.array) -> Any:
        if self.run is not None:
            return self.run(self, x)
        for layer in self.layers:
            x = layer(x, scale=float(layer.size))
        return x.square().sum()


class Own(fl.Module):
    """A class of the user, in the place of a layer."""

    inner: object
    size: int = fl.static(default=4)

    def __call__(self, x: mx.array, scale: float = 1.0) -> mx.array:
        RAN.append(None)
        return self.inner(x) * scale


RAN: list[Any] = []
KINDS: dict[str, Callable[[Any], Any]] = {
    "wrapped": lambda tree: tree,
    "converted": fl.convert,
    "adapted": lambda tree: fl.lora(tree, "**.lin", rank=2, key=mx.random.key(0)),
    "own": lambda tree: tree.at("layers.0").set(Own(fl.nn.Linear(4, 4, key=mx.random.key(0)))),
    "of a layer": lambda tree: tree.at("layers.0").set(fl.nn.Linear(4, 4, key=mx.random.key(0))),
}
each_kind = pytest.mark.parametrize("kind", ["wrapped", "converted", "adapted", "own"])


def stack(kind: str, run: Any = None) -> Any:
    mx.random.seed(0)
    return KINDS[kind](fl.from_mlx(Stack(run)))


def again(tree: Any) -> Any:
    return tree.at("layers.0").apply(fl.checkpoint)


@each_kind
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
def test_gradients_are_those_without_it(kind: str, jit: bool) -> None:
    tree = stack(kind)
    compute = fl.value_and_grad(lambda m, x: m(x))
    compute = fl.jit(compute) if jit else compute
    results = []
    for each in (tree, again(tree)):
        mx.random.seed(2)
        results.append(compute(each, X))
    (value, grads), (found, found_grads) = results
    assert mx.allclose(found, value, rtol=1e-4)
    leaves = fl.tree.leaves(found_grads)
    assert len(leaves) == len(fl.tree.leaves(grads)) > 1
    assert all(mx.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(leaves, fl.tree.leaves(grads), strict=True))
    assert any(mx.any(each != 0).item() for each in leaves)


@each_kind
def test_it_is_computed_again(kind: str) -> None:
    runs = []
    for tree in (stack(kind), again(stack(kind))):
        RAN.clear()
        fl.eval(fl.grad(lambda m, x: m(x))(tree, X))
        runs.append(len(RAN))
    assert runs == [2, 3]
    RAN.clear()


@each_kind
def test_original_code_finds_the_layer(kind: str) -> None:
    def run(m: Any, x: mx.array) -> Any:
        return m.layers[0].size, m.parameters(), m.layers[0].trainable_parameters(), len(m.modules()), m.layers

    *found, layers = again(stack(kind, run))(X)
    *expected, _ = stack(kind, run)(X)
    assert same(found, expected)
    assert found[0::3] == expected[0::3]
    assert type(layers[0]) is type(again(stack(kind)).layers[0])


@each_kind
def test_what_code_changes_is_used_and_recorded(kind: str) -> None:
    def run(m: Any, x: mx.array) -> Any:
        before = m.layers[0](x)
        m.layers[0].update({"lin" if "lin" in m.layers[0] else "inner": {"bias": mx.ones(4)}}) if kind != "adapted" else None
        m.layers[1].lin = m.layers[0]
        m.layers[0].size = 3
        return mx.stack([before, m.layers[0](x)])

    tree, plain = again(stack(kind, run)).eval(), stack(kind, run).eval()
    found, after = fl.stateful(tree, X)
    expected, plain_after = fl.stateful(plain, X)
    assert same(found, expected)
    assert isinstance(after.layers[0], type(tree.layers[0]))
    assert same(arrays(after.layers[0].__wrapped__), arrays(plain_after.layers[0]))


@each_kind
def test_nothing_changes_in_a_call_that_changes_nothing(kind: str) -> None:
    tree = again(stack(kind)).eval()
    assert fl.stateful(tree, X)[1] is tree
    assert same(tree(X), stack(kind).eval()(X))


@each_kind
def test_both_ways(kind: str) -> None:
    tree = again(stack(kind)).eval()
    module = fl.to_mlx(tree)
    assert type(module.layers[0]).__name__ == type(fl.to_mlx(stack(kind)).layers[0]).__name__
    assert same(arrays(module), arrays(fl.to_mlx(stack(kind))))
    assert same(module(X), tree(X))
    back = fl.from_mlx(module)
    assert same(back, tree)
    assert type(back.layers[0]) is type(tree.layers[0])
    module.layers[0].update({"lin": {"bias": mx.ones(4)}} if kind in ("wrapped", "converted") else {})
    _, grads = nn.value_and_grad(module, lambda m, x: m(x))(module, X)
    fl.eval(grads)


def test_one_of_a_native_layer() -> None:
    tree = fl.convert(fl.from_mlx(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))))
    mixed = fl.from_mlx(Stack(lambda m, x: m.layers[0](x).sum())).at("layers.0").set(tree.at("layers.1").apply(fl.checkpoint))
    grads = fl.grad(lambda m: m(X))(mixed)
    expected = fl.grad(lambda m: m(X).sum())(tree)
    assert same(grads.layers[0], expected)
    assert same(arrays(fl.to_mlx(mixed)), arrays(mixed.at("layers.0").set(tree)))


def test_other_functions_of_a_layer_are_refused() -> None:
    tree = stack("wrapped").at("layers.0").apply(fl.jit)
    with pytest.raises(TypeError, match=r"layers.0 is what fl.jit made of a layer.*Write fl.jit around the whole model"):
        tree(X)


def test_weights_that_are_written_back_are_no_change() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def __call__(self, x: mx.array) -> mx.array:
            return self.lin(x)

    plain = fl.from_mlx(nn.Sequential(Plain()))
    expected = plain(X)
    gradient = fl.grad(lambda tree: tree(X).sum())(plain)
    pytest.importorskip("mlx_lm.tuner.trainer").grad_checkpoint(Plain())
    tree, norm = plain, fl.nn.BatchNorm(4)
    for each in (tree, tree.layers[0]):
        out, after = fl.stateful(each, X)
        assert same(out, expected)
        assert after is each
    out, after = fl.stateful(lambda norm: norm(mx.tile(tree(X), (2, 1))), norm)
    assert same(after.running_mean, fl.stateful(norm, mx.tile(expected, (2, 1)))[1].running_mean)
    assert same(fl.grad(lambda tree: fl.stateful(tree, X)[0].sum())(tree), gradient)
    assert same(fl.jit(lambda tree, x: fl.stateful(tree, x)[0])(tree, X), expected)
