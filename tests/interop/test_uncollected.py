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


def in_a_set(model, x):
    model.found.add(x.shape)


def in_a_dict(model, x):
    model.table["last"] = x.shape


def normal(model, x):
    model.norm(x)


def below(model, x):
    model.inner.used = True


def splitting(model, x):
    model._key, key = mx.random.split(model._key)
    return mx.random.normal(x.shape, key=key)


def splitting_a_parameter(model, x):
    model.key, _ = mx.random.split(model.key)


def averaging(model, x):
    model._mean = 0.9 * model._mean + 0.1 * x.mean(0)


def averaging_a_parameter(model, x):
    model.mean = 0.9 * model.mean + 0.1 * x.mean(0)


def recurrent(model, x):
    model._state = mx.tanh(model.inner(x) + model._state @ model.inner.weight)


def counting_privately(model, x):
    model._count += 1


def counting_in_a_dict(model, x):
    model._counts["n"] += 1


def counting_with_get(model, x):
    model._counts["n"] = model._counts.get("n", 0) + 1


def counting_in_a_list(model, x):
    model._counts[0] += 1


def counting_below(model, x):
    model._counts["all"]["n"] += x.shape[0]


def counting_by_name(model, x):
    setattr(model, "_count", model._count + 1)  # noqa: B010


def counting_by_computed_name(model, x):
    for name in ("_count",):
        setattr(model, name, getattr(model, name) + 1)


class Counter:
    """A helper that counts by itself."""

    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1


def counting_in_a_helper(model, x):
    model._counter.add()


def counting_an_array(model, x):
    model._count = model._count + 1


def counting_in_place(model, x):
    model._count += 1


def writing(model, x):
    model._rows[0] = x[0]


def from_the_second_on(model, x):
    if model._sum is None:
        model._sum = x
    else:
        model._sum = model._sum + x


def observing(model, x):
    model._most = mx.maximum(model._most, mx.abs(x).max())


def scattering(model, x):
    model._rows = model._rows.at[mx.array([0, 1])].add(1.0)


def scattering_into_a_slice(model, x):
    model._rows = model._rows.at[:1].add(1.0)


def scattering_along_an_axis(model, x):
    model._rows = mx.put_along_axis(model._rows, mx.argmax(x, axis=1, keepdims=True)[:2], x[:2, :1], axis=1)


def scattering_the_most(model, x):
    model._rows = model._rows.at[mx.array([0, 1])].maximum(x[:2])


def history(model, x):
    model._seen.append(model.inner(x))


def growing(model, x):
    model._rows = mx.concatenate([model._rows, x])


def in_a_list(model, x):
    model._means[0] = model._means[0] + x.mean()


def biasing(model, x):
    model.inner.bias = model.inner.bias + 1


def freezing(model, x):
    model.inner.freeze()


GOING_ON = [
    (splitting, {"_key": mx.random.key(0)}, "_key"),
    (splitting_a_parameter, {"key": mx.random.key(0)}, "key"),
    (averaging, {"_mean": mx.zeros(4)}, "_mean"),
    (averaging_a_parameter, {"mean": mx.zeros(4)}, "mean"),
    (recurrent, {"_state": mx.zeros((3, 4))}, "_state"),
    (counting_privately, {"_count": 0}, "_count"),
    (counting_in_a_dict, {"_counts": {"n": 0}}, "_counts.n"),
    (counting_with_get, {"_counts": {"n": 0}}, "_counts.n"),
    (counting_in_a_list, {"_counts": [0]}, "_counts"),
    (counting_below, {"_counts": {"all": {"n": 0}}}, "_counts.all.n"),
    (counting_by_name, {"_count": 0}, "_count"),
    (counting_by_computed_name, {"_count": 0}, "_count"),
    (counting_in_a_helper, {"_counter": Counter()}, "_counter.count"),
    (counting_an_array, {"_count": mx.array(0)}, "_count"),
    (counting_in_place, {"_count": mx.array(0)}, "_count"),
    (writing, {"_rows": mx.zeros((2, 4))}, "_rows"),
    (from_the_second_on, {"_sum": None}, "_sum"),
    (observing, {"_most": mx.array(0.0)}, "_most"),
    (scattering, {"_rows": mx.zeros((2, 4))}, "_rows"),
    (scattering_into_a_slice, {"_rows": mx.zeros((2, 4))}, "_rows"),
    (scattering_along_an_axis, {"_rows": mx.zeros((2, 4))}, "_rows"),
    (scattering_the_most, {"_rows": mx.zeros((2, 4))}, "_rows"),
    (history, {"_seen": []}, "_seen"),
    (growing, {"_rows": mx.zeros((2, 4))}, "_rows"),
    (in_a_list, {"_means": [mx.array(0.0)]}, "_means"),
    (biasing, {}, "inner.bias"),
    (freezing, {}, "which parameters of inner are frozen"),
]

CHANGES = [
    *GOING_ON,
    (is_late, {"late": None}, "late"),
    (hidden, {"hidden": None}, "hidden"),
    (counting, {"count": 0}, "count"),
    (annealing, {"beta": 1.0}, "beta"),
    (listing, {"seen": []}, "seen"),
    (in_a_dict, {"table": {}}, "table.last"),
    (in_a_set, {"found": set()}, "found"),
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


@pytest.mark.parametrize(("change", "values", "changed"), GOING_ON)
def test_what_is_lost_is_said_where_it_is_traced(change, values, changed):
    class Changing(Base):
        pass

    Changing.change = change
    tree = fl.from_mlx(Changing(**values))
    for transformed in (fl.jit(lambda tree, x: tree(x)), fl.grad(lambda tree, x: tree(x).sum())):
        with pytest.warns(fl.UncollectedStateWarning, match=re.escape(f"changed {changed},")):
            transformed(tree, X)


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


def cast(model, x):
    model._table = model._table.astype(mx.float16)[:2]


def sizes(model, x):
    model._longest = max(model._longest, x.shape[0] + 1)
    model._length = x.shape[0] + 1


def remembered(model, x):
    model._known.add(x.shape)
    model._order.append(x.shape[0])


def sizes_in_a_dict(model, x):
    model._sizes["rows"] = x.shape[0] + 1
    model._sizes["longest"] = max(model._sizes["longest"], x.shape[0])
    setattr(model, "_length", x.shape[0] + 1)  # noqa: B010


def counted_anew(model, x):
    model._counts["n"] = 0
    for _ in x:
        model._counts["n"] += 1


def begun_anew(model, x):
    model._at, model._total = 0, mx.zeros(4)
    for row in x:
        model._at += 1
        model._total = model._total + row


def weight_norm(model, x):
    model.inner.weight = model.gain * model.direction / (mx.linalg.norm(model.direction) + 1e-6)


def normed(model, x):
    model.inner.weight = model.inner.weight / (mx.linalg.norm(model.inner.weight) + 1e-6)


def masked(model, x):
    model.inner.weight = mx.where(model.keep, model.inner.weight, 0) * model.keep


def zero_row(model, x):
    model.inner.weight[0] = 0


def longer_table(model, x):
    model._table = mx.concatenate([model._table, mx.arange(4)])


def filled(model, x):
    model._tables.append(mx.arange(4))


def scattered(model, x):
    table = mx.zeros(4).at[mx.array([0, 1])].add(1.0).at[:1].add(2.0)
    model._table = mx.put_along_axis(table, mx.array([2]), mx.ones(1), axis=0).view(mx.uint32)


def mode_of_all(model, x):
    was = model.training
    model.eval()
    model.train(was)
    model.inner.freeze()
    model.inner.unfreeze()


KEPT = [
    (cast, {"_table": mx.zeros((3, 4))}),
    (sizes, {"_longest": 0, "_length": 3}),
    (remembered, {"_known": set(), "_order": []}),
    (sizes_in_a_dict, {"_sizes": {"rows": 0, "longest": 0}, "_length": 0}),
    (counted_anew, {"_counts": {"n": 0}}),
    (begun_anew, {"_at": 0, "_total": mx.zeros(4)}),
    (weight_norm, {"gain": mx.ones((4, 1)), "direction": mx.ones((4, 4))}),
    (normed, {}),
    (masked, {"keep": mx.ones((4, 4), mx.bool_)}),
    (zero_row, {}),
    (longer_table, {"_table": mx.arange(3)}),
    (filled, {"_tables": []}),
    (scattered, {"_table": mx.zeros(4, mx.uint32)}),
    (mode_of_all, {}),
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
