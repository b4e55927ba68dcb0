"""Adapters in models of mlx-lm that were wrapped and not converted, against mlx-lm's tuner."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import pytest
from interop import architectures
from mlx.utils import tree_flatten, tree_unflatten
from tuned import assert_same, built, named

import frostleaf as fl
from frostleaf.interop import twins

tuner = pytest.importorskip("mlx_lm.tuner.utils")
lora = pytest.importorskip("mlx_lm.tuner.lora")
dora = pytest.importorskip("mlx_lm.tuner.dora")

TOKENS = mx.array([[1, 2, 3, 4, 5, 6, 7]])
CONFIG = {"rank": 4, "scale": 2.0, "dropout": 0.0}
# Architecture, whether it is quantized, whether it is DoRA, what mlx-lm adapts, and the same as a selection.
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
EXPERTS = ["mlp.switch_mlp.gate_proj", "mlp.switch_mlp.down_proj", "self_attn.q_proj"]
CASES: dict[str, tuple[str, bool, bool, list[str], list[str]]] = {
    "dense": ("llama", False, False, ATTENTION, ["model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.v_proj"]),
    "quantized": ("llama", True, False, ATTENTION, ["model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.v_proj"]),
    "dora": ("llama", False, True, ATTENTION, ["model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.v_proj"]),
    "head": ("llama", False, False, ["lm_head", "model.embed_tokens"], ["lm_head", "model.embed_tokens"]),
    "dora of the embedding": ("llama", False, True, ["model.embed_tokens"], ["model.embed_tokens"]),
    "experts": ("qwen3_moe", False, False, EXPERTS, [f"model.layers.*.{name}" for name in EXPERTS]),
    "quantized experts": ("qwen3_moe", True, False, EXPERTS[1:2], [f"model.layers.*.{name}" for name in EXPERTS[1:2]]),
    "a way of its own": ("afm7", False, False, ["self_attn.qkv_proj"], ["model.layers.*.self_attn.qkv_proj"]),
}
each_case = pytest.mark.parametrize("case", CASES)


def quantizes(_: str, module: Any) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] == 32


def base_of(case: str) -> Any:
    """Return the model of mlx-lm, with the same numbers each time."""
    name, quantized, *_ = CASES[case]
    mx.random.seed(0)
    model = architectures.build(name).eval()
    if quantized:
        nn.quantize(model, group_size=32, bits=4, class_predicate=quantizes)
    return model


def adapted_by_mlx_lm(case: str, **options: Any) -> Any:
    *_, is_dora, keys, _ = CASES[case]
    model = base_of(case)
    model.freeze()
    mx.random.seed(1)
    tuner.linear_to_lora_layers(model, len(model.layers), {**CONFIG, "keys": keys, **options}, use_dora=is_dora)
    return model


def adapted(case: str, base: Any = None, **options: Any) -> Any:
    *_, is_dora, _, where = CASES[case]
    base = fl.from_mlx(base_of(case)) if base is None else base
    mx.random.seed(1)
    return fl.lora(base, where, **{**CONFIG, **options}, dora=is_dora)


def filled(model: Any) -> Any:
    """Return a model in which no adapter leaves what is computed as it is."""
    return model.at(lambda path, _: ".lora_b" in path).apply(
        lambda array: 0.1 * mx.random.normal(array.shape, key=mx.random.key(array.size))
    )


def loss(model: Any, tokens: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")


def merged(model: Any, dequantize: bool = False) -> Any:
    layers = [(name, module.fuse(dequantize)) for name, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(layers))
    return model


@each_case
def test_a_wrapped_model_is_adapted_as_mlx_lm_does_it(case: str) -> None:
    base = fl.from_mlx(base_of(case))
    ours, theirs = adapted(case, base), adapted_by_mlx_lm(case)
    assert_same(ours.parameters(), theirs.parameters())
    assert named(ours.trainable_parameters()).keys() == named(theirs.trainable_parameters()).keys()
    assert mx.array_equal(ours(TOKENS), theirs(TOKENS))
    assert {id(leaf) for leaf in fl.tree.leaves(base)} < {id(leaf) for leaf in fl.tree.leaves(ours)}


@pytest.mark.parametrize("case", [case for case in CASES if case != "head"])
@pytest.mark.parametrize("incoming", [False, True], ids=["adapted here", "adapted by mlx-lm"])
def test_sixteen_steps_are_those_of_mlx_lm(case: str, incoming: bool) -> None:
    ours = fl.from_mlx(adapted_by_mlx_lm(case, dropout=0.1)) if incoming else adapted(case, dropout=0.1)
    ours, theirs = ours.train(), adapted_by_mlx_lm(case, dropout=0.1).train()
    opt, their_opt = fl.optim.AdamW(1e-2), mlx.optimizers.AdamW(1e-2)
    state, step, their_step = opt.init(ours), fl.value_and_grad(loss), nn.value_and_grad(theirs, loss)
    for seed in range(16):
        mx.random.seed(seed)
        value, grads = step(ours, TOKENS)
        ours, state = opt.update(ours, grads, state)
        mx.random.seed(seed)
        expected, grads = their_step(theirs, TOKENS)
        their_opt.update(theirs, grads)
        assert mx.array_equal(value, expected)
        mx.eval(theirs.parameters(), their_opt.state)
    assert_same(ours.parameters(), theirs.parameters())


def check_architecture(name: str) -> None:
    """Check all layers that mlx-lm adapts of itself in an architecture: drawn, called with enough tokens to sort, and fused."""
    x = mx.array([[*range(40)]])
    try:
        mx.random.seed(0)
        theirs = architectures.build(name).eval()
        ours = fl.from_mlx(theirs)
        mx.eval(theirs(x))
        theirs.freeze()
        mx.random.seed(1)
        tuner.linear_to_lora_layers(theirs, len(theirs.layers), CONFIG)
        mx.eval(theirs(x))
    except Exception as error:
        pytest.skip(f"MLX can't do it here: {error}")
    mx.random.seed(1)
    ours = fl.lora(ours, [path for path, module in theirs.named_modules() if "lora_a" in module], **CONFIG)
    assert_same(ours.trainable_parameters(), theirs.trainable_parameters())
    ours = filled(ours)
    theirs.update(ours.parameters())
    assert_same(ours.parameters(), theirs.parameters())
    assert mx.array_equal(ours(x), theirs(x))
    assert_same(fl.fuse(ours).parameters(), merged(theirs).parameters())


VARIED = ["mixtral", "deepseek_v3", "qwen3_next", "rwkv7", "gpt2", "jamba", "longcat_flash"]


@pytest.mark.parametrize("name", VARIED)
def test_an_architecture(name: str) -> None:
    check_architecture(name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in architectures.names() if name not in VARIED])
def test_every_other_architecture(name: str) -> None:
    check_architecture(name)


@each_case
@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("incoming", [False, True], ids=["adapted here", "adapted by mlx-lm"])
def test_the_fused_model_is_that_of_mlx_lm(case: str, dequantize: bool, incoming: bool) -> None:
    base = fl.from_mlx(base_of(case))
    ours = filled(fl.from_mlx(adapted_by_mlx_lm(case)) if incoming else adapted(case, base))
    theirs = merged(fl.to_mlx(ours), dequantize)
    before = mx.random.state[0].tolist()
    fused = fl.fuse(ours, dequantize)
    assert mx.random.state[0].tolist() == before
    assert_same(fused.parameters(), theirs.parameters())
    assert mx.array_equal(fused(TOKENS), theirs(TOKENS))
    assert not named(fused.trainable_parameters())
    assert not fused.training
    if not incoming:
        of_base = dict(zip(fl.tree.paths(base), fl.tree.leaves(base), strict=True))
        of_fused = dict(zip(fl.tree.paths(fused), fl.tree.leaves(fused), strict=True))
        changed = {path.rpartition(".")[0] for path, leaf in of_fused.items() if of_base[path] is not leaf}
        assert changed == {path.partition(".lora_a")[0] for path in fl.tree.paths(ours) if ".lora_a" in path}
    back = fl.to_mlx(fused)
    assert {type(each) for each in back.modules()} == {type(each) for each in theirs.modules()}


@each_case
def test_a_model_goes_back_with_the_layers_of_mlx_lm(case: str) -> None:
    ours, theirs = filled(adapted(case)), adapted_by_mlx_lm(case)
    back = fl.to_mlx(ours)
    assert [(name, type(each)) for name, each in back.named_modules()] == [
        (name, type(each)) for name, each in theirs.named_modules()
    ]
    assert_same(back.trainable_parameters(), ours.trainable_parameters())
    assert mx.array_equal(back(TOKENS), ours(TOKENS))
    theirs.update(ours.parameters())
    assert_same(merged(back).parameters(), merged(theirs).parameters())


def test_mlx_lm_takes_the_layers_out_again() -> None:
    ours = filled(adapted("dense"))
    back = tuner.remove_lora_layers(fl.to_mlx(ours))
    assert_same(back.parameters(), base_of("dense").parameters())
    assert all(type(each) is not lora.LoRALinear for each in back.modules())


def test_mlx_lm_generates_with_the_result() -> None:
    generate = pytest.importorskip("mlx_lm.generate")
    ours, theirs = filled(adapted("dense")), adapted_by_mlx_lm("dense")
    theirs.update(ours.parameters())
    tokens = [
        [token for token, _ in generate.generate_step(TOKENS[0], model, max_tokens=4)] for model in (fl.to_mlx(ours), theirs)
    ]
    assert tokens[0] == tokens[1]


@each_case
def test_layers_of_mlx_lm_are_converted(case: str) -> None:
    wrapped = filled(fl.from_mlx(adapted_by_mlx_lm(case)))
    ours = fl.convert(wrapped)
    expected = adapted_by_mlx_lm(case)
    expected.update(wrapped.parameters())
    assert mx.array_equal(wrapped(TOKENS), expected(TOKENS))
    assert mx.array_equal(ours(TOKENS), expected(TOKENS))
    assert_same(ours.parameters(), expected.parameters())
    assert_same(ours.trainable_parameters(), expected.trainable_parameters())
    names = {type(each).__name__ for _, each in ours.named_modules() if "lora_a" in each}
    natives = {type(each).__name__ for _, each in ours.named_modules() if isinstance(each, fl.nn.LoRALinear | fl.nn.DoRALinear)}
    assert natives == names & {"LoRALinear", "DoRALinear"}
    back = fl.to_mlx(ours)
    assert {type(each) for each in back.modules()} == {type(each) for each in expected.modules()}


@each_case
def test_converted_layers_are_fused_and_saved_like_those_that_came_in(case: str, tmp_path: Path) -> None:
    wrapped = filled(fl.from_mlx(adapted_by_mlx_lm(case)))
    ours = fl.convert(wrapped)
    assert_same(fl.fuse(ours).parameters(), fl.fuse(wrapped).parameters())
    for name, model in ("wrapped", wrapped), ("converted", ours):
        fl.save_adapters(model, tmp_path / name)
    for file in "adapters.safetensors", "adapter_config.json":
        assert (tmp_path / "wrapped" / file).read_bytes() == (tmp_path / "converted" / file).read_bytes()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: lora.LoRALinear(4, 3, r=2, dropout=0.1), "LoRALinear"),
        (lambda: dora.DoRALinear(4, 3, r=2), "DoRALinear"),
        (lambda: lora.LoRAEmbedding(4, 3, r=2), "LoRAEmbedding"),
        (lambda: dora.DoRAEmbedding(4, 3, r=2), "DoRAEmbedding"),
    ],
)
def test_the_twins_are_exact(layer: Any, name: str) -> None:
    theirs = layer()
    ours = fl.convert(fl.from_mlx(theirs))
    assert type(ours) is getattr(fl.nn, name)
    back = fl.to_mlx(ours)
    assert type(back) is type(theirs)
    assert vars(back) == vars(theirs)
    assert [*back] == [*theirs]
    assert fl.tree.equal(fl.from_mlx(back), fl.from_mlx(theirs))


@pytest.mark.parametrize("case", [case for case in CASES if case != "a way of its own"])  # whose lists mlx-lm refuses
@pytest.mark.parametrize("incoming", [False, True], ids=["adapted here", "adapted by mlx-lm"])
def test_mlx_lm_reads_what_was_saved(case: str, incoming: bool, tmp_path: Path) -> None:
    ours = filled(fl.from_mlx(adapted_by_mlx_lm(case, dropout=0.1)) if incoming else adapted(case, dropout=0.1))
    fl.save_adapters(ours, tmp_path)
    expected = dict(tree_flatten(fl.to_mlx(ours).trainable_parameters()))
    saved = mx.load(str(tmp_path / "adapters.safetensors"))
    assert saved.keys() == expected.keys()
    assert all(mx.array_equal(saved[name], expected[name]) for name in saved)
    parameters = json.loads((tmp_path / "adapter_config.json").read_text())["lora_parameters"]
    assert {name: parameters[name] for name in CONFIG} == {**CONFIG, "dropout": 0.1}
    theirs = tuner.load_adapters(base_of(case), str(tmp_path)).eval()
    assert_same(theirs.parameters(), ours.parameters())
    assert mx.array_equal(theirs(TOKENS), ours.eval()(TOKENS))


@each_case
def test_what_mlx_lm_saved_is_read(case: str, tmp_path: Path) -> None:
    *_, is_dora, keys, _ = CASES[case]
    theirs = adapted_by_mlx_lm(case)
    theirs.update(filled(fl.from_mlx(theirs)).parameters())
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), dict(tree_flatten(theirs.trainable_parameters())))
    config = {"num_layers": 2, "lora_parameters": {**CONFIG, "keys": keys}, "fine_tune_type": "dora" if is_dora else "lora"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = fl.from_mlx(base_of(case))
    ours = fl.load_adapters(base, tmp_path)
    assert_same(ours.parameters(), theirs.parameters())
    assert_same(ours.trainable_parameters(), theirs.trainable_parameters())
    assert mx.array_equal(ours(TOKENS), theirs(TOKENS))
    assert {id(leaf) for leaf in fl.tree.leaves(base)} < {id(leaf) for leaf in fl.tree.leaves(ours)}


def test_what_the_trainer_of_mlx_lm_leaves_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, utils = pytest.importorskip("mlx_lm.tuner.trainer"), pytest.importorskip("mlx_lm.utils")
    base = fl.from_mlx(base_of("dense"))
    theirs = fl.to_mlx(adapted("dense", base))
    data = [([1, 2, 3, 4, 5], 0)] * 4
    file = tmp_path / "adapters.safetensors"
    args = trainer.TrainingArgs(batch_size=2, iters=3, val_batches=1, max_seq_length=32, adapter_file=str(file))
    trainer.train(theirs, mlx.optimizers.Adam(1e-2), data, data, args=args)
    config = {"num_layers": 2, "lora_parameters": {**CONFIG, "keys": ATTENTION}, "fine_tune_type": "lora", "iters": 3}
    utils.save_config(config, tmp_path / "adapter_config.json")
    capsys.readouterr()
    ours = fl.load_adapters(base, tmp_path)
    assert_same(ours.parameters(), theirs.parameters())
    assert mx.array_equal(ours(TOKENS), theirs.eval()(TOKENS))
    assert not mx.array_equal(ours(TOKENS), base(TOKENS))


@pytest.mark.parametrize("case", ["dense", "experts"])
def test_adapters_of_one_base_stand_side_by_side(case: str) -> None:
    base = fl.from_mlx(base_of(case))
    variants = [filled(adapted(case, base, rank=rank)) for rank in (2, 4)]
    of_base = dict(zip(fl.tree.paths(base), fl.tree.leaves(base), strict=True))
    for each in variants:
        leaves = dict(zip(fl.tree.paths(each), fl.tree.leaves(each), strict=True))
        assert all(leaves[path.replace(".linear.", ".")] is leaf for path, leaf in leaves.items() if path in of_base)
        shared = [leaf for path, leaf in leaves.items() if of_base.get(path.replace(".linear.", ".")) is leaf]
        assert len(shared) == len(of_base)
    outs = [base(TOKENS), *[each(TOKENS) for each in variants]]
    assert not mx.array_equal(outs[1], outs[0])
    assert not mx.array_equal(outs[1], outs[2])
    assert mx.array_equal(base(TOKENS), base_of(case)(TOKENS))


@pytest.mark.parametrize("case", ["dense", "quantized", "experts"])
def test_everything_works_on_an_adapted_model(case: str, tmp_path: Path) -> None:
    model = filled(adapted(case))
    assert fl.tree.allclose(fl.jit(model)(TOKENS), model(TOKENS), atol=1e-5)
    fl.save(tmp_path / "model", model)
    assert fl.tree.equal(fl.load(tmp_path / "model", model), model)
    again = fl.from_mlx(fl.to_mlx(model))
    assert_same(again.parameters(), model.parameters())
    assert fl.tree.equal(fl.convert(again), fl.convert(model))
    with_key = [adapted(case, key=mx.random.key(3)) for _ in range(2)]
    assert fl.tree.equal(*with_key)
    assert not fl.tree.equal(with_key[0], adapted(case))


@pytest.mark.parametrize("case", ["dense", "experts"])
def test_one_trace_trains_all_adapters_of_a_base(case: str) -> None:
    base = fl.from_mlx(base_of(case))
    optimizer = fl.optim.AdamW(1e-2)

    @fl.jit
    def step(model: Any, state: Any, tokens: mx.array) -> Any:
        value, grads = fl.value_and_grad(loss)(model, tokens)
        return *optimizer.update(model, grads, state), value

    for seed in range(2):
        before = adapted(case, base, key=mx.random.key(seed))
        after, state, first = step(before, optimizer.init(before), TOKENS)
        *_, second = step(after, state, TOKENS)
        assert second < first
        pairs = zip(fl.tree.paths(after), fl.tree.leaves(before), fl.tree.leaves(after), strict=True)
        assert all((one is other) == ("lora_" not in path) for path, one, other in pairs)
    assert step.trace_count == 1


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapted_model_of_frostleaf_goes_to_mlx_and_back(dora: bool) -> None:
    ours = filled(fl.lora(built(fl.nn), ["layers.*.self_attn.q_proj", "embed_tokens"], dora=dora))
    back = fl.to_mlx(ours)
    assert mx.array_equal(back(TOKENS[0]), ours(TOKENS[0]))
    kinds = {type(each).__module__ for each in back.modules() if "lora_a" in each}
    assert kinds == {f"mlx_lm.tuner.{'dora' if dora else 'lora'}"}
    assert_same(back.trainable_parameters(), ours.trainable_parameters())
    assert fl.tree.equal(fl.from_mlx(back), ours)


@pytest.mark.parametrize("case", ["dense", "experts"])
def test_shapes_alone_are_adapted(case: str) -> None:
    base = fl.from_mlx(base_of(case))
    shapes = adapted(case, fl.eval_shape(lambda: base))
    assert fl.tree.structure(shapes) == fl.tree.structure(adapted(case, base))
    assert fl.tree.structure(fl.fuse(shapes)) == fl.tree.structure(fl.fuse(adapted(case, base)))


def test_a_subclass_of_a_layer_is_adapted_as_it_is() -> None:
    class Louder(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            return 2 * super().__call__(x)

    model = nn.Sequential(Louder(4, 3), nn.Linear(3, 2))
    for bias in True, False:
        model.layers[0] = Louder(4, 3, bias=bias)
        ours = fl.lora(fl.from_mlx(model), "layers.0")
        assert type(fl.to_mlx(ours).layers[0].linear) is Louder
        x = mx.ones((5, 4))
        assert mx.array_equal(ours(x), model(x))
        assert mx.array_equal(fl.fuse(ours)(x), model(x))
        assert fl.fuse(ours).layers[0].bias is ours.layers[0].linear.bias if bias else "bias" not in fl.fuse(ours).layers[0]


def test_without_mlx_lm_modules_that_compute_the_same_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    twins.tuner_class.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mlx_lm.tuner.lora", None)
        ours = fl.lora(fl.from_mlx(nn.Sequential(nn.Linear(4, 3))), "layers.0")
        ours = filled(ours)
        back = fl.to_mlx(ours)
    twins.tuner_class.cache_clear()
    x = mx.ones((5, 4))
    assert mx.array_equal(back(x), ours(x))
    assert_same(back.trainable_parameters(), ours.trainable_parameters())
    assert fl.tree.equal(fl.from_mlx(back), ours)


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("kind", ["Linear", "Embedding"])
def test_a_subclass_of_a_quantized_layer_is_adapted_as_it_is(kind: str, dequantize: bool) -> None:
    own = type("Own", (getattr(nn, f"Quantized{kind}"),), {})(64, 64)
    adapter = getattr(lora, f"LoRA{kind}").from_base(own)
    x = mx.array([[1, 2]]) if kind == "Embedding" else mx.ones((2, 64))
    ours = filled(fl.lora(fl.from_mlx(nn.Sequential(own)), "layers.0"))
    adapter.update(ours.layers[0].parameters())
    assert type(fl.to_mlx(ours).layers[0][kind.lower()]) is type(own)
    assert mx.array_equal(ours(x), adapter(x))
    assert_same(fl.fuse(ours, dequantize).layers[0].parameters(), adapter.fuse(dequantize).parameters())
    assert mx.array_equal(fl.fuse(ours, dequantize)(x), adapter.fuse(dequantize)(x))


def test_tied_modules_stay_one() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    ours = fl.lora(fl.from_mlx(model), "layers.0")
    x = mx.ones((5, 4))
    assert mx.array_equal(ours(x), model(x))
    assert ours.layers[2].weight is ours.layers[0].linear.weight


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fl.lora(adapted("dense"), "model.layers.0.self_attn.q_proj"), "is adapted already, as a LoRALinear"),
        (lambda: fl.lora(fl.from_mlx(adapted_by_mlx_lm("experts")), EXPERTS_AT_1), "is adapted already, as a LoRASwitchLinear"),
        (lambda: fl.lora(fl.from_mlx(base_of("experts")), EXPERTS_AT_1, dora=True), "DoRA can't adapt model.layers.1"),
        (lambda: fl.lora(fl.from_mlx(base_of("dense")), "model.norm"), "can't adapt model.norm, a RMSNorm. It adapts Linear, "),
        (
            lambda: fl.lora(fl.from_mlx(base_of("dense")), "model.norm"),
            "Embedding, SwitchLinear, QuantizedSwitchLinear",
        ),
    ],
)
def test_what_does_not_fit_is_told(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        call()


@pytest.mark.parametrize("keys", [None, ATTENTION])
def test_functions_of_mlx_lm_that_change_a_model_in_place_say_what_to_write(keys: Any, tmp_path: Path) -> None:
    base = fl.from_mlx(base_of("dense"))
    with pytest.raises((TypeError, AttributeError), match=r"fl\.lora"):
        tuner.linear_to_lora_layers(base, 2, {**CONFIG, "keys": keys})
    ours = adapted("dense", base)
    fl.save_adapters(ours, tmp_path)
    with pytest.raises(TypeError, match=r"mlx_lm\.tuner\.utils calls Module\.named_modules .* fl\.load_adapters"):
        tuner.load_adapters(base, str(tmp_path))
    with pytest.raises(TypeError, match=r"without adapters, model is as it was"):
        tuner.remove_lora_layers(ours)


@pytest.mark.parametrize("case", ["dense", "quantized"])
def test_functions_of_mlx_lm_that_count_arrays_say_what_to_write(case: str, capsys: Any) -> None:
    utils = pytest.importorskip("mlx_lm.utils")
    ours = adapted(case, fl.from_mlx(base_of(case)))
    for count in (utils.compute_bits_per_weight, utils.get_total_parameters, tuner.print_trainable_parameters):
        with pytest.raises(TypeError, match=r"mlx_lm\.utils counts arrays .* Give it fl\.to_mlx\(model\)"):
            count(ours)
    tuner.print_trainable_parameters(fl.to_mlx(ours))
    found = capsys.readouterr().out
    tuner.print_trainable_parameters(adapted_by_mlx_lm(case))
    assert found == capsys.readouterr().out
    assert "Trainable parameters" in found


@pytest.mark.parametrize("function", [lambda model: fl.lora(model, "x"), fl.fuse, lambda model: fl.save_adapters(model, "x")])
def test_a_model_that_is_not_wrapped_is_told(function: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a model first, and was given mlx\..*Linear: give it fl\.from_mlx\(model\)"):
        function(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("target_modules", r"target_modules: give the layers as where, such as '\*\*\.q_proj'"),
        ("lora_alpha", "lora_alpha: give scale=alpha / rank"),
        ("r", "takes no r: give it as rank"),
        ("ranks", "takes no ranks. Its arguments are model, where, rank"),
    ],
)
def test_arguments_of_other_libraries_say_what_to_write(name: str, advice: str) -> None:
    with pytest.raises(TypeError, match=advice):
        fl.lora(fl.nn.Sequential(fl.nn.Linear(2, 2)), "layers.0", **{name: 8})


EXPERTS_AT_1 = "model.layers.1.mlp.switch_mlp.down_proj"
