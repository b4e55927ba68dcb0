"""flatten, unflatten, leaves, structure, paths, map, map_with_path and reduce on trees of every kind."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import re
import subprocess
import sys
import time
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import optree
import pytest
from shown import shown

import frostleaf as fl
from frostleaf.core import structure as structure_file

A, B, C = mx.array(1), mx.array(2), mx.array(3)


class Pair(NamedTuple):
    left: Any
    right: Any


class Net(fl.Module):
    weight: Any
    size: Any = fl.static(default=2)
    bias: Any = None


class Cache:
    """Somebody's own mutable class."""

    def __init__(self, keys: Any, values: Any, length: int) -> None:
        self.keys, self.values, self.length = keys, values, length


def _flatten_cache(cache: Cache) -> tuple[Iterable[Any], int, tuple[str, str]]:
    return (cache.keys, cache.values), cache.length, ("keys", "values")


optree.register_pytree_node(
    Cache,
    _flatten_cache,
    lambda length, children: Cache(*children, length),
    path_entry_type=optree.GetAttrEntry,
    namespace="frostleaf",
)

# A tree, its leaves in order, and their names.
TREES: dict[str, tuple[Any, list[mx.array], list[str]]] = {
    "an array": (A, [A], [""]),
    "None": (None, [], []),
    "a number": (3, [], []),
    "a string": ("text", [], []),
    "a tuple": ((A, 1, B), [A, B], ["0", "2"]),
    "a list": ([A, [B, [C]]], [A, B, C], ["0", "1.0", "1.1.0"]),
    "empty containers": ([(), [], {}, None], [], []),
    "a dict": ({"b": A, "a": B}, [A, B], ["b", "a"]),
    "a dict with numbers for keys": ({2: A, 1: B}, [A, B], ["2", "1"]),
    "a dict with keys of several types": ({"x": A, 1: B, None: C}, [A, B, C], ["x", "1", "None"]),
    "an OrderedDict": (OrderedDict([("b", A), ("a", [B])]), [A, B], ["b", "a.0"]),
    "a defaultdict": (defaultdict(list, {"b": A, "a": B}), [A, B], ["b", "a"]),
    "a mapping": (MappingProxyType({"b": A, "a": {"c": B}}), [A, B], ["b", "a.c"]),
    "a namedtuple": (Pair([A], B), [A, B], ["0.0", "1"]),
    "a deque": (deque([A, None, B], maxlen=4), [A, B], ["0", "2"]),
    "a registered class": ({"cache": Cache(A, [B], 3)}, [A, B], ["cache.keys", "cache.values.0"]),
    "a module": (Net([A, {"x": B}], bias=C), [A, B, C], ["weight.0", "weight.1.x", "bias"]),
    "modules in containers": ([Net(A), {"n": Net(None, bias=B)}], [A, B], ["0.weight", "1.n.bias"]),
    "the same array twice": ((A, [A]), [A, A], ["0", "1.0"]),
    "a set": ({1, 2}, [], []),
}
every_tree = pytest.mark.parametrize(("tree", "leaves", "paths"), TREES.values(), ids=TREES)


def same_objects(one: Iterable[Any], other: Iterable[Any]) -> bool:
    return [id(each) for each in one] == [id(each) for each in other]


@every_tree
def test_flatten_finds_the_arrays_in_order(tree: Any, leaves: list[mx.array], paths: list[str]) -> None:
    found, structure = fl.tree.flatten(tree)
    assert same_objects(found, leaves)
    assert structure.num_leaves == len(leaves)
    assert same_objects(fl.tree.leaves(tree), leaves)
    assert fl.tree.structure(tree) == structure
    assert fl.tree.paths(tree) == paths
    assert [".".join(map(str, path)) for path in structure.leaf_paths()] == paths


@every_tree
def test_unflatten_makes_a_tree_of_the_same_kind(tree: Any, leaves: list[mx.array], paths: list[str]) -> None:
    made = fl.tree.unflatten(fl.tree.structure(tree), iter(leaves))
    assert type(made) is type(tree)
    assert same_objects(fl.tree.leaves(made), leaves)
    assert fl.tree.paths(made) == paths
    assert fl.tree.structure(made) == fl.tree.structure(tree)


@every_tree
def test_map_maps_the_leaves(tree: Any, leaves: list[mx.array], paths: list[str]) -> None:
    mapped = fl.tree.map(lambda leaf: leaf + 1, tree)
    assert [leaf.item() for leaf in fl.tree.leaves(mapped)] == [leaf.item() + 1 for leaf in leaves]
    assert fl.tree.structure(mapped) == fl.tree.structure(tree)


@every_tree
def test_map_with_path_gives_the_names(tree: Any, leaves: list[mx.array], paths: list[str]) -> None:
    given: list[Any] = []
    fl.tree.map_with_path(lambda path, leaf, other: given.append((path, leaf, other)), tree, tree)
    assert [path for path, _, _ in given] == paths
    assert same_objects([leaf for _, leaf, _ in given], leaves)
    assert same_objects([other for _, _, other in given], leaves)


@every_tree
def test_reduce_folds_from_the_left(tree: Any, leaves: list[mx.array], paths: list[str]) -> None:
    assert fl.tree.reduce(lambda found, leaf: [*found, leaf.item()], tree, []) == [leaf.item() for leaf in leaves]
    if leaves:
        assert fl.tree.reduce(lambda total, leaf: total * 10 + leaf, tree).item() == int(
            "".join(str(leaf.item()) for leaf in leaves)
        )


def test_containers_keep_what_is_their_own() -> None:
    default = fl.tree.map(lambda leaf: leaf, defaultdict(list, a=A))
    assert default.default_factory is list
    assert fl.tree.map(lambda leaf: leaf, deque([A], maxlen=4)).maxlen == 4
    assert fl.tree.map(lambda leaf: leaf, Cache(A, B, 7)).length == 7
    assert list(fl.tree.map(lambda leaf: leaf, {"b": A, "a": B})) == ["b", "a"]
    assert type(fl.tree.map(lambda leaf: leaf, Pair(A, B))) is Pair


def test_unflatten_makes_new_containers() -> None:
    tree = {"a": [A]}
    made = fl.tree.map(lambda leaf: leaf, tree)
    made["a"].append(B)
    assert len(tree["a"]) == 1


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ([A], [B], True),
        ([A], (A,), False),
        ({"a": A, "b": B}, {"b": B, "a": A}, False),
        (OrderedDict(a=A), {"a": A}, False),
        (Pair(A, B), (A, B), False),
        (MappingProxyType({"a": A}), {"a": A}, False),
        (deque([A]), [A], False),
        ([1], [1.0], False),
        ([True], [1], False),
        ([None], [[]], False),
        ([A], [None], False),
        ([A, 1], [1, A], False),
        (Net(A), Net(B), True),
        (Net(A), Net(A, size=3), False),
        (Net(A), Net(A).eval(), False),
        (Net(A), Net(A).freeze(), False),
        (Net(A), Net(A, bias=B), False),
        (Cache(A, B, 1), Cache(B, A, 1), True),
        (Cache(A, B, 1), Cache(A, B, 2), False),
        ((), (), True),
    ],
    ids=shown,
)
def test_structures_are_equal_when_everything_but_the_arrays_is(left: Any, right: Any, equal: bool) -> None:
    one, other = fl.tree.structure(left), fl.tree.structure(right)
    assert (one == other) is equal
    assert (one != other) is not equal
    if equal:
        assert hash(one) == hash(other)


def test_a_structure_is_equal_to_nothing_else() -> None:
    assert fl.tree.structure([A]) != [A]
    assert fl.tree.structure(A) != "*"


def test_a_structure_can_be_a_key_and_be_held_weakly() -> None:
    structure = fl.tree.structure(Net([A, 1.0]))
    assert {structure: 1}[fl.tree.structure(Net([B, 1.0]))] == 1
    assert weakref.ref(structure)() is structure


def test_a_structure_with_something_unhashable_can_be_compared_but_not_hashed() -> None:
    structure = fl.tree.structure([A, bytearray(b"x")])
    assert structure == fl.tree.structure([B, bytearray(b"x")])
    assert structure != fl.tree.structure([B, bytearray(b"y")])
    with pytest.raises(TypeError, match="unhashable"):
        hash(structure)


def test_a_structure_shows_the_classes_and_the_static_values() -> None:
    shown = repr(fl.tree.structure(Net([A, 0.25], size="large")))
    assert shown.startswith("Structure(")
    assert all(each in shown for each in ("Net", "0.25", "large"))


# Copies


@every_tree
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_structure_can_be_pickled(tree: Any, leaves: list[mx.array], paths: list[str], protocol: int) -> None:
    structure = fl.tree.structure(tree)
    again = pickle.loads(pickle.dumps(structure, protocol))
    assert again == structure
    assert again is not structure
    assert (again.num_leaves, again.leaf_paths()) == (structure.num_leaves, structure.leaf_paths())
    assert list(again.static_values()) == list(structure.static_values())
    if not isinstance(tree, set):
        assert hash(again) == hash(structure)
    made = fl.tree.unflatten(again, leaves)
    assert type(made) is type(tree)
    assert same_objects(fl.tree.leaves(made), leaves)
    assert fl.tree.structure(made) == structure


@pytest.mark.parametrize(
    "value",
    [mx.float16, mx.tanh, frozenset({mx.float16}), functools.partial(mx.softmax, axis=-1), Net, len, 1.5, float("nan"), "text"],
    ids=shown,
)
def test_a_structure_with_static_values_of_any_kind_can_be_pickled(value: Any) -> None:
    structure = fl.tree.structure([value, {"a": (value, A)}, Net([A, value], size=value), MappingProxyType({"b": value})])
    again = pickle.loads(pickle.dumps(structure))
    assert again == structure
    assert hash(again) == hash(structure)


@pytest.mark.parametrize(
    "tree", [Net(A).eval(), Net([A], bias=Net(B)).freeze(keys="weight"), {"model": Net(A), "time": time.gmtime(0)}], ids=shown
)
def test_a_structure_keeps_modes_frozen_names_and_named_tuples_when_pickled(tree: Any) -> None:
    structure = fl.tree.structure(tree)
    again = pickle.loads(pickle.dumps(structure))
    assert again == structure
    assert repr(fl.tree.unflatten(again, fl.tree.leaves(tree))) == repr(tree)


def test_a_structure_is_its_own_deep_copy_and_equal_to_its_copy() -> None:
    structure = fl.tree.structure([Net(A), object(), Cache(A, B, 1)])
    assert copy.deepcopy(structure) is structure
    assert copy.deepcopy({"a": structure})["a"] is structure
    assert copy.copy(structure) == structure
    assert copy.deepcopy(fl.tree.structure(bytearray(b"x"))) == fl.tree.structure(bytearray(b"x"))


IN_ANOTHER_PROCESS = """
import pickle, sys
import frostleaf as fl
from frostleaf.core import structure as structure_file
structure, model = pickle.load(sys.stdin.buffer)
assert structure == fl.tree.structure(model) and hash(structure) == hash(fl.tree.structure(model))
assert {structure: 1}[fl.tree.structure(model)] == 1
"""


def test_a_pickled_structure_is_a_key_in_a_process_where_strings_have_other_hashes() -> None:
    model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Conv2d(1, 1, 1), "text", fl.nn.relu)
    given = pickle.dumps((fl.tree.structure(model), model))
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS], input=given, env=environment, check=True)


def test_any_object_can_stand_in_for_a_leaf() -> None:
    assert fl.tree.unflatten(fl.tree.structure({"a": A, "n": 1}), ["x"]) == {"a": "x", "n": 1}
    assert fl.tree.map(lambda leaf: None, [A, 1]) == [None, 1]
    assert fl.tree.map(lambda leaf: [leaf], Net(A)).weight == [A]


@pytest.mark.parametrize(("given", "message"), [([], "has 2 leaves and 0 were"), ([1, 2, 3], "has 2 leaves and 3 were")])
def test_a_wrong_number_of_leaves_is_an_error(given: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.tree.unflatten(fl.tree.structure([A, B]), given)


# map over several trees


def test_map_pairs_the_leaves_of_several_trees_by_their_place() -> None:
    mapped = fl.tree.map(lambda a, b, c: (a + b * c).item(), {"x": A, "y": [B]}, {"x": B, "y": [C]}, {"x": C, "y": [C]})
    assert mapped == {"x": 7, "y": [11]}


def test_map_pairs_the_items_of_dicts_by_their_keys() -> None:
    assert fl.tree.map(lambda a, b: (a * 10 + b).item(), {"x": A, "y": B}, {"y": C, "x": A}) == {"x": 11, "y": 23}


def test_map_pairs_the_items_of_mappings_by_their_keys() -> None:
    left, right = MappingProxyType({"x": A, "y": B}), MappingProxyType({"y": C, "x": A})
    try:
        mapped = fl.tree.map(lambda a, b: (a * 10 + b).item(), left, right)
    except ValueError:
        return  # To say that they differ is right as well; to pair them by position is not.
    assert mapped == {"x": 11, "y": 23}


def test_where_the_first_tree_has_a_leaf_another_may_have_anything() -> None:
    seen: list[Any] = []
    fl.tree.map(lambda *given: seen.append(given), [A, B], [None, {"deep": [C]}], ["text", (1, 2)])
    assert seen == [(A, None, "text"), (B, {"deep": [C]}, (1, 2))]


def test_static_values_are_those_of_the_first_tree() -> None:
    assert fl.tree.map(lambda a, b: 0, [A, 1, "x"], [B, 2, "y"]) == [0, 1, "x"]


class Twins(fl.Module):
    first: fl.nn.Linear
    second: fl.nn.Linear
    norm: fl.nn.BatchNorm


TWINS = Twins(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2), fl.nn.BatchNorm(2))
COPIES = {
    "frozen": TWINS.freeze(),
    "partly frozen": TWINS.at("first").freeze(),
    "evaluating": TWINS.eval(),
    "tied": TWINS.tie({"second.weight": "first.weight"}),
    "tied the other way": TWINS.tie({"first.weight": "second.weight"}),
    "all of it": TWINS.tie({"second.weight": "first.weight"}).freeze().eval(),
}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("other", ["as it was", *COPIES])
def test_a_model_goes_with_its_copy_that_is_frozen_tied_or_in_another_mode(name: str, other: str) -> None:
    first, second = COPIES[name], {"as it was": TWINS, **COPIES}[other]
    mean = fl.tree.map(lambda a, b: 0.5 * a + 0.5 * b, first, second)
    assert fl.tree.structure(mean) == fl.tree.structure(first)
    assert fl.tree.allclose(mean, first) or {"tied", "all"} & {*(other + " " + name).split()}
    assert mean.norm.weight.tolist() == TWINS.norm.weight.tolist()


@pytest.mark.parametrize("function", [fl.tree.map, fl.tree.map_with_path])
@pytest.mark.parametrize(
    ("first", "others", "number", "where"),
    [
        ([A], [[A, B]], 2, "the root"),
        ([A], [(A,)], 2, "the root"),
        ({"a": A}, [{"b": A}], 2, "the root"),
        ([A], [[B], [[], A]], 3, "the root"),
        (Net(A), [Net(A, size=3)], 2, "the root"),
        ({"n": Net(A)}, [{"n": Net(A, size=3)}], 2, "n"),
        ({"n": [Net([A])]}, [{"n": [Net((A, B))]}], 2, "n.0.weight"),
        ([[A]], [[A]], 2, "0"),
        ([None], [[A]], 2, "0"),
        ([()], [[A]], 2, "0"),
    ],
    ids=shown,
)
def test_a_tree_of_another_structure_is_an_error_that_shows_where(
    function: Any, first: Any, others: list[Any], number: int, where: str
) -> None:
    with pytest.raises(ValueError, match=rf"tree {number} does not have the structure .* At {where}: "):
        function(lambda *given: None, first, *others)


def test_what_the_function_raises_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        fl.tree.map(lambda leaf: 1 / 0, [A])


# reduce


def test_reduce_of_no_leaves_is_an_error_without_an_initializer() -> None:
    with pytest.raises(TypeError, match="empty"):
        fl.tree.reduce(lambda a, b: a, [None, 1])
    assert fl.tree.reduce(lambda a, b: a, [None, 1], "start") == "start"
    assert fl.tree.reduce(lambda a, b: a, [None, 1], None) is None


def test_reduce_of_one_leaf_is_that_leaf() -> None:
    assert fl.tree.reduce(lambda a, b: 1 / 0, {"a": A}) is A


def test_the_names_are_exactly_those_of_the_design() -> None:
    names = """flatten unflatten leaves structure map map_with_path paths reduce partition combine filter equal allclose stack
        unstack ravel diff size nbytes Change ChangeRow Diff Structure"""
    assert sorted(fl.tree.__all__) == sorted(names.split())
    assert all(callable(getattr(fl.tree, name)) for name in fl.tree.__all__)


def test_a_class_that_is_not_registered_is_a_static_value() -> None:
    class Unknown:
        array = A

    value = Unknown()
    assert fl.tree.leaves([value, A]) == [A]
    assert fl.tree.map(lambda leaf: leaf, [value])[0] is value


def test_modules_are_leaves_outside_our_namespace() -> None:
    assert optree.tree_leaves([Net(A)]) != [A]


def test_a_dict_in_the_global_namespace_is_sorted_still() -> None:
    assert optree.tree_leaves({"b": 1, "a": 2}) == [2, 1]


def nested(levels, kind, innermost=None):
    tree = kind(mx.zeros(1) if innermost is None else innermost)
    for _ in range(levels):
        tree = kind(tree)
    return tree


def cyclic():
    items = [mx.zeros(1), {"a": mx.zeros(1)}]
    items[1]["b"] = items
    return items


class Holder(fl.Module):
    inside: Any


class Static(fl.Module):
    config: Any = fl.static()


class Assigned(fl.Module):
    inside: Any

    def __init__(self, inside: Any) -> None:
        self.inside = inside


@pytest.mark.parametrize(
    ("make", "kind", "way"),
    [
        (lambda: nested(3000, lambda inner: [inner]), "list", "0.0.0.0"),
        (lambda: nested(3000, lambda inner: {"a": inner, "b": mx.zeros(1)}), "dict", "a.a.a.a"),
        (lambda: nested(3000, Holder), "Holder", "inside.inside.inside.inside"),
        (lambda: [1, nested(3000, Holder)], "list", "1.inside.inside.inside"),
        (cyclic, "list", "1.b.1.b"),
    ],
    ids=["lists", "dicts", "modules", "modules in a list", "a cycle"],
)
def test_a_tree_that_is_too_deep_says_so(make, kind, way):
    tree = make()
    shown = f"this {kind} is nested more deeply than Python's recursion limit of {sys.getrecursionlimit()} allows"
    down = rf"or contains itself: it goes down at {re.escape(way)} and on\."
    with pytest.raises(RecursionError, match=rf"^{re.escape(shown)}, {down}"):
        fl.tree.leaves(tree)


def deep() -> Any:
    return nested(sys.getrecursionlimit(), Holder)


def endless_dict() -> Any:
    items = {"a": mx.zeros(1)}
    items["b"] = items
    return items


WALKS = {
    "freeze": (lambda: deep().freeze(), "Holder", "inside.inside.inside.inside"),
    "unfreeze": (lambda: deep().unfreeze(), "Holder", "inside.inside.inside.inside"),
    "eval": (lambda: deep().eval(), "Holder", "inside.inside.inside.inside"),
    "astype": (lambda: deep().astype(mx.float16), "Holder", "inside.inside.inside.inside"),
    "apply": (lambda: deep().apply(lambda x: x + 1), "Holder", "inside.inside.inside.inside"),
    "replace": (lambda: deep().replace(inside=1), "Holder", "inside.inside.inside.inside"),
    "at": (lambda: deep().at("**.bias").get(), "Holder", "inside.inside.inside.inside"),
    "with_frozen": (lambda: deep().with_frozen("**.bias"), "Holder", "inside.inside.inside.inside"),
    "map_modules": (lambda: deep().map_modules(lambda path, module: None), "Holder", "inside.inside.inside.inside"),
    "parameters": (lambda: deep().parameters(), "Holder", "inside.inside.inside.inside"),
    "trainable_parameters": (lambda: deep().trainable_parameters(), "Holder", "inside.inside.inside.inside"),
    "leaf_modules": (lambda: deep().leaf_modules(), "Holder", "inside.inside.inside.inside"),
    "diff": (lambda: fl.tree.diff(deep(), deep()), "Holder", "inside.inside.inside.inside"),
    "a constructor": (lambda: Holder(cyclic()), "list", "1.b.1.b"),
    "a constructor with an __init__": (lambda: Assigned(cyclic()), "list", "1.b.1.b"),
    "a dict in a constructor": (lambda: Holder(endless_dict()), "dict", "b.b.b.b"),
    "an edit": (lambda: Holder(mx.zeros(1)).replace(inside=cyclic()), "list", "1.b.1.b"),
    "a tuple in a constructor": (lambda: Holder(nested(sys.getrecursionlimit(), lambda inner: (inner,))), "tuple", "0.0.0.0"),
    "a static field": (lambda: Static(nested(sys.getrecursionlimit(), lambda inner: (inner,), 1)), "tuple", "0.0.0.0"),
}


@pytest.mark.parametrize("walk", WALKS)
def test_what_walks_a_tree_says_that_it_is_too_deep(walk):
    call, kind, way = WALKS[walk]
    with pytest.raises(RecursionError) as raised:
        call()
    assert str(raised.value).startswith(f"this {kind} is nested more deeply than Python's recursion limit of ")
    assert f"it goes down at {way} and on. " in str(raised.value)


def test_deep_calls_around_a_tree_are_not_its_fault():
    def call():
        fl.tree.leaves([mx.zeros(1)])
        call()

    with pytest.raises(RecursionError) as raised:
        call()
    assert "nested" not in str(raised.value)


@pytest.mark.parametrize(
    "tree",
    [
        mx.array(1),
        3,
        None,
        (),
        [mx.array(1), mx.array(2)],
        {"b": [3, None, {"c": "text"}], "a": mx.array(1)},
        fl.nn.Linear(2, 2),
        fl.nn.Sequential(fl.nn.Linear(2, 2), mx.tanh, fl.nn.Sequential(fl.nn.relu, fl.nn.LayerNorm(2))),
        {"models": [fl.nn.Sequential(fl.nn.Linear(2, 2), mx.tanh), (fl.nn.Dropout(), 2)], "rate": 0.5},
    ],
)
def test_static_values_and_classes_are_those_of_every_spec(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = fl.tree.structure(tree)
    specs = list(structure_file.specs_in(structure))
    static = [(path, spec.value) for path, spec in specs if isinstance(spec, structure_file.Static)]
    modules = [spec[0] for _, spec in specs if isinstance(spec, tuple) and issubclass(spec[0], fl.Module)]
    assert list(structure.static_values()) == static
    assert list(structure.module_classes()) == list(dict.fromkeys(modules))
    monkeypatch.delattr(structure_file, "_static_specs_in")  # they are kept
    monkeypatch.delattr(structure_file, "_module_classes_in")
    assert list(structure.static_values()) == static
    assert list(structure.module_classes()) == list(dict.fromkeys(modules))


def test_an_array_of_numpy_in_a_module_is_named_too() -> None:
    model = fl.tree.map(np.array, {"a": [fl.nn.Linear(2, 3)]})
    for tree, path in ((model, "a.0.weight"), (model["a"][0], "weight")):
        with pytest.raises(TypeError, match=rf"^a numpy\.ndarray of shape \(3, 2\) at {re.escape(path)} is no leaf of a tree"):
            fl.tree.flatten(tree)


def test_what_depends_on_a_structure_is_worked_out_once() -> None:
    structure, asked = fl.tree.structure([mx.zeros(2)]), []

    def leaves(given: Any) -> int:
        asked.append(given)
        return int(given.num_leaves)

    assert [structure.remember(leaves), structure.remember(leaves)] == [1, 1]
    assert asked == [structure]
    assert pickle.loads(pickle.dumps(structure)).remember(leaves) == 1
