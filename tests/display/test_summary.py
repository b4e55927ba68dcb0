"""fl.summary: rows and totals."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import attrs
import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import CASES
from display.nets import Net, X
from mlx.utils import tree_flatten
from mlx_lm.models import llama as theirs

import frostleaf as fl


class Call(fl.Module):
    """Calls its layer by a function."""

    layer: Any
    how: Any = fl.static()

    def __call__(self, x: mx.array) -> Any:
        return self.how(self, x)


@pytest.fixture(autouse=True)
def a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def rows(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {row.path: row for row in fl.summary(*args, **kwargs).rows}


def llama(layers: int = 3) -> Any:
    sizes = {"hidden_size": 8, "num_hidden_layers": layers, "intermediate_size": 8, "vocab_size": 9, "num_attention_heads": 2}
    return fl.from_mlx(theirs.Model(theirs.ModelArgs(model_type="llama", rms_norm_eps=1e-5, **sizes)))


# What modules return


def test_each_module_has_a_row_with_what_it_returns() -> None:
    found = rows(Net(), X)
    assert {path: row.output for path, row in found.items()} == {
        "": "(f32[3,4], {'first': f32[4]})",
        "norm": "f32[3,4]",
        "inner": "f32[3,4] ×2",
        "drop": "f32[3,4]",
        "spare": "not called",
    }
    assert [row.kind for row in found.values()] == ["Net", "BatchNorm", "Linear", "Dropout", "Linear"]
    assert [row.calls for row in found.values()] == [1, 1, 2, 1, 0]
    assert found[""].outputs == ((X, {"first": fl.ShapeDtypeStruct((4,))}),)


def test_without_inputs_nothing_is_called() -> None:
    found = fl.summary(Net())
    assert {row.calls for row in found.rows} == {None}
    assert "output" not in repr(found).split("\n")[0]


def test_a_method_is_called_instead() -> None:
    found = rows(Net().encode, X)
    assert (found[""].output, found["norm"].output, found["inner"].output) == ("f32[3,4]", "f32[3,4]", "not called")


def test_arguments_by_name_are_those_of_the_call() -> None:
    assert rows(Net(), x=X, scale=2.0)["inner"].calls == 2


@pytest.mark.parametrize(
    "how",
    [
        lambda self, x: self.layer(x),
        lambda self, x: self.eval().layer(x),
        lambda self, x: self.layer.eval()(x),
        lambda self, x: fl.checkpoint(self.layer)(x),
        lambda self, x: fl.jit(self.layer)(x),
        lambda self, x: fl.jit(lambda layer, x: layer(x))(self.layer, x),
        lambda self, x: fl.stateful(self.layer, x)[0],
        lambda self, x: fl.vmap(self.layer)(x),
    ],
    ids=["plain", "eval of all", "eval of it", "checkpoint", "jit", "jit of a function", "stateful", "vmap"],
)
def test_a_module_is_known_however_it_is_called(how: Any) -> None:
    model = Call(fl.nn.Linear(4, 2), how)
    assert rows(model, X)["layer"].outputs[0].shape[-1] == 2


@pytest.mark.parametrize(
    "how",
    [
        lambda self, x: fl.Policy(compute_dtype=mx.bfloat16).wrap(lambda layer, x: layer(x))(self.layer, x),
        lambda self, x: self.layer.astype(mx.bfloat16)(x),
        lambda self, x: self.astype(mx.bfloat16).layer(x),
        lambda self, x: fl.tree.map(lambda array: array * 2, self.layer)(x),
        lambda self, x: fl.grad(lambda layer: layer(x).sum())(self.layer).parameters(),
        lambda self, x: fl.vmap(lambda layer, x: layer(x), in_axes=(0, None))(fl.tree.stack([self.layer] * 2), x),
    ],
    ids=["policy", "cast", "cast of all", "map", "grad", "vmap of a stack"],
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["native", "wrapped"])
def test_a_module_with_arrays_of_its_own_is_not_said_to_be_not_called(how: Any, wrapped: bool) -> None:
    layer = fl.from_mlx(nn.Linear(4, 4)) if wrapped else fl.nn.Linear(4, 4)
    found = rows(Call(layer, how), X)
    assert "not called" not in found["layer"].output


def test_others_are_still_not_called() -> None:
    model = Call({"a": fl.nn.Linear(4, 2), "b": fl.nn.RMSNorm(4)}, lambda self, x: self.layer["a"].astype(mx.float16)(x))
    found = rows(model, X)
    assert (found["layer.a"].output, found["layer.b"].output) == ("", "not called")


@pytest.mark.parametrize(
    "around", [fl.jit, fl.checkpoint, lambda model: fl.jit(model.encode)], ids=["jit", "checkpoint", "method"]
)
def test_what_a_transformation_made_of_a_model(around: Any) -> None:
    model = Net()
    outputs = [row.outputs for row in fl.summary(around(model), X).rows]
    plain = model.encode if around not in (fl.jit, fl.checkpoint) else model
    assert outputs[0] == (fl.eval_shape(plain, X),)
    assert [X] in [[*each] for each in outputs[1:]]


def test_a_module_called_in_several_ways() -> None:
    def tied(self: Any, x: mx.array) -> mx.array:
        return self.layer.as_linear(self.layer(x))

    found = rows(Call(fl.nn.Embedding(9, 4), tied), fl.ShapeDtypeStruct((2,), mx.int32))
    assert found["layer"].output == "f32[2,4], f32[2,9] ×2"
    assert found["layer"].outputs == (fl.ShapeDtypeStruct((2, 4)), fl.ShapeDtypeStruct((2, 9)))


def test_modules_without_arrays_are_told_apart() -> None:
    drop = fl.nn.Dropout()
    found = rows(fl.nn.Sequential(drop, fl.nn.Linear(4, 2), drop), X)
    assert [found[f"layers.{number}"].output for number in range(3)] == ["f32[3,4]", "f32[3,2]", "f32[3,2]"]


def test_a_module_that_returns_no_array_was_called() -> None:
    class Length(fl.Module):
        def __call__(self, x: mx.array) -> int:
            return len(x)

    assert rows(Call(Length(), lambda self, x: x * self.layer(x)), X)["layer"].output == "no array"


@attrs.define
class Output:
    logits: Any
    name: str = "out"
    inner: Any = None


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda x: Output(x), "{'logits': f32[3,4]}"),
        (lambda x: (Output({"a": x}, inner=Output([x])), x), "{'0': {'logits': dict(...), 'inner': dict(...)}, '1': f32[3,4]}"),
        (lambda x: Output(None), "no array"),
    ],
)
def test_what_hides_arrays_is_shown_by_its_attributes(make: Any, shown: str) -> None:
    found = rows(Call(fl.nn.Identity(), lambda self, x: make(x)), X)[""]
    assert (found.output, found.calls) == (shown, 1)


def test_an_object_that_holds_itself_is_shown() -> None:
    def circle(x: mx.array) -> Any:
        made = Output(x)
        made.inner = made
        return made

    assert "f32[3,4]" in rows(Call(fl.nn.Identity(), lambda self, x: circle(x)), X)[""].output


def test_a_wrapped_model_has_the_rows_of_its_own_modules() -> None:
    model = llama()
    found = rows(model, mx.array([[1, 2, 3]]))
    assert found[""].output == "f32[1,3,9]"
    assert found["model.embed_tokens"].output == "f32[1,3,8], f32[1,3,9] ×2"
    assert {found[f"model.layers.{number}.self_attn.rope"].output for number in range(3)} == {"f32[1,2,3,4] ×2"}
    assert all(row.calls for row in found.values())
    assert {*found} == {name for name, _ in fl.to_mlx(model).named_modules()}


def test_native_layers_inside_a_wrapped_model() -> None:
    found = rows(fl.convert(llama()), mx.array([[1, 2, 3]]))
    assert found["model.layers.1.mlp.up_proj"].output == "f32[1,3,8]"
    assert all(row.calls for row in found.values())


def test_a_wrapped_model_inside_a_native_one() -> None:
    model = fl.nn.Sequential(fl.nn.Linear(4, 2), fl.from_mlx(nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 6))))
    assert {path: row.output for path, row in rows(model, X).items()} == {
        "": "f32[3,6]",
        "layers.0": "f32[3,2]",
        "layers.1": "f32[3,6]",
        "layers.1.layers.0": "f32[3,5]",
        "layers.1.layers.1": "f32[3,6]",
    }


def test_a_model_that_was_never_built() -> None:
    built, shapes = Net(), fl.eval_shape(Net)
    assert fl.summary(shapes, X) == fl.summary(built, mx.zeros((3, 4)))


def test_nothing_is_computed() -> None:
    large = fl.eval_shape(fl.nn.Linear, 200_000, 200_000)
    found = fl.summary(large, fl.ShapeDtypeStruct((100_000, 200_000)))
    assert found.nbytes == 4 * (200_000 * 200_000 + 200_000)
    shown = []

    def traced(x: mx.array) -> mx.array:  # where no array has a value
        shown.append(repr(fl.summary(fl.nn.Linear(4, 2).at("bias").set(x.sum(0)[:2]), x)))
        return x

    mx.compile(traced)(mx.zeros((3, 4)))
    assert "f32[3,2]" in shown[0]


def test_the_random_state_and_the_profiler_stay() -> None:
    model, profiler = Net(), sys.getprofile()
    before = mx.random.state[0].tolist()
    seen: list[Any] = []
    sys.setprofile(lambda *event: seen.append(event))
    own = sys.getprofile()
    try:
        fl.summary(model, X)
        with pytest.raises(ValueError, match="norm"):
            fl.summary(model, mx.zeros((3, 5)))
        assert sys.getprofile() is own
    finally:
        sys.setprofile(profiler)
    assert mx.random.state[0].tolist() == before


# Sizes


@pytest.mark.parametrize("make", [Net, lambda: fl.nn.TransformerEncoder(2, 4, 2), llama], ids=["net", "encoder", "llama"])
def test_sizes_are_those_of_mlx(make: Any) -> None:
    model = make()
    for path, row in rows(model).items():
        module = dict(model.named_modules())[path]
        buffers = sum(leaf.size for leaf in fl.tree.leaves(module)) - row.parameters
        assert row.nbytes == fl.tree.nbytes(module)
        assert row.buffers == buffers
        assert row.trainable == sum(leaf.size for _, leaf in tree_flatten(module.trainable_parameters()))
        assert row.parameters == sum(leaf.size for _, leaf in tree_flatten(module.parameters())) - buffers


def test_totals() -> None:
    model = Net().at("inner").astype(mx.float16).at("spare").freeze()
    found = fl.summary(model)
    assert (found.parameters, found.trainable, found.frozen, found.buffers) == (118, 28, 90, 8)
    assert found.nbytes == fl.tree.nbytes(model) == sum(part.nbytes for part in found.dtypes.values())
    assert {name: part.numbers for name, part in found.dtypes.items()} == {"float32": 106, "float16": 20}
    assert {name: part.numbers for name, part in found.names.items()} == {
        "weight": 101,
        "bias": 17,
        "running_mean": 4,
        "running_var": 4,
    }


def test_what_is_frozen_from_outside_is_not_trained() -> None:
    found = rows(fl.nn.Sequential(fl.nn.Linear(2, 2)).freeze(keys="layers.0", recurse=False))
    assert (found["layers.0"].parameters, found["layers.0"].trainable) == (6, 0)


def test_an_array_at_several_places_counts_once() -> None:
    tied = fl.nn.Sequential(fl.nn.Embedding(5, 4), fl.nn.Linear(4, 5, bias=False)).tie({"layers.1.weight": "layers.0.weight"})
    found = fl.summary(tied)
    assert (found.parameters, found.nbytes, found.ties) == (20, 80, {"layers.1.weight": "layers.0.weight"})
    assert "tied: layers.1.weight → layers.0.weight" in repr(found)
    layer = fl.nn.Linear(4, 5)
    shared = fl.nn.Sequential(layer, layer)
    assert (fl.summary(shared).parameters, rows(shared)["layers.1"].parameters) == (25, 25)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_weights_of_quantized_layers(bits: int, native: bool) -> None:
    layers = nn.Sequential(nn.Linear(32, 64), nn.RMSNorm(64), nn.Linear(64, 32, bias=False), nn.Embedding(9, 32))
    weights = sum(layers.layers[index].weight.size for index in (0, 2, 3))
    nn.quantize(layers, group_size=32, bits=bits)
    packed = sum(layers.layers[index].weight.size for index in (0, 2, 3))
    tree = fl.from_mlx(layers)
    found = fl.summary(fl.convert(tree) if native else tree)
    assert (found.packed, found.unpacked) == (packed, weights)
    assert f"quantized: {weights:,} weights in {packed:,} of these numbers" in repr(found)
    assert fl.summary(tree, where="layers.1").packed == 0
    assert "quantized" not in repr(fl.summary(tree, where="layers.1"))


@pytest.mark.parametrize("names", [("target", "online"), ("online", "target")])
def test_what_is_frozen_at_one_place_and_trained_at_another_is_trained(names: tuple[str, str]) -> None:
    online = fl.nn.Linear(4, 4)
    models = {"target": online.freeze(), "online": online}
    found = fl.summary({name: models[name] for name in names})
    assert (found.parameters, found.trainable, found.frozen) == (20, 20, 0)
    assert {(row.parameters, row.trainable) for row in found.rows} == {(20, 20)}


@pytest.mark.parametrize(("dtype", "frozen"), [(mx.complex64, 0), (mx.int32, 0), (mx.bool_, 0), (mx.float32, 4)])
def test_what_no_optimizer_trains_is_not_frozen(dtype: mx.Dtype, frozen: int) -> None:
    layer = fl.nn.Linear(4, 4).at("bias").apply(lambda bias: bias.astype(dtype))
    layer = layer.freeze(keys="bias") if frozen else layer
    found = fl.summary(layer)
    assert (found.parameters, found.trainable, found.frozen) == (20, 16, frozen)
    assert (f"{frozen} frozen, 4 of other dtypes)" in repr(found)) == (not frozen)


def test_the_state_of_an_optimizer_by_slot() -> None:
    state = fl.optim.AdamW(1e-3).init(fl.nn.Linear(4, 2))
    found = fl.summary(state)
    assert (found.parameters, found.nbytes) == (0, fl.tree.nbytes(state))
    assert {name: part.nbytes for name, part in found.names.items() if name in "mv"} == {"m": 40, "v": 40}
    assert "by name: m 40 B, v 40 B" in repr(found)


def test_any_tree() -> None:
    found = rows({"a": Net(), "b": [fl.nn.Linear(2, 2), mx.zeros(3)]})
    assert [*found] == ["", "a", "a.norm", "a.inner", "a.drop", "a.spare", "b.0"]
    assert (found[""].kind, found[""].parameters) == ("dict", 118 + 6 + 3)
    assert fl.summary([mx.zeros(3)]).names[""].nbytes == 12


# Which rows


@pytest.mark.parametrize(
    ("depth", "paths"),
    [(0, [""]), (1, ["", "layers.0", "ln"]), (2, None), (None, None)],
)
def test_depth(depth: int | None, paths: list[str] | None) -> None:
    model = fl.nn.TransformerEncoder(1, 4, 2)
    every = [*rows(model)]
    inside = [path for path in every if depth is None or path.count("attention.") == 0]
    assert [*rows(model, depth=depth)] == (inside if paths is None else paths)
    assert fl.summary(model, depth=depth).nbytes == fl.tree.nbytes(model)


@pytest.mark.parametrize("depth", [-1, 1.0, True, "1"])
def test_no_such_depth(depth: Any) -> None:
    with pytest.raises(TypeError, match="depth is the number of levels"):
        fl.summary(Net(), depth=depth)


@pytest.mark.parametrize(
    ("where", "paths", "parameters"),
    [
        (fl.nn.Linear, ["inner", "spare"], 110),
        ("norm", ["norm"], 8),
        ("**.bias", ["norm", "inner", "spare"], 17),
        (["spare.weight", fl.nn.Dropout], ["drop", "spare"], 81),
    ],
    ids=["class", "path", "glob", "several"],
)
def test_where(where: Any, paths: list[str], parameters: int) -> None:
    found = fl.summary(Net(), where=where)
    assert [row.path for row in found.rows] == paths
    assert found.parameters == parameters == sum(row.parameters for row in found.rows)


def test_what_is_inside_of_what_is_selected_has_rows() -> None:
    found = rows(fl.nn.TransformerEncoder(2, 4, 2), where="layers.1.attention")
    assert [*found] == ["layers.1.attention", *(f"layers.1.attention.{name}_proj" for name in ("query", "key", "value", "out"))]


def test_where_selects_nothing() -> None:
    with pytest.raises(LookupError, match=r"'nrom' selects nothing in this Net\. The nearest paths are 'norm'"):
        fl.summary(Net(), where="nrom")


# Errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (fl.nn.Linear, r"was given Linear. .* give fl.eval_shape\(Model, ...\)"),
        (nn.Linear(2, 2), "for one of mlx.nn fl.from_mlx"),
        (lambda x: x, "takes a model, a method of one, or another tree"),
    ],
    ids=["class", "of mlx", "function"],
)
def test_what_is_no_model(given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fl.summary(given)


def test_a_tree_that_cant_be_called() -> None:
    with pytest.raises(TypeError, match="a dict can't be called"):
        fl.summary({"a": Net()}, X)


@pytest.mark.parametrize(
    ("make", "inputs", "error", "place"),
    [
        (Net, fl.ShapeDtypeStruct((3, 5)), ValueError, r"This was in norm, a BatchNorm, where x is f32\[3,5\]"),
        (
            lambda: fl.from_mlx(nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))),
            X,
            ValueError,
            r"This was in layers.1, a Linear, where x is f32\[3,3\]",
        ),
        (
            lambda: Call(fl.nn.Identity(), lambda self, x: x + mx.zeros(9)),
            X,
            ValueError,
            "This was in the model itself, a Call",
        ),
        (
            lambda: Call(fl.nn.Identity(), lambda self, x: self.layer(x).sum().item()),
            X,
            ValueError,
            "while fl.eval_shape traces it",
        ),
    ],
    ids=["native", "wrapped", "itself", "values"],
)
def test_an_error_says_in_which_module_it_was(make: Any, inputs: Any, error: type[Exception], place: str) -> None:
    with pytest.raises(error, match=place):
        fl.summary(make(), inputs)


# Every layer


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrapped", [False, True], ids=["native", "wrapped"])
def test_every_layer_returns_what_eval_shape_says(name: str, wrapped: bool) -> None:
    made = CASES[name].make(nn if wrapped else fl.nn)
    layer = fl.from_mlx(made) if wrapped else made
    inputs = CASES[name].drawn(mx.float32)
    found = fl.summary(layer, *inputs)
    returned = fl.eval_shape(layer, *inputs)
    assert found.rows[0].outputs == (returned,)
    assert found.nbytes == fl.tree.nbytes(layer)
    assert all(row.calls for row in found.rows if row.path.endswith("proj"))


def test_a_summary_is_copied_pickled_and_hashed() -> None:
    found = fl.summary(Net(), X)
    for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert other == found
        assert hash(other) == hash(found)
        assert repr(other) == repr(found)


@pytest.mark.parametrize(("inputs", "named"), [(((3, 4),), {}), ((), {"input_size": (3, 4)})])
def test_a_shape_is_told_how_to_be_given(inputs: Any, named: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"For an input of that shape give fl.ShapeDtypeStruct\(\(3, 4\), mx.f"):
        fl.summary(fl.nn.Linear(4, 4), *inputs, **named)


@pytest.mark.parametrize("error", [NotImplementedError, AssertionError, StopAsyncIteration])
def test_an_error_without_a_message_says_where_it_was(error: type[Exception]) -> None:
    def fails(self: Any, x: mx.array) -> Any:
        raise error

    with pytest.raises(error, match=r"^This was in layer.a, a Call, where x is f32\[3,4\]\.$"):
        fl.summary(Call({"a": Call(fl.nn.Identity(), fails)}, lambda self, x: self.layer["a"](x)), X)


def test_the_article_of_a_class_in_an_error() -> None:
    with pytest.raises(Exception, match="an Embedding"):
        fl.summary(fl.nn.Embedding(4, 4), X)
