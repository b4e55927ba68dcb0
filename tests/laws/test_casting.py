"""Law 5: a cast casts exactly the leaves that are selected, shares the rest, and leaves the original as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import DTYPES, Snapshot, arrays, arrays_of, assert_shares, identical, law, modules

import frostleaf as fl

REAL = [dtype for dtype in DTYPES if dtype != mx.complex64]
FLOATING = [mx.float16, mx.bfloat16, mx.float32]
targets = st.sampled_from(REAL)
# Complex numbers can't be cast to real ones without loss, so models of real numbers are cast here.
real_modules = modules(arrays(st.sampled_from(REAL)))


@st.composite
def predicates(draw: st.DrawFn) -> tuple[Callable[[mx.Dtype], bool] | None, set[Any]]:
    """A predicate, and the dtypes that it selects."""
    chosen = draw(st.sets(st.sampled_from(DTYPES)))
    return draw(st.sampled_from([(None, set(DTYPES)), (lambda dtype: dtype in chosen, chosen)]))


def check(before: fl.Module, after: fl.Module, dtype: mx.Dtype, selected: Callable[[Any, mx.array], bool]) -> None:
    touched = set()
    for (path, old), (same, new) in zip(arrays_of(before), arrays_of(after), strict=True):
        assert path == same
        if selected(path, old) and old.dtype != dtype:
            touched.add(path)
            assert new.dtype == dtype
            assert new.shape == old.shape
            assert mx.array_equal(new, old.astype(dtype))
        else:
            assert new is old, path
    assert_shares(before, after, touched)
    if not touched:
        assert after is before


@law
@given(real_modules, targets, predicates())
def test_exactly_the_selected_leaves_are_cast(module: fl.Module, dtype: mx.Dtype, predicate: Any) -> None:
    function, chosen = predicate
    snapshot = Snapshot(module)
    check(module, module.astype(dtype, function), dtype, lambda path, old: old.dtype in chosen)
    snapshot.assert_unchanged()


@law
@given(modules(), st.sampled_from(FLOATING))
def test_by_default_the_floating_point_leaves_are_cast_and_no_others(module: fl.Module, dtype: mx.Dtype) -> None:
    snapshot = Snapshot(module)
    floating = {mx.float16, mx.bfloat16, mx.float32, mx.float64}
    check(module, module.astype(dtype), dtype, lambda path, old: old.dtype in floating)
    snapshot.assert_unchanged()


@law
@given(real_modules, targets, predicates())
def test_set_dtype_is_astype(module: fl.Module, dtype: mx.Dtype, predicate: Any) -> None:
    assert fl.tree.equal(module.set_dtype(dtype, predicate[0]), module.astype(dtype, predicate[0]))
    assert fl.tree.equal(module.set_dtype(dtype), module.astype(dtype))


@law
@given(modules(), st.sampled_from(FLOATING))
def test_casting_twice_is_casting_once(module: fl.Module, dtype: mx.Dtype) -> None:
    once = module.astype(dtype)
    assert once.astype(dtype) is once


@law
@given(modules(arrays(st.sampled_from(FLOATING))), st.data())
def test_a_selection_is_cast_alone(module: fl.Module, data: st.DataObject) -> None:
    paths = fl.tree.paths(module)
    chosen = data.draw(st.sets(st.sampled_from(paths), min_size=1)) if paths else set()
    dtype = data.draw(st.sampled_from(FLOATING))
    where = lambda path, leaf: path in chosen  # noqa: E731
    snapshot = Snapshot(module)
    if not chosen:
        with pytest.raises(LookupError):
            module.at(where).astype(dtype)
    else:
        check(module, module.at(where).astype(dtype), dtype, lambda path, old: ".".join(map(str, path)) in chosen)
    snapshot.assert_unchanged()


@law
@given(modules(arrays(st.sampled_from([mx.float16, mx.bfloat16, mx.uint8, mx.bool_]))))
def test_a_cast_there_and_back_is_the_model_as_it_was(module: fl.Module) -> None:
    there = module.astype(mx.float32, lambda dtype: dtype == mx.float16)
    assert fl.tree.equal(there.astype(mx.float16, lambda dtype: dtype == mx.float32), module)


@law
@given(modules())
def test_a_cast_changes_nothing_but_arrays(module: fl.Module) -> None:
    cast = module.astype(mx.float16)
    assert fl.tree.structure(cast) == fl.tree.structure(module)
    leaves = fl.tree.leaves(module)
    assert identical(fl.tree.unflatten(fl.tree.structure(cast), leaves), module)


@pytest.mark.parametrize("dtype", [mx.bool_, mx.int8, mx.int32, mx.int64, mx.uint8, mx.uint32, mx.uint64, mx.complex64])
def test_leaves_that_are_not_floating_point_are_left_alone_by_default(dtype: mx.Dtype) -> None:
    class Held(fl.Module):
        value: mx.array

    held = Held(mx.zeros(3, dtype))
    assert held.astype(mx.float16) is held


def test_the_packed_weights_of_a_quantized_layer_are_left_alone_by_default() -> None:
    class Quantized(fl.Module):
        weight: mx.array
        scales: mx.array

    weight, scales, _ = mx.quantize(mx.ones((4, 64)))
    layer = Quantized(weight, scales)
    cast = layer.astype(mx.bfloat16)
    assert cast.weight is layer.weight
    assert cast.scales.dtype == mx.bfloat16
