"""Law 6: only arrays are leaves. Whatever else stands in a tree is structure: compared, hashed, and passed through."""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from laws.strategies import OnlyStatic, Point, arrays_of, law, modules, parts, plus, scalars, statics, trees
from shown import shown

import frostleaf as fl


def told(value: Any) -> Any:
    """Say of a tree all that is structure, in other words than frostleaf's: what may not differ between equal structures."""
    if isinstance(value, mx.array):
        return "array"
    if isinstance(value, fl.Module):
        children = tuple((name, told(getattr(value, name))) for name in type(value).__frostleaf__.fields)
        trains = tuple(
            value.trainable_parameter_filter(value, ".".join(map(str, path)), part) for path, part in arrays_of(value)
        )
        return type(value), value.training, trains, children
    if isinstance(value, defaultdict):
        return defaultdict, value.default_factory, tuple((key, told(item)) for key, item in value.items())
    if isinstance(value, dict | MappingProxyType):
        return type(value), tuple((key, told(item)) for key, item in value.items())
    if isinstance(value, tuple | list | deque):
        return type(value), tuple(map(told, value))
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(told, value))
    if isinstance(value, functools.partial):
        return functools.partial, value.func, told(value.args), told(value.keywords)
    if isinstance(value, bool | int | float | complex):
        return type(value).__name__, str(value)
    return type(value), value


@law
@given(trees(), trees())
def test_structures_are_equal_exactly_when_they_say_the_same(left: Any, right: Any) -> None:
    one, other = fl.tree.structure(left), fl.tree.structure(right)
    assert (one == other) is (told(left) == told(right))
    if one == other:
        assert hash(one) == hash(other)


@law
@given(trees(scalars, max_leaves=2), trees(scalars, max_leaves=2))
def test_small_structures_are_equal_exactly_when_they_say_the_same(left: Any, right: Any) -> None:
    # As above, with trees that are small enough to be the same by chance.
    one, other = fl.tree.structure(left), fl.tree.structure(right)
    assert (one == other) is (told(left) == told(right))
    assert (fl.tree.diff(left, right) == ()) is (one == other)
    if one == other:
        assert hash(one) == hash(other)


@law
@given(statics(), statics())
def test_modules_with_different_static_values_have_different_structures(left: Any, right: Any) -> None:
    one, other = OnlyStatic(left), OnlyStatic(right)
    assert (fl.tree.structure(one) == fl.tree.structure(other)) is (told(one) == told(other))
    assert fl.tree.equal(one, other) is (told(one) == told(other))


@law
@given(trees())
def test_a_structure_does_not_depend_on_the_arrays(tree: Any) -> None:
    leaves, structure = fl.tree.flatten(tree)
    others = fl.tree.unflatten(structure, [mx.zeros((index,)) for index in range(len(leaves))])
    assert fl.tree.structure(others) == structure
    assert hash(fl.tree.structure(others)) == hash(structure)


@law
@given(trees())
def test_no_leaf_is_anything_but_an_array(tree: Any) -> None:
    assert all(isinstance(leaf, mx.array) for leaf in fl.tree.leaves(tree))


@law
@given(trees())
def test_everything_that_is_no_array_passes_through_map_as_the_same_object(tree: Any) -> None:
    mapped = dict(parts(fl.tree.map(lambda leaf: "mapped", tree)))
    for path, part in parts(tree):
        if isinstance(part, mx.array):
            assert mapped[path] == "mapped"
        elif not isinstance(part, fl.Module | tuple | list | dict | deque | MappingProxyType):
            assert mapped[path] is part


@law
@given(modules())
def test_switching_the_mode_changes_the_structure(module: fl.Module) -> None:
    assert fl.tree.structure(module.train()) != fl.tree.structure(module.eval())
    assert fl.tree.structure(module.train().eval()) == fl.tree.structure(module.eval())


@law
@given(modules())
def test_freezing_changes_the_structure_where_there_is_something_to_freeze(module: fl.Module) -> None:
    free = module.unfreeze()
    frozen = free.freeze()
    changed = fl.tree.paths(free.trainable_parameters()) != fl.tree.paths(frozen.trainable_parameters())
    assert not changed or fl.tree.structure(free) != fl.tree.structure(frozen)
    assert fl.tree.structure(frozen.unfreeze()) == fl.tree.structure(free)


@law
@given(trees(), st.data())
def test_a_static_value_that_is_another_makes_the_structure_another(tree: Any, data: st.DataObject) -> None:
    module = fl.tree.map(lambda leaf: leaf, OnlyStatic(None, None))
    value, other = data.draw(statics()), data.draw(statics())
    assume(told(OnlyStatic(value)) != told(OnlyStatic(other)))
    before = (tree, module.replace(second=value))
    after = (tree, module.replace(second=other))
    assert fl.tree.structure(before) != fl.tree.structure(after)
    assert [change.path for change in fl.tree.diff(before, after)] != []


DISTINCT = [
    True, 1, 1.0, 1 + 0j, "1", False, 0, 0.0, -0.0, None, "", (), [], {}, frozenset(), deque(), OrderedDict(),
    float("nan"), float("inf"), mx.float32, mx.float16, plus, len, (1,), [1], (True,), (1.0,), {"a": 1}, {"a": True},
    {"a": 1, "b": 2}, {"b": 2, "a": 1}, Point(1, 2), (1, 2), Point(1, 2.0), frozenset({1}), frozenset({True}),
    functools.partial(plus, 1), functools.partial(plus, True), functools.partial(plus, right=1),
]  # fmt: skip


@pytest.mark.parametrize("holder", [lambda value: value, lambda value: [value]], ids=["bare", "in a list"])
def test_values_that_python_takes_for_equal_can_be_different_structures(holder: Any) -> None:
    structures = [fl.tree.structure(holder(value)) for value in DISTINCT]
    for index, one in enumerate(structures):
        for position, other in enumerate(structures):
            assert (one == other) is (index == position), (DISTINCT[index], DISTINCT[position])


def test_values_of_a_static_field_that_python_takes_for_equal_can_be_different_structures() -> None:
    # A field holds a list as a tuple, a deque as well, and a dict of any kind as a mapping proxy.
    kept = [value for value in DISTINCT if not isinstance(value, list | deque | OrderedDict)]
    structures = [fl.tree.structure(OnlyStatic(value)) for value in kept]
    for index, one in enumerate(structures):
        for position, other in enumerate(structures):
            assert (one == other) is (index == position), (kept[index], kept[position])


@pytest.mark.parametrize("value", [float("nan"), -0.0, (float("nan"), 1), {"a": float("nan")}], ids=shown)
def test_a_static_value_equals_itself_made_again(value: Any) -> None:
    def again(one: Any) -> Any:
        if isinstance(one, tuple):
            return tuple(map(again, one))
        if isinstance(one, dict):
            return {key: again(item) for key, item in one.items()}
        return type(one)(str(one))

    assert fl.tree.structure(OnlyStatic(value)) == fl.tree.structure(OnlyStatic(again(value)))
    assert hash(fl.tree.structure(OnlyStatic(value))) == hash(fl.tree.structure(OnlyStatic(again(value))))


ARRAY = mx.zeros((2, 3), mx.bfloat16)


@pytest.mark.parametrize(
    "value",
    [
        ARRAY,
        [ARRAY],
        (1, {"a": [ARRAY]}),
        Point(ARRAY, None),
        functools.partial(plus, ARRAY),
        functools.partial(plus, right=ARRAY),
        functools.partial(plus, [ARRAY]),
        functools.partial(functools.partial(plus, ARRAY), 1),
        (functools.partial(plus, ARRAY),),
        frozenset({functools.partial(plus, ARRAY)}),
        deque([ARRAY]),
        defaultdict(list, a=ARRAY),
    ],
    ids=shown,
)
@pytest.mark.parametrize(
    "make",
    [
        OnlyStatic,
        lambda value: OnlyStatic(None).replace(first=value),
        lambda value: OnlyStatic(None).at("first").set(value),
    ],
    ids=["at construction", "in replace", "in a selection"],
)
def test_an_array_in_a_static_field_is_an_error_that_says_so(value: Any, make: Any) -> None:
    with pytest.raises(TypeError, match=r"OnlyStatic\.first is a static field and was given an array \(bf16\[2,3\]\)"):
        make(value)


@pytest.mark.parametrize("cls", [bytearray, type("Mutable", (), {"__hash__": None})])
def test_a_static_value_that_cannot_be_hashed_is_an_error_that_says_so(cls: Any) -> None:
    with pytest.raises(TypeError, match=rf"OnlyStatic\.first is a static field.* {cls.__name__} that can't be hashed"):
        OnlyStatic(cls())
