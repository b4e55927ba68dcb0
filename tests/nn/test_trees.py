"""Every layer as a frozen tree: what is true of all modules is true of each."""

import copy
import pickle

import mlx.core as mx
import pytest
from cases import CASES

import frostleaf as fl

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def built(case):
    mx.random.seed(3)
    return case.make(fl.nn)


@each_case
def test_two_of_a_kind_are_of_one_structure(case):
    first, second = fl.tree.structure(built(case)), fl.tree.structure(built(case))
    assert first == second
    assert hash(first) == hash(second)


@each_case
def test_copies_are_equal(case):
    layer = built(case)
    assert copy.copy(layer) is layer
    for other in copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)):
        assert fl.tree.equal(other, layer)
        assert repr(other) == repr(layer)
        assert not any(one is two for one, two in zip(fl.tree.leaves(other), fl.tree.leaves(layer), strict=True))


@each_case
def test_an_edit_that_changes_nothing_returns_the_layer(case):
    layer = built(case)
    assert layer.astype(mx.float32) is layer
    for path in fl.tree.paths(layer):
        assert layer.at(path).set(layer.at(path).get()) is layer
    for name in layer.__frostleaf__.fields:
        assert layer.replace(**{name: getattr(layer, name)}) is layer
    for edit in fl.Module.freeze, fl.Module.unfreeze, fl.Module.eval, fl.Module.train:
        once = edit(layer)
        assert edit(once) is once


@each_case
def test_it_can_be_inherited_from_with_a_field_more(case):
    class Subclasses:
        def __getattr__(self, name):
            value = getattr(fl.nn, name)
            if not isinstance(value, type):
                return value
            return type(name, (value,), {"__annotations__": {"tag": str}, "tag": fl.static(default="new")})

    layer, plain = case.make(Subclasses()), built(case)
    assert fl.tree.paths(layer) == fl.tree.paths(plain)
    other = layer.astype(mx.float16).eval().freeze()
    assert type(other) is type(layer)
    assert getattr(other, "tag", "new") == "new"  # a quantized layer is of another class
