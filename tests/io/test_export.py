"""Exported functions: what is imported computes what was exported, or the file is not written and the error says why."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from laws.strategies import law, trees

import frostleaf as fl

Output = namedtuple("Output", ["logits", "hidden"])


def through(folder: Path, fn: Callable[..., Any], *examples: Any, **options: Any) -> Any:
    fl.export_function(folder / "f.mlxfn", fn, *examples, **options)
    return fl.import_function(folder / "f.mlxfn")


def apply(model: Any, x: Any) -> Any:
    return model(x)


def batch(rows: int, columns: int = 4, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal((rows, columns)).astype(dtype)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 4, bias=False), nn.RMSNorm(4)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = nn.gelu(layer(x))
        return x


def step(model: Any, state: Any, x: mx.array) -> Any:
    loss, grads = fl.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    model, state = fl.optim.AdamW(1e-2).update(model, grads, state)
    return {"loss": loss, "run": (model, state), "grads": grads}


def training() -> tuple[Any, Any, mx.array]:
    model = fl.nn.Sequential(fl.nn.Linear(4, 4), fl.nn.Linear(4, 2)).at("layers.0").freeze()
    return model, fl.optim.AdamW(1e-2).init(model), batch(3)


def scaled(tree: Any) -> Any:
    return {**tree, "x": tree["x"] * tree["by"][0], "nested": {"none": None, "list": [tree["x"], 1, True, 1.5, "a"]}}


def tied() -> Any:
    return fl.nn.Sequential(fl.nn.Linear(4, 4), fl.nn.Linear(4, 4)).tie({"layers.1.weight": "layers.0.weight"})


def generate(key: mx.array, model: Any, x: mx.array) -> mx.array:
    with fl.rng(key):
        return model(x)  # type: ignore[no-any-return]


CASES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "linear": lambda: (apply, fl.nn.Linear(4, 3), batch(5)),
    "no bias": lambda: (apply, fl.nn.Linear(4, 3, bias=False), batch(5)),
    "wrapped": lambda: (apply, fl.from_mlx(Wrapped()), batch(5)),
    "bfloat16": lambda: (apply, fl.nn.Linear(4, 3).astype(mx.bfloat16), batch(5, dtype=mx.bfloat16)),
    "quantized": lambda: (apply, fl.quantize(fl.nn.Linear(64, 8), group_size=32), batch(5, 64)),
    "step": lambda: (step, *training()),
    "frozen": lambda: (fl.grad(lambda model, x: model(x).sum()), *training()[::2]),
    "static": lambda: (scaled, {"x": batch(2), "by": (3, "text", mx.tanh), "dtype": mx.float16}),
    "dropout with a key": lambda: (generate, mx.random.key(1), fl.nn.Dropout(0.5), batch(5)),
    "training to eval": lambda: (lambda model: [model.eval(), model.freeze(), None], fl.nn.Sequential(fl.nn.Dropout())),
    "named tuple": lambda: (lambda x: Output(x + 1, None), batch(5)),
    "nothing in it": lambda: (lambda x: {"n": 3}, batch(5)),
    "no arguments": lambda: (lambda: mx.ones(3),),
    "jitted": lambda: (fl.jit(lambda x: mx.sin(x) * 2), batch(5)),
    "checkpoint": lambda: (fl.grad(lambda model, x: fl.checkpoint(model)(x).sum()), fl.nn.Linear(4, 3), batch(5)),
    "ties": lambda: (lambda model, x: [model(x), model, model.untie()], tied(), batch(5)),
    "passes through": lambda: (lambda x, y: (y, x), batch(5), mx.array(3)),
    "mapped": lambda: (fl.vmap(lambda w, x: x @ w, in_axes=(0, None)), mx.random.normal((3, 4, 2)), batch(5)),
    "integers": lambda: (lambda x: x // 2, mx.arange(5, dtype=mx.uint8)),
    "complex": lambda: (lambda x: mx.fft.fft(x), batch(5)),
    "not finite": lambda: (lambda x: (x / 0, mx.log(x - 10)), batch(5)),
}


def changed(path: str, leaf: mx.array) -> mx.array:
    return leaf if leaf.dtype == mx.uint32 or "configured" in path or "hyperparameters" in path else leaf + 1


@pytest.mark.parametrize("case", CASES)
def test_what_is_imported_computes_what_was_exported(case: str, tmp_path: Path) -> None:
    fn, *examples = CASES[case]()
    imported = through(tmp_path, fn, *examples)
    others = fl.tree.map_with_path(changed, examples)
    for arguments in (examples, others, examples):  # the later calls know the structure
        with fl.disable_jit():
            assert fl.tree.equal(imported(*arguments), fn(*arguments))
    assert fl.tree.structure(imported(*examples)) == fl.tree.structure(fn(*examples))
    assert os.listdir(tmp_path) == ["f.mlxfn"]


@law
@given(trees())
def test_any_tree_goes_in_and_comes_out(tmp_path_factory: Any, tree: Any) -> None:
    folder = tmp_path_factory.mktemp("law")
    before = fl.tree.leaves(tree)
    imported = through(folder, lambda tree: tree, tree)
    result = imported(tree)
    assert fl.tree.equal(result, tree)
    assert fl.tree.structure(result) == fl.tree.structure(tree)
    assert all(new is old for new, old in zip(fl.tree.leaves(tree), before, strict=True))


PLAIN: dict[str, Callable[[], Any]] = {
    "native": lambda: fl.nn.Sequential(fl.nn.Linear(4, 4), fl.nn.BatchNorm(4)).eval(),
    "wrapped": lambda: fl.from_mlx(Wrapped()),
    "quantized": lambda: fl.quantize(fl.nn.Sequential(fl.nn.Linear(32, 4), fl.nn.ReLU()), group_size=32),
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("shapeless", [False, True])
def test_mlx_takes_the_arrays_of_a_file_of_weights_by_name(kind: str, shapeless: bool, tmp_path: Path) -> None:
    model, x = PLAIN[kind](), batch(3, 32 if kind == "quantized" else 4)
    fl.export_function(tmp_path / "f.mlxfn", apply, model, x, shapeless=shapeless, metadata={"made": "here"})
    model.save_weights(tmp_path / "weights.safetensors")
    plain: Any
    plain, text = mx.import_function(str(tmp_path / "f.mlxfn"), return_metadata=True)  # type: ignore[misc]
    (result,) = plain(x, **mx.load(str(tmp_path / "weights.safetensors")))
    assert fl.tree.allclose(result, model(x), rtol=1e-6, atol=1e-6)
    assert json.loads(text)["metadata"] == {"made": "here"}


def test_what_stands_in_the_names_that_mlx_takes(tmp_path: Path) -> None:
    def loss(student: Any, teacher: Any, data: Any, rate: mx.array, *more: Any) -> mx.array:
        return (student(data["x"]) - teacher(data["x"])).sum() * rate + more[0] + more[1]["y"]  # type: ignore[no-any-return]

    layer, x, one = fl.nn.Linear(4, 1, bias=False), batch(2), mx.array(1.0)
    fl.export_function(tmp_path / "f", loss, layer, layer, {"x": x}, one, one, {"y": one})
    plain: Any = mx.import_function(str(tmp_path / "f"))
    names = {"weight": layer.weight, "teacher.weight": layer.weight, "data.x": x, "more.1.y": one}
    assert plain(one, one, **names)[0].item() == 2.0


def test_trees_without_a_module_have_their_own_names(tmp_path: Path) -> None:
    fl.export_function(
        tmp_path / "f", lambda x, params, other: x * params["w"] * other[0], batch(2), {"w": batch(2)}, [batch(2)]
    )
    plain: Any = mx.import_function(str(tmp_path / "f"))
    assert plain(batch(2), **{"w": batch(2), "other.0": batch(2)})[0].shape == (2, 4)


@pytest.mark.parametrize("bind", [lambda model: model, lambda model: model.__call__, lambda model: lambda x: model(x)])
def test_what_a_function_has_from_elsewhere_is_in_the_file(bind: Any, tmp_path: Path) -> None:
    model, x = fl.nn.Linear(4, 3), batch(5)
    fl.export_function(tmp_path / "f", bind(model), x)
    plain: Any = mx.import_function(str(tmp_path / "f"))
    assert fl.tree.equal(fl.import_function(tmp_path / "f")(x), model(x))
    assert fl.tree.equal(plain(x)[0], model(x))


def test_what_a_function_has_from_elsewhere_is_not_computed_again(tmp_path: Path) -> None:
    """Arrays without values are part of what MLX traces."""
    waiting = mx.random.normal((64, 64), key=mx.random.key(0)).view(mx.uint32).view(mx.float32)
    path = tmp_path / "f.mlxfn"
    fl.export_function(path, lambda x: x @ waiting, mx.ones((2, 64)), shapeless=True)
    assert path.stat().st_size > waiting.nbytes
    assert fl.import_function(path)(mx.ones((3, 64))).shape == (3, 64)


SHAPELESS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "linear": lambda: (True, apply, fl.nn.Linear(4, 3), batch(4)),
    "wrapped": lambda: (True, apply, fl.from_mlx(Wrapped()), batch(4)),
    "quantized": lambda: (True, apply, fl.quantize(fl.nn.Linear(32, 4), group_size=32), batch(4, 32)),
    "loss": lambda: (True, lambda model, x, y: ((model(x) - y) ** 2).mean(), fl.nn.Linear(4, 3), batch(4), batch(4, 3)),
    "gradients": lambda: (True, fl.grad(lambda model, x: (model(x) ** 2).sum()), fl.nn.Linear(4, 3), batch(4)),
    "gradients of more axes": lambda: (
        True,
        fl.grad(lambda model, x: (model(x) ** 2).sum()),
        fl.nn.Linear(4, 3),
        mx.random.normal((4, 2, 4)),
    ),
    "layer norm": lambda: (True, apply, fl.nn.LayerNorm(4), batch(4)),
    "in a tree": lambda: (True, lambda run: run["model"](run["x"]), {"model": fl.nn.Linear(4, 3), "x": batch(4)}),
    "another axis": lambda: ((None, 1), lambda scale, x: scale * x, batch(2, 1), batch(2, 4)),
    "two lengths": lambda: (True, lambda x, y: x @ y.T, batch(4), batch(5)),
    "some of a tree": lambda: (({"x": 0, "w": None},), lambda tree: tree["x"] @ tree["w"], {"x": batch(3), "w": batch(4)}),
    "bfloat16": lambda: (True, apply, fl.nn.Linear(4, 3).astype(mx.bfloat16), batch(4, dtype=mx.bfloat16)),
}


@pytest.mark.parametrize("case", SHAPELESS)
@pytest.mark.parametrize("rows", [2, 4, 9, 300])
def test_one_export_serves_all_lengths(case: str, rows: int, tmp_path: Path) -> None:
    shapeless, fn, *examples = SHAPELESS[case]()
    imported = through(tmp_path, fn, *examples, shapeless=shapeless)

    def resized(path: str, leaf: mx.array) -> mx.array:
        axis = 1 if case == "another axis" else 0
        is_open = re.fullmatch("[0-9]|.*x", path) and leaf.shape[axis] > 1
        return mx.take(leaf, mx.arange(rows) % leaf.shape[axis], axis=axis) if is_open else leaf

    others = fl.tree.map_with_path(resized, examples)
    expected = fn(*others)
    assert fl.tree.allclose(imported(*others), expected, rtol=1e-5, atol=2e-2 if case == "bfloat16" else 1e-5)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "random": (lambda: (False, lambda x: mx.random.normal(x.shape), batch(2)), "draws random numbers .* Pass a key"),
    "dropout": (lambda: (False, apply, fl.nn.Dropout(0.5), batch(2)), r"Pass a key.*model.eval\(\)"),
    "checkpoint": (lambda: (False, lambda x: mx.checkpoint(mx.sin)(x), batch(2)), "fl.checkpoint"),
    "custom": (lambda: (False, lambda x: with_vjp(x), batch(2)), "custom_function"),
    "impure": (lambda: (False, counting(), batch(2)), "computes something else with the example arguments, in the result"),
    "another structure": (lambda: (False, alternating(), batch(2)), "another structure"),
    "addmm": (lambda: (True, lambda x: mx.addmm(mx.ones(4), x, mx.ones((4, 4))), batch(2)), "mx.addmm"),
    "wrapped": (lambda: (True, apply, fl.from_mlx(nn.Linear(4, 4)), batch(2)), "fl.convert"),
    "length in Python": (
        lambda: (True, lambda x: x.sum() / x.shape[0], batch(4)),
        "with 9 in the place of 4, it computes with numbers that depend on the shapes",
    ),
    "reshape": (lambda: (True, lambda x: x.reshape(2, 8), batch(4)), "with 9 in the place of 4"),
    "slice": (lambda: (True, lambda x: x[: x.shape[0] - 1], batch(4)), r"Slice\(.*for each shape"),
    "other steps": (
        lambda: (True, lambda x: x if x.shape[0] < 9 else mx.sin(x), batch(4)),
        "with 9 in the place of 4, with .* it takes 1 operations",
    ),
    "one row": (lambda: (True, lambda x: x.sum(axis=0), batch(1)), "more than one row"),
    "recurrent": (lambda: (True, apply, fl.nn.RNN(3, 3), mx.ones((2, 4, 3))), "Slice"),
    "not a batch": (lambda: (True, lambda x, w: x @ w, batch(3), batch(4)), "can't be called .*shapeless=\\(None, 0\\)"),
    "alike": (lambda: (True, lambda x, w: x @ w, batch(4), batch(4)), "unlike lengths"),
    "nothing open": (lambda: (True, apply, fl.nn.Linear(1, 1), mx.array(1.0)), "nothing may vary"),
    "entries": (lambda: ((None,), apply, fl.nn.Linear(1, 1), mx.ones((1, 1))), "1 entries, and there are 2"),
    "axis": (lambda: ((None, 2), apply, fl.nn.Linear(1, 1), mx.ones((1, 1))), r"argument 1, f32\[1,1\], has no axis 2"),
    "empty": (lambda: (True, lambda x: x, mx.ones((0, 2))), "is 0"),
    "same name": (lambda: (False, lambda m, weight: weight["x"], {"weight": {"x": batch(1)}}, {"x": batch(1)}), "weight.x"),
}


@mx.custom_function
def with_vjp(x: mx.array) -> mx.array:
    return x * 2


@with_vjp.vjp
def _(primals: Any, cotangents: Any, _: Any) -> Any:
    return cotangents * 3


def counting() -> Callable[..., Any]:
    count = [0]

    def fn(x: mx.array) -> mx.array:
        count[0] += 1
        return x + count[0]

    return fn


def alternating() -> Callable[..., Any]:
    calls: list[int] = []

    def fn(x: mx.array) -> Any:
        calls.append(1)
        return x if len(calls) == 1 else [x]

    return fn


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_is_refused_and_the_old_file_stays(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    shapeless, fn, *examples = make()
    (tmp_path / "f.mlxfn").write_text("old")
    state = mx.random.state[0]
    with pytest.raises(ValueError, match="(?s)" + message):
        fl.export_function(tmp_path / "f.mlxfn", fn, *examples, shapeless=shapeless)
    assert (tmp_path / "f.mlxfn").read_text() == "old"
    assert os.listdir(tmp_path) == ["f.mlxfn"]
    assert mx.array_equal(mx.random.state[0], state)


def test_a_length_of_one_is_refused_where_mlx_would_end_the_process(tmp_path: Path) -> None:
    model, x = fl.nn.Linear(4, 3), batch(1)
    summed = through(tmp_path, lambda x: x.sum(axis=0), batch(4), shapeless=True)
    rows = through(tmp_path, apply, model, batch(4), shapeless=True)
    with pytest.raises(ValueError, match="x has 1, and MLX can compute this with 2 or more"):
        summed(x)
    assert fl.tree.allclose(rows(model, x), model(x), atol=1e-6)


def test_one_row_may_be_the_example(tmp_path: Path) -> None:
    model, x = fl.nn.Linear(4, 3), batch(7)
    imported = through(tmp_path, apply, model, x[:1], shapeless=True)
    assert fl.tree.allclose(imported(model, x), model(x), atol=1e-6)


def test_lengths_that_are_one_in_the_example_are_one_in_each_call(tmp_path: Path) -> None:
    imported = through(tmp_path, lambda x, y: (x + 1, y + 1), batch(3), batch(3), shapeless=True)
    assert imported(batch(5), batch(5))[1].shape == (5, 4)
    with pytest.raises(ValueError, match=r"x has 5, y has 4, which are of one length \(3\) in the example"):
        imported(batch(5), batch(4))
    with pytest.raises(ValueError, match="x has 0, y has 0, and MLX can compute this with 1 or more"):
        imported(batch(0), batch(0))


@pytest.mark.parametrize("name", ["shapeless", "metadata", "fun", "self"])
def test_arrays_may_have_the_names_of_arguments_of_mlx(name: str, tmp_path: Path) -> None:
    imported = through(tmp_path, lambda tree: tree[name] + 1, {name: batch(2)}, shapeless=True)
    assert imported({name: batch(5)}).shape == (5, 4)


OTHERS: dict[str, tuple[Callable[[Any, Any], tuple[Any, ...]], str]] = {
    "shape": (lambda m, x: (m, x[:2]), r"x: array f32\[5,4\] in the file, array f32\[2,4\] in the arguments"),
    "axes": (lambda m, x: (m, x[0]), r"x: array f32\[5,4\] in the file, array f32\[4\] in the arguments"),
    "dtype": (lambda m, x: (m, x.astype(mx.float16)), r"x: array f32\[5,4\] in the file, array f16\[5,4\] in the arguments"),
    "weights": (lambda m, x: (m.astype(mx.bfloat16), x), r"model.layers.0.weight: array f32\[4,4\] in the file, array bf16"),
    "mode": (lambda m, x: (m.eval(), x), r"model \(mode\): training in the file, evaluation in .* .train\(\) returns"),
    "frozen": (lambda m, x: (m.freeze(), x), r"model.layers.0 \(frozen\): nothing in the file, bias, weight in the arguments"),
    "class": (lambda m, x: ([m], x), "model: frostleaf.nn.Sequential in the file, list of 1 in the arguments"),
    "fewer": (lambda m, x: (m,), r"x: array f32\[5,4\] in the file, nothing in the arguments"),
    "more": (lambda m, x: (m, x, x), r"2: nothing in the file, array f32\[5,4\] in the arguments"),
    "number": (lambda m, x: (m, 3), r"x: array f32\[5,4\] in the file, 3 in the arguments"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_arguments_are_refused_with_their_paths(case: str, tmp_path: Path) -> None:
    model, x = fl.nn.Sequential(fl.nn.Linear(4, 4), fl.nn.Dropout(0.0)), batch(5)
    imported = through(tmp_path, apply, model, x)
    change, message = OTHERS[case]
    for _ in range(2):
        with pytest.raises(ValueError, match="(?s)exported for other arguments:\n.*" + message):
            imported(*change(model, x))
        imported(model, x)


@pytest.mark.parametrize("other", [True, 1.0, 2, "1", None])
def test_static_values_are_compared_by_value_and_type(other: Any, tmp_path: Path) -> None:
    imported = through(tmp_path, lambda x, tree: x * tree["n"], batch(2), {"n": 1})
    imported(batch(2), {"n": 1})
    with pytest.raises(ValueError, match=f"tree.n: 1 in the file, {other!r} in the arguments"):
        imported(batch(2), {"n": other})


def test_several_kinds_of_arguments_are_in_one_file(tmp_path: Path) -> None:
    model = fl.nn.Linear(4, 3)
    with fl.exporter(tmp_path / "f.mlxfn", apply, metadata=[1, "two"]) as export:
        export(model, batch(2))
        assert not (tmp_path / "f.mlxfn").exists()
        export(model, batch(5))
        export(model.astype(mx.float16), batch(2, dtype=mx.float16))
        export(model.freeze(), batch(7))
    imported = fl.import_function(tmp_path / "f.mlxfn")
    assert imported.metadata == [1, "two"]
    for other, x in [(model, batch(5)), (model.astype(mx.float16), batch(2, dtype=mx.float16)), (model.freeze(), batch(7))]:
        assert fl.tree.equal(imported(other, x), other(x))
    message = r"4 kinds of arguments, and not for these. The nearest is number {}:\nx: array f32\[{},4\] in the file"
    with pytest.raises(ValueError, match=message.format(1, 2)):
        imported(model, batch(9))
    with pytest.raises(ValueError, match=message.format(4, 7)):
        imported(model.freeze(), batch(9))
    assert repr(imported).count("model: frostleaf.nn.Linear, x: ") == 4


def export_each(path: Path, fn: Callable[..., Any], *calls: tuple[Any, ...]) -> None:
    with fl.exporter(path, fn) as export:
        for each in calls:
            export(*each)


def test_what_is_not_finished_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two of the examples have arrays of the same names"):
        export_each(tmp_path / "f", lambda x, n: x * n, (batch(2), 1), (batch(2), 2))
    with pytest.raises(ValueError, match="nothing was exported"):
        export_each(tmp_path / "f", apply)
    with pytest.raises(ZeroDivisionError):
        export_each(tmp_path / "f", lambda x, n: x + 1 / n, (batch(2), 1), (batch(3), 0))
    assert os.listdir(tmp_path) == []


def test_an_exporter_may_be_closed_by_hand(tmp_path: Path) -> None:
    export = fl.exporter(tmp_path / "f", mx.sin)
    export(batch(2))
    export.close()
    assert fl.import_function(tmp_path / "f")(batch(2)).shape == (2, 4)


class Note:
    pass


RESULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "function": (lambda x: [x, mx.sin], r"1 of the result is a \w+ \(sin\), which a file can't hold"),
    "module": (
        lambda x: fl.nn.Linear(2, 2, key=mx.random.key(0)),
        "the result is a Linear, which a file can't hold, and",
    ),
    "object": (lambda x: {"a": Note()}, "a of the result is a Note"),
    "set": (lambda x: {1, 2}, "the result is a set"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_results_that_no_file_can_hold_are_refused(case: str, tmp_path: Path) -> None:
    fn, message = RESULTS[case]
    with pytest.raises(TypeError, match=message):
        fl.export_function(tmp_path / "f", fn, batch(2))


def test_the_class_of_a_named_tuple_has_to_be_there(tmp_path: Path, monkeypatch: Any) -> None:
    imported = through(tmp_path, lambda x: Output(x, 1), batch(2))
    assert isinstance(imported(batch(2)), Output)
    imported = fl.import_function(tmp_path / "f.mlxfn")
    monkeypatch.delattr(f"{__name__}.Output")
    with pytest.raises(LookupError, match=f"holds an Output, and {__name__} has not been imported"):
        imported(batch(2))


GIVEN: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "path": ((3, mx.sin, mx.array(1.0)), {}, "takes a path first"),
    "function": (("f", mx.array(1.0)), {}, "takes a function second"),
    "generator": (("f", (lambda x: (yield x)), mx.array(1.0)), {}, "a generator function"),
    "shapeless": (("f", mx.sin, mx.array(1.0)), {"shapeless": "x"}, "shapeless is True, False, or as in_axes"),
    "metadata": (("f", mx.sin, mx.array(1.0)), {"metadata": mx.sin}, "metadata is anything that JSON can hold"),
    "shapes": (("f", mx.sin, fl.ShapeDtypeStruct((2,))), {}, "has no numbers"),
    "hidden": (("f", mx.sin, {mx.array(1.0)}), {}, "holds arrays"),
}


@pytest.mark.parametrize("case", GIVEN)
def test_what_is_given_is_checked(case: str) -> None:
    arguments, options, message = GIVEN[case]
    with pytest.raises(TypeError, match=message):
        fl.export_function(*arguments, **options)
    with pytest.raises(FileNotFoundError):
        fl.export_function("no/such/folder/f", mx.sin, mx.array(1.0))


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.mlxfn"
    fl.export_function(path, apply, fl.nn.Linear(4, 3), batch(2))
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(fl.CheckpointError, match=r"(not a complete file of fl.export_function|is damaged)"):
            fl.import_function(path)
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(fl.CheckpointError, match=r"(not a complete file of fl.export_function|is damaged)"):
            fl.import_function(path)
    mx.export_function(str(path), mx.sin, batch(2))
    with pytest.raises(fl.CheckpointError, match=r"something else has written it.* mx.import_function"):
        fl.import_function(path)
    with pytest.raises(FileNotFoundError):
        fl.import_function(tmp_path / "none")
    with pytest.raises(fl.CheckpointError, match="is not a file"):
        fl.import_function(tmp_path)


def test_an_imported_function_can_be_transformed(tmp_path: Path) -> None:
    model, x = fl.nn.Linear(4, 3), batch(5)
    imported = through(tmp_path, apply, model, x)

    def loss(fn: Any, model: Any) -> mx.array:
        return (fn(model, x) ** 2).sum()  # type: ignore[no-any-return]

    assert fl.tree.equal(fl.grad(lambda model: loss(imported, model))(model), fl.grad(lambda model: loss(apply, model))(model))
    assert fl.tree.allclose(fl.jit(imported)(model, x), model(x), rtol=1e-6)
    assert fl.eval_shape(imported, model, x) == fl.ShapeDtypeStruct((5, 3))
    stacked = mx.stack([x, x + 1])
    assert fl.tree.allclose(fl.vmap(imported, in_axes=(None, 0))(model, stacked), model(stacked), rtol=1e-6)


def test_examples_are_left_as_they_are(tmp_path: Path) -> None:
    def assigning(x: mx.array) -> mx.array:
        x[0] = 7.0
        return x

    x = mx.ones((3, 2))
    imported = through(tmp_path, assigning, x)
    assert imported(x)[0, 0].item() == 7.0
    assert x[0, 0].item() == 1.0


def test_what_cannot_be_compared_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(fl.UncomparedValueWarning, match=r"if note \(a .*Note\) is another object of its class"):
        imported = through(tmp_path, lambda x, note: x, batch(2), Note())
    assert imported(batch(2), Note()).shape == (2, 4)


def test_another_thread_is_told_of(tmp_path: Path) -> None:
    said: list[str] = []

    def export() -> None:
        with pytest.raises(ValueError, match="main thread") as caught:
            fl.export_function(tmp_path / "f", lambda x: x * 2, mx.ones((3, 2)))
        said.append(str(caught.value))

    thread = threading.Thread(target=export)
    thread.start()
    thread.join()
    assert len(said) == 1
    assert not (tmp_path / "f").exists()
