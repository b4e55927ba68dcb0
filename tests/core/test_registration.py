"""Classes that are registered as nodes of trees, once and again."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import attrs
import mlx.core as mx
import pytest

import frostleaf as fl


def _dataclass() -> Any:
    @dataclasses.dataclass
    class Batch:
        x: Any
        n: int = 0

    return Batch


def _attrs_class() -> Any:
    @attrs.frozen
    class Batch:
        x: Any
        n: int = 0

    return Batch


def _flatten(batch: Any) -> Any:
    return [batch.x], None, ["x"]


CLASSES = {"dataclass": _dataclass, "attrs": _attrs_class}


@pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("static", [(), ["n"]], ids=str)
def test_a_dataclass_may_be_registered_again_as_it_was(make: Any, static: Any) -> None:
    cls = make()
    for again in (static, tuple(static), (name for name in static), {*static}):
        assert fl.register_dataclass(cls, static=again) is cls
    assert fl.tree.paths(cls(mx.ones(2), mx.ones(2) if not static else 3)) == (["x"] if static else ["x", "n"])
    assert fl.register_dataclass(make(), static=["x"])  # another class of the same name


AGAIN = r"Batch is a node of trees already.*define the class again to register it in another way"


@pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)
def test_a_dataclass_that_is_registered_again_in_another_way_is_refused(make: Any) -> None:
    cls = fl.register_dataclass(make(), static=["n"])
    with pytest.raises(ValueError, match=rf"{AGAIN}\. Its static fields are 'n', and now none$"):
        fl.register_dataclass(cls)
    with pytest.raises(ValueError, match=AGAIN):
        fl.register_pytree_node(cls, _flatten, lambda _, new: cls(*new))
    other = fl.register_pytree_node(make(), _flatten, lambda _, new: other(*new))
    for call in (
        lambda: fl.register_dataclass(other),
        lambda: fl.register_pytree_node(other, _flatten, lambda _, new: other(*new)),
    ):
        with pytest.raises(ValueError, match=AGAIN):
            call()


@pytest.mark.parametrize("cls", [dict, tuple, OrderedDict, type(None), fl.nn.Linear, fl.Module])
def test_what_is_a_node_already_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=f"^{cls.__name__} is a node of trees already, as modules and containers are"):
        fl.register_pytree_node(cls, _flatten, lambda _, new: cls(*new))


@pytest.mark.parametrize("name", ["flatten_func", "unflatten_func"])
def test_what_takes_a_node_apart_and_makes_it_must_be_functions(name: str) -> None:
    functions: Any = {"flatten_func": _flatten, "unflatten_func": _flatten, name: ["x"]}
    with pytest.raises(TypeError, match=rf"{name} is a function of .*, and was given as \['x'\]"):
        fl.register_pytree_node(_dataclass(), **functions)
