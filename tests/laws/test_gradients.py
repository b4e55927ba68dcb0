"""Law 7: a gradient has the class and the shape of the model, with an array for each trainable leaf and None elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import Snapshot, arrays, arrays_of, identical, law, modules, scalars, trees

import frostleaf as fl
from frostleaf.core import fields
from frostleaf.core.instance import metadata_of

Path = tuple[Any, ...]

# Mostly arrays that can be trained, so that most of the drawn trees have something to differentiate.
leaves = st.one_of(arrays(st.sampled_from([mx.float32, mx.float32, mx.float16, mx.bfloat16])), arrays(), scalars)
models = st.one_of(modules(leaves), trees(leaves))


def trainable_paths(value: Any, path: Path = (), trains: bool = True) -> list[Path]:
    """Return the paths that are trained, found by reading the fields rather than by frostleaf's own traversal."""
    if isinstance(value, mx.array):
        return [path] if trains and mx.issubdtype(value.dtype, mx.floating) else []
    if isinstance(value, fl.Module):
        found = []
        for name, field in type(value).__frostleaf__.fields.items():
            kind = fields.kind(field)
            if kind == "static":
                continue
            inside = trains and kind == "parameter" and not name.startswith("_")
            for below in trainable_paths(getattr(value, name), (), inside):
                dotted = ".".join(map(str, (name, *below)))
                if not any(dotted == each or dotted.startswith(each + ".") for each in metadata_of(value).frozen):
                    found.append((*path, name, *below))
        return found
    if isinstance(value, tuple | list | deque):
        return [each for index, item in enumerate(value) for each in trainable_paths(item, (*path, index), trains)]
    if isinstance(value, dict | MappingProxyType):
        return [each for key, item in value.items() for each in trainable_paths(item, (*path, key), trains)]
    return []


def assert_mirrors(model: Any, gradient: Any, expected: dict[Path, mx.array], path: Path = ()) -> None:
    """Fail unless ``gradient`` is ``model`` with the expected arrays in it, and None in place of all other leaves."""
    if isinstance(model, fl.Module):
        assert type(gradient) is type(model), path
        assert metadata_of(gradient) == metadata_of(model), path
        for name, field in type(model).__frostleaf__.fields.items():
            before, after = getattr(model, name), getattr(gradient, name)
            if fields.kind(field) == "static":
                assert after is before, (*path, name)
            else:
                assert_mirrors(before, after, expected, (*path, name))
    elif isinstance(model, tuple | list | deque):
        assert type(gradient) is type(model), path
        assert len(gradient) == len(model), path
        for index, (before, after) in enumerate(zip(model, gradient, strict=True)):
            assert_mirrors(before, after, expected, (*path, index))
    elif isinstance(model, dict | MappingProxyType):
        assert type(gradient) is type(model), path
        assert list(gradient) == list(model), path
        for key in model:
            assert_mirrors(model[key], gradient[key], expected, (*path, key))
    elif path in expected:
        assert (gradient.dtype, gradient.shape) == (model.dtype, model.shape), path
        assert mx.array_equal(gradient, expected[path], equal_nan=True), path
    else:
        assert gradient is None, path


def loss_of(values: Sequence[mx.array]) -> mx.array:
    """Return a scalar that depends on every array, on each in its own way."""
    total = mx.array(0.0)
    for number, value in enumerate(values, 1):
        if value.dtype != mx.complex64:
            total = total + number * (value.astype(mx.float32) ** 2 + value.astype(mx.float32)).sum()
    return total


def loss(tree: Any) -> mx.array:
    return loss_of([array for _, array in arrays_of(tree)])


def flat_gradients(tree: Any, chosen: list[Path]) -> tuple[mx.array, dict[Path, mx.array]]:
    """Return the loss and its gradients by path, by MLX alone."""
    everything = dict(arrays_of(tree))
    function: Callable[[list[mx.array]], mx.array] = lambda values: loss_of(  # noqa: E731
        list({**everything, **dict(zip(chosen, values, strict=True))}.values())
    )
    value, found = mx.value_and_grad(function)([everything[path] for path in chosen])
    return value, dict(zip(chosen, found, strict=True))


@law
@given(models)
def test_a_gradient_mirrors_the_trainable_part_and_has_the_values_of_mlx(model: Any) -> None:
    snapshot = Snapshot(model)
    chosen = trainable_paths(model)
    if not chosen:
        with pytest.raises(ValueError, match="has nothing to differentiate"):
            fl.value_and_grad(loss)(model)
    else:
        value, gradient = fl.value_and_grad(loss)(model)
        expected_value, expected = flat_gradients(model, chosen)
        assert mx.array_equal(value, expected_value, equal_nan=True)
        assert_mirrors(model, gradient, expected)
    snapshot.assert_unchanged()


@law
@given(models, models, st.sampled_from([(0, 1), (1, 0), (-1, 0), [0, 1]]))
def test_each_of_several_arguments_has_its_own_gradient(first: Any, second: Any, argnums: Any) -> None:
    if not (trainable_paths(first) and trainable_paths(second)):
        return
    both = (first, second)
    chosen = trainable_paths(both)
    _, expected = flat_gradients(both, chosen)
    gradients = fl.grad(lambda *args: loss(args), argnums)(first, second)
    assert type(gradients) is tuple
    for number, gradient in zip(argnums, gradients, strict=True):
        here = {path[1:]: array for path, array in expected.items() if path[0] == number % 2}
        assert_mirrors(both[number], gradient, here)


@law
@given(models)
def test_the_function_is_called_with_the_model_itself(model: Any) -> None:
    """What is differentiated is a tree of the same classes, modes and static values, whose other leaves are the very same."""
    chosen = trainable_paths(model)
    if not chosen:
        return
    seen = []

    def function(given: Any) -> mx.array:
        seen.append(given)
        return loss(given)

    fl.grad(function)(model)
    assert fl.tree.structure(seen[0]) == fl.tree.structure(model)
    for (path, before), (same, inside) in zip(arrays_of(model), arrays_of(seen[0]), strict=True):
        assert path == same
        assert (inside is before) is (path not in chosen), path


@law
@given(models, trees())
def test_auxiliary_results_come_back_whole(model: Any, aux: Any) -> None:
    if not trainable_paths(model):
        return
    gradient = fl.grad(loss)(model)
    with_aux, returned = fl.grad(lambda tree: (loss(tree), (aux, 1.0)), has_aux=True)(model)
    assert fl.tree.equal(gradient, with_aux)
    assert fl.tree.equal(returned, (aux, 1.0))
    (value, (returned, one)), with_value = fl.value_and_grad(lambda tree: (loss(tree), (aux, 1.0)), has_aux=True)(model)
    assert mx.array_equal(value, loss(model), equal_nan=True)
    assert identical(one, 1.0)
    assert fl.tree.equal(returned, aux)
    assert fl.tree.equal(with_value, gradient)


@law
@given(models)
def test_a_frozen_copy_has_the_same_gradient_with_holes(model: Any) -> None:
    """Freezing all but one leaf leaves that leaf's gradient as it was, and None for all others."""
    chosen = trainable_paths(model)
    if not chosen or not isinstance(model, fl.Module):
        return
    names = fl.tree.paths(model)
    kept = ".".join(map(str, chosen[-1]))
    if names.count(kept) > 1:
        return
    others = [name for name in names if name != kept]
    frozen = model.with_frozen(lambda path, leaf: path != kept) if others else model
    assert trainable_paths(frozen) == chosen[-1:]
    _, expected = flat_gradients(model, chosen)
    assert_mirrors(frozen, fl.grad(loss)(frozen), {chosen[-1]: expected[chosen[-1]]})
