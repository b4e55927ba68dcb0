"""What a module shows of itself, against what mlx.nn.Module shows of the same model."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import strategies
from mlx.utils import tree_flatten
from twins import MODELS, Bag, Norm, Stack, linear, outcome, same, subject

import frostleaf as fl
from frostleaf.core.fields import persistent
from frostleaf.core.levels import tree_level
from frostleaf.core.structure import flat_of
from frostleaf.edits.freezing import trainable

VIEWS = ["parameters", "trainable_parameters", "children", "leaf_modules"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return subject(request.param)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_keys_and_the_order_that_mlx_gives_it(model: tuple[Any, Any], view: str) -> None:
    ours, theirs = model
    assert same(getattr(ours, view)(), getattr(theirs, view)())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "keys", [None, "weight", "bias", ["ws", "layers"], "ws.0", "table.a", "second", "running_mean"], ids=str
)
def test_a_view_of_a_frozen_model_is_that_of_mlx(model: tuple[Any, Any], view: str, keys: Any) -> None:
    ours, theirs = model
    assert same(getattr(ours.freeze(keys=keys), view)(), getattr(theirs.freeze(keys=keys), view)())


def test_the_state_holds_what_mlx_holds_in_its_dict(model: tuple[Any, Any]) -> None:
    ours, theirs = model
    arrays_of_mlx = [(name, value) for name, value in tree_flatten(theirs.state) if isinstance(value, mx.array)]
    arrays = [(name, value) for name, value in tree_flatten(ours.state) if isinstance(value, mx.array)]
    assert [name for name, _ in arrays] == [name for name, _ in arrays_of_mlx]
    assert all(one is other for (_, one), (_, other) in zip(arrays, arrays_of_mlx, strict=True))
    assert set(fl.tree.paths(ours)) == {name for name, _ in arrays}


def test_modules_are_named_and_ordered_as_in_mlx(model: tuple[Any, Any]) -> None:
    ours, theirs = model
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    assert all(same(one, other) for (_, one), (_, other) in zip(ours.named_modules(), theirs.named_modules(), strict=True))
    assert [id(module) for _, module in ours.named_modules()] == [id(module) for module in ours.modules()]


def test_the_paths_of_the_leaves_are_the_names_of_the_weights(model: tuple[Any, Any]) -> None:
    ours, theirs = model
    saved = [name for name, _ in tree_flatten(theirs.parameters())]
    assert [path for path in fl.tree.paths(ours) if not path.split(".")[0].startswith("_") and path in saved] == saved


def test_the_modules_in_a_view_are_those_of_the_model() -> None:
    layer = linear()
    stack = Stack([layer], {"a": layer})
    assert stack.children()["layers"][0] is layer
    assert stack.leaf_modules()["experts"]["a"] is layer
    assert stack.modules()[-1] is layer
    assert dict(stack.named_modules())[""] is stack


@pytest.mark.parametrize("view", [*VIEWS, "state"])
def test_a_view_is_made_anew_each_time(view: str) -> None:
    def look() -> Any:
        found = getattr(stack, view)
        return found() if callable(found) else found

    stack = Stack([linear()], {"a": linear()})
    first = look()
    first["layers"].clear()
    first["experts"].clear()
    first.clear()
    assert set(look()) == {"layers", "experts"}
    assert look()["layers"]


def keep(name: str) -> Any:
    """Return the filter that both kinds of module have under a name."""
    return lambda module, key, value: getattr(module, name)(module, key, value)


FILTERS = {
    "valid parameters": keep("valid_parameter_filter"),
    "trainable parameters": keep("trainable_parameter_filter"),
    "children": keep("valid_child_filter"),
    "all": lambda module, key, value: True,
    "nothing": lambda module, key, value: False,
    "by key": lambda module, key, value: "weight" in key or not isinstance(value, mx.array),
    "the first of each container": lambda module, key, value: "." not in key or key.endswith(".0"),
}
MAPS = {
    "default": None,
    "shapes": lambda value: getattr(value, "shape", None),
    "doubled": lambda value: value * 2 if isinstance(value, mx.array) else value,
    "to lists": lambda value: [1, [2]],
}
LEAVES = {
    "default": None,
    "lists": lambda module, key, value: isinstance(value, list) or not isinstance(value, dict | fl.Module),
    "all": lambda module, key, value: True,
    "nothing": lambda module, key, value: False,
}


@pytest.mark.parametrize("is_leaf_fn", LEAVES)
def test_filter_and_map_is_that_of_mlx(model: tuple[Any, Any], is_leaf_fn: str) -> None:
    ours, theirs = model
    for filter_fn, map_fn in itertools.product(FILTERS, MAPS):
        arguments = FILTERS[filter_fn], MAPS[map_fn], LEAVES[is_leaf_fn]
        one, other = outcome(ours.filter_and_map, *arguments), outcome(theirs.filter_and_map, *arguments)
        assert one[0] == other[0], (filter_fn, map_fn)
        assert same(one[1], other[1]), (filter_fn, map_fn)


def test_filter_and_map_calls_its_functions_as_mlx_does(model: tuple[Any, Any]) -> None:
    def calls(module: Any) -> list[Any]:
        seen: list[Any] = []

        def note(what: str, result: Any) -> Any:
            def function(owner: Any, key: str, value: Any) -> Any:
                seen.append((what, key, isinstance(value, mx.array), isinstance(value, list)))
                return result(value)

            return function

        module.filter_and_map(
            note("filter", lambda value: True),
            None,
            note("leaf", lambda value: not isinstance(value, dict | list | type(module))),
        )
        return seen

    # Modules of mlx.nn are dicts, so what is asked about a module of ours is left out.
    ours, theirs = model
    if all(module is ours for module in ours.modules()):
        assert calls(ours) == calls(theirs)


def test_the_owner_is_the_module_that_holds_the_value() -> None:
    layer = linear()
    owners = []
    Stack([layer]).filter_and_map(lambda owner, key, value: owners.append((type(owner).__name__, key)) or True)
    assert owners == [("Stack", "layers"), ("Stack", "layers.0"), ("Linear", "weight"), ("Linear", "bias")]


@pytest.mark.parametrize("value", [mx.ones(1), [], {}, (), None, 3, "text"], ids=repr)
@pytest.mark.parametrize("key", ["weight", "_private"])
@pytest.mark.parametrize("name", ["valid_child_filter", "valid_parameter_filter", "trainable_parameter_filter"])
def test_a_filter_says_what_that_of_mlx_says(name: str, key: str, value: Any) -> None:
    class Held(fl.Module):
        weight: Any = None
        _private: Any = None

    import mlx.nn as nn

    assert getattr(Held(), name)(Held(), key, value) is getattr(nn.Module(), name)(nn.Module(), key, value)


def test_what_is_not_persistent_is_no_parameter() -> None:
    class Rotary(fl.Module):
        weight: mx.array
        table: mx.array = fl.buffer(persistent=False, factory=lambda: mx.ones(2))
        tables: Any = fl.buffer(persistent=False, factory=lambda: [mx.ones(2)])

    module = Rotary(mx.ones(1))
    assert list(module.parameters()) == ["weight"]
    assert list(module.trainable_parameters()) == ["weight"]
    assert list(module.state) == ["weight", "table", "tables"]
    assert fl.tree.paths(module) == ["weight", "table", "tables.0"]


def test_a_buffer_is_a_parameter_that_is_not_trained() -> None:
    module = Norm(mx.ones(2))
    assert list(module.parameters()) == ["weight", "running_mean"]
    assert list(module.trainable_parameters()) == ["weight"]
    assert list(module.unfreeze().trainable_parameters()) == ["weight"]


def test_static_fields_are_in_no_view() -> None:
    class Sized(fl.Module):
        weight: mx.array
        sizes: Any = fl.static(default=(1, 2))
        options: Any = fl.static(factory=dict)

    module = Sized(mx.ones(1))
    for view in (module.parameters(), module.trainable_parameters(), module.state):
        assert list(view) == ["weight"]
    assert module.children() == {}


@pytest.mark.parametrize(
    ("value", "expected"), [(linear(), True), (Bag([]), True), (3, False), ({}, False), (Bag, False)], ids=str
)
def test_is_module(value: Any, expected: bool) -> None:
    assert fl.Module.is_module(value) is expected
    assert linear().is_module(value) is expected


class Pair:
    """Registered, with names for its children."""

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Cells:
    """Registered, without names for its children."""

    def __init__(self, cells: Any) -> None:
        self.cells = cells


fl.register_pytree_node(Pair, lambda pair: ([pair.a, pair.b], None, ["a", "b"]), lambda _, children: Pair(*children))
fl.register_pytree_node(Cells, lambda cells: (cells.cells, None), lambda _, children: Cells(list(children)))


def test_a_registered_node_is_shown_as_a_dict_of_its_children() -> None:
    w, layer = mx.ones(1), linear()
    bag = Bag(Pair(w, [Cells([layer, 3, {"k": w}]), None]))
    assert bag.state["ws"]["a"] is w
    assert bag.state["ws"]["b"][0][2] == {"k": w}
    assert fl.tree.paths(bag) == ["ws.a", "ws.b.0.0.weight", "ws.b.0.0.bias", "ws.b.0.2.k"]
    assert [name for name, _ in tree_flatten(bag.parameters())] == fl.tree.paths(bag)
    assert [name for name, _ in tree_flatten(bag.freeze(keys="ws.a", recurse=False).trainable_parameters())] == [
        "ws.b.0.0.weight",
        "ws.b.0.0.bias",
        "ws.b.0.2.k",
    ]
    assert bag.children() == {"ws": {"a": {}, "b": [{0: layer, 1: {}, 2: {"k": {}}}, {}]}}
    assert bag.leaf_modules() == bag.children()
    assert [name for name, _ in bag.named_modules()] == ["", "ws.b.0.0"]


def test_an_array_tied_into_a_registered_node_is_shown_once() -> None:
    w = mx.ones(1)
    bag = Bag({"here": w, "there": Cells([mx.zeros(1), w])}).tie({"ws.there.1": "ws.here"})
    assert [name for name, _ in tree_flatten(bag.parameters())] == ["ws.here", "ws.there.0"] == fl.tree.paths(bag)


def test_two_children_of_one_name_are_an_error() -> None:
    class Twice(Cells): ...

    fl.register_pytree_node(Twice, lambda node: (node.cells, None, ["a", "a"]), lambda _, children: Twice(list(children)))
    with pytest.raises(ValueError, match="two children of a Twice have the same name"):
        Bag(Twice([mx.ones(1), mx.ones(1)])).parameters()


def registered() -> st.SearchStrategy[Any]:
    leaves = st.one_of(strategies.arrays(), strategies.scalars)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(Pair, inner, inner),
            st.lists(inner, max_size=2).map(Cells),
            st.lists(inner, max_size=2),
            st.lists(inner, max_size=2).map(deque),
            st.dictionaries(st.sampled_from(strategies.KEYS), inner, max_size=2),
            strategies.modules(inner, max_leaves=2),
        ),
        max_leaves=6,
    )


def is_saved(module: Any, path: tuple[Any, ...]) -> bool:
    """Return whether no field on the way to an array is private or not persistent."""
    value = module
    for entry in path:
        if isinstance(value, fl.Module) and not persistent(type(value).__frostleaf__.fields[entry]):
            return False
        level = tree_level(value)
        value = level.children[list(level.entries).index(entry)]
    return True


@given(strategies.modules(registered(), max_leaves=3))
@strategies.law
def test_the_names_of_the_parameters_are_the_paths_of_what_is_saved(module: fl.Module) -> None:
    flat = flat_of(module)
    saved = [".".join(map(str, path)) for path in flat.structure.leaf_paths() if is_saved(module, path)]
    named = [(name, value) for name, value in tree_flatten(module.parameters()) if isinstance(value, mx.array)]
    assert [name for name, _ in named] == saved
    trained = {name for name, trains in zip(fl.tree.paths(module), trainable(module), strict=True) if trains}
    assert trained <= set(saved)
    if len(set(saved)) == len(saved):
        assert fl.tree.equal(module.update(module.parameters()), module)
        loaded = module.load_weights([(name, mx.zeros_like(value)) for name, value in named])
        assert all(
            mx.array_equal(value, mx.zeros_like(value))
            for _, value in tree_flatten(loaded.parameters())
            if isinstance(value, mx.array)
        )
