"""Quantization of whole models, against mlx.nn.quantize."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import mlx.nn
import pytest
from mlx.utils import tree_flatten

import frostleaf as fl

MODES = ["affine", "mxfp4", "nvfp4", "mxfp8"]


class OurNet(fl.Module):
    head: Any
    layers: Any
    parts: Any
    _hidden: Any


class TheirNet(mlx.nn.Module):
    def __init__(self, head: Any, layers: Any, parts: Any, hidden: Any) -> None:
        super().__init__()
        self.head, self.layers, self.parts, self._hidden = head, layers, parts, hidden


def net(nn: Any) -> Any:
    """A model with layers in lists and dicts, in other modules, and under a private name; and with what can't be quantized."""
    mx.random.seed(4)
    return (OurNet if nn is fl.nn else TheirNet)(
        nn.Linear(64, 32),
        [nn.Embedding(5, 64), nn.relu, [nn.LayerNorm(64), nn.Sequential(nn.Linear(64, 64, bias=False), nn.Dropout())]],
        {"norm": nn.RMSNorm(64), "down": {"a": nn.Linear(128, 64), "b": mx.ones(2)}},
        nn.Linear(64, 3),
    )


def both(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    ours, theirs = fl.quantize(net(fl.nn), *args, **kwargs), net(mlx.nn)
    mlx.nn.quantize(theirs, *args, **kwargs)
    return ours, theirs


def assert_same(ours: Any, theirs: Any) -> None:
    for view in "parameters", "trainable_parameters":
        one, other = (dict(tree_flatten(getattr(model, view)())) for model in (ours, theirs))
        assert list(one) == list(other)
        for name, array in other.items():
            assert one[name].dtype == array.dtype
            assert mx.array_equal(one[name], array)
    assert [type(module).__name__.removeprefix("Our") for module in ours.modules()] == [
        type(module).__name__.removeprefix("Their") for module in theirs.modules()
    ]


def is_linear(path: str, layer: Any) -> bool:
    return type(layer).__name__ == "Linear"


def by_path(path: str, layer: Any) -> Any:
    answers = {"head": True, "layers.0": {"bits": 2}, "parts.down.a": {"group_size": 128, "mode": "affine"}}
    return answers.get(path, {})


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((), {}),
        ((32, 8), {}),
        ((None, 3), {"class_predicate": is_linear}),
        *[((), {"mode": mode}) for mode in MODES],
        ((), {"mode": "mxfp8", "class_predicate": by_path}),
        ((), {"class_predicate": lambda path, layer: False}),
    ],
)
def test_the_model_is_the_one_that_mlx_makes(args: Any, options: Any) -> None:
    assert_same(*both(*args, **options))


def test_the_outputs_are_those_of_mlx() -> None:
    def made(nn: Any) -> Any:
        mx.random.seed(4)
        return nn.Sequential(nn.Embedding(5, 64), nn.Linear(64, 96), nn.relu, nn.LayerNorm(96), nn.Linear(96, 3))

    ours, theirs = fl.quantize(made(fl.nn), 32, 4), made(mlx.nn)
    mlx.nn.quantize(theirs, 32, 4)
    tokens = mx.array([[0, 4], [2, 2]])
    assert mx.array_equal(ours(tokens), theirs(tokens))


def test_the_predicate_is_asked_as_by_mlx() -> None:
    asked: dict[str, list[Any]] = {"frostleaf": [], "mlx": []}

    def predicate(path: str, layer: Any) -> bool:
        asked[type(layer).__module__.partition(".")[0]].append((path, type(layer).__name__))
        return False

    both(class_predicate=predicate)
    assert asked["frostleaf"] == asked["mlx"]
    assert ("layers.2.1.layers.0", "Linear") in asked["mlx"]


def test_what_is_not_quantized_is_shared_and_the_model_is_as_it_was() -> None:
    model = net(fl.nn)
    before = fl.tree.leaves(model)
    after = fl.quantize(model, class_predicate=lambda path, layer: path == "head")
    assert all(one is other for one, other in zip(before, fl.tree.leaves(model), strict=True))
    assert after.layers is model.layers
    assert after.parts is model.parts
    assert after.head.bias is model.head.bias
    assert isinstance(model.head, fl.nn.Linear)


def test_to_quantize_again_changes_nothing() -> None:
    model = fl.quantize(net(fl.nn))
    assert fl.quantize(model) is model
    assert fl.quantize(model, class_predicate=lambda path, layer: False) is model


def test_nothing_is_drawn() -> None:
    model = net(fl.nn)
    before = mx.random.state[0].tolist()
    _ = fl.quantize(model)
    assert mx.random.state[0].tolist() == before


def test_a_model_that_is_a_layer_is_quantized() -> None:
    asked = []
    layer = fl.quantize(fl.nn.Linear(64, 2), class_predicate=lambda path, layer: asked.append(path) or {"bits": 8})
    assert (type(layer), layer.bits, asked) == (fl.nn.QuantizedLinear, 8, [""])


def test_models_in_a_container() -> None:
    linear, norm = fl.nn.Linear(64, 2), fl.nn.LayerNorm(64)
    first, (second, third) = fl.quantize((linear, [norm, {"a": linear}]))
    assert type(first) is fl.nn.QuantizedLinear
    assert second is norm
    assert third["a"] is first


def test_a_layer_that_is_held_twice_is_held_twice() -> None:
    shared = fl.nn.Linear(64, 64)
    model = fl.nn.Sequential(shared, fl.nn.Sequential(fl.nn.relu, shared), shared)
    after = fl.quantize(model)
    assert after.layers[0] is after.layers[1].layers[1] is after.layers[2]
    apart = fl.quantize(
        model, class_predicate=lambda path, layer: "to_quantized" in dir(layer) and {"bits": 2 + 2 * (path == "layers.0")}
    )
    assert [layer.bits for layer in (apart.layers[0], apart.layers[1].layers[1], apart.layers[2])] == [4, 2, 2]
    assert apart.layers[2] is apart.layers[1].layers[1]


def test_what_is_frozen_or_in_evaluation_mode_stays_so() -> None:
    model = net(fl.nn)
    assert fl.quantize(model.freeze()).trainable_parameters().keys() == model.freeze().trainable_parameters().keys()
    assert tree_flatten(fl.quantize(model.freeze()).trainable_parameters()) == []
    assert not any(module.training for module in fl.quantize(model.eval()).modules())
    part = fl.quantize(model.at("parts").freeze())
    assert "head.bias" in dict(tree_flatten(part.trainable_parameters()))
    assert "parts.down.a.bias" not in dict(tree_flatten(part.trainable_parameters()))
    assert "parts.down.a.bias" in dict(tree_flatten(part.unfreeze().trainable_parameters()))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("shapes", [False, True])
def test_each_layer_keeps_the_mode_of_the_one_that_it_replaces(wrapped: bool, shapes: bool) -> None:
    whole = fl.from_mlx(net(mlx.nn)) if wrapped else net(fl.nn)
    model = whole.eval().at("head").apply(lambda layer: layer.train())
    for before in (model, fl.convert(model)) if wrapped else (model,):
        small = fl.quantize(fl.eval_shape(lambda model=before: model) if shapes else before)
        modes, then = [{path: module.training for path, module in each.named_modules()} for each in (small, before)]
        assert modes == then
        assert (modes["head"], modes["layers.0"]) == (True, False)
        assert "Quantized" in type(small.head).__name__
        converted = {path: module.training for path, module in fl.convert(small).named_modules()}
        assert converted == then
    assert fl.tree.structure(fl.quantize(whole.eval())) == fl.tree.structure(fl.quantize(whole).eval())


def test_the_input_as_well() -> None:
    def made(nn: Any) -> Any:
        mx.random.seed(4)
        return nn.Sequential(nn.Linear(64, 32, bias=False), nn.LayerNorm(32), nn.Linear(32, 32, bias=False))

    ours, theirs = fl.quantize(made(fl.nn), mode="nvfp4", quantize_input=True), made(mlx.nn)
    mlx.nn.quantize(theirs, mode="nvfp4", quantize_input=True)
    assert_same(ours, theirs)
    assert_same(ours.eval(), theirs.eval())
    x = mx.random.normal((1, 64))
    assert mx.array_equal(ours.eval()(x), theirs(x))


class Custom(fl.Module):
    """A layer that knows one option."""

    weight: mx.array
    seen: tuple[str, ...] = ()

    def to_quantized(self, **options: Any) -> Any:
        return Custom(self.weight, tuple(options))


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, ("group_size", "bits", "mode")),
        ({"quantize_input": True}, ("group_size", "bits", "mode", "quantize_input")),
        ({"class_predicate": lambda path, layer: {"colour": 1, "quantize_input": False}}, ("colour",)),
        ({"class_predicate": lambda path, layer: {"quantize_input": True}}, ("quantize_input",)),
    ],
)
def test_a_layer_of_ones_own(options: Any, seen: Any) -> None:
    assert fl.quantize(fl.nn.Sequential(Custom(mx.ones(1))), **options).layers[0].seen == seen


def test_the_predicates_dict_is_not_changed() -> None:
    answer = {"bits": 8, "quantize_input": False}
    _ = fl.quantize(fl.nn.Linear(64, 2), class_predicate=lambda path, layer: answer)
    assert answer == {"bits": 8, "quantize_input": False}


BIASED = lambda nn: nn.Sequential(nn.Linear(64, 2))  # noqa: E731


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (BIASED, {"mode": "int4"}, ValueError, "can't quantize layers.0: Invalid quantization mode 'int4'. Valid"),
        (BIASED, {"bits": 7}, ValueError, "can't quantize layers.0: [quantize] The requested number of bits 7 is not"),
        (
            lambda nn: nn.Sequential(nn.Sequential(nn.Linear(100, 2))), {}, ValueError,
            "has shape (2,100). Give a class_predicate that returns False for it, or other options",
        ),
        (
            BIASED, {"mode": "affine", "quantize_input": True}, ValueError,
            "Quantized activations are only supported for 'nvfp4' and 'mxfp8' modes, got 'affine'.",
        ),
        (
            BIASED, {"mode": "nvfp4", "quantize_input": True}, NotImplementedError,
            "can't quantize layers.0: QQLinear does not support bias yet",
        ),
        (
            lambda nn: nn.Sequential(nn.Embedding(5, 64)), {"mode": "nvfp4", "quantize_input": True}, ValueError,
            "can't quantize layers.0: Quantized input is not supported",
        ),
        (
            lambda nn: nn.Sequential(nn.LayerNorm(64)), {"class_predicate": lambda path, layer: True}, ValueError,
            "Unable to quantize layers.0, a LayerNorm, which has no method to_quantized: class_predicate must return False",
        ),
        (
            BIASED, {"class_predicate": lambda path, layer: "yes"}, ValueError,
            "class_predicate must return a bool or a dict of options for to_quantized, and returned 'yes' for layers.0",
        ),
        (BIASED, {"class_predicate": lambda path, layer: {"colour": 1}}, TypeError, "colour"),
    ],
)  # fmt: skip
def test_an_error_is_of_the_class_that_mlx_raises_and_says_where(make: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error):
        mlx.nn.quantize(make(mlx.nn), **options)
    with pytest.raises(error, match=re.escape(message)):
        fl.quantize(make(fl.nn), **options)


def test_a_compiled_function_is_quantized_with_its_model() -> None:
    head = net(fl.nn).head
    assert fl.tree.equal(fl.quantize(fl.jit(head)).__wrapped__, fl.quantize(head))


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(TypeError, match=re.escape("fl.quantize takes a module, or a tree that holds modules")):
        fl.quantize(lambda x: x)
    with pytest.raises(TypeError, match=re.escape("was given mlx.nn.layers.linear.Linear")):
        fl.quantize(mlx.nn.Linear(64, 2))
    with pytest.raises(TypeError, match=re.escape("fl.quantize takes a module, or a tree that holds modules")):
        fl.quantize(mx.ones((2, 64)))


def test_a_compiled_function_is_traced_once_more_for_the_quantized_model() -> None:
    model, x = fl.nn.Linear(64, 2), mx.random.normal((3, 64))
    call = fl.jit(lambda model, x: model(x))
    small = fl.quantize(model)
    for each in model, small, model, small:
        assert mx.allclose(call(each, x), each(x), atol=1e-5)
    assert call.trace_count == 2


def test_inside_a_compiled_function() -> None:
    model, x = fl.nn.Sequential(fl.nn.Linear(64, 64), fl.nn.relu), mx.random.normal((3, 64))
    small = fl.jit(fl.quantize)(model)
    assert fl.tree.structure(small) == fl.tree.structure(fl.quantize(model))
    assert mx.array_equal(small.layers[0].weight, fl.quantize(model).layers[0].weight)
    assert small.layers[0].bias is model.layers[0].bias
    assert mx.allclose(small(x), fl.quantize(model)(x), atol=1e-5)
    assert fl.eval_shape(fl.quantize, model).layers[0].weight.shape == (64, 8)


@pytest.mark.parametrize("option", ["bitz", 3], ids=repr)
def test_an_unknown_option_is_named_with_the_path(option: Any) -> None:
    model = fl.nn.Sequential(fl.nn.Dropout(), fl.nn.Linear(64, 64))
    shown = f"can't quantize layers.1: Linear.to_quantized has no option {option!r}; it takes group_size, bits, mode"
    with pytest.raises(TypeError, match=re.escape(shown)):
        fl.quantize(model, class_predicate=lambda path, layer: isinstance(layer, fl.nn.Linear) and {option: 3})
