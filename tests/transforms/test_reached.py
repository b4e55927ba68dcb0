"""Arrays in values that are not trees: what takes a tree refuses them, and says where they are and what to write."""

import collections
import csv
import dataclasses
import functools
import io
import itertools
import logging
import os
import types
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl


@dataclasses.dataclass(frozen=True)
class Run:
    model: Any
    epoch: int = 0


class Slots:
    __slots__ = ("model",)

    def __init__(self, model):
        self.model = model


class Trainer:
    def __init__(self, model):
        self.model = model
        self.scale = 2

    def __call__(self, x):
        return self.model(x)

    def own(self, x):
        return self.forward(self.model, x)

    def forward(self, model, x):
        return self.scale * model(x)


LINEAR, X = fl.nn.Linear(2, 1), mx.ones(2)
BATCH = mx.ones((3, 2))
POLICY = fl.Policy(compute_dtype=mx.float16)

# Functions of a value, with the path at which they have it.
TAKING = {
    "save": (lambda v, to: fl.save(to / "a", v), ""),
    "save in a dict": (lambda v, to: fl.save(to / "a", {"a": [X, v]}), "a.1"),
    "load": (lambda v, to: fl.load(to / "a", v), ""),
    "Checkpointer.save": (lambda v, to: fl.Checkpointer(to / "b").save(1, {"run": v}), "run"),
    "vmap": (lambda v, to: fl.vmap(lambda r, x: x)(v, BATCH), "0"),
    "vmap's axes": (lambda v, to: fl.vmap(lambda r, x: x, in_axes=((0,), 0))([v], BATCH), "0.0"),
    "grad": (lambda v, to: fl.grad(lambda tree: tree["w"].sum())({"r": v, "w": X}), "r"),
    "vjp": (lambda v, to: fl.vjp(lambda tree: tree["w"].sum(), ({"r": v, "w": X},), mx.array(1.0)), "r"),
    "jvp": (lambda v, to: fl.jvp(lambda x: [v, x], (X,), (X,)), "0"),
    "init": (lambda v, to: fl.optim.SGD(0.1).init({"r": v, "w": X}), "r"),
    "pack": (lambda v, to: fl.optim.pack({"r": v, "w": X}), "r"),
    "Policy.wrap": (lambda v, to: POLICY.wrap(lambda r: None)({"r": v}), "r.r"),
    "cast_to_compute": (lambda v, to: POLICY.cast_to_compute({"r": v}), "r"),
    "stateful": (lambda v, to: fl.stateful(lambda tree: None, [v, LINEAR]), "0"),
    "eval": (lambda v, to: fl.eval(v), "0"),
    "async_eval": (lambda v, to: fl.async_eval(X, [v]), "1.0"),
    "eval_shape": (lambda v, to: fl.eval_shape(lambda r: None, r=v), "r"),
    "eval_shape's result": (lambda v, to: fl.eval_shape(lambda: {"r": v}), "r"),
    "flatten": (lambda v, to: fl.tree.flatten([v]), "0"),
    "structure": (lambda v, to: fl.tree.structure([v]), "0"),
    "paths": (lambda v, to: fl.tree.paths([v]), "0"),
    "map": (lambda v, to: fl.tree.map(lambda x: x, [v]), "0"),
    "map_with_path": (lambda v, to: fl.tree.map_with_path(lambda path, x: x, [v]), "0"),
    "reduce": (lambda v, to: fl.tree.reduce(lambda a, b: a, [v], 0), "0"),
    "size": (lambda v, to: fl.tree.size([v]), "0"),
    "nbytes": (lambda v, to: fl.tree.nbytes([v]), "0"),
    "equal": (lambda v, to: fl.tree.equal([v], [v]), "0"),
    "diff": (lambda v, to: fl.tree.diff([v], [X]), "0"),
    "stack": (lambda v, to: fl.tree.stack([{"r": v}, {"r": v}]), "r"),
    "ravel": (lambda v, to: fl.tree.ravel([v]), "0"),
    "a method": (lambda v, to: fl.eval(types.MethodType(lambda self: self, v)), "0.__self__"),
}
# How a value may hide a module, what holds it, and what to write.
HIDING = {
    "a dataclass": (lambda m: Run(m, 3), "Run", "model: a Linear", "Register its class with fl.register_dataclass"),
    "a list in one": (lambda m: Run({"a": [m]}), "Run", "model.a.0: a Linear", "fl.register_dataclass"),
    "an object": (Trainer, "Trainer", "model: a Linear", "fl.register_pytree_node"),
    "slots": (Slots, "Slots", "model: a Linear", "fl.Module"),
    "a namespace": (lambda m: types.SimpleNamespace(model=m), "SimpleNamespace", "model: a Linear", "fl.Module"),
    "a partial": (lambda m: functools.partial(print, m), "partial", "args.0: a Linear", "a module that holds the arrays"),
    "a selection": (lambda m: m.at("weight"), "Selection", "_tree: a Linear", "such as .set(...), or what .get() returns."),
    "a set": (lambda m: {m}, "set", "0: a Linear", "Give a list or a tuple."),
    "a view": (lambda m: {"a": m}.values(), "dict_values", "0: a Linear", "Pass a list of what is in it."),
    "a view of items": (lambda m: {"a": m}.items(), "dict_items", "0.1: a Linear", "Pass a list of what is in it."),
    "a view of keys": (lambda m: {m: 1}.keys(), "dict_keys", "0: a Linear", "Pass a list of what is in it."),
    "a view of an OrderedDict": (
        lambda m: collections.OrderedDict(a=m).values(), "odict_values", "0: a Linear", "Pass a list of what is in it.",
    ),
    "a view of a UserDict": (
        lambda m: collections.UserDict(a=m).values(), "ValuesView", "_mapping.a: a Linear", "Pass a list of what is in it.",
    ),
}  # fmt: skip
ITERATORS = {
    "list_iterator": lambda m: iter([m]),
    "zip": lambda m: zip([m], strict=True),
    "map": lambda m: map(print, [m]),
    "filter": lambda m: filter(None, [m]),
    "chain": lambda m: itertools.chain([m]),
    "_deque_iterator": lambda m: iter(collections.deque([m])),
    "ArrayIterator": lambda m: iter(X),
}


async def asynchronous(value):
    yield value


GENERATORS = {"generator": lambda m: (m for _ in range(1)), "async_generator": asynchronous}


@pytest.mark.parametrize("take", TAKING)
@pytest.mark.parametrize("hide", HIDING)
def test_what_takes_a_tree_refuses_what_hides_arrays_in_it(take, hide, tmp_path):
    call, path = TAKING[take]
    value, kind, hidden, advice = HIDING[hide]
    with pytest.raises(TypeError) as raised:
        call(value(LINEAR), tmp_path)
    place = f" at {path}" if path else ""
    assert str(raised.value).startswith(f"the {kind}{place} holds arrays ({hidden}), which are no leaves")
    assert advice in str(raised.value)
    assert not os.path.exists(tmp_path / "a")


@pytest.mark.parametrize("take", TAKING)
@pytest.mark.parametrize("kind", ITERATORS)
def test_what_takes_a_tree_refuses_an_iterator_in_it(take, kind, tmp_path):
    call, path = TAKING[take]
    with pytest.raises(TypeError) as raised:
        call(ITERATORS[kind](LINEAR), tmp_path)
    place = f" at {path}" if path else ""
    assert str(raised.value).startswith(f"the {kind}{place} is an iterator, in which arrays can't be found, ")
    assert str(raised.value).endswith(". Pass a list of what is in it.")
    assert not os.path.exists(tmp_path / "a")


class Loader:
    """What goes through data, and is its own iterator."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        return self.number


@pytest.mark.parametrize(
    "static",
    [
        Loader(), io.StringIO("a"), {"a": 1}.keys(), {"a": 1}.values(), collections.UserDict(a=1).items(), b"a", "ab",
        csv.reader(["a"]),
        Run("name"), Run([1, 2.0]), Trainer(None), Slots("a"), logging.getLogger("a"), fl.optim.SGD, mx.float32, fl.nn.relu,
        functools.partial(print, 1), POLICY, {1, 2}, mx, print, "text", None, range(3), lambda x: LINEAR(x), fl.grad(LINEAR),
        mx.fast, fl.jit(lambda x: x),
    ],
    ids=lambda static: type(static).__name__,
)  # fmt: skip
def test_values_without_arrays_and_functions_are_static(static):
    tree = {"x": X, "static": static}
    assert fl.tree.map(lambda x: x, tree)["static"] is static or static != static or type(static).__name__ == "Jitted"
    fl.eval(tree)
    assert fl.tree.size(tree) == 2
    assert mx.array_equal(fl.grad(lambda tree: tree["x"].sum())(tree)["x"], X)
    assert fl.vmap(lambda tree: tree["x"])(tree).shape == (2,)
    assert POLICY.wrap(lambda tree: tree["x"])(tree).dtype == mx.float32
    assert mx.array_equal(fl.checkpoint(lambda tree: tree["x"])(tree), X)


@pytest.mark.parametrize("hide", HIDING)
def test_vmap_shares_what_it_is_told_to_share(hide):
    value = HIDING[hide][0](LINEAR)
    for in_axes in ((None, 0), [None, 0]):
        assert fl.vmap(lambda held, x: x if held is value else None, in_axes)(value, BATCH).shape == (3, 2)


def called(f, x):
    return f(x)


# Ways to compute ``model(x)`` inside fl.checkpoint whose arrays it finds.
FOUND = {
    "partial": lambda m: fl.checkpoint(functools.partial(called, m))(X),
    "partial argument": lambda m: fl.checkpoint(called)(functools.partial(called, m), X),
    "partial in a partial": lambda m: fl.checkpoint(called)(functools.partial(functools.partial(called), m), x=X),
    "partial in the closure": lambda m: (lambda f: fl.checkpoint(lambda x: f(x))(X))(functools.partial(called, m)),
    "function argument": lambda m: fl.checkpoint(called)(lambda x: m(x), X),
    "function argument by name": lambda m: fl.checkpoint(called)(x=X, f=lambda x: m(x)),
    "function in an argument": lambda m: fl.checkpoint(lambda t, x: t["f"][1](x))({"f": [X, lambda x: m(x)]}, X),
    "function with a default": lambda m: fl.checkpoint(called)(lambda x, m=m: m(x), X),
    "function in a list of the closure": lambda m: (lambda fs: fl.checkpoint(lambda x: fs[0](x))(X))([lambda x: m(x)]),
    "bound method": lambda m: fl.checkpoint(called)(m.__call__, X),
    "vmap": lambda m: fl.checkpoint(fl.vmap(lambda x: m(x)))(X[None])[0],
    "vmap of a method": lambda m: fl.checkpoint(fl.vmap(m.__call__))(X[None])[0],
    "checkpoint": lambda m: fl.checkpoint(fl.checkpoint(lambda x: m(x)))(X),
    "a policy": lambda m: fl.checkpoint(called)(fl.Policy().wrap(lambda x: m(x)), X),
    "a method of an object that holds another": lambda m: fl.checkpoint(Trainer(LINEAR).forward)(m, X) / 2,
    "an object in the closure that holds another": lambda m: (lambda t: fl.checkpoint(lambda m, x: m(x) * t.scale)(m, X) / 2)(
        Trainer(LINEAR)
    ),
}


@pytest.mark.parametrize("way", FOUND)
def test_checkpoint_finds_the_arrays_of_functions_it_is_given(way):
    assert fl.tree.equal(fl.grad(lambda m: FOUND[way](m).sum())(LINEAR), fl.grad(lambda m: m(X).sum())(LINEAR))
    assert mx.allclose(FOUND[way](LINEAR), LINEAR(X))


LOST = {
    "object": (lambda m: fl.checkpoint(Trainer(m))(X), "Trainer is a Trainer", "model"),
    "method": (lambda m: fl.checkpoint(Trainer(m).own)(X), "own.__self__ is a Trainer", "model"),
    "argument": (lambda m: fl.checkpoint(called)(Trainer(m), X), "argument 0 of called is a Trainer", "model"),
    "argument by name": (lambda m: fl.checkpoint(called)(x=X, f=Trainer(m)), "argument f of called is a Trainer", "model"),
    "in an argument": (
        lambda m: fl.checkpoint(lambda a, x: a["r"][0](x))({"r": [Trainer(m)]}, X),
        "argument 0 of <lambda>.r.0 is a Trainer", "model",
    ),
    "bound argument": (lambda m: fl.checkpoint(functools.partial(called, Trainer(m)))(X), "argument 0 of called", "model"),
    "closure": (lambda m: (lambda t: fl.checkpoint(lambda x: t.model(x))(X))(Trainer(m)), "t is a Trainer", "model"),
    "closure of a method": (lambda m: (lambda t: fl.checkpoint(lambda x: t.own(x))(X))(Trainer(m)), "t is a Trainer", "model"),
    "namespace": (
        lambda m: (lambda t: fl.checkpoint(lambda x: t.model(x))(X))(types.SimpleNamespace(model=m)),
        "t is a SimpleNamespace", "model",
    ),
    "set": (lambda m: (lambda held: fl.checkpoint(lambda x: next(iter(held))(x))(X))({m}), "held is a set", "0"),
    "view": (lambda m: fl.checkpoint(lambda ms, x: sum(m(x) for m in ms))({"a": m}.values(), X), "a dict_values", "0"),
    "view in the closure": (
        lambda m: (lambda held: fl.checkpoint(lambda x: next(iter(held))(x))(X))(collections.UserDict(a=m).values()),
        "held is a ValuesView", "_mapping.a",
    ),
    "partial of a method": (lambda m: fl.checkpoint(called)(functools.partial(Trainer(m).own), X), "argument 0", "model"),
}  # fmt: skip


@pytest.mark.parametrize("way", LOST)
def test_checkpoint_refuses_objects_whose_arrays_would_have_no_gradient(way):
    call, said, path = LOST[way]
    with pytest.raises(TypeError) as raised:
        fl.grad(lambda m: call(m).sum())(LINEAR)
    assert said in str(raised.value)
    assert f"holds arrays ({path}: a Linear)" in str(raised.value)
    assert "fl.checkpoint can't find there: their gradients would be zero. " in str(raised.value)


@pytest.mark.parametrize("kind", [*ITERATORS, *GENERATORS])
@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda v: fl.checkpoint(lambda v, x: x)(v, X), "argument 0 of <lambda>"),
        (lambda v: fl.checkpoint(lambda v, x: x)({"a": [v]}, x=X), "argument 0 of <lambda>.a.0"),
        (lambda v: fl.checkpoint(lambda x: (v, x)[1])(X), "v"),
    ],
)
def test_checkpoint_refuses_an_iterator(kind, call, place):
    with pytest.raises(TypeError) as raised:
        call({**ITERATORS, **GENERATORS}[kind](LINEAR))
    said = f"{place} is a{'n' * (kind[0] in 'Aa')} {kind}, an iterator, in which fl.checkpoint can't find arrays: "
    assert str(raised.value) == f"{said}their gradients would be zero. Pass a list of what is in it."


def test_arrays_of_numpy_that_a_function_reads_are_constants():
    held, table = Trainer(np.ones(2, np.float32)), np.ones(2, np.float32)
    for function in (fl.checkpoint, POLICY.wrap):
        assert function(lambda x: x + mx.array(held.model) + mx.array(table))(X).tolist() == [3, 3]


@pytest.mark.parametrize("fn", [Trainer(LINEAR), Trainer(LINEAR).own], ids=["object", "method"])
def test_a_policy_refuses_a_function_that_reads_arrays_from_its_object(fn):
    with pytest.raises(TypeError, match=r"is a Trainer that holds arrays \(model: a Linear\).*they would not be cast"):
        POLICY.wrap(fn)(X)


def test_a_policy_takes_a_method_that_reads_no_arrays_from_its_object():
    assert POLICY.wrap(Trainer(LINEAR).forward)(LINEAR, X).dtype == mx.float32
