"""What real modules hold: helpers, closures, memos, layers bound in odd ways."""

import dataclasses
import functools
import re
import threading
import types
import warnings
import weakref

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from interop.checks import Base, X, close, same

import frostleaf as fl


class Helper:
    """A plain object."""

    def __init__(self, size):
        self.size = size
        self.table = mx.arange(size)
        self.span = slice(0, size)

    def __call__(self, x):
        return x * self.size


def made(scale):
    return lambda x: x * scale


@pytest.mark.parametrize(
    ("one", "same_as", "other"),
    [
        (lambda: Helper(3), lambda: Helper(3), lambda: Helper(4)),
        (lambda: made(2), lambda: made(2), lambda: made(3)),
        (lambda: slice(1, 2), lambda: slice(1, 2), lambda: slice(1, 3)),
        (lambda: functools.partial(made, 1), lambda: functools.partial(made, 1), lambda: functools.partial(made, True)),
        (lambda: {"a": [1]}, lambda: {"a": [1]}, lambda: {"a": [1.0]}),
        (lambda: {1, 2}, lambda: {1, 2}, lambda: {1}),
        (lambda: mx.compile(made(2)), lambda: mx.compile(made(2)), lambda: mx.compile(made(3))),
        (lambda: mx.compile(nn.gelu), lambda: mx.compile(nn.gelu), lambda: mx.compile(nn.silu)),
        (lambda: [mx.vmap(mx.tanh)], lambda: [mx.vmap(mx.tanh)], lambda: [mx.vmap(mx.sin)]),
    ],
    ids=["a helper", "a closure", "a slice", "a partial", "a dict", "a set", "a compiled closure", "compiled twice", "mapped"],
)
def test_values_are_equal_by_content(one, same_as, other):
    trees = [fl.from_mlx(Base(value=make())) for make in (one, same_as, other)]
    first, second, third = map(fl.tree.structure, trees)
    assert first == second
    assert hash(first) == hash(second)
    assert first != third
    call = fl.jit(lambda tree, x: tree(x))
    for tree in trees:
        call(tree, X)
    assert call.trace_count == 2


def test_a_helper_is_the_trees_own():
    helper = Helper(3)

    class Scaled(Base):
        def __call__(self, x):
            return self.helper(x)

    tree = fl.from_mlx(Scaled(helper=helper))
    jitted = fl.jit(tree)
    expected = tree(X), jitted(X)
    helper.size = 100
    helper.table[0] = 5
    tree.helper.size = 100
    assert same((tree(X), jitted(X)), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.gelu, lambda: mx.tanh, lambda: mx.compile(nn.gelu), lambda: mx.compile(lambda x: x), threading.Lock,
        lambda: re, lambda: mx.custom_function(lambda x: x), lambda: iter([1]), lambda: mx.float16,
        lambda: (threading.Lock(), [1]),
    ],
    ids=["gelu", "tanh", "compiled twice", "compiled", "a lock", "a module", "custom", "an iterator", "a dtype", "a tuple"],
)  # fmt: skip
def test_what_cant_be_copied_is_shared_and_nothing_else(make):
    class Scaled(Base):
        def __call__(self, x):
            return x * self.table["sizes"][0] * self.helper.size

    helper, table = Helper(3), {"sizes": [2], "beside": make()}
    helper.beside = table["beside"]
    tree = fl.from_mlx(Scaled(helper=helper, table=table))
    expected = tree(X)
    for one, other in [(helper, table), (tree.helper, tree.table), (fl.to_mlx(tree).helper, fl.to_mlx(tree).table)]:
        one.size = 100
        other["sizes"][0] = 100
        assert same(tree(X), expected)
    assert type(tree.table["beside"]) is type(table["beside"])


def test_a_helper_that_a_call_changes_is_as_it_was():
    class Counting(Base):
        def __call__(self, x):
            self.helper.size += 1
            self.helper.last = x
            return x * self.helper.size

    tree = fl.from_mlx(Counting(helper=Helper(3)))
    with pytest.warns(fl.UncollectedStateWarning, match=r"Counting.__call__ changed helper.size, helper.last, and"):
        assert same(tree(X), X * 4)
    with pytest.warns(fl.UncollectedStateWarning, match="helper"):
        assert same(tree(X), X * 4)
    _, after = fl.stateful(tree, X)
    assert (after.helper.size, tree.helper.size) == (4, 3)


def test_what_a_call_gives_and_takes_is_shared_with_nobody():
    class Sharing(Base):
        def config(self):
            return self.helper

        def every(self):
            return [self.helper, self.sizes]

        def keep(self, x):
            self.kept = x

        def climb(self):
            self.inner.above = self

        def __call__(self, x):
            return x * self.helper.size * self.sizes[0]

    tree = fl.from_mlx(Sharing(helper=Helper(3), sizes=[2], inner=Base()))
    expected = tree(X)
    tree.config().size = 100
    tree.every()[0].size = 100
    tree.every()[1][0] = 100
    assert same(tree(X), expected)
    x = mx.ones(3)
    _, after = fl.stateful(tree.keep, x)
    x += 1
    assert same(after.kept, mx.ones(3))
    with pytest.warns(fl.UncollectedStateWarning, match="climb changed its attributes"):
        tree.climb()
    with pytest.raises(ValueError, match=r"inner\.above is the module Sharing, which holds it"):
        fl.stateful(tree.climb)
    assert same(tree(X), expected)


def test_a_memo_is_made_anew_and_does_not_leak():
    class Memo(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self._call = None

        def __call__(self, x):
            if self._call is None:
                self._call = mx.compile(lambda x: self.inner(x))
            return self._call(x)

    tree = fl.from_mlx(Memo())
    other = tree.at("inner.bias").set(mx.ones(3))
    for each in (tree, other, tree):
        assert close(each(X), each.inner(X))
    _, after = fl.stateful(tree, X)
    changed = after.at("inner.bias").set(mx.ones(3))
    assert close(changed(X), changed.inner(X))


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: {"call": lambda x: inner(x)}, lambda inner: [mx.compile(lambda x: inner(x))],
        lambda inner: functools.partial(lambda x, y: inner(x), y=1), lambda inner: mx.compile(inner.__call__),
    ],
    ids=["in a dict", "in a list", "a partial", "a compiled method"],
)  # fmt: skip
def test_a_memo_is_left_out_wherever_it_is(make):
    class Memo(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.memo = {}

        def __call__(self, x):
            if x.shape not in self.memo:
                self.memo[x.shape] = make(self.inner)
                self._last = make(self.inner)
            found = self.memo[x.shape]
            return (next(iter(found.values())) if type(found) is dict else found[0] if type(found) is list else found)(x)

    tree = fl.from_mlx(Memo())
    _, after = fl.stateful(tree, X)
    assert fl.tree.structure(after) == fl.tree.structure(tree)
    changed = after.at("inner.bias").set(mx.ones(3))
    assert close(changed(X), changed.inner(X))
    step = fl.jit(lambda tree, x: fl.stateful(tree, x))
    for _ in range(3):
        _, tree = step(tree, X)
    assert step.trace_count == 1


def test_modules_that_are_bound_in_any_way_are_those_of_the_tree():
    class Bound(Base):
        def __init__(self):
            super().__init__(inner=nn.Linear(3, 3))
            self.calls = [self.inner.__call__, functools.partial(self.inner), functools.partial(self.scaled, by=2)]
            self.helper = types.SimpleNamespace(size=self.inner)

        def scaled(self, x, by):
            return self.inner(x) * by

        def __call__(self, x):
            return sum(call(x) for call in self.calls) + self.helper.size(x)

    model = Bound()
    tree = fl.from_mlx(model)
    model.inner.bias = mx.ones(3)
    assert same(tree.at("inner.bias").set(mx.ones(3))(X), model(X))
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(Bound()))
    assert same(fl.to_mlx(tree)(X), tree(X))


@pytest.mark.parametrize("make", [weakref.proxy, lambda inner: [weakref.proxy(inner)], lambda inner: map(inner, [X])])
def test_what_stands_for_a_layer_is_that_of_the_tree(make):
    class Standing(Base):
        def __init__(self):
            super().__init__(inner=nn.Linear(3, 3))
            self.other = make(self.inner)

        def __call__(self, x):
            other = self.other[0] if isinstance(self.other, list) else self.other
            return next(other) if isinstance(other, map) else other(x)

    tree = fl.from_mlx(Standing()).at("inner.bias").set(mx.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.UncollectedStateWarning)
        assert same(tree(X), tree.inner(X))
        assert same(tree(X), tree.inner(X))
    assert same(fl.to_mlx(tree)(X), tree.inner(X))


def test_a_first_call_that_sets_attributes():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.norm = nn.BatchNorm(3)
            self._seen = []

        def __call__(self, x):
            self.num_nodes = x.shape[0]
            self.inner.used = True
            self._last = x.sum()
            self._seen.append(x[0])
            return self.norm(self.inner(x))

    def loss(tree, x):
        out, after = fl.stateful(tree, x)
        return out.square().sum(), after

    x = mx.random.normal((4, 3))
    mx.random.seed(0)
    tree, opt = fl.from_mlx(Positions()), fl.optim.Adam(1e-2)
    mx.random.seed(0)
    model, theirs = Positions(), optim.Adam(1e-2)
    state = opt.init(tree)
    for step in range(3):
        (value, after), grads = fl.value_and_grad(loss, has_aux=True)(tree, x)
        tree, state = opt.update(after, grads, state)
        expected, gradients = nn.value_and_grad(model, lambda model, x: model(x).square().sum())(model, x)
        theirs.update(model, gradients)
        assert same(value, expected)
        assert (tree.num_nodes, tree.inner.used, len(tree._seen)) == (4, True, step + 1)
        assert same(tree.inner.weight, model.inner.weight)
        assert same(tree.norm.running_mean, model.norm.running_mean)


def test_quantizing():
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    tree, x = fl.from_mlx(model), mx.random.normal((2, 32))
    nn.quantize(model, group_size=32)
    for quantized in (fl.quantize(tree, group_size=32), fl.quantize(fl.convert(tree), group_size=32)):
        assert same(quantized(x), model(x))
        assert same(fl.to_mlx(quantized)(x), model(x))
    assert quantized.at(fl.nn.QuantizedLinear).paths() == ["layers.0", "layers.2"]


def test_results_that_are_dataclasses():
    @dataclasses.dataclass
    class Output:
        hidden: mx.array
        logits: list
        name: str = "out"
        cache: object = None

    class Model(Base):
        def __call__(self, x):
            return Output(self.weight * x, [x + 1])

    tree = fl.from_mlx(Model())
    plain = tree(X)
    for out in (
        fl.jit(tree)(X),
        fl.stateful(tree, X)[0],
        fl.eval_shape(lambda tree, x: tree(x), tree, X),
        fl.value_and_grad(lambda tree, x: (tree(x).hidden.sum(), tree(x)), has_aux=True)(tree, X)[0][1],
    ):
        assert (type(out), out.name, out.hidden.shape) == (Output, "out", (3,))
    assert same(fl.vmap(tree)(mx.stack([X, X])).logits[0][1], plain.logits[0])


def test_a_gradient_that_lacks_a_parameter():
    tree = fl.from_mlx(nn.Linear(3, 3))
    grads = fl.grad(lambda tree: tree(X).sum())(fl.from_mlx(nn.Linear(3, 3, bias=False)))
    opt = fl.optim.SGD(0.1)
    with pytest.raises(ValueError, match="bias"):
        opt.update(tree, grads, opt.init(tree))


def test_arrays_that_are_hidden_from_mlx():
    class Hiding(Base):
        def __init__(self):
            super().__init__()
            object.__setattr__(self, "hidden", mx.ones(3))

        def __call__(self, x):
            return x * self.hidden

    tree = fl.from_mlx(Hiding())
    assert [*tree.parameters()] == ["weight"]
    assert fl.tree.paths(tree) == ["weight", "hidden"]
    assert same(tree(X), X)
