"""Law 2: mapping the identity changes nothing, and mapping twice is mapping the composition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import arrays_of, identical, law, modules, trees

import frostleaf as fl

Function = Callable[[mx.array], mx.array]

# Functions from arrays to arrays that are defined for every dtype and shape, and do not commute with one another.
functions: st.SearchStrategy[Function] = st.sampled_from(
    [
        lambda a: a + 1,
        lambda a: a * 3,
        lambda a: a.reshape(-1),
        lambda a: a[None],
        lambda a: a.astype(mx.float32),
        lambda a: a.astype(mx.int8),
        lambda a: a == 0,
        lambda a: a,
        lambda a: mx.zeros((2,)),
    ]
)


@law
@given(trees())
def test_mapping_the_identity_returns_the_same_leaves_in_the_same_structure(tree: Any) -> None:
    mapped = fl.tree.map(lambda leaf: leaf, tree)
    assert identical(mapped, tree)
    assert fl.tree.equal(mapped, tree)


@law
@given(trees(), functions, functions)
def test_mapping_a_composition_is_mapping_one_after_the_other(tree: Any, f: Function, g: Function) -> None:
    at_once = fl.tree.map(lambda leaf: f(g(leaf)), tree)
    one_by_one = fl.tree.map(f, fl.tree.map(g, tree))
    assert fl.tree.equal(at_once, one_by_one)
    # The same said without fl.tree.equal.
    for (path, leaf), (same, one), (again, other) in zip(
        arrays_of(tree), arrays_of(at_once), arrays_of(one_by_one), strict=True
    ):
        assert path == same == again
        expected = f(g(leaf))
        assert one.dtype == other.dtype == expected.dtype
        assert mx.array_equal(one, expected)
        assert mx.array_equal(other, expected)


@law
@given(trees())
def test_the_function_is_called_once_for_each_leaf_in_order_and_for_nothing_else(tree: Any) -> None:
    seen: list[Any] = []
    fl.tree.map(seen.append, tree)
    assert [id(leaf) for leaf in seen] == [id(array) for _, array in arrays_of(tree)]


@law
@given(trees(), functions)
def test_mapping_keeps_the_structure(tree: Any, f: Function) -> None:
    assert fl.tree.structure(fl.tree.map(f, tree)) == fl.tree.structure(tree)


@law
@given(trees())
def test_mapping_over_a_tree_and_itself_pairs_each_leaf_with_itself(tree: Any) -> None:
    pairs = []
    fl.tree.map(lambda *leaves: pairs.append(leaves), tree, tree, tree)
    assert len(pairs) == len(arrays_of(tree))
    assert all(first is second is third for first, second, third in pairs)


@law
@given(trees())
def test_mapping_with_paths_gives_each_leaf_its_name(tree: Any) -> None:
    named = fl.tree.map_with_path(lambda path, leaf: (path, leaf), tree)
    found: list[Any] = []
    fl.tree.map(lambda leaf, pair: found.append((leaf, *pair)), tree, named)
    assert [path for _, path, _ in found] == fl.tree.paths(tree)
    assert all(leaf is same for leaf, _, same in found)


@law
@given(trees())
def test_reducing_with_append_lists_the_leaves(tree: Any) -> None:
    reduced = fl.tree.reduce(lambda before, leaf: [*before, leaf], tree, [])
    assert all(one is other for one, other in zip(reduced, fl.tree.leaves(tree), strict=True))


@law
@given(modules(), functions)
def test_mapping_a_module_leaves_its_mode_and_its_frozen_fields_as_they_were(module: fl.Module, f: Function) -> None:
    mapped = fl.tree.map(f, module)
    assert [each.training for each in mapped.modules()] == [each.training for each in module.modules()]
    assert fl.tree.structure(mapped.trainable_parameters()) == fl.tree.structure(module.trainable_parameters())


@law
@given(trees(), st.data())
def test_what_partition_divides_combine_puts_together(tree: Any, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(fl.tree.paths(tree)))) if fl.tree.paths(tree) else set()
    first, second = fl.tree.partition(tree, lambda path, leaf: path in chosen)
    assert identical(fl.tree.combine(first, second), tree)
    assert identical(fl.tree.combine(second, first), tree)
    assert fl.tree.paths(first) == [path for path in fl.tree.paths(tree) if path in chosen]
    assert fl.tree.paths(second) == [path for path in fl.tree.paths(tree) if path not in chosen]
    assert identical(fl.tree.filter(tree, lambda path, leaf: path in chosen), first)


@law
@given(trees())
def test_ravel_is_undone_by_what_it_returns(tree: Any) -> None:
    vectors, unravel = fl.tree.ravel(tree)
    assert fl.tree.equal(unravel(vectors), tree)
    assert sum(vector.size for vector in vectors.values()) == fl.tree.size(tree)


@law
@given(trees(), st.integers(1, 3))
def test_unstacking_undoes_stacking(tree: Any, count: int) -> None:
    # A tree without leaves does not say how many trees were stacked.
    tree = (tree, mx.array(1.0))
    copies = [fl.tree.map(lambda leaf, number=number: leaf + number, tree) for number in range(count)]
    again = fl.tree.unstack(fl.tree.stack(copies))
    assert len(again) == count
    assert all(fl.tree.equal(one, other) for one, other in zip(again, copies, strict=True))
