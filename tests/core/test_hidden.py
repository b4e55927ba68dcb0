"""Arrays inside values that are not trees: refused where they are given, or part of the tree."""

import collections
import dataclasses
import enum
import functools
import operator
import types
import weakref
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.core.hidden import find_hidden


class Holder(fl.Module):
    layers: Any


class Static(fl.Module):
    config: Any = fl.static()


def layer() -> fl.nn.Linear:
    return fl.nn.Linear(2, 2)


class ModuleList:
    def __init__(self, layers: Any) -> None:
        self.layers = layers

    def first(self, x: Any) -> Any:
        return self.layers[0](x)


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, a: Any) -> None:
        self.a = a


class Weights(tuple):
    pass


@dataclasses.dataclass
class Parts:
    a: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any


@attrs.frozen
class Attrs:
    a: Any


@attrs.define(slots=True)
class Deep:
    inner: Any


def closure(value: Any) -> Any:
    return lambda x: value(x)


def defaults(value: Any) -> Any:
    def call(x: Any, given: Any = value) -> Any:
        return given(x)

    return call


def keyword_defaults(value: Any) -> Any:
    def call(x: Any, *, given: Any = value) -> Any:
        return given(x)

    return call


class Text(str):
    pass


class Number(float):
    pass


class Keys(frozenset):
    pass


def with_attribute(value: Any) -> Any:
    return lambda held: (setattr(value, "held", held), value)[1]


def member(value: Any) -> Any:
    return enum.Enum("Member", {"A": value}).A


HIDING = {
    "a str": (with_attribute(Text("q")), "Text, which holds held: a Linear"),
    "a float": (with_attribute(Number(1)), "Number, which holds held: a Linear"),
    "a frozenset": (with_attribute(Keys()), "Keys, which holds held: a Linear"),
    "a slice": (lambda v: slice(0, v), "slice, which holds stop: a Linear"),
    "an exception": (ValueError, "ValueError, which holds args.0: a Linear"),
    "a static method": (lambda v: staticmethod(closure(v)), "staticmethod, which holds __func__.value: a Linear"),
    "a class method": (lambda v: classmethod(closure(v)), "classmethod, which holds __func__.value: a Linear"),
    "a property": (lambda v: property(closure(v)), "property, which holds fget.value: a Linear"),
    "a cached property": (lambda v: functools.cached_property(closure(v)), "which holds func.value: a Linear"),
    "a cell": (types.CellType, "cell, which holds cell_contents: a Linear"),
    "a member of an enumeration": (member, "holds _value_: a Linear"),
    "a method of a list": (lambda v: [v].append, "Give what it is bound to"),
    "a method of a function": (lambda v: closure(v).__call__, "Give what it is bound to"),
    "a method caller": (lambda v: operator.methodcaller("f", v), "methodcaller, which holds args.1.1: a Linear"),
    "a method caller by name": (lambda v: operator.methodcaller("f", x=v), "a Linear"),
    "a key inside an object": (lambda v: ModuleList({v: 1}), "ModuleList, which holds layers.(a key): a Linear"),
    "an object": (lambda v: ModuleList([v]), "ModuleList, which holds layers.0: a Linear"),
    "slots": (Slots, "Slots, which holds a: a Linear"),
    "a set": (lambda v: {v}, "Give a list or a tuple"),
    "a UserList": (lambda v: collections.UserList([v]), "UserList, which holds data.0: a Linear"),
    "a namespace": (lambda v: types.SimpleNamespace(a=v), "SimpleNamespace, which holds a: a Linear"),
    "a dataclass": (Parts, "fl.register_dataclass"),
    "a frozen dataclass": (Frozen, "fl.register_dataclass"),
    "an attrs class": (Attrs, "fl.register_dataclass"),
    "deep": (lambda v: Deep({"x": [Deep((1, v))]}), "Deep, which holds inner.x.0.inner.1: a Linear"),
    "a partial": (functools.partial, "partial, which holds func: a Linear"),
    "a partial's argument": (lambda v: functools.partial(print, v), "holds args.0: a Linear"),
    "a partial's keyword": (lambda v: functools.partial(print, a=v), "holds keywords.a: a Linear"),
    "a closure": (closure, "function, which holds value: a Linear"),
    "defaults": (defaults, "function, which holds given: a Linear"),
    "keyword defaults": (keyword_defaults, "function, which holds given: a Linear"),
    "a subclass of tuple": (lambda v: Weights([v]), "Weights, which holds 0: a Linear"),
    "a method of an object": (lambda v: ModuleList([v]).first, "which holds layers.0: a Linear"),
    "a gradient function": (fl.grad, "which holds"),
    "an iterator": (lambda v: iter([v]), "Give a list of what it yields"),
    "a map": (lambda v: map(abs, [v]), "Give a list of what it yields"),
    "a generator": (lambda v: (v for _ in range(2)), "Give a list of what it yields"),
    "a view": (lambda v: {"a": v}.values(), "a view of a mapping that may change. Give a list of what is in it."),
    "a view of items": (lambda v: {"a": v}.items(), "Give a list of what is in it."),
    "a view of a UserDict": (lambda v: collections.UserDict(a=v).values(), "Give a list of what is in it."),
}


@pytest.mark.parametrize(("hide", "words"), HIDING.values(), ids=HIDING)
@pytest.mark.parametrize("around", [lambda v: v, lambda v: [v], lambda v: {"a": (None, v)}], ids=["itself", "list", "dict"])
def test_what_hides_a_module_is_refused_in_a_parameter_field(hide: Any, words: str, around: Any) -> None:
    value = around(hide(layer()))
    for give in (Holder, lambda v: Holder(None).replace(layers=v), Holder(None).at("layers").set):
        with pytest.raises(TypeError) as raised:
            give(value)
        message = str(raised.value)
        assert message.startswith("Holder.layers was given ")
        assert words in message
        assert len(message) < 400
        assert " at 0x" not in message


@pytest.mark.parametrize("name", [name for name in HIDING if name not in ("an iterator", "a map", "a generator")])
def test_what_hides_a_module_is_refused_in_a_static_field(name: str) -> None:
    hide, _ = HIDING[name]
    with pytest.raises(TypeError, match=r"Static\.config is a static field and was given an array .* at "):
        Static(hide(layer()))


@pytest.mark.parametrize("name", ["an iterator", "a map", "a generator"])
@pytest.mark.parametrize("around", [lambda v: v, lambda v: [v], lambda v: {"a": (None, v)}], ids=["itself", "list", "dict"])
def test_an_iterator_is_refused_in_a_static_field(name: str, around: Any) -> None:
    with pytest.raises(TypeError, match=r"Static\.config is a static field and was given a .*gone through once"):
        Static(around(HIDING[name][0](1)))


@pytest.mark.parametrize("around", [lambda v: v, lambda v: [v], lambda v: {"a": (None, v)}], ids=["itself", "list", "dict"])
def test_a_view_is_refused_in_a_static_field(around: Any) -> None:
    with pytest.raises(TypeError, match=r"Static\.config is a static field and was given a .*dict_keys, a view of a mapping"):
        Static(around({"a": 1}.keys()))


@pytest.mark.parametrize("cls", [Holder, Static])
@pytest.mark.parametrize("value", [ModuleList(1), layer(), closure(1)], ids=["an object", "a module", "a function"])
def test_a_weak_proxy_is_refused(cls: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"was given a weakref\..*Give the object itself"):
        cls(weakref.proxy(value))


@pytest.mark.parametrize("key", [layer(), Frozen(layer())], ids=["a module", "a dataclass"])
@pytest.mark.parametrize("around", [lambda v: v, lambda v: [1, {"a": v}]], ids=["itself", "inside"])
def test_a_module_in_a_key_is_refused(key: Any, around: Any) -> None:
    with pytest.raises(TypeError, match=r"Holder\.layers was given a mapping with .*a Linear in a key.* Make it a value"):
        Holder(around({key: 1}))
    with pytest.raises(TypeError, match=r"Static\.config is a static field and was given an array"):
        Static(around({key: 1}))


METHODS = [lambda v: v.reshape, lambda v: v.__add__, lambda v: v.at, lambda v: v.__repr__, lambda v: [v].copy]


@pytest.mark.parametrize("method", METHODS, ids=["reshape", "add", "at", "repr", "copy"])
def test_methods_of_arrays_are_refused(method: Any) -> None:
    with pytest.raises(TypeError, match=r"Holder\.layers was given a .*, which holds "):
        Holder(method(mx.ones(2)))
    with pytest.raises(TypeError, match=r"Static\.config is a static field and was given an array"):
        Static(method(mx.ones(2)))
    with pytest.raises(TypeError, match=r"^given of <lambda> is an? .* that holds arrays"):
        fl.jit(lambda x, given: x)(mx.ones(2), method(mx.ones(2)))


@pytest.mark.parametrize("array", [mx.ones(2), np.ones(2)], ids=["mlx", "numpy"])
@pytest.mark.parametrize("hide", [ModuleList, Parts, Frozen, functools.partial(functools.partial, print)], ids=str)
def test_what_hides_an_array_is_refused(hide: Any, array: Any) -> None:
    for cls in (Holder, Static):
        with pytest.raises(TypeError, match=r"2\]|array"):
            cls(hide(array))


PLAIN = {
    "a str": with_attribute(Text("q"))(1),
    "a method of a str": "a".join,
    "a method of a class": dict.fromkeys,
    "a method of a module": mx.add,
    "a getter": operator.itemgetter(1, "a"),
    "a slice": slice(0, 3),
    "an exception": ValueError("text"),
    "a member of an enumeration": member(3),
    "a number of NumPy": np.float64(1),
    "an empty cell": types.CellType(),
    "a function": lambda x: x,
    "a function of MLX": mx.tanh,
    "a compiled function of MLX": mlx.nn.gelu,
    "a built-in function": len,
    "a class": fl.nn.Linear,
    "a partial of numbers": functools.partial(mlx.nn.leaky_relu, negative_slope=0.1),
    "a closure over numbers": closure(3),
    "a schedule": fl.optim.cosine_decay(0.1, 10),
    "a module without arrays in a closure": closure(fl.nn.ReLU()),
    "a frozen dataclass of numbers": Frozen((1, 2.0, "a")),
    "an object": ModuleList([1, 2]),
    "a dtype": mx.float16,
    "an optimizer": fl.optim.Adam(1e-3),
    "a jitted function": fl.jit(lambda x: x),
    "a checkpointed function": fl.checkpoint(lambda x: x),
}


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_what_holds_no_array_is_taken(value: Any) -> None:
    assert find_hidden(value) is None
    assert fl.tree.leaves(Holder([value])) == []


WRAPPERS = {
    "checkpoint": fl.checkpoint,
    "jit": fl.jit,
    "vmap": fl.vmap,
    "policy": fl.Policy(compute_dtype=mx.bfloat16).wrap,
    "both": lambda v: fl.jit(fl.checkpoint(v)),
    "a method": lambda v: v.__call__,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_layer_is_part_of_the_tree(wrap: Any, tmp_path: Any) -> None:
    plain = layer()
    model = Holder([wrap(plain), wrap(layer())])
    names = fl.tree.paths(model)
    assert len(names) == 4
    assert all(name.endswith(("weight", "bias")) for name in names)
    assert fl.tree.leaves(model)[0] is plain.weight
    x = mx.ones((3, 2))

    def loss(model: Any, x: mx.array) -> Any:
        return (model.layers[1](model.layers[0](x)) ** 2).sum()

    grads = fl.grad(loss)(model, x)
    assert all(mx.any(leaf != 0).item() for leaf in fl.tree.leaves(grads))
    optimizer = fl.optim.SGD(0.1)
    after, _ = optimizer.update(model, grads, optimizer.init(model))
    assert not fl.tree.equal(after, model)
    half = model.astype(mx.float16).freeze().eval()
    assert {leaf.dtype for leaf in fl.tree.leaves(half)} == {mx.float16}
    assert len(model.at(fl.nn.Linear)) == 2
    assert fl.tree.leaves(half.trainable_parameters()) == []
    fl.save(tmp_path / "model", after)
    assert fl.tree.equal(fl.load(tmp_path / "model", model), after)
    step = fl.jit(loss)
    assert mx.allclose(step(model, x), loss(model, x), atol=1e-3)
    _ = step(after, x)
    assert step.trace_count == 1


def test_a_jitted_layer_is_not_traced_again_when_its_model_is_taken_apart() -> None:
    model = Holder([fl.jit(layer())])
    for _ in range(3):
        _ = model.layers[0](mx.ones((1, 2)))
        model = fl.tree.map(lambda leaf: leaf + 1, model)
    assert model.layers[0].trace_count == 1


def test_a_method_of_the_module_that_is_being_built_is_refused() -> None:
    class Net(fl.Module):
        head: Any

        def __init__(self) -> None:
            self.head = self.total

        def total(self, x: Any) -> Any:
            return x

    with pytest.raises(TypeError, match=r"Net\.head was given a method of the module that is being built.*__call__"):
        Net()


def test_a_bound_method_is_an_argument_of_a_jitted_function() -> None:
    step = fl.jit(lambda method, x: method(x).sum())
    one, other = layer(), layer()
    for each in (one, other):
        assert mx.allclose(step(each.__call__, mx.ones((1, 2))), each(mx.ones((1, 2))).sum())
    assert step.trace_count == 1
    gradient = fl.grad(lambda method: method(mx.ones((1, 2))).sum())(one.__call__)
    assert gradient.__self__.bias.tolist() == [1.0, 1.0]


def test_a_dataclass_that_is_registered_is_a_tree() -> None:
    @fl.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Batch:
        x: Any
        size: int = dataclasses.field(default=2, metadata={"static": True})

    step = fl.jit(lambda w, batch: (w * batch.x).sum() * batch.size)
    for value in range(4):
        assert step(mx.ones(2), Batch(mx.full((2,), value))).item() == 4 * value
    assert step.trace_count == 1
    assert fl.tree.paths(Holder(Batch(mx.ones(2)))) == ["layers.x"]
    with pytest.raises(
        TypeError, match=r"fl\.register_dataclass takes a dataclass or an attrs class, and was given ModuleList"
    ):
        fl.register_dataclass(ModuleList)
    with pytest.raises(ValueError, match="Frozen has no field 'b'"):
        fl.register_dataclass(Frozen, static=["b"])


NUMPY = {"x": [1, np.ones((4, 2), np.float32)]}
FUNCTIONS = {
    "leaves": fl.tree.leaves,
    "paths": fl.tree.paths,
    "equal": lambda t: fl.tree.equal(t, t),
    "allclose": lambda t: fl.tree.allclose(t, t),
    "diff": lambda t: fl.tree.diff(t, t),
    "stack": lambda t: fl.tree.stack([t, t]),
    "size": fl.tree.size,
    "map of two": lambda t: fl.tree.map(lambda leaf, other: leaf, t, t),
    "map_with_path": lambda t: fl.tree.map_with_path(lambda path, leaf: leaf, t),
    "partition": lambda t: fl.tree.partition(t, "**"),
    "grad": lambda t: fl.grad(lambda t: t["x"][1].sum())(t),
    "vmap": lambda t: fl.vmap(lambda t: t)(t),
    "eval": fl.eval,
    "jit": lambda t: fl.jit(lambda t: t)(t),
    "checkpoint": lambda t: fl.checkpoint(lambda t: t)(t),
    "optimizer": lambda t: fl.optim.Adam(1e-3).init(t),
    "eval_shape": lambda t: fl.eval_shape(lambda t: t, t),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_array_of_numpy_in_a_tree_is_refused_with_its_path(function: Any) -> None:
    with pytest.raises(TypeError, match=r"x\.1.*mx\.array\("):
        function(NUMPY)


def test_map_converts_arrays_of_numpy() -> None:
    converted = fl.tree.map(mx.array, {**NUMPY, "n": 3, "m": mx.zeros(1)})
    assert fl.tree.paths(converted) == ["x.1", "m"]
    assert (converted["n"], converted["x"][1].dtype) == (3, mx.float32)


def test_numbers_of_numpy_are_numbers() -> None:
    assert fl.tree.leaves({"a": np.float32(1), "b": np.int64(2)}) == []
