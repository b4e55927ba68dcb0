"""Exported functions: what is imported computes what was exported, or the file is not written and the error says why."""

from __future__ import annotations

import json
import os
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


SHAPELESS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "linear": lambda: (True, apply, fl.nn.Linear(4, 3), batch(4)),
    "wrapped": lambda: (True, apply, fl.from_mlx(Wrapped()), batch(4)),
    "quantized": lambda: (True, apply, fl.quantize(fl.nn.Linear(32, 4), group_size=32), batch(4, 32)),
    "loss": lambda: (True, lambda model, x, y: ((model(x) - y) ** 2).mean(), fl.nn.Linear(4, 3), batch(4), batch(4, 3)),
    "gradients": lambda: (True, fl.grad(lambda model, x: (model(x) ** 2).sum()), fl.nn.Linear(4, 3), batch(4)),
    "layer norm": lambda: (True, apply, fl.nn.LayerNorm(4), batch(4)),
    "in a tree": lambda: (True, lambda run: run["model"](run["x"]), {"model": fl.nn.Linear(4, 3), "x": batch(4)}),
    "another axis": lambda: ((None, 1), lambda scale, x: scale * x, batch(2, 1), batch(2, 4)),
    "two lengths": lambda: (True, lambda x, y: x @ y.T, batch(4), batch(5)),
    "some of a tree": lambda: (({"x": 0, "w": None},), lambda tree: tree["x"] @ tree["w"], {"x": batch(3), "w": batch(4)}),
    "bfloat16": lambda: (True, apply, fl.nn.Linear(4, 3).astype(mx.bfloat16), batch(4, dtype=mx.bfloat16)),
    "from one row": lambda: (True, apply, fl.nn.Linear(4, 3), batch(1)),
}


@pytest.mark.parametrize("case", SHAPELESS)
@pytest.mark.parametrize("rows", [2, 4, 9, 300])
def test_one_export_serves_all_lengths(case: str, rows: int, tmp_path: Path) -> None:
    shapeless, fn, *examples = SHAPELESS[case]()
    imported = through(tmp_path, fn, *examples, shapeless=shapeless)

    def resized(path: str, leaf: mx.array) -> mx.array:
        if (
            "weight" in path
            or "bias" in path
            or "scales" in path
            or path.endswith("w")
            or (path == "0" and case == "another axis")
        ):
            return leaf
        axis = 1 if case == "another axis" else 0
        return mx.take(leaf, mx.arange(rows) % leaf.shape[axis], axis=axis)

    others = fl.tree.map_with_path(resized, examples)
    expected = fn(*others)
    assert fl.tree.allclose(imported(*others), expected, rtol=2e-2 if case == "bfloat16" else 1e-5, atol=1e-5)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "random": (lambda: (False, lambda x: mx.random.normal(x.shape), batch(2)), "draws random numbers .* Pass a key"),
    "dropout": (lambda: (False, apply, fl.nn.Dropout(0.5), batch(2)), r"Pass a key.*model.eval\(\)"),
    "checkpoint": (lambda: (False, lambda x: mx.checkpoint(mx.sin)(x), batch(2)), "fl.checkpoint"),
    "custom": (lambda: (False, lambda x: with_vjp(x), batch(2)), "custom_function"),
    "impure": (lambda: (False, counting(), batch(2)), "computes something else with the example arguments, in the result"),
    "another structure": (lambda: (False, alternating(), batch(2)), "another structure"),
    "addmm": (lambda: (True, lambda x: mx.addmm(mx.ones(4), x, mx.ones((4, 4))), batch(2)), "mx.addmm"),
    "wrapped": (lambda: (True, apply, fl.from_mlx(nn.Linear(4, 4)), batch(2)), "fl.convert"),
    "length in Python": (lambda: (True, lambda x: x.sum() / x.shape[0], batch(4)), "with 9 in the place of 4, in the result"),
    "reshape": (lambda: (True, lambda x: x.reshape(2, 8), batch(4)), "with 9 in the place of 4"),
    "slice": (lambda: (True, lambda x: x[: x.shape[0] - 1], batch(4)), "can't run with the example .* for each shape"),
    "other steps": (lambda: (True, lambda x: x if x.shape[0] < 9 else mx.sin(x), batch(4)), "other steps with 9"),
    "one row": (lambda: (True, lambda x: x.sum(axis=0), batch(1)), "more than one row"),
    "pooling": (lambda: (True, apply, fl.nn.MaxPool1d(2, 2), mx.ones((2, 4, 3))), "in the place of 2"),
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
