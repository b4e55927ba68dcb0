"""Law 1: a tree that is taken apart and put together again is the same tree, down to the objects in it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import mlx.core as mx
import optree
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from laws.strategies import POOL, arrays_of, identical, law, modules, parts, trees

import frostleaf as fl
from frostleaf.core.instance import metadata_of


def has_doubles(tree: Any) -> bool:
    """Return whether an array in the tree is of dtype float64, which MLX pickles as float32."""
    return any(array.dtype == mx.float64 for _, array in arrays_of(tree))


@law
@given(trees())
def test_unflatten_undoes_flatten(tree: Any) -> None:
    leaves, structure = fl.tree.flatten(tree)
    assert identical(fl.tree.unflatten(structure, leaves), tree)


@law
@given(modules())
def test_a_module_comes_back_with_its_class_its_static_values_and_its_mode(module: fl.Module) -> None:
    leaves, structure = fl.tree.flatten(module)
    again = fl.tree.unflatten(structure, leaves)
    assert type(again) is type(module)
    assert again.training is module.training
    for name in type(module).__frostleaf__.static:
        assert getattr(again, name) is getattr(module, name)
    assert identical(again, module)


@law
@given(trees())
def test_the_leaves_are_the_arrays_in_the_order_in_which_they_stand(tree: Any) -> None:
    leaves, structure = fl.tree.flatten(tree)
    found = arrays_of(tree)
    assert len(leaves) == len(found) == structure.num_leaves
    assert all(leaf is array for leaf, (_, array) in zip(leaves, found, strict=True))


@law
@given(trees())
def test_the_paths_are_the_dotted_names_of_the_leaves(tree: Any) -> None:
    assert fl.tree.paths(tree) == [".".join(map(str, path)) for path, _ in arrays_of(tree)]


@law
@given(trees())
def test_leaves_and_structure_are_the_halves_of_flatten(tree: Any) -> None:
    leaves, structure = fl.tree.flatten(tree)
    assert all(one is other for one, other in zip(fl.tree.leaves(tree), leaves, strict=True))
    assert fl.tree.structure(tree) == structure


@law
@given(trees())
def test_any_objects_can_take_the_place_of_the_leaves(tree: Any) -> None:
    leaves, structure = fl.tree.flatten(tree)
    others = [object() for _ in leaves]
    filled = fl.tree.unflatten(structure, others)
    standing = dict(parts(filled))
    assert [standing[path] for path, _ in arrays_of(tree)] == others


@law
@given(trees(), st.integers(-2, 2))
def test_a_wrong_number_of_leaves_is_an_error(tree: Any, change: int) -> None:
    leaves, structure = fl.tree.flatten(tree)
    assume(change != 0 and len(leaves) + change >= 0)
    given_leaves = [*leaves, mx.array(0), mx.array(0)][: len(leaves) + change]
    with pytest.raises(ValueError, match=f"has {len(leaves)} leaves and {len(given_leaves)} were given"):
        fl.tree.unflatten(structure, given_leaves)


@law
@given(trees())
def test_optree_sees_the_same_tree_in_our_namespace(tree: Any) -> None:
    values, spec = optree.tree_flatten(tree, namespace="frostleaf")
    assert identical(optree.tree_unflatten(spec, values), tree)
    arrays = [value for value in values if isinstance(value, mx.array)]
    assert all(one is other for one, other in zip(arrays, fl.tree.leaves(tree), strict=True))


@law
@given(modules())
def test_a_pickled_module_comes_back_equal(module: fl.Module) -> None:
    assume(not has_doubles(module))
    again = pickle.loads(pickle.dumps(module))
    assert [path for path, _ in parts(again)] == [path for path, _ in parts(module)]
    assert fl.tree.structure(again) == fl.tree.structure(module)
    for (_, one), (_, other) in zip(arrays_of(again), arrays_of(module), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert mx.array_equal(one, other)


@law
@given(modules())
def test_a_copied_module_shares_the_arrays_and_a_deep_copy_is_equal(module: fl.Module) -> None:
    assert identical(copy.copy(module), module)
    deep = copy.deepcopy(module)
    assert fl.tree.equal(deep, module)
    assert metadata_of(deep) == metadata_of(module)


@pytest.mark.parametrize("cls", POOL, ids=lambda cls: cls.__name__)
def test_each_class_of_the_pool_makes_the_round_trip(cls: type[fl.Module]) -> None:
    names, static = POOL[cls]
    arguments: dict[str, Any] = {name: [mx.array(0.0), {"a": mx.array(1)}, None] for name in names}
    module = cls(**arguments, **dict.fromkeys(static, "text"))
    leaves, structure = fl.tree.flatten(module)
    assert len(leaves) == 2 * len(names)
    assert identical(fl.tree.unflatten(structure, leaves), module)
