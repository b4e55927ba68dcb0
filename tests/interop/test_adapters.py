"""Adapters in whole models, against mlx-lm's."""

from __future__ import annotations

import itertools
import re
from typing import Any

import mlx.core as mx
import mlx.nn
import mlx.optimizers
import numpy as np
import pytest
from mlx.utils import tree_unflatten
from tuned import assert_same, built, named

import frostleaf as fl

tuner = pytest.importorskip("mlx_lm.tuner.utils")

TOKENS = mx.array([0, 4, 1, 2, 11, 8])
# What is adapted: for mlx-lm by the keys of its configuration, and for fl.lora by a selection.
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
CHOSEN = {"q_proj", "v_proj", "lm_head"}
CHOICES: dict[str, tuple[dict[str, Any], Any]] = {
    "all in the layers": ({}, ["layers.*.self_attn.*", "layers.*.mlp.*"]),
    "some": ({"keys": ATTENTION}, ["layers.*.self_attn.q_proj", "layers.*.self_attn.v_proj"]),
    "some and the head": (
        {"keys": [*ATTENTION, "lm_head"]},
        lambda path, _: path.split(".")[-2] in {"q_proj", "v_proj", "lm_head"},
    ),
    "the embedding too": ({"keys": [*ATTENTION, "embed_tokens"]}, [r"**.q_proj", "**.v_proj", "embed_tokens"]),
}
each_dora = pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])


def both(
    choice: str = "some",
    dora: bool = False,
    quantized: bool = False,
    head: bool = True,
    dropout: float = 0.0,
    half: bool = False,
) -> tuple[Any, Any]:
    """Return an adapted model and its twin, adapted by mlx-lm from the same seed."""
    config, where = CHOICES[choice]
    ours, theirs = (built(nn, quantized=quantized, head=head) for nn in (fl.nn, mlx.nn))
    if half:
        ours = ours.astype(mx.bfloat16)
        theirs.set_dtype(mx.bfloat16)
    mx.random.seed(1)
    ours = fl.lora(ours, where, rank=4, scale=2.0, dropout=dropout, dora=dora)
    mx.random.seed(1)
    theirs.freeze()
    tuner.linear_to_lora_layers(theirs, 2, {"rank": 4, "scale": 2.0, "dropout": dropout, **config}, use_dora=dora)
    return ours, theirs


def loss(model: Any, tokens: mx.array) -> mx.array:
    return mlx.nn.losses.cross_entropy(model(tokens[:-1]), tokens[1:], reduction="mean")


def trained(ours: Any, theirs: Any, steps: int) -> Any:
    """Train both models with AdamW, and check that they stay the same."""
    opt, their_opt = fl.optim.AdamW(1e-2), mlx.optimizers.AdamW(1e-2)
    state, step, their_step = opt.init(ours), fl.value_and_grad(loss), mlx.nn.value_and_grad(theirs, loss)
    for seed in range(steps):
        mx.random.seed(seed)
        value, grads = step(ours, TOKENS)
        ours, state = opt.update(ours, grads, state)
        mx.random.seed(seed)
        expected, grads = their_step(theirs, TOKENS)
        their_opt.update(theirs, grads)
        assert mx.array_equal(value, expected)
        mx.eval(theirs.parameters(), their_opt.state)
    assert_same(ours.parameters(), theirs.parameters())
    return ours


@pytest.mark.parametrize(
    ("choice", "dora", "quantized"),
    # DoRA does not adapt a quantized embedding.
    [each for each in itertools.product(CHOICES, *[(False, True)] * 2) if each != ("the embedding too", True, True)],
)
def test_the_model_is_the_one_that_mlx_lm_makes(choice: str, dora: bool, quantized: bool) -> None:
    ours, theirs = both(choice, dora, quantized)
    assert_same(ours.parameters(), theirs.parameters())
    assert named(ours.trainable_parameters()).keys() == named(theirs.trainable_parameters()).keys()
    assert mx.array_equal(ours(TOKENS), theirs(TOKENS))


@pytest.mark.parametrize(
    ("choice", "options"),
    [
        ("all in the layers", {}),
        ("some and the head", {"dora": True}),
        ("the embedding too", {"quantized": True, "dropout": 0.2}),
        ("the embedding too", {"dora": True, "head": False}),
        ("some", {"dora": True, "quantized": True, "dropout": 0.2}),
        ("all in the layers", {"half": True}),
        ("some", {"dora": True, "half": True, "quantized": True}),
    ],
)
def test_sixteen_steps_are_those_of_mlx_lm(choice: str, options: dict[str, Any]) -> None:
    ours, theirs = both(choice, **options)
    before = ours
    ours = trained(ours, theirs, 16)
    changed = {name for name, array in named(ours.parameters()).items() if array is not named(before.parameters())[name]}
    assert changed == named(ours.trainable_parameters()).keys()


@each_dora
@pytest.mark.parametrize("quantized", [False, True], ids=["full", "quantized"])
@pytest.mark.parametrize("dequantize", [False, True])
def test_the_fused_model_is_that_of_mlx_lm(dora: bool, quantized: bool, dequantize: bool) -> None:
    ours, theirs = both(dora=dora, quantized=quantized)
    ours = trained(ours, theirs, 2)
    fused = fl.fuse(ours, dequantize)
    layers = [(name, module.fuse(dequantize)) for name, module in theirs.named_modules() if hasattr(module, "fuse")]
    theirs.update_modules(tree_unflatten(layers))
    assert_same(fused.parameters(), theirs.parameters())
    assert mx.allclose(fused(TOKENS), ours(TOKENS), atol=1e-3 if not quantized or dequantize else 1)
    assert not named(fused.trainable_parameters())
    if not quantized:
        assert fl.tree.structure(fused) == fl.tree.structure(built(fl.nn).freeze())


class OurOuter(fl.Module):
    model: Any
    lm_head: Any

    @property
    def layers(self) -> Any:
        return self.model.layers


class TheirOuter(mlx.nn.Module):
    def __init__(self, model: Any, lm_head: Any) -> None:
        super().__init__()
        self.model, self.lm_head = model, lm_head

    @property
    def layers(self) -> Any:
        return self.model.layers


@pytest.mark.parametrize("keys", [None, [*ATTENTION, "lm_head", "model.embed_tokens"]])
def test_twelve_layers_inside_another_module_are_drawn_in_the_order_of_mlx_lm(keys: list[str] | None) -> None:
    ours, theirs = (built(nn, head=False) for nn in (fl.nn, mlx.nn))
    ours = ours.replace(layers=[built(fl.nn, seed).layers[0] for seed in range(12)])
    theirs.layers = [built(mlx.nn, seed).layers[0] for seed in range(12)]
    ours, theirs = OurOuter(ours, fl.nn.Linear(2, 2)), TheirOuter(theirs, mlx.nn.Linear(2, 2))
    theirs.lm_head.update(ours.lm_head.parameters())
    mx.random.seed(1)
    theirs.freeze()
    tuner.linear_to_lora_layers(theirs, 12, {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys})
    where = [name for name, module in theirs.named_modules() if "lora_a" in module]
    mx.random.seed(1)
    ours = fl.lora(ours, where, rank=4, scale=2.0)
    assert_same(ours.parameters(), theirs.parameters())


def test_a_block_that_stands_twice_gets_two_adapters() -> None:
    model = built(fl.nn)
    model = model.replace(layers=[model.layers[0]] * 2)
    first, second = fl.lora(model, "**.q_proj").layers
    assert first.self_attn["q_proj"].linear.weight is second.self_attn["q_proj"].linear.weight
    assert not mx.array_equal(first.self_attn["q_proj"].lora_a, second.self_attn["q_proj"].lora_a)


def test_the_models_of_fl_nn_can_be_adapted() -> None:
    model = fl.nn.Transformer(8, 2, 1, 1, 16).eval()
    x = mx.random.normal((1, 3, 8))
    adapted = fl.lora(model, fl.nn.Linear)
    assert mx.allclose(adapted(x, x, None, None, None), model(x, x, None, None, None), atol=1e-6)
    assert fl.tree.structure(fl.fuse(adapted)) == fl.tree.structure(model.freeze())


def test_a_jitted_step_trains_adapters_of_a_quantized_model() -> None:
    model = fl.lora(built(fl.nn, quantized=True), "layers.*.self_attn.*", rank=4)
    opt = fl.optim.AdamW(1e-2)

    def step(model: Any, state: Any, tokens: mx.array) -> Any:
        value, grads = fl.value_and_grad(loss)(model, tokens)
        return value, *opt.update(model, grads, state)

    jitted, eager, state = model, model, opt.init(model)
    their_state, fast = state, fl.jit(step)
    for _ in range(3):
        value, jitted, state = fast(jitted, state, TOKENS)
        expected, eager, their_state = step(eager, their_state, TOKENS)
        assert mx.allclose(value, expected, rtol=1e-4)
    assert fast.trace_count == 1


def test_an_adapted_model_is_quantized_as_by_mlx() -> None:
    ours, theirs = both(choice="the embedding too")
    mlx.nn.quantize(theirs, 32, 4)
    quantized = fl.quantize(ours, 32, 4)
    assert_same(quantized.parameters(), theirs.parameters())
    assert mx.array_equal(quantized(TOKENS), theirs(TOKENS))


def test_adapters_side_by_side_share_every_array_of_the_base() -> None:
    base = built(fl.nn)
    arrays = {id(leaf) for leaf in fl.tree.leaves(base)}
    several = [fl.lora(base, fl.nn.Linear, rank=rank, dora=dora) for rank, dora in ((2, False), (4, False), (2, True))]
    for model in several:
        own = [path for path in fl.tree.paths(model) if path.split(".")[-1] in {"lora_a", "lora_b", "m"}]
        others = [leaf for path, leaf in zip(fl.tree.paths(model), fl.tree.leaves(model), strict=True) if path not in own]
        assert {id(leaf) for leaf in others} == arrays
        assert [*named(model.trainable_parameters())] == own
    frozen = base.freeze()
    assert fl.lora(frozen, "lm_head").layers is fl.lora(frozen, "embed_tokens").layers is frozen.layers
    assert named(base.trainable_parameters()).keys() == named(base.parameters()).keys()


def test_a_key_makes_it_pure() -> None:
    base, key = built(fl.nn), mx.random.key(3)
    before = mx.random.state[0].tolist()
    one, other = (fl.lora(base, fl.nn.Linear, key=key) for _ in range(2))
    assert mx.random.state[0].tolist() == before
    assert fl.tree.equal(one, other)
    drawn = [leaf.reshape(-1)[0].item() for path, leaf in named(one.parameters()).items() if "lora_a" in path]
    assert len({*drawn}) == len(drawn)


@pytest.mark.parametrize(
    "where",
    [
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.q_proj.**",
        ["layers.0.self_attn.q_proj.weight", "layers.0.self_attn.q_proj.bias"],
        lambda path, _: path.startswith("layers.0.self_attn.q_proj"),
    ],
)
def test_an_array_stands_for_its_layer(where: Any) -> None:
    model = fl.lora(built(fl.nn), where)
    assert model.at(fl.nn.LoRALinear).paths() == ["layers.0.self_attn.q_proj"]


def test_numbers_of_numpy_are_numbers() -> None:
    model = fl.lora(built(fl.nn), "lm_head", rank=np.int64(3), scale=np.float32(2), dropout=np.float64(0.5))
    assert model.lm_head.lora_a.shape == (64, 3)


def test_a_model_that_is_a_layer() -> None:
    layer = fl.nn.Linear(3, 4)
    adapted = fl.lora(layer, fl.nn.Linear)
    assert adapted.linear.weight is layer.weight  # type: ignore[attr-defined]
    assert fl.tree.equal(fl.fuse(adapted).unfreeze(), layer)


def test_a_model_without_adapters_is_fused_as_it_is() -> None:
    model = built(fl.nn)
    assert fl.fuse(model) is model


def test_a_subclass_of_a_layer_stays_what_it_is() -> None:
    class Own(fl.nn.Linear, init=False):
        pass

    own = Own(3, 4)
    adapted = fl.lora(fl.nn.Sequential(own), Own)
    assert type(adapted.layers[0].linear) is Own
    assert type(fl.fuse(adapted).layers[0]) is Own


def test_adapters_that_are_there_are_as_trainable_as_they_were() -> None:
    model = fl.lora(built(fl.nn), "layers.0.**.q_proj", rank=2)
    both_trained = fl.lora(model, "layers.1.**.q_proj", rank=4)
    assert len(named(both_trained.trainable_parameters())) == 4
    second_alone = fl.lora(model.freeze(), "layers.1.**.q_proj", rank=4)
    assert [*named(second_alone.trainable_parameters())] == [
        "layers.1.self_attn.q_proj.lora_a",
        "layers.1.self_attn.q_proj.lora_b",
    ]


def test_a_name_that_freezes_all_below_does_not_freeze_adapters() -> None:
    model = built(fl.nn).freeze(keys="layers", recurse=False)
    adapted = fl.lora(model, "layers.0.**.q_proj")
    assert len(named(adapted.trainable_parameters())) == 2


@each_dora
@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("lm_head", "linear=Linear(weight=→embed_tokens.weight"),
        ("embed_tokens", "Linear(weight=→embed_tokens.embedding.weight"),
    ],
)
def test_ties_go_by_the_new_paths(where: str, shown: str, dora: bool) -> None:
    tied = built(fl.nn).tie({"lm_head.weight": "embed_tokens.weight"})
    adapted = fl.lora(tied, where, dora=dora)
    assert shown in repr(adapted)
    assert mx.allclose(adapted(TOKENS), tied(TOKENS), atol=1e-5)
    assert fl.tree.leaves(adapted)[0] is tied.embed_tokens.weight
    fused = fl.fuse(adapted)
    assert not named(fused.trainable_parameters())
    assert fl.tree.structure(fused) == fl.tree.structure(built(fl.nn).freeze())


def test_ties_of_what_is_not_adapted_stay() -> None:
    tied = built(fl.nn).tie({"lm_head.weight": "embed_tokens.weight"}).freeze()
    assert fl.tree.structure(fl.fuse(fl.lora(tied, "layers.0.**.q_proj"))) == fl.tree.structure(tied)


def test_ties_of_biases_stay_when_weights_are_merged() -> None:
    model = fl.nn.Sequential(fl.nn.Linear(3, 3), fl.nn.Linear(3, 3)).tie({"layers.1.bias": "layers.0.bias"})
    fused = fl.fuse(fl.lora(model, fl.nn.Linear))
    assert fl.tree.structure(fused) == fl.tree.structure(model.freeze())
    assert fused.layers[1].bias is model.layers[0].bias


@pytest.mark.parametrize("quantized", [False, True])
@each_dora
def test_shapes_alone_are_adapted(quantized: bool, dora: bool) -> None:
    model = built(fl.nn, quantized=quantized)
    where = "layers.*.self_attn.*"
    shapes = fl.lora(fl.eval_shape(lambda: model), where, dora=dora, key=mx.random.key(0))
    expected = fl.lora(model, where, dora=dora, key=mx.random.key(0))
    assert fl.tree.structure(shapes) == fl.tree.structure(expected)
    assert repr(shapes) == repr(expected)
    assert repr(fl.fuse(shapes)) == repr(fl.fuse(expected))


def test_everything_works_on_an_adapted_model(tmp_path: Any) -> None:
    model = fl.lora(built(fl.nn), CHOICES["some"][1], dropout=0.1).eval()
    assert fl.tree.allclose(fl.jit(model)(TOKENS), model(TOKENS), atol=1e-5)
    half = model.astype(mx.bfloat16)
    assert half.at("**.lora_a").get().keys() == model.at("**.lora_a").get().keys()
    fl.save(tmp_path / "model", model)
    assert fl.tree.equal(fl.load(tmp_path / "model", model), model)
    assert len(named(model.unfreeze().trainable_parameters())) == len(named(model.parameters()))


def net() -> Any:
    return built(fl.nn)


def adapted() -> Any:
    return fl.lora(net(), "lm_head")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.lora(3, "x"), TypeError, "fl.lora takes a model first, and was given builtins.int"),  # type: ignore[type-var]
        (lambda: fl.lora(net()), TypeError, "fl.lora takes the layers to adapt as where, such as '**.q_proj' or fl.nn.Linear"),
        (
            lambda: fl.lora(net(), keys=["q_proj"], rank=2),
            TypeError,
            "takes no keys: give the layers as where, such as '**.q",
        ),
        (lambda: fl.lora(net(), 3), TypeError, "can't select by 3"),  # type: ignore[arg-type]
        (
            lambda: fl.lora(net(), "lm_haed"),
            LookupError,
            "'lm_haed' selects nothing in this OurModel. The nearest paths are",
        ),
        (lambda: fl.lora(net(), "lm_head", rank=0), ValueError, "fl.lora takes a positive int as rank, and was given 0"),
        (lambda: fl.lora(net(), "lm_head", rank=1.5), ValueError, "fl.lora takes a positive int as rank, and was given 1.5"),
        (lambda: fl.lora(net(), "lm_head", rank=mx.array(2)), ValueError, "takes a positive int as rank, and was given i32[]"),
        (lambda: fl.lora(net(), "lm_head", scale=None), ValueError, "fl.lora takes a number as scale, and was given None"),
        (lambda: fl.lora(net(), "lm_head", dropout=1), ValueError, "takes a number >= 0 and < 1 as dropout, and was given 1"),
        (lambda: fl.lora(net(), "lm_head", dora=1), TypeError, "dora is True or False, and was given as 1"),
        (lambda: fl.lora(net(), "lm_head", key=3), TypeError, "key must be an array of two uint32 numbers"),
        (
            lambda: fl.lora(net(), "layers.0.norm"),
            ValueError,
            "fl.lora can't adapt layers.0.norm, a RMSNorm. It adapts Linear, QuantizedLinear, Embedding, QuantizedEmbedding",
        ),
        (
            lambda: fl.lora(net(), "layers.0"),
            ValueError,
            "can't adapt layers.0, an OurBlock. It adapts Linear, QuantizedLinear, Embedding, QuantizedEmbedding. Select "
            "layers in it: 'layers.0.self_attn.q_proj', ",
        ),
        (
            lambda: fl.lora(fl.nn.Sequential(fl.nn.QQLinear(32, 32), fl.nn.Conv1d(2, 3, 4)), "layers.0"),
            ValueError,
            "fl.lora can't adapt layers.0, a QQLinear. It adapts Linear",
        ),
        (
            lambda: fl.lora(fl.nn.Sequential(fl.nn.relu), "layers.0"),
            ValueError,
            "adapt the model, a Sequential, which holds layers.0",
        ),
        (
            lambda: fl.lora(fl.from_mlx(mlx.nn.Sequential(mlx.nn.Conv1d(2, 2, 1))), "layers.0"),
            ValueError,
            "can't adapt layers.0, a Conv1d. It adapts Linear, QuantizedLinear, Embedding, QuantizedEmbedding",
        ),
        (lambda: fl.lora(net(), "layers"), ValueError, "can't adapt the model, an OurModel, which holds layers. It adapts"),
        (
            lambda: fl.lora(net(), "**"),
            ValueError,
            "fl.lora can't adapt layers.0.norm, a RMSNorm, which holds layers.0.norm.weight. It adapts Linear",
        ),
        (
            lambda: fl.lora(adapted(), "lm_head"),
            ValueError,
            "lm_head is adapted already, as a LoRALinear: adapt the model that this one was made from, or one in which fl.fuse",
        ),
        (lambda: fl.lora(adapted(), fl.nn.Linear), ValueError, "lm_head is adapted already, as a LoRALinear"),
        (lambda: fl.lora(adapted(), "lm_head.linear.weight"), ValueError, "lm_head is adapted already, as a LoRALinear"),
        (
            lambda: fl.lora(fl.quantize(net()), "embed_tokens", dora=True),
            ValueError,
            "DoRA can't adapt embed_tokens, a QuantizedEmbedding: leave it out, or give dora=False",
        ),
        (lambda: fl.fuse([net()]), TypeError, "fl.fuse takes a model first, and was given builtins.list"),  # type: ignore[type-var]
        (lambda: fl.fuse(net(), dequantize="yes"), TypeError, "dequantize is True or False, and was given as 'yes'"),
    ],
)
def test_what_does_not_fit_is_told(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
