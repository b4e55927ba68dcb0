"""How much is done when a class is defined and when an instance is built, counted and not timed."""

import functools
import linecache
import sys

import mlx.core as mx
import optree
import pytest

import frostleaf as fl
from frostleaf.core import construction, definition


def calls(function):
    """Return the names of the Python functions that a function calls."""
    names = []
    sys.setprofile(lambda frame, event, _: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


class Pair(fl.Module):
    left: mx.array
    right: mx.array
    name: str = fl.static(default="pair")


class Held(fl.Module):
    value: object


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: fl.nn.Linear(2, 3), 24),
        (lambda: fl.nn.LayerNorm(3), 30),
        (functools.partial(Pair, mx.zeros(2), mx.zeros(2)), 26),
        (functools.partial(Held, [Pair(mx.zeros(2), None)] * 8), 65),
    ],
    ids=["linear", "layer norm", "arrays", "modules in a list"],
)
def test_building_calls_few_functions(make, most):
    make()
    assert len(calls(make)) <= most


@pytest.mark.parametrize("value", [mx.zeros(2), None, 1.5, (mx.zeros(2), (mx.zeros(2),)), [mx.zeros(2)], Pair(None, None)])
def test_no_array_is_looked_for_in_what_can_hold_none(value, monkeypatch):
    looked = []
    for name in ("find_hidden", "one_level", "is_foreign_array"):
        monkeypatch.setattr(construction, name, looked.append)
    assert fl.tree.equal(Held(None).replace(value=value), Held(value))
    assert looked == []


def test_what_puts_a_class_together_is_compiled_at_first_use():
    cls = type("Late", (fl.Module,), {"__module__": "user", "__annotations__": {"weight": mx.array}})
    file = "<assemble user.Late>"
    node = cls(mx.zeros(2))
    leaves, structure = fl.tree.flatten(node)
    assert file not in linecache.cache
    assert fl.tree.unflatten(structure, leaves).weight is leaves[0]
    assert file in linecache.cache


def test_optree_puts_a_class_together_that_nothing_has_put_together_before():
    cls = type("First", (fl.Module,), {"__annotations__": {"weight": mx.array}})
    node = cls(mx.zeros(2))
    leaves, spec = optree.tree_flatten(node, namespace="frostleaf")
    again = optree.tree_unflatten(spec, leaves)
    assert type(again) is cls
    assert again.weight is node.weight


def test_the_body_of_a_base_is_looked_through_once(monkeypatch):
    class Base(fl.Module):
        weight: mx.array

    bodies = []
    monkeypatch.setattr(definition, "_require_annotations", lambda cls, base: bodies.append({*vars(base)}))

    class Mixin:
        of_mixin = 3

    class Derived(Mixin, Base):
        def of_derived(self):
            pass

    assert [{"of_derived", "of_mixin"} & each for each in bodies] == [{"of_derived"}, {"of_mixin"}]
