"""What the arguments and results of jitted functions may hold besides arrays: refused, warned of, told apart, let go."""

import argparse
import collections
import dataclasses
import functools
import gc
import io
import logging
import random
import threading
import types
import warnings
import weakref
from decimal import Decimal
from typing import Any

import attrs
import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.transforms.jit.arguments import HIDDEN, MUTABLE, RETURNED, USED_UP
from frostleaf.transforms.jit.captured import PASSES
from frostleaf.transforms.jit.changes import CHANGED
from frostleaf.transforms.jit.retraces import CHANGING

X = mx.arange(3.0)


@dataclasses.dataclass(frozen=True)
class Config:
    scale: Any = 1
    kinds: Any = ()
    k: Any = 1


@attrs.frozen
class Options:
    scale: Any


class Cache:
    def __init__(self, **held):
        self.offset = 0
        self.__dict__.update(held)

    def grow(self, x):
        self.keys = x
        return x * self.offset


class Slotted:
    __slots__ = ("offset",)

    def __init__(self):
        self.offset = 0


# Equal, and not the same


@pytest.mark.parametrize(
    "make",
    [
        Config, Options, lambda v: Config(kinds=(Options(v),)), lambda v: functools.partial(max, Config(v)),
        lambda v: collections.namedtuple("Pair", "a b")(Config(v), 1), lambda v: {"a": [Config(v)]},
    ],
    ids=["dataclass", "attrs", "nested", "partial", "named tuple", "tree"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), (Decimal("1.0"), Decimal("1.00")), (np.float32(0), np.float32(-0.0))]
)
def test_equal_static_values_that_are_not_the_same_are_two_traces(make, one, other):
    pair = make(one)
    same = functools.partial(type(pair)) if isinstance(pair, tuple) else None
    jitted = fl.jit(lambda x, config: x + 1)
    jitted(X, pair)
    jitted(X, pair if same else make(one))
    assert jitted.trace_count == 1
    jitted(X, type(pair)(Config(other), 1) if same else make(other))
    assert jitted.trace_count == 2


@pytest.mark.parametrize("make", [Config, Options, lambda v: functools.partial(max, v), lambda v: frozenset({v})])
@pytest.mark.parametrize("number", [lambda: float("nan"), lambda: np.float32("nan"), lambda: Decimal("nan")])
def test_a_nan_is_one_trace(make, number):
    jitted = fl.jit(lambda x, config: x + 1)
    for _ in range(3):
        jitted(X, make(number()))
    assert jitted.trace_count == 1


class Holder(fl.Module):
    config: Any = fl.static()


def test_an_edit_sees_the_difference():
    holder = Holder(Config(1))
    assert type(holder.replace(config=Config(1.0)).config.scale) is float
    assert holder.replace(config=Config(1)) is holder
    assert len(fl.tree.diff(holder, Holder(Config(1.0)))) == 1
    assert fl.tree.equal(Holder(Config(float("nan"))), Holder(Config(float("nan"))))


# What can't be hashed


@pytest.mark.parametrize(
    ("given", "path", "kind"),
    [
        (Config(kinds=["full"]), "config.kinds", "a builtins.list"),
        (Config(kinds=(1, {"a": 2})), "config.kinds.1", "a builtins.dict"),
        (Config(Options([1])), "config.scale.scale", "a builtins.list"),
        ([Config(Config({1}))], "config.0.scale.scale", "a builtins.set"),
        (functools.partial(max, bytearray()), "config.args.0", "a builtins.bytearray"),
        (functools.partial(max, key=bytearray()), "config.keywords.key", "a builtins.bytearray"),
        (Config(np.ones(2)), "config.scale", "a numpy.ndarray"),
    ],
)
def test_what_can_not_be_hashed_is_named_inside(given, path, kind):
    jitted = fl.jit(lambda x, config: x)
    with pytest.raises(TypeError) as raised:
        jitted(X, given)
    assert str(raised.value).startswith(f"{path} of <lambda> is {kind}, which")
    assert jitted.trace_count == 0


@pytest.mark.parametrize("given", [argparse.Namespace(k=2), types.SimpleNamespace(k=2)])
def test_a_namespace_is_told_to_be_a_frozen_dataclass(given):
    in_field = type("Held", (fl.Module,), {"__annotations__": {"config": Any}})(given)
    for value, path in [(given, "config"), ((1, given), "config.1"), (in_field, "config.config")]:
        with pytest.raises(TypeError, match=r"be hashed\. Pass what is in it, or a frozen dataclass of that\.$") as raised:
            fl.jit(lambda x, config: x)(X, value)
        assert str(raised.value).startswith(f"{path} of <lambda> is a")
    with pytest.raises(TypeError, match=r"be hashed\. Give a frozen dataclass of what is in it, or store numbers"):
        Scaled(given)


@attrs.define
class Defined:
    k: int = 2

    @fl.jit
    def scaled(self, x):
        return x * self.k


def test_an_attrs_class_is_told_to_be_frozen():
    for call in (Defined().scaled, lambda x: fl.jit(lambda x, config: x)(x, [Defined()])):
        with pytest.raises(TypeError, match=r"hashed\. Make Defined @attrs\.frozen, or a tree with fl\.register_dataclass\.$"):
            call(X)


# Options of others


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": [1]}, "fl.jit takes no inputs. Models, states and caches are arguments and results: model, state"),
        (
            {"outputs": [1]},
            "fl.jit takes no outputs. Models, states and caches are arguments and results: model, state",
        ),
        ({"static_argnums": 0}, "fl.jit takes no static_argnums. What is no array is static by itself."),
        ({"donate_argnums": 0}, "fl.jit takes no donate_argnums. MLX reuses the memory of arrays that nobody holds."),
        ({"shapless": True}, "fl.jit takes no shapless; its options are shapeless and max_traces."),
    ],
)
def test_an_option_of_others_says_what_to_write(options, message):
    for make in (lambda: fl.jit(len, **options), lambda: fl.jit(**options)):
        with pytest.raises(TypeError) as raised:
            make()
        assert str(raised.value).startswith(message)


# Objects


@pytest.mark.parametrize(
    ("given", "hidden"),
    [
        (Cache(keys=X), "keys: f32[3]"),
        (Cache(layers=[fl.nn.Linear(1, 1)]), "layers.0: a Linear"),
        (Config(X), "scale: f32[3]"),
        (Options((1, X)), "scale.1: f32[3]"),
        (functools.partial(max, X), "args.0: f32[3]"),
    ],
)
def test_an_object_that_holds_arrays_is_refused(given, hidden):
    jitted = fl.jit(lambda x, cache: x)
    with pytest.raises(TypeError) as raised:
        jitted(X, [given])
    cls = type(given).__name__
    article = "an" if cls[0] in "AEIO" else "a"
    said = {"name": "cache.0", "fn": "<lambda>", "kind": f"{article} {cls}", "hidden": hidden, "advice": ""}
    assert str(raised.value).startswith(HIDDEN.format(**said))
    assert ("bound to" in str(raised.value)) == isinstance(given, functools.partial)
    assert ("fl.register_dataclass" in str(raised.value)) != isinstance(given, functools.partial)
    assert jitted.trace_count == 0


class Apart:
    """Methods that take the model as an argument, and others."""

    def __init__(self, model):
        self.model = model
        self.log = []

    @fl.jit
    def apply(self, model, x):
        return model(x)

    @fl.jit
    def through(self, model, x):
        return self._apply(model, x)

    def _apply(self, model, x):
        return model(x)

    def __call__(self, x):
        return self.apply(self.model, x)

    @fl.jit
    def reads(self, x):
        return self.model(x)

    @fl.jit
    def reads_through(self, x):
        return self.inner(x)

    def inner(self, x):
        return self.model(x)

    @fl.jit
    def gives_away(self, x):
        return run(self, x)

    @fl.jit
    def by_any_name(self, x, name="model"):
        return getattr(self, name)(x)

    @fl.jit
    def calls_itself(self, x):
        return self(x)

    @fl.jit
    def keeps(self, x):
        self.kept = x * 2
        return x

    @fl.jit
    def logs(self, x):
        self.log.append(x * 2)
        return x


def run(trainer, x):
    return trainer.model(x)


def test_a_method_of_an_object_with_arrays_that_it_does_not_read_is_compiled():
    given = Apart(fl.nn.Linear(3, 2))
    expected = given.model(X).tolist()
    assert given(X).tolist() == given.apply(given.model, X).tolist() == given.through(given.model, X).tolist() == expected


@pytest.mark.parametrize("name", ["reads", "reads_through", "gives_away", "by_any_name", "calls_itself"])
def test_a_method_of_an_object_with_arrays_that_it_may_read_is_refused(name):
    with pytest.raises(TypeError, match=rf"^self of {name} is an Apart that holds arrays \(model: a Linear\)"):
        getattr(Apart(fl.nn.Linear(3, 2)), name)(X)


@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
@pytest.mark.parametrize(("name", "hidden"), [("keeps", "kept"), ("logs", r"log\.0")])
def test_a_method_that_puts_an_array_into_its_object_is_refused(name, hidden):
    with pytest.raises(TypeError, match=rf"^self of {name} is an Apart that holds arrays \({hidden}: f32\[3\]\)"):
        getattr(Apart(fl.nn.Linear(3, 2)), name)(X)


def test_an_object_that_gets_arrays_while_it_is_traced_is_refused():
    with pytest.raises(TypeError, match=r"keys: f32\[3\]"), pytest.warns(fl.MutableArgumentWarning):
        fl.jit(lambda cache, x: cache.grow(x))(Cache(), X)


@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
@pytest.mark.parametrize("call", [lambda step, cache: step(X, (cache,)), lambda step, cache: step(X, cached=(cache,))])
def test_an_object_that_gets_arrays_is_named_by_its_argument(call):
    with pytest.raises(TypeError, match=r"^cached\.0 of step is a Cache that holds arrays"):
        call(fl.jit(step), Cache())


def step(x, cached):
    return cached[0].grow(x)


def warned(call, category):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if each.category is category]


@pytest.mark.parametrize(
    ("given", "attributes"),
    [
        (Cache(), "offset"),
        (Cache(a=1), "offset"),
        (Slotted(), "offset"),
        (type("Bag", (), {"__init__": lambda self: vars(self).update(dict.fromkeys("abcdef"))})(), "a, b, c, d, ..."),
    ],
)
def test_a_mutable_object_is_warned_of_once(given, attributes):
    jitted = fl.jit(lambda cache, x: x * getattr(cache, "n", 1) + (0 if x.size else cache.offset))

    def calls():
        for x in X, X, X[:1]:
            jitted(given, x)

    said = {"name": "cache", "fn": "<lambda>", "kind": f"a {type(given).__name__}", "attributes": attributes}
    assert warned(calls, fl.MutableArgumentWarning) == [MUTABLE.format(**said)]
    assert warned(calls, fl.MutableArgumentWarning) == []


class Rates:
    lr, other, inner = 1.0, 2.0, type
    rate = property(lambda self: self.lr)

    def scaled(self, x):
        return x * self.lr


class OwnRates(Rates):
    def __init__(self):
        self.decay = 0.5


@pytest.mark.parametrize(
    ("fn", "given", "attributes"),
    [
        (lambda x, given: x * given.lr, Rates(), "lr"),
        (lambda x, given: given.scaled(x), Rates(), "lr"),
        (lambda x, given: x * given.rate, Rates(), "lr"),
        (lambda x, given: x * given.lr * given.decay, OwnRates(), "decay, lr"),
        (lambda x, given: x * given.lr, OwnRates(), "lr"),
        (lambda x, given: (x * given.lr).reshape(x.size, *()), Rates(), "lr"),
    ],
)
def test_attributes_of_the_class_that_are_read_are_warned_of(fn, given, attributes):
    said = {"name": "given", "fn": "<lambda>", "kind": f"{'an' * isinstance(given, OwnRates) or 'a'} {type(given).__name__}"}
    message = MUTABLE.format(**said, attributes=attributes)
    assert warned(lambda: fl.jit(fn)(X, given), fl.MutableArgumentWarning) == [message]


def test_attributes_of_the_class_that_are_not_read_are_not_warned_of():
    fn = fl.jit(lambda x, given: (x, given.inner, given.__module__)[0])
    assert warned(lambda: fn(X, Rates()), fl.MutableArgumentWarning) == []


class Colour:
    """No state of its own."""


@pytest.mark.parametrize(
    "given", [Colour(), Colour, len, mx.tanh, lambda x: x, mx, Config(), Options(1), object(), fl.optim.SGD(0.1), fl.jit(len)]
)
def test_what_does_not_change_is_not_warned_of(given):
    assert warned(lambda: fl.jit(lambda x, given: x)(X, given), fl.MutableArgumentWarning) == []


class Counting:
    def __init__(self):
        self.k, self.seen, self.log = 2, 0, []

    def scaled(self, x):
        return x * self.k

    def untouched(self, x):
        return x * 2

    def __call__(self, x):
        return self.scaled(x)


COUNTING = Counting()


@pytest.mark.parametrize(
    "fn",
    [
        lambda: fl.jit(COUNTING.scaled),
        lambda: fl.jit(functools.partial(COUNTING.scaled)),
        lambda: fl.jit(Counting.scaled).__get__(COUNTING),
        lambda: functools.partial(fl.jit(Counting.scaled), COUNTING),
    ],
)
def test_the_object_of_a_method_is_warned_of_whether_it_is_bound_first_or_jitted(fn):
    jitted = fn()
    said = {"name": "self", "fn": "scaled", "kind": "a Counting", "attributes": "k"}
    assert warned(lambda: (jitted(X), jitted(X[:1])), fl.MutableArgumentWarning) == [MUTABLE.format(**said)]


def test_an_object_that_is_called_is_warned_of():
    said = {"name": "self", "fn": "Counting", "kind": "a Counting", "attributes": "k"}
    assert warned(lambda: fl.jit(COUNTING)(X), fl.MutableArgumentWarning) == [MUTABLE.format(**said)]


@pytest.mark.parametrize(
    "call",
    [
        fl.jit(Counting.untouched).__get__(COUNTING),
        fl.jit(COUNTING.untouched),
        lambda x: fl.jit(lambda given, x: x * 2)(COUNTING, x),
        lambda x: fl.jit(lambda given, x: x * 2)([COUNTING], x),
        lambda x: fl.jit(lambda given, x: given.untouched(x))(COUNTING, x),
    ],
)
def test_an_object_of_which_nothing_is_read_is_not_warned_of(call):
    assert warned(lambda: call(X), fl.MutableArgumentWarning) == []


@pytest.mark.parametrize("given", [logging.getLogger("jit"), random.Random(0), threading.local(), np.vectorize(abs)])
def test_an_object_of_a_library_is_not_warned_of(given):
    used = [lambda given, x: (str(given), x)[1], lambda m, x: (str(m.rule), x)[1], lambda m, x: (str(m["a"]), x)[1]]
    for fn, argument in zip(used, [given, Scaled(3, given), {"a": given}], strict=True):
        assert warned(lambda fn=fn, argument=argument: fl.jit(fn)(argument, X), fl.MutableArgumentWarning) == []


class Noise(random.Random):
    def __init__(self):
        self.rate = 2


def test_an_object_of_an_own_class_above_one_of_a_library_is_warned_of():
    said = {"name": "given", "fn": "<lambda>", "kind": "a Noise", "attributes": "rate"}
    assert warned(lambda: fl.jit(lambda given, x: x * given.rate)(Noise(), X), fl.MutableArgumentWarning) == [
        MUTABLE.format(**said)
    ]


class Scaled(fl.Module):
    config: Any = fl.static()
    rule: Any = fl.static(default=None)

    def __call__(self, x):
        return x * self.config.k

    def other(self, x):
        return x * self.rule[0].k


class Settable:
    def __init__(self, k=2):
        self.k = k


def named(name):
    return [MUTABLE.format(name=name, fn="<lambda>", kind="a Settable", attributes="k")]


@pytest.mark.parametrize(
    ("fn", "args", "name"),
    [
        (lambda m, x: m(x), (Scaled(Settable()),), "m.config"),
        (lambda m, x: m[0].config.k * x, ([Scaled(Settable())],), "m.0.config"),
        (lambda m, x: m.other(x), (Scaled(3, (Settable(),)),), "m.rule.0"),
        (lambda m, x: m.rule(x), (Scaled(3, Scaled(Settable())),), "m.rule.config"),
        (lambda m, x: m.layers[0](x), (fl.nn.Sequential(Scaled(Settable())),), "m.layers.0.config"),
    ],
)
def test_a_mutable_object_in_a_static_field_is_warned_of_once(fn, args, name):
    jitted = fl.jit(fn)
    assert warned(lambda: (jitted(*args, X), jitted(*args, X[:1])), fl.MutableArgumentWarning) == named(name)


@pytest.mark.parametrize("method", [Scaled.__call__, Scaled.other])
def test_a_mutable_object_in_a_static_field_of_what_is_called_is_warned_of(method):
    bound = types.MethodType(method, Scaled(Settable(), (Settable(),)))
    assert len(warned(lambda: fl.jit(bound)(X), fl.MutableArgumentWarning)) == 1


@pytest.mark.parametrize("config", [Config(), Options(1), Colour(), Settable])
def test_what_does_not_change_in_a_static_field_is_not_warned_of(config):
    assert warned(lambda: fl.jit(lambda m, x: (m.config, x)[1])(Scaled(config), X), fl.MutableArgumentWarning) == []


def test_a_static_field_that_is_not_read_is_not_warned_of():
    assert warned(lambda: fl.jit(lambda m, x: m(x))(Scaled(Config(), Settable()), X), fl.MutableArgumentWarning) == []


def test_an_array_that_came_into_an_object_in_a_static_field_is_refused():
    model = Scaled(Settable())
    model.config.k = X
    with pytest.raises(TypeError, match=r"^m\.config of <lambda> is a Settable that holds arrays \(k: f32\[3\]\)"):
        fl.jit(lambda m, x: m(x))(model, X)


# Numbers


def test_a_number_that_changes_is_warned_of_once_with_its_name():
    jitted = fl.jit(lambda x, state: x * state["step"])

    def calls():
        for step in range(40):
            jitted(X, {"step": step, "rate": 0.1, "on": step % 2 == 0})

    said = {"name": "state.step", "fn": "<lambda>", "count": 32, "value": "31"}
    assert warned(calls, fl.RetraceWarning) == [CHANGING.format(**said)]


def test_a_number_that_follows_the_shapes_is_not_warned_of():
    jitted = fl.jit(lambda x, size: x[:size])
    assert warned(lambda: [jitted(mx.zeros(size), size) for size in range(1, 20)], fl.RetraceWarning) == []


# Results


@pytest.mark.parametrize(
    ("make", "kind", "where"),
    [
        (lambda x: (x, iter([1])), "a list_iterator", " (1 of the result)"),
        (lambda x: {"a": [zip([1], [2], strict=True)]}, "a zip", " (a.0 of the result)"),
        (lambda x: map(len, [x]), "a map", ""),
        (lambda x: {"a": x}.values(), "a dict_values", ""),
        (lambda x: io.StringIO(), "a StringIO", ""),
    ],
)
def test_an_iterator_in_a_result_is_refused(make, kind, where):
    for transform in (fl.jit, fl.vmap):
        with pytest.raises(TypeError) as raised:
            transform(make)(X)
        name = f"fl.{transform.__name__}"
        assert str(raised.value) == PASSES.format(fn="<lambda>", kind=kind, where=where, transformation=name)


@pytest.mark.parametrize(
    "given",
    [iter([1]), map(len, []), (n for n in [X]), {"a": X}.values(), {"a": X}.items(), {"a": X}.keys(), {1: X}.items()],
)
def test_an_iterator_in_an_argument_is_refused(given):
    jitted = fl.jit(lambda x, numbers: x)
    with pytest.raises(TypeError) as raised:
        jitted(X, {"all": given})
    kind = f"a {type(given).__name__}"
    assert str(raised.value) == USED_UP.format(name="numbers.all", fn="<lambda>", kind=kind)


@pytest.mark.parametrize("given", [{"a": 1}.keys(), {"a": 1}.items()])
def test_a_view_that_can_not_be_hashed_is_told_to_be_a_list(given):
    with pytest.raises(TypeError, match=r"^numbers.all of <lambda> is a .* Pass a list of what is in it\.$"):
        fl.jit(lambda x, numbers: x)(X, {"all": given})


OUTSIDE = Cache()


@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
def test_a_mutable_object_in_a_result_is_refused_unless_it_came_from_outside():
    with pytest.raises(TypeError) as raised:
        fl.jit(lambda x: [x, Cache()])(X)
    assert str(raised.value) == RETURNED.format(fn="<lambda>", kind="a Cache", where=" (1 of the result)", cls="Cache")
    given = Cache()
    assert fl.jit(lambda x, cache: (x, cache))(X, given)[1] is given
    assert fl.jit(lambda x: (x, OUTSIDE))(X)[1] is OUTSIDE


# What is let go


def test_a_function_given_as_an_argument_is_let_go_and_so_is_its_trace():
    jitted = fl.jit(lambda x, fn: fn(x))
    references = []
    for number in range(20):
        fn = lambda x, number=number: x + number  # noqa: E731
        references.append(weakref.ref(fn))
        assert jitted(X, fn).tolist() == jitted(X, fn).tolist() == (X + number).tolist()
    del fn
    gc.collect()
    assert [each() for each in references] == [None] * 20
    assert len(jitted.options.programs) == 1
    assert "fn: static <lambda> -> another <lambda>" in jitted.explain()


@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
def test_an_object_with_a_jitted_method_is_let_go():
    class Trainer:
        def __init__(self):
            self.rate = 2

        @fl.jit
        def step(self, x):
            return x * self.rate

    trainers = [Trainer() for _ in range(5)]
    references = [weakref.ref(each) for each in trainers]
    assert [each.step(X).tolist() for each in trainers] == [[0, 2, 4]] * 5
    del trainers
    gc.collect()
    assert [each() for each in references] == [None] * 5


def test_explain_holds_no_static_value():
    class Value:
        pass

    value = types.SimpleNamespace(value=Value())
    jitted = fl.jit(lambda x, value: x, max_traces=1)
    reference = weakref.ref(value.value)
    jitted(X, functools.partial(print, value.value))
    value.value = None
    jitted(X, 1)
    gc.collect()
    assert reference() is None
    assert "value: static partial(print, Value(...)) -> 1" in jitted.explain()


# Keywords


def test_keywords_of_a_partial_can_be_overridden():
    jitted = fl.jit(functools.partial(lambda x, scale=1.0: x * scale, scale=2.0))
    assert (jitted(X).tolist(), jitted(X, scale=3.0).tolist()) == ([0, 2, 4], [0, 3, 6])
    with fl.disable_jit():
        assert jitted(X, scale=3.0).tolist() == [0, 3, 6]
    assert fl.checkpoint(functools.partial(lambda x, scale=1.0: x * scale, scale=2.0))(X, scale=3.0).tolist() == [0, 3, 6]


def test_the_order_of_keywords_is_no_new_trace_unless_the_function_sees_it():
    blind, seeing = fl.jit(lambda *, a, b: a - b), fl.jit(lambda **named: list(named))
    assert blind(a=X, b=X + 1).tolist() == blind(b=X + 1, a=X).tolist() == [-1] * 3
    assert blind.trace_count == 1
    assert (seeing(a=X, b=X), seeing(b=X, a=X)) == (["a", "b"], ["b", "a"])


# Changes in place


def assign(key, new=lambda old: old + 1):
    def change(c):
        c[key] = new(c[key])

    return change


def into(one, other):
    one[:] = other


def swap(one, other):
    before = one + 0
    into(one, other)
    into(other, before)


class Store:
    def __init__(self, keys):
        self.keys = keys

    def grow(self):
        self.keys = self.keys + 1


fl.register_pytree_node(Store, lambda store: ([store.keys], None, ["keys"]), lambda _, new: Store(*new))


class Anew(Store):
    """Taken apart, it is other arrays each time."""


fl.register_pytree_node(Anew, lambda each: ([each.keys + 0], None, ["keys"]), lambda _, new: Anew(*new))

IN_PLACE = [
    (lambda: {"k": X}, assign("k"), "c.k"),
    (lambda: {"a": {"k": [X]}}, lambda c: assign(0)(c["a"]["k"]), "c.a.k.0"),
    (lambda: {"k": X, "n": 1}, assign("n"), "c.n"),
    (lambda: {"k": X}, lambda c: c.update(new=c["k"]), "c"),
    (lambda: {"k": X}, lambda c: c.pop("k"), "c"),
    (lambda: [X], lambda c: c.append(c[0]), "c.1"),
    (lambda: [X, X], lambda c: c.pop(), "c.1"),
    (lambda: [X, None], lambda c: c.pop(), "c.1"),
    (lambda: [X + 0, X + 1], lambda c: c.reverse(), "c.0"),
    (lambda: X, assign(0), "c"),
    (lambda: (X, {"k": X}), lambda c: assign(0)(c[1]["k"]), "c.1.k"),
    (lambda: fl.nn.Linear(3, 1), lambda c: assign(0)(c.weight), "c.weight"),
    (lambda: Store(X), lambda c: c.grow(), "c.keys"),
    (lambda: [Store(X)], lambda c: c[0].grow(), "c.0.keys"),
    (lambda: {"m": fl.nn.Linear(3, 1)}, assign("m", lambda old: old.replace(bias=old.bias + 1)), "c.m.bias"),
    (lambda: {"m": fl.nn.Linear(3, 1)}, assign("m", lambda old: old.eval()), "c.m"),
    (lambda: [X + 0, X + 1], lambda c: into(c[0], c[1]), "c.0"),
    (lambda: [X + 0, X + 1, X + 2], lambda c: into(c[1], c[2]), "c.1"),
    (lambda: [X + 0, X + 1], lambda c: swap(*c), "c.0"),
    (lambda: {"k": X}, assign("k", lambda old: np.ones(2)), "c"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "change", "name"), IN_PLACE)
@pytest.mark.parametrize("returned", [lambda c, x: x * 2, lambda c, x: None])
def test_a_change_in_place_of_an_argument_is_warned_of_once_a_trace(make, change, name, returned):
    def step(x, c):
        change(c)
        return returned(c, x)

    jitted = fl.jit(step)
    message = CHANGED.format(fn="step", name=name)
    assert warned(lambda: (jitted(X, make()), jitted(X, make())), fl.MutableArgumentWarning) == [message]
    assert warned(lambda: jitted(X[:2], c=make()), fl.MutableArgumentWarning) == [message]


@pytest.mark.parametrize("change", [into, swap, lambda one, other: into(one, one + 1)])
@pytest.mark.parametrize("outer", [fl.jit, fl.grad, fl.value_and_grad])
def test_a_change_in_place_is_warned_of_inside_other_transformations(change, outer):
    """There, one argument may be computed from another."""

    def step(c):
        change(*c)
        return (c[0] + 0).sum()

    def around(x):
        return fl.jit(step)([x, x * 2]) + 0

    assert warned(lambda: outer(around)(mx.ones(2)), fl.MutableArgumentWarning) == [CHANGED.format(fn="step", name="c.0")]


@pytest.mark.parametrize("outer", [fl.jit, fl.grad, fl.value_and_grad])
def test_without_a_change_nothing_is_warned_of_inside_other_transformations(outer):
    def around(x):
        return fl.jit(lambda c: (c[0] * c[1]).sum())([x, x * 2]) + 0

    assert warned(lambda: outer(around)(mx.ones(2)), fl.MutableArgumentWarning) == []


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500])
def test_a_change_among_many_arrays_is_warned_of(count):
    def step(c):
        into(c[-1], c[-1] + 1)
        return c[0] * 2

    given = [mx.array([float(number)]) for number in range(count)]
    name = f"c.{count - 1}"
    assert warned(lambda: fl.jit(step)(given), fl.MutableArgumentWarning) == [CHANGED.format(fn="step", name=name)]
    assert warned(lambda: fl.jit(lambda c: c[0] * 2)(given), fl.MutableArgumentWarning) == []


def test_whether_arrays_were_assigned_to_is_asked_once_for_all(monkeypatch):
    asked = []
    export = mx.export_to_dot
    monkeypatch.setattr(mx, "export_to_dot", lambda *args, **named: asked.append(len(args) - 1) or export(*args, **named))
    fl.jit(lambda c: sum(c))([mx.ones(2) for _ in range(100)])
    assert asked == [100]


@pytest.mark.parametrize(("make", "change", "name"), IN_PLACE[:-1])
@pytest.mark.parametrize("returned", [lambda c: c, lambda c: (1, {"c": c})])
def test_a_change_of_what_is_returned_is_not_warned_of(make, change, name, returned):
    def step(c):
        change(c)
        return returned(c)

    assert warned(lambda: fl.jit(step)(make()), UserWarning) == []
    assert warned(lambda: fl.jit(step)(make()), fl.MutableArgumentWarning) == []


def rebind(c):
    c = c + 1
    return c * 2


def change_a_copy(c):
    copied = {**c, "k": c["k"] + 1}
    copied["n"] = 3
    rows = [*copied["rows"]]
    rows.append(copied["k"])
    return rows[-1]


def change_keywords(x, **named):
    return named.pop("y") + x


@pytest.mark.parametrize(
    "call",
    [
        lambda: fl.jit(rebind)(X),
        lambda: fl.jit(change_a_copy)({"k": X, "rows": [X]}),
        lambda: fl.jit(change_keywords)(X, y=X),
        lambda: fl.jit(lambda anew: anew.keys)(Anew(X)),
        lambda: fl.jit(lambda c: c["m"](X))({"m": fl.nn.Linear(3, 1), "n": [1, None, {}]}),
        lambda: fl.jit(lambda c, x: fl.grad(lambda x: (c[0] * x).sum())(x))([X], X),
        lambda: fl.jit(fl.vmap(lambda c: c["k"] + 1))({"k": X}),
    ],
)
def test_a_change_of_copies_is_not_warned_of(call):
    assert warned(call, fl.MutableArgumentWarning) == []


@dataclasses.dataclass
class Settings:
    scale: int = 2


def test_a_dataclass_that_is_not_frozen_is_refused_with_what_to_write():
    with pytest.raises(
        TypeError, match=r"can't be hashed\. Make Settings a @dataclass\(frozen=True\), or .*register_dataclass"
    ):
        fl.jit(lambda x, settings: x * settings.scale)(X, Settings())
