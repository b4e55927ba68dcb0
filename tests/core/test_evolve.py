"""Copies with other values in some fields, made by others than ``replace``."""

import copy
import dataclasses
import sys

import attrs
import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.core.definition import NO_EVOLVE, NO_REPLACE


class Generated(fl.Module):
    a: mx.array
    b: mx.array
    scale: float = fl.static(default=1.0)


class Own(fl.Module):
    def __replace__(self, /, **changes):
        return "own"


def edited():
    """Return modules with a mode, frozen names and ties that are not those of a new one."""
    generated = Generated(mx.ones(2), mx.ones(2), 3.0).freeze(keys="b").eval()
    tied = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)).tie({"layers.1.bias": "layers.0.bias"})
    return [generated, fl.nn.Linear(2, 2).freeze(keys="bias").eval(), tied, fl.optim.Adam(1e-3)]


@pytest.mark.parametrize("index", range(len(edited())))
def test_evolve_of_attrs_names_replace(index):
    module = edited()[index]
    with pytest.raises(TypeError) as raised:
        attrs.evolve(module)
    assert str(raised.value) == NO_EVOLVE.format(cls=type(module).__name__)
    assert ".replace(...)" in str(raised.value)


def test_evolve_of_what_holds_a_module_works():
    @attrs.frozen
    class Pair:
        module: fl.Module
        number: int

    module = fl.nn.Linear(2, 2)
    assert attrs.evolve(Pair(module, 1), number=2).module is module


def test_a_module_built_by_a_function_named_evolve():
    def evolve():
        return fl.nn.Linear(2, 2)

    assert evolve().training


def test_replace_keeps_what_it_does_not_name():
    generated, linear, tied, _ = edited()
    after = generated.__replace__(a=mx.zeros(2))
    assert not after.training
    assert list(after.trainable_parameters()) == ["a"]
    assert (after.scale, after.b is generated.b) == (3.0, True)
    assert list(linear.__replace__(weight=mx.zeros((2, 2))).trainable_parameters()) == ["weight"]
    assert fl.tree.paths(tied.__replace__(layers=tied.layers)) == fl.tree.paths(tied)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is new in Python 3.13")
def test_copy_replace():
    after = copy.replace(edited()[0], a=mx.zeros(2))
    assert not after.training
    assert list(after.trainable_parameters()) == ["a"]


def test_a_replace_of_its_own_is_kept():
    assert Own().__replace__() == "own"


def test_dataclasses_replace_names_ours():
    module = edited()[0]
    with pytest.raises(TypeError) as raised:
        dataclasses.replace(module, a=mx.zeros(2))
    assert str(raised.value) == NO_REPLACE.format(cls=type(module).__name__)
    assert not dataclasses.is_dataclass(module)
    assert not hasattr(module, "__dataclass_fields__")
