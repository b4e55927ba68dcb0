"""Models of mlx-lm, tiny and with random weights: as trees they compute what they compute in MLX."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop import architectures
from interop.checks import CHECKS, SLOW_CHECKS, TOKENS, arrays, same

import frostleaf as fl

pytestmark = pytest.mark.skipif(not architectures.names(), reason="mlx-lm is not installed")

# Chosen for their differences: dense, mixtures of experts, state spaces, hybrids, sliding windows, latent attention, towers.
EVERY_DAY = [
    "llama", "qwen3", "gemma2", "gemma3_text", "gemma3n", "phi3", "cohere2", "olmo2", "starcoder2", "stablelm", "gpt2",
    "gpt_neox", "mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3", "mamba", "mamba2", "rwkv7", "recurrent_gemma", "lfm2",
    "qwen3_next", "falcon_h1", "jamba", "mistral3", "openelm", "minicpm", "apertus",
]  # fmt: skip


def check(name, what, tmp_path):
    def build():
        mx.random.seed(0)
        return architectures.build(name).eval()

    try:
        mx.eval(build()(mx.array(TOKENS)))
    except RuntimeError as error:
        if "No Metal back-end" not in str(error):
            raise
        pytest.skip(f"MLX can't run it here: {error}")
    (CHECKS | SLOW_CHECKS)[what](build, *[tmp_path] * (what == "files"))


@pytest.mark.parametrize("name", EVERY_DAY)
def test_an_architecture(name, tmp_path):
    for what in CHECKS:
        check(name, what, tmp_path)


@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek_v2", "mamba2", "lfm2", "gemma3_text"])
def test_a_jitted_step_of_an_architecture(name, tmp_path):
    check(name, "jitted step", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in architectures.names() if name not in EVERY_DAY])
def test_every_other_architecture(name, tmp_path):
    for what in CHECKS | SLOW_CHECKS:
        check(name, what, tmp_path)


def build(name="llama"):
    mx.random.seed(0)
    return architectures.build(name).eval()


def test_quantized():
    model = build()
    nn.quantize(model, group_size=32, bits=4, class_predicate=lambda _, m: isinstance(m, nn.Linear) and m.weight.shape[1] == 32)
    tree = fl.from_mlx(model)
    x = mx.array(TOKENS)
    assert same(tree(x), model(x))
    half = tree.astype(mx.float16)
    assert half.layers[0].self_attn.q_proj.scales.dtype == mx.float16
    assert half.layers[0].self_attn.q_proj.weight.dtype == mx.uint32
    assert same(fl.to_mlx(tree)(x), model(x))


def test_lora():
    tuner = pytest.importorskip("mlx_lm.tuner.utils")
    model = build()
    model.freeze()
    tuner.linear_to_lora_layers(model, 2, {"rank": 4, "scale": 10.0, "dropout": 0.0})
    tree = fl.from_mlx(model)
    x = mx.array(TOKENS)

    def loss(model, x):
        return model(x).square().mean()

    value, grads = nn.value_and_grad(model, loss)(model, x)
    ours, tree_grads = fl.value_and_grad(loss)(tree, x)
    assert same(ours, value)
    assert same(tree_grads, grads)
    assert [*arrays(tree)] == [*arrays(model)]
    assert all("lora" in path for path in fl.tree.paths(tree_grads))


def test_gradient_checkpointing():
    trainer = pytest.importorskip("mlx_lm.tuner.trainer")
    model = build()
    expected = fl.value_and_grad(lambda tree, x: tree(x).square().mean())(fl.from_mlx(model), mx.array(TOKENS))
    kind, call = type(model.layers[0]), type(model.layers[0]).__call__
    try:
        trainer.grad_checkpoint(model.layers[0])
        tree = fl.from_mlx(model)
        found = fl.value_and_grad(lambda tree, x: tree(x).square().mean())(tree, mx.array(TOKENS))
        assert same(found, expected)
        assert same(tree(mx.array(TOKENS)), model(mx.array(TOKENS)))
    finally:
        kind.__call__ = call


def test_generating():
    generate = pytest.importorskip("mlx_lm.generate")
    model, prompt = build(), mx.array([1, 2, 3])
    expected = [int(token) for token, _ in generate.generate_step(prompt, model, max_tokens=5)]
    tree = fl.from_mlx(build())
    assert [int(token) for token, _ in generate.generate_step(prompt, tree, max_tokens=5)] == expected
    assert [int(token) for token, _ in generate.generate_step(prompt, fl.to_mlx(tree), max_tokens=5)] == expected


def test_sanitizing():
    model = build("gemma3_text")
    tree = fl.from_mlx(model)
    weights = {name: value for name, value in arrays(model).items() if not name.startswith("lm_head")}
    with pytest.warns(fl.UncollectedStateWarning, match=r"Model.sanitize changed .*, and nobody collects it"):
        tree.sanitize(dict(weights))
    _, tied = fl.stateful(tree.sanitize, dict(weights))
    model.sanitize(dict(weights))
    assert fl.tree.equal(tied, fl.from_mlx(model))
    assert same(tied(mx.array(TOKENS)), model(mx.array(TOKENS)))
