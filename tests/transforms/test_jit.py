"""jit: what can be jitted, how it is called, and what it says when it can't. That it computes the same is law 8."""

import functools
import shutil
import sys
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.transforms.jit import NO_COMPILER, NOT_CALLABLE, UNHASHABLE

ONE, TWO, THREE = mx.ones(2), mx.full(2, 2.0), mx.full(2, 3.0)


class Model(fl.Module):
    weight: mx.array
    parts: Any = None
    scale: Any = fl.static(default=2)

    def __call__(self, x):
        return x + self.weight

    def plus(self, x, *, by=None):
        return x + (self.weight if by is None else by)

    @fl.jit
    def decorated(self, x, *rest, by=None):
        return x + self.weight, rest, by

    @classmethod
    @fl.jit
    def build(cls, weight):
        return cls(weight)

    @staticmethod
    @fl.jit
    def twice(x):
        return x + x

    @functools.partial(fl.jit, shapeless=True)
    def any_shape(self, x):
        return x + x


class JittedCall(fl.Module):
    weight: mx.array

    @fl.jit
    def __call__(self, x):
        return x + self.weight


class Plain:
    """No module: an ordinary object with a state of its own."""

    def __init__(self, by):
        self.by = by

    def plus(self, x):
        return x + self.by

    @fl.jit
    def decorated(self, x):
        return x + self.by

    def __call__(self, x):
        return x + self.by


def plus(x, y=TWO, *rest, by=None, **more):
    return [x + y, rest, by, more]


def numbers(tree):
    return fl.tree.map(mx.array.tolist, tree)


CALLS = {
    "by position": lambda f: f(ONE, ONE),
    "a default argument": lambda f: f(ONE),
    "by name": lambda f: f(y=ONE, x=TWO),
    "more by position": lambda f: f(ONE, ONE, TWO, [3, TWO], None),
    "more by name": lambda f: f(ONE, by=THREE, other={"a": ONE, "n": 1}),
    "names that jit itself might use": lambda f: f(ONE, self=THREE, fn=1, args=(ONE,), kwargs={}, leaves=ONE, key=2),
    "everything": lambda f: f(ONE, TWO, 1, "text", by=(1, ONE), z=None),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_arguments_are_passed_as_to_the_function(call):
    jitted = fl.jit(plus)
    for _ in range(2):
        assert fl.tree.equal(call(jitted), call(plus))
    assert jitted.trace_count == 1


@pytest.mark.parametrize("call", [lambda f: f(), lambda f: f(ONE, x=ONE), lambda f: f(1, 2)])
def test_a_wrong_call_is_the_error_that_the_function_itself_raises(call):
    function = functools.partial(lambda x: x + ONE if isinstance(x, mx.array) else x.missing)
    with pytest.raises((TypeError, AttributeError)) as plain:
        call(function)
    with pytest.raises(plain.type) as jitted:
        call(fl.jit(function))
    assert str(jitted.value) == str(plain.value)


CALLABLES = {
    "a function": (plus, 1),
    "a lambda": (lambda x: x + THREE, 1),
    "a builtin of MLX": (mx.tanh, 1),
    "a function of functools": (functools.partial(plus), 1),
    "a partial of arrays": (functools.partial(plus, TWO, by=ONE), 1),
    "a partial of a partial": (functools.partial(functools.partial(plus, by=TWO), by=ONE, z=1), 1),
    "a partial of a module": (functools.partial(Model(TWO)), 1),
    "a partial of a method": (functools.partial(Model(TWO).plus, by=ONE), 1),
    "a module": (Model(TWO), 1),
    "a bound method": (Model(TWO).plus, 1),
    "a module with a jitted __call__": (JittedCall(TWO), 1),
    "a jitted method": (Model(TWO).decorated, 1),
    "a jitted class method": (Model.build, 1),
    "a jitted static method": (Model.twice, 1),
    "a jitted method without shapes": (Model(TWO).any_shape, 1),
    "a class": (Model, 1),
    "a class method": (type("Maker", (), {"make": classmethod(lambda cls, x: [x, cls.__name__])}).make, 1),
    "a jitted function": (fl.jit(plus), 1),
    "a gradient": (fl.grad(lambda x: x.sum()), 1),
    "an object that can be called": (Plain(TWO), 1),
    "a method of an object": (Plain(TWO).plus, 1),
    "a jitted method of an object": (Plain(TWO).decorated, 1),
    "stateful": (functools.partial(fl.stateful, Model(TWO)), 1),
}


@pytest.mark.parametrize(("function", "traces"), CALLABLES.values(), ids=CALLABLES)
def test_whatever_can_be_called_can_be_jitted(function, traces):
    jitted = fl.jit(function)
    for x in (ONE, TWO, ONE):
        assert fl.tree.equal(jitted(x), function(x))
    assert jitted.trace_count == traces


@pytest.mark.parametrize("given", [3, "text", None, [len], Plain], ids=repr)
def test_what_can_not_be_called_is_refused(given):
    if given is None or given is Plain:
        # Without a function jit is a decorator with options; a class can be called.
        assert callable(fl.jit(given))
        return
    with pytest.raises(TypeError) as raised:
        fl.jit(given)
    assert str(raised.value) == NOT_CALLABLE.format(kind=type(given).__name__)


def test_a_class_method_that_is_not_bound_is_refused():
    with pytest.raises(TypeError) as raised:
        fl.jit(classmethod(len))
    assert str(raised.value) == NOT_CALLABLE.format(kind="classmethod")


def test_a_jitted_method_is_found_on_the_class_and_bound_on_the_instance():
    assert isinstance(Model.decorated, type(fl.jit(len)))
    assert Model(ONE).decorated.__self__.weight is ONE
    one, other = Model(ONE), Model(TWO)
    before = Model.decorated.trace_count
    assert one.decorated(ONE)[0].tolist() == [2.0, 2.0]
    assert other.decorated(ONE)[0].tolist() == [3.0, 3.0]
    assert Model.decorated(other, TWO)[0].tolist() == [4.0, 4.0]
    assert Model.decorated.trace_count - before <= 1
    assert one.decorated(ONE, 3, [TWO], by="x")[1:] == ((3, [TWO]), "x")


def test_one_trace_serves_every_module_of_a_structure():
    jitted = fl.jit(Model.__call__)
    assert [jitted(Model(mx.full(2, n)), ONE).tolist() for n in range(3)] == [[n + 1.0] * 2 for n in range(3)]
    assert jitted.trace_count == 1
    of_object = fl.jit(Model(TWO))
    assert of_object(ONE).tolist() == [3.0, 3.0]
    assert of_object(mx.ones(3)[:2]).tolist() == [3.0, 3.0]
    assert of_object.trace_count == 1


def test_the_name_and_the_documentation_are_those_of_the_function():
    def documented(x):
        """What it does."""
        return x

    jitted = fl.jit(documented)
    assert (jitted.__name__, jitted.__doc__, jitted.__wrapped__) == ("documented", "What it does.", documented)
    assert repr(jitted) == f"jit({documented!r})"
    assert repr(fl.jit(Model(ONE))).startswith("jit(Model(")


def test_a_jitted_module_is_no_copy_of_the_module():
    model = Model(ONE, parts=[TWO])
    assert not hasattr(fl.jit(model), "weight")


def test_a_gradient_of_a_jitted_function_has_no_trace_count_of_its_own():
    jitted = fl.jit(lambda x: x.sum())
    gradient = fl.grad(jitted)
    gradient(ONE)
    assert getattr(gradient, "trace_count", jitted.trace_count) == jitted.trace_count == 1


def test_jit_is_a_decorator_with_and_without_options():
    @fl.jit
    def plain(x):
        return x + x

    @fl.jit()
    def called(x):
        return x + x

    @fl.jit(shapeless=True)
    def shapeless(x):
        return x + x

    for jitted, traces in ((plain, 2), (called, 2), (shapeless, 1)):
        assert [jitted(mx.ones(n)).tolist() for n in (1, 2)] == [[2.0], [2.0, 2.0]]
        assert jitted.trace_count == traces


class Unhashable:
    __hash__ = None


BAD = Unhashable()
NUMPY = np.ones(2)


def first(x, y, *rest, key=None, **more):
    return x


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "name", "shown"),
    [
        (first, (NUMPY, ONE), {}, "x", "first"),
        (first, (ONE, NUMPY), {}, "y", "first"),
        (first, (ONE, [1, {"a": (ONE, NUMPY)}]), {}, "y.1.a.1", "first"),
        (first, (ONE, ONE, NUMPY), {}, "argument 2", "first"),
        (first, (ONE, ONE, ONE, {"k": NUMPY}), {}, "argument 3.k", "first"),
        (first, (ONE, ONE), {"key": NUMPY}, "key", "first"),
        (first, (ONE, ONE), {"key": [ONE, [NUMPY]]}, "key.1.0", "first"),
        (first, (ONE, ONE), {"other": {"a": NUMPY}}, "other.a", "first"),
        (first, (ONE,), {"y": NUMPY}, "y", "first"),
        (functools.partial(first, ONE), (NUMPY,), {}, "y", "first"),
        (functools.partial(first, key=NUMPY), (ONE, ONE), {}, "key", "first"),
        (functools.partial(first, NUMPY), (ONE,), {}, "x", "first"),
        (Model(ONE), (NUMPY,), {}, "x", "__call__"),
        (Model(ONE).plus, (ONE,), {"by": [NUMPY]}, "by.0", "plus"),
        (Plain(ONE).plus, (NUMPY,), {}, "x", "plus"),
        (lambda model, x: x, (ONE, Model(ONE, parts=[{"p": BAD}])), {}, "x.parts.0.p", "<lambda>"),
        (mx.tanh, (NUMPY,), {}, None, "tanh"),
        (Model.build, (NUMPY,), {}, None, None),
    ],
)
@pytest.mark.parametrize("value", [NUMPY, BAD, bytearray(b"x")], ids=lambda value: type(value).__name__)
def test_what_can_not_be_hashed_is_an_error_that_names_the_argument_and_the_path(fn, args, kwargs, name, shown, value):
    def exchanged(part):
        if part is NUMPY or part is BAD:
            return value
        if isinstance(part, list | tuple):
            return type(part)(map(exchanged, part))
        if isinstance(part, dict):
            return {key: exchanged(item) for key, item in part.items()}
        return part

    if isinstance(fn, functools.partial):
        fn = functools.partial(fn.func, *exchanged(fn.args), **exchanged(fn.keywords))
    if name == "x.parts.0.p":
        if value is NUMPY:  # A module refuses it itself.
            return
        args = (ONE, Model(ONE, parts=[{"p": value}]))
    jitted = fl.jit(fn)
    kind = f"a {type(value).__module__}.{type(value).__qualname__}"
    with pytest.raises(TypeError) as raised:
        jitted(*exchanged(args), **exchanged(kwargs))
    message = str(raised.value)
    assert kind in message
    if name is not None:
        assert message.startswith(UNHASHABLE.partition(", which")[0].format(name=name, fn=shown, given=kind) + ", which")
        assert ("mx.array(" in message) is (value is NUMPY)
        assert ("__hash__" in message) is (value is not NUMPY)
    assert jitted.trace_count == 0
    assert mx.random.normal((2,)).shape == (2,)


@pytest.mark.parametrize("value", [np.float32(2), np.float64(2), np.int32(2), np.bool_(True)], ids=repr)
def test_a_number_of_numpy_is_a_static_value(value):
    jitted = fl.jit(lambda x, value: (x, value))
    assert jitted(ONE, value)[1] == value
    assert jitted(TWO, type(value)(value))[1] == value
    assert jitted.trace_count == 1
    jitted(ONE, value.item())
    assert jitted.trace_count == 2


def on_a_linux_cpu(monkeypatch, compiler):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name, *args, **kwargs: compiler)


def test_without_a_compiler_there_is_an_error_that_says_what_to_install(monkeypatch):
    jitted = fl.jit(lambda x: x + x)
    with mx.stream(mx.cpu):
        on_a_linux_cpu(monkeypatch, None)
        for _ in range(2):
            with pytest.raises(RuntimeError) as raised:
                jitted(ONE)
            assert str(raised.value) == NO_COMPILER
        assert (jitted.trace_count, mx.random.normal((2,)).shape) == (0, (2,))
        on_a_linux_cpu(monkeypatch, "/usr/bin/g++")
        assert jitted(ONE).tolist() == [2.0, 2.0]


def test_what_is_traced_needs_no_look_for_a_compiler(monkeypatch):
    jitted = fl.jit(lambda x: x + x)
    jitted(ONE)
    on_a_linux_cpu(monkeypatch, None)
    assert jitted(TWO).tolist() == [4.0, 4.0]


def test_no_compiler_is_needed_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fl.jit(lambda x: x + x)(ONE).tolist() == [2.0, 2.0]


def test_no_compiler_is_needed_where_mlx_does_not_compile(monkeypatch):
    on_a_linux_cpu(monkeypatch, None)
    mx.disable_compile()
    try:
        assert fl.jit(lambda x: x + x)(ONE).tolist() == [2.0, 2.0]
    finally:
        mx.enable_compile()


def test_jit_composes_with_the_transformations_of_mlx():
    model, x = Model(TWO), ONE
    jitted = fl.jit(lambda model, x: (model(x) * x).sum())
    assert mx.grad(lambda x: jitted(model, x))(x).tolist() == mx.grad(lambda x: (model(x) * x).sum())(x).tolist()
    (value,), (tangent,) = mx.jvp(lambda x: jitted(model, x), [x], [x])
    assert (value.item(), tangent.item()) == (6.0, 8.0)
    assert mx.vjp(lambda x: jitted(model, x), [x], [mx.array(1.0)])[1][0].tolist() == [4.0, 4.0]
    rows = mx.vmap(lambda row: fl.jit(model)(row))(mx.ones((3, 2)))
    assert rows.tolist() == [[3.0, 3.0]] * 3
    assert mx.checkpoint(lambda x: fl.jit(model)(x))(x).tolist() == [3.0, 3.0]
    assert mx.compile(lambda x: fl.jit(model)(x))(x).tolist() == [3.0, 3.0]


def test_a_jitted_function_can_be_a_part_of_a_module():
    class Activated(fl.Module):
        weight: mx.array
        activation: Any = fl.static(default=fl.jit(lambda x: x + x))

        def __call__(self, x):
            return self.activation(x + self.weight)

    model = Activated(ONE)
    for call in (model, fl.jit(model), fl.jit(Activated.__call__).__get__(model)):
        assert call(TWO).tolist() == [6.0, 6.0]
