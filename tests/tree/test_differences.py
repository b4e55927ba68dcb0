"""What a diff says, folds and measures."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import frostleaf as fl


def stack(count: int, dims: int = 2, **options: Any) -> Any:
    return fl.nn.Sequential(*[fl.nn.Linear(dims, dims, **options) for _ in range(count)])


def lines(before: Any, after: Any, **options: Any) -> list[str]:
    return repr(fl.tree.diff(before, after, **options)).split("\n")


def test_a_diff_is_a_value() -> None:
    before = {"w": mx.zeros(3), "n": 1}
    changes = fl.tree.diff(before, {"w": mx.zeros(3, mx.float16), "n": 2})
    assert [(each.path, each.kind) for each in changes] == [("w", "dtype"), ("n", "static")]
    assert changes[0].before is before["w"]
    assert (changes[1].before, changes[1].after) == (1, 2)
    assert len(changes) == 2
    assert changes
    assert not fl.tree.diff(before, before)
    assert repr(changes[0]) == "Change(path='w', kind='dtype', before=f32[3], after=f16[3])"


# Folding


def test_what_changed_alike_in_many_places_is_printed_once() -> None:
    model = fl.nn.TransformerEncoder(4, 8, 2)
    shown = lines(model, model.astype(mx.float16))
    assert "layers.(0-3).attention.query_proj.weight: dtype f32[8,8] -> f16[8,8]" in shown
    assert len(shown) == len(fl.tree.leaves(model.layers[0])) + len(fl.tree.leaves(model.ln))
    assert lines(model, model.eval())[:2] == ["(root): mode 'train' -> 'eval'", "layers.(0-3): mode 'train' -> 'eval'"]


@pytest.mark.parametrize(
    ("edit", "shown"),
    [
        (lambda m: m.at("layers.1.bias").astype(mx.float16), ["layers.1.bias: dtype f32[2] -> f16[2]"]),
        (
            lambda m: m.at(["layers.1.bias", "layers.2.bias"]).astype(mx.float16),
            ["layers.1.bias: dtype f32[2] -> f16[2]", "layers.2.bias: dtype f32[2] -> f16[2]"],
        ),
        (
            lambda m: m.at([f"layers.{i}.bias" for i in (0, 2, 3, 4, 8)]).astype(mx.float16),
            ["layers.(0, 2-4, 8).bias: dtype f32[2] -> f16[2]"],
        ),
        (
            lambda m: m.at("layers.*.bias").astype(mx.float16).at("layers.3.bias").astype(mx.bfloat16),
            ["layers.(0-2, 4-8).bias: dtype f32[2] -> f16[2]", "layers.3.bias: dtype f32[2] -> bf16[2]"],
        ),
        (lambda m: m.at("layers.*").freeze(), ["layers.(0-8): frozen {} -> {bias, weight}"]),
        (lambda m: m.at("layers.*.bias").set(None), ["layers.(0-8).bias: type f32[2] -> None"]),
        (
            lambda m: m.at("layers.*.bias").set(mx.zeros(3)).at("layers.1.bias").set(mx.zeros(1)),
            ["layers.(0, 2-8).bias: shape f32[2] -> f32[3]", "layers.1.bias: shape f32[2] -> f32[1]"],
        ),
        (lambda m: m.at("layers.*.bias").set(mx.ones(2)), ["layers.(0-8).bias: value f32[2] -> f32[2]"]),
    ],
    ids=["one", "two", "some", "one otherwise", "frozen", "types", "shapes", "values"],
)
def test_one_that_changed_otherwise_stands_alone(edit: Any, shown: list[str]) -> None:
    model = stack(9).at("layers.*.bias").set(mx.zeros(2))
    assert lines(model, edit(model)) == shown


def test_casts_of_several_shapes_are_one_line() -> None:
    model = fl.nn.Sequential(*[fl.nn.Linear(dims, dims + 1) for dims in range(1, 5)])
    assert lines(model, model.astype(mx.float16)) == [
        "layers.(0-3).weight: dtype f32[...] -> f16[...]",
        "layers.(0-3).bias: dtype f32[...] -> f16[...]",
    ]


def test_rows_of_rows_are_folded() -> None:
    model = fl.nn.Sequential(*[stack(4) for _ in range(5)])
    assert lines(model, model.astype(mx.float16))[0] == "layers.(0-4).layers.(0-3).weight: dtype f32[2,2] -> f16[2,2]"
    uneven = fl.nn.Sequential(*[stack(count) for count in (3, 4, 4, 4)])
    assert [row.path for row in fl.tree.diff(uneven, uneven.at("**.weight").astype(mx.float16)).rows] == [
        "layers.0.layers.(0-2).weight",
        "layers.(1-3).layers.(0-3).weight",
    ]


def test_every_change_is_in_one_row() -> None:
    model = fl.nn.Sequential(*[stack(count) for count in (1, 2, 3, 4, 4, 4)])
    changes = fl.tree.diff(model, model.astype(mx.float16).at("layers.2").freeze().at("layers.3.layers.1").apply(nothing))
    assert sum(row.places for row in changes.rows) == len(changes) == 2 * 18 + 3 + 1


def nothing(layer: Any) -> Any:
    return layer.eval()


def test_keys_that_look_alike_are_two_places() -> None:
    (row,) = fl.tree.diff({1: 0, "1": 0}, {1: 2, "1": 2}).rows
    assert (row.path, row.places) == ("1", 2)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (fl.nn.Linear(2, 2), None),
        (fl.eval_shape(fl.nn.Linear, 2, 2), fl.eval_shape(fl.nn.Linear, 2, 3)),
        (fl.from_mlx(nn.Sequential(nn.Linear(2, 2))), None),
        (fl.optim.AdamW(1e-3).init(fl.nn.Linear(2, 2)), None),
        ({"a": [mx.zeros(2)], "b": fl.nn.Linear(2, 2)}, None),
    ],
    ids=["module", "shapes", "wrapped", "optimizer state", "dict"],
)
@pytest.mark.parametrize("values", [False, True])
def test_any_trees_are_compared(before: Any, after: Any, values: bool) -> None:
    after = fl.tree.map(lambda leaf: leaf.astype(mx.float16), before) if after is None else after
    changes = fl.tree.diff(before, after, values=values)
    assert changes
    assert all(each.kind in ("dtype", "shape") for each in changes)
    measured = values and not isinstance(changes[0].before, fl.ShapeDtypeStruct)
    assert all((each.norm is not None) is measured for each in changes)


# Norms


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.complex64, mx.int8, mx.uint8, mx.int32], ids=str)
def test_norms_are_those_of_numpy(dtype: mx.Dtype) -> None:
    before, after = mx.array([3, 4, 100]).astype(dtype), mx.array([6, 0, 100]).astype(dtype)
    (change,) = fl.tree.diff([before], [after], values=True)
    assert change.norm == pytest.approx(5)
    assert change.relative == pytest.approx(5 / np.linalg.norm([3, 4, 100]))


def test_a_change_of_masks_counts_what_differs() -> None:
    (change,) = fl.tree.diff(mx.array([True, False, True]), mx.array([False, True, True]), values=True)
    assert change.norm == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("dtype", [mx.uint32, mx.uint64, mx.int64], ids=str)
def test_a_small_change_of_large_integers_is_not_lost(dtype: mx.Dtype) -> None:
    (change,) = fl.tree.diff(mx.array([2**31], dtype), mx.array([2**31 + 1], dtype), values=True)
    assert change.norm == 1


def test_what_a_cast_loses_is_measured() -> None:
    model = stack(3)
    half = model.astype(mx.bfloat16)
    for change in fl.tree.diff(model, half, values=True):
        exact, cast = np.array(change.before), np.array(change.after.astype(mx.float32))
        assert change.norm == pytest.approx(np.linalg.norm(cast - exact), rel=1e-4)
        assert 0 < change.relative < 0.01


def test_the_largest_norm_of_a_row_is_printed() -> None:
    before = [{"w": mx.array([4.0])} for _ in range(3)]
    after = [{"w": mx.array([4.0 + change])} for change in (0.25, 0.5, 0.125)]
    assert lines(before, after, values=True) == ["(0-2).w: value f32[1] -> f32[1], by up to 0.5 (12.50%)"]
    assert [change.norm for change in fl.tree.diff(before, after, values=True)] == [0.25, 0.5, 0.125]
    assert lines(before, after) == ["(0-2).w: value f32[1] -> f32[1]"]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (mx.zeros(2), mx.array([3.0, 4.0]), "(root): value f32[2] -> f32[2], by 5"),
        (mx.ones(1), mx.array([float("nan")]), "(root): value f32[1] -> f32[1], by nan"),
        (mx.zeros(2), mx.zeros(2, mx.float16), "(root): dtype f32[2] -> f16[2], by 0 (0.00%)"),
        (mx.array([1.0]), mx.array([1.0 + 2**-20]), "(root): value f32[1] -> f32[1], by 9.54e-07 (9.5e-07)"),
        (mx.zeros((0,)), mx.zeros((0,), mx.float16), "(root): dtype f32[0] -> f16[0], by 0 (0.00%)"),
        (mx.zeros(2), mx.zeros(3), "(root): shape f32[2] -> f32[3]"),
        ([1], [2], "0: static 1 -> 2"),
    ],
    ids=["from zero", "nan", "no change", "small", "empty", "shape", "static"],
)
def test_norms_are_printed_in_few_words(before: Any, after: Any, shown: str) -> None:
    assert lines(before, after, values=True) == [shown]


def test_values_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="values is True or False"):
        fl.tree.diff(1, 1, values="yes")


def test_printing_evaluates_nothing() -> None:
    shown = []

    def traced(x: mx.array) -> mx.array:
        shown.append(repr(fl.tree.diff([x + 1], [(x + 1).astype(mx.float16)])))
        return x

    mx.compile(traced)(mx.zeros(3))
    assert shown == ["0: dtype f32[3] -> f16[3]"]


def test_equal_infinities_are_no_change() -> None:
    mask = mx.array([-math.inf, 1.0, math.inf])
    change = fl.tree.diff([mask], [mx.array([-math.inf, 3.0, math.inf])], values=True)[0]
    assert change.norm == 2.0


def test_values_are_measured_one_array_after_another() -> None:
    before = [mx.ones(2**18, mx.float16) for _ in range(12)]
    after = [each * 2 for each in before]
    mx.eval(before, after)
    mx.reset_peak_memory()
    least = mx.get_active_memory()
    fl.tree.diff(before, after, values=True)
    assert mx.get_peak_memory() - least < 10 * 2**20


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norms_of_very_small_and_very_large_numbers(size: float) -> None:
    change = fl.tree.diff([mx.array([3 * size, 4 * size])], [mx.array([6 * size, 8 * size])], values=True)[0]
    assert change.norm == pytest.approx(5 * size, rel=1e-5)
    assert change.relative == pytest.approx(1.0, rel=1e-5)


def test_classes_of_one_name_are_told_apart_by_their_modules() -> None:
    changes = fl.tree.diff(fl.nn.RoPE(4), fl.from_mlx(nn.RoPE(4)))
    assert repr(changes) == f"(root): class {fl.nn.RoPE.__module__}.RoPE -> {nn.RoPE.__module__}.RoPE"
