"""What original code changes in a call that nobody collects is warned of, and what it makes again in each call is not."""

import re
import warnings

import mlx.core as mx
import mlx.nn as nn
import pytest

import frostleaf as fl

X = mx.ones((3, 4))


class Base(nn.Module):
    """Sets what it is given, and has a layer."""

    def __init__(self, **values):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        for name, value in values.items():
            setattr(self, name, value)

    def __call__(self, x):
        self.change(x)
        return self.inner(x)


def is_late(model, x):
    if model.late is None:
        model.late = nn.Linear(4, 2)


def hidden(model, x):
    model.hidden = model.inner(x)


def counting(model, x):
    model.count += 1


def annealing(model, x):
    model.beta *= 0.5


def listing(model, x):
    model.seen.append(x.shape)


def in_a_dict(model, x):
    model.table["last"] = x.shape


def normal(model, x):
    model.norm(x)


def below(model, x):
    model.inner.used = True


CHANGES = [
    (is_late, {"late": None}, "late"),
    (hidden, {"hidden": None}, "hidden"),
    (counting, {"count": 0}, "count"),
    (annealing, {"beta": 1.0}, "beta"),
    (listing, {"seen": []}, "seen"),
    (in_a_dict, {"table": {}}, "table.last"),
    (below, {}, "inner.used"),
    (lambda model, x: setattr(model, "new", 1), {}, "new"),
    (normal, {"norm": nn.BatchNorm(4)}, "norm.running_mean, norm.running_var"),
]


@pytest.mark.parametrize(("change", "values", "changed"), CHANGES)
def test_what_is_lost_is_said(change, values, changed):
    class Changing(Base):
        pass

    Changing.change = change
    tree = fl.from_mlx(Changing(**values))
    message = (
        f"Changing.__call__ changed {changed}, and nobody collects it: the tree is as it was. Write fl.stateful(model, ...)"
    )
    with pytest.warns(fl.UncollectedStateWarning, match=re.escape(message)):
        tree(X)
    fl.stateful(tree, X)


def memo(model, x):
    model._table[x.shape] = mx.arange(4)
    model._last = x


def function(model, x):
    model.fast = mx.compile(lambda x: model.inner(x))
    model.memo[x.shape] = model.fast


def the_same(model, x):
    model.size, model.scale, model.shape = 1000 + x.shape[-1], x.shape[-1] / 8, x.shape


def clipped(model, x):
    model.inner.weight = mx.clip(model.inner.weight.astype(mx.bfloat16), -1, 1).astype(mx.float16)


def modes(model, x):
    model.inner.eval()


def gradient(model, x):
    value, gradients = nn.value_and_grad(model, lambda x: model.inner(x).sum())(x)
    return value, gradients


def computed(model, x):
    mx.eval(gradient(model, x))
    mx.eval(model.parameters())


def checkpointed(model, x):
    return nn.utils.checkpoint(model.inner)(x)


KEPT = [
    (memo, {"_table": {}}),
    (function, {"memo": {}}),
    (the_same, {"size": 1004, "scale": 0.5, "shape": (3, 4)}),
    (clipped, {}),
    (modes, {}),
    (gradient, {}),
    (computed, {}),
    (checkpointed, {}),
]


@pytest.mark.parametrize(("change", "values"), KEPT)
def test_what_is_made_again_is_not_warned_of(change, values):
    class Changing(Base):
        pass

    Changing.change = change
    tree = fl.from_mlx(Changing(**values))
    assert tree(X).shape == (3, 4)
    fl.grad(lambda tree: tree(X).sum())(tree)


@pytest.mark.parametrize("change", [gradient, computed])
@pytest.mark.parametrize("is_computed", [True, False])
def test_a_method_that_computes_gradients_changes_nothing(change, is_computed):
    class Changing(Base):
        pass

    Changing.norms = change
    tree = fl.from_mlx(Changing())
    if is_computed:
        fl.eval(tree)
    tree.norms(X)
    fl.jit(lambda tree, x: gradient is change and tree.norms(x) and x)(tree, X)


@pytest.mark.parametrize(
    "new",
    [
        lambda weight: weight * 2,
        lambda weight: mx.ones((4, 4)),
        lambda weight: mx.array([[1.0] * 4] * 4),
        lambda weight: mx.ones(2),
    ],
)
def test_a_method_that_changes_weights_is_warned_of(new):
    class Changing(Base):
        def change(self, x):
            self.inner.weight = new(self.inner.weight)

    tree = fl.from_mlx(Changing())
    with pytest.warns(
        fl.UncollectedStateWarning, match=r"change changed inner.weight, .* Write fl.stateful\(model.change, ...\)"
    ):
        tree.change(X)


def test_it_is_said_once_a_line():
    tree = fl.from_mlx(nn.BatchNorm(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            tree(X)
    assert len(caught) == 1


class Chained(nn.Module):
    """Original code whose methods change the module and return it."""

    def __init__(self):
        super().__init__()
        self.inner, self.size, self.table = nn.Linear(3, 3), 1, mx.zeros(2)

    def set_size(self, size):
        self.size = size
        return self

    def set_weight(self, weight):
        self.inner.weight = weight
        return self.inner

    def write(self, value):
        self.table[0] = value
        return self

    def look(self):
        return self


def test_a_method_that_returns_its_module():
    tree = fl.from_mlx(Chained())
    for method, args in [("set_size", (5,)), ("write", (3.0,))]:
        out, after = fl.stateful(getattr(tree, method), *args)
        assert fl.tree.equal(out, after)
        assert out.inner.weight is tree.inner.weight
    assert (out.table.tolist(), tree.table.tolist()) == ([3, 0], [0, 0])
    out, after = fl.stateful(tree.set_weight, mx.ones((3, 3)))
    assert fl.tree.equal(out, after.inner)
    assert out.bias is tree.inner.bias
    out, after = fl.stateful(tree.look)
    assert fl.tree.equal(out, tree)
    assert after is tree.look() is tree
    with pytest.warns(fl.UncollectedStateWarning, match="set_size changed size"):
        assert tree.set_size(5) is tree
