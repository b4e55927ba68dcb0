"""Modules of other packages, with random weights, where the packages are installed."""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from interop.checks import arrays, close, same
from mlx.utils import tree_flatten

import frostleaf as fl

pytestmark = pytest.mark.filterwarnings("ignore::frostleaf.CapturedArrayWarning")

SOUND, SPECTRUM, IMAGE, PHOTO = (1, 16, 1), (1, 6, 8), (1, 4, 4, 4), (1, 4, 4, 3)


def given(shape: tuple[int, ...]) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(0))


class Case(NamedTuple):
    """How a model is built, and what is done with it, which returns arrays or objects with arrays."""

    package: str
    build: Callable[[Any], Any]
    use: Callable[[Any], Any]


def encodec(package: Any) -> Any:
    sizes = {
        "audio_channels": 1, "num_filters": 4, "kernel_size": 3, "upsampling_ratios": [2, 2], "num_residual_layers": 1,
        "dilation_growth_rate": 2, "compress": 2, "residual_kernel_size": 3, "norm_type": "time_group_norm", "hidden_size": 8,
        "use_causal_conv": True, "trim_right_ratio": 1.0, "num_lstm_layers": 0, "pad_mode": "reflect", "last_kernel_size": 3,
        "codebook_size": 8, "codebook_dim": 8, "sampling_rate": 100, "target_bandwidths": [0.25, 0.5], "normalize": False,
        "chunk_length_s": None, "overlap": None,
    }  # fmt: skip
    return package.EncodecModel(SimpleNamespace(**sizes))


def vocos(package: Any) -> Any:
    features, head = package.MelSpectrogramFeatures(), package.ISTFTHead(8, 1024, 256)
    return package.Vocos(features, package.VocosBackbone(100, 8, 16, 2), head)


def transformer(package: Any) -> Any:
    return package.DiT(package.DiTConfig(hidden_size=16, depth=2, num_heads=2, num_classes=3))


def autoencoder(package: Any) -> Any:
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_groups": 2}
    return package.AutoencoderKL(package.AutoencoderKLConfig(**sizes))


def unet(package: Any) -> Any:
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_groups": 2, "num_heads": 2}
    return package.UNet2D(package.UNet2DConfig(**sizes))


def with_adapters(package: Any) -> Any:
    model = transformer(package)
    package.lora.inject_lora(model, rank=2)
    return model


TIME, LABEL = mx.array([3.0]), mx.array([1])
CASES = {
    "vocos": Case("vocos_mlx.model", vocos, lambda model: model(given((2400,)))),
    "vocos, with embeddings": Case(
        "vocos_mlx.model",
        lambda package: package.VocosBackbone(8, 8, 16, 2, adanorm_num_embeddings=4),
        lambda model: model(given(SPECTRUM), bandwidth_id=LABEL),
    ),
    "encodec": Case("vocos_mlx.encodec", encodec, lambda model: model.encoder(given(SOUND))),
    "encodec, codes": Case(
        "vocos_mlx.encodec", encodec, lambda model: model.quantizer.decode(model.encode(given(SOUND), None, 0.5)[0][0])
    ),
    "transformer": Case("mlx_diffuser", transformer, lambda model: model(given(IMAGE), TIME, LABEL)),
    "adapters": Case("mlx_diffuser", with_adapters, lambda model: model(given(IMAGE), TIME, LABEL)),
    "unet": Case("mlx_diffuser", unet, lambda model: model(given(IMAGE), TIME)),
    "autoencoder": Case("mlx_diffuser", autoencoder, lambda model: model(given(PHOTO))),
    "autoencoder, parts": Case("mlx_diffuser", autoencoder, lambda model: model.decode(model.encode(given(PHOTO)).mode())),
}
# Of these MLX has no gradient.
NO_GRADIENT = {"encodec, codes"}


def found(value: Any) -> list[mx.array]:
    """Return the arrays in a result, those in attributes of its objects included."""
    if isinstance(value, mx.array):
        return [value]
    inside = value if isinstance(value, list | tuple) else [*vars(value).values()]
    return [array for each in inside for array in found(each)]


def loss(case: Case) -> Callable[[Any], mx.array]:
    return lambda model: sum(array.astype(mx.float32).square().mean() for array in found(case.use(model)))


@pytest.fixture(params=CASES)
def case(request):
    case = CASES[request.param]
    package = pytest.importorskip(case.package)

    def build(_=None):
        mx.random.seed(0)
        return case.build(package).eval()

    return case._replace(build=build)


def test_what_it_computes(case):
    model, tree = case.build(), fl.from_mlx(case.build())
    expected = found(case.use(model))
    for each in (tree, tree, fl.convert(tree), fl.to_mlx(tree), fl.to_mlx(fl.convert(tree))):
        assert same(found(case.use(each)), expected)
    half, other = tree.astype(mx.float16), case.build()
    other.set_dtype(mx.float16)
    assert same(half, fl.from_mlx(other))
    assert same(found(case.use(half)), found(case.use(other)))


def test_what_it_is(case, tmp_path):
    model, tree = case.build(), fl.from_mlx(case.build())
    assert fl.tree.equal(tree, fl.from_mlx(case.build()))
    assert [*arrays(tree)] == [*arrays(model)]
    assert same(arrays(tree), arrays(model))
    for edit in (lambda each: each.freeze(), lambda each: each.freeze().unfreeze(), lambda each: each.train()):
        assert fl.tree.equal(edit(tree), fl.from_mlx(edit(case.build())))
    back = fl.to_mlx(tree)
    assert (type(back), repr(back)) == (type(model), repr(model))
    assert fl.tree.equal(fl.from_mlx(back), tree)
    assert fl.tree.equal(fl.from_mlx(fl.to_mlx(fl.convert(tree))), tree)
    name = fl.tree.paths(tree)[0]
    assert [change.path for change in fl.tree.diff(tree, tree.at(name).apply(lambda array: array + 1))] == [name]
    fl.save(tmp_path / "tree", tree)
    zeros = fl.tree.map(mx.zeros_like, tree)
    assert fl.tree.equal(fl.load(tmp_path / "tree", like=zeros), tree)
    model.save_weights(str(tmp_path / "weights.safetensors"))
    assert fl.tree.equal(zeros.load_weights(tmp_path / "weights.safetensors"), tree)


@pytest.mark.parametrize("case", [name for name in CASES if name not in NO_GRADIENT], indirect=True)
def test_how_it_learns(case):
    model, tree = case.build().train(), fl.from_mlx(case.build().train())
    value, grads = nn.value_and_grad(model, loss(case))(model)
    ours, tree_grads = fl.value_and_grad(loss(case))(tree)
    assert same(ours, value)
    theirs = dict(tree_flatten(grads))
    assert arrays(tree_grads).keys() == theirs.keys()
    assert all(same(grad, theirs[name]) for name, grad in arrays(tree_grads).items())
    opt = fl.optim.AdamW(1e-2)
    optim.AdamW(1e-2).update(model, grads)
    after, _ = opt.update(tree, tree_grads, opt.init(tree))
    assert same(arrays(after), arrays(model))
    assert same(found(case.use(after)), found(case.use(model)))
    assert same(found(case.use(tree)), found(case.use(case.build().train())))


def test_what_jit_makes_of_it(case):
    trees = [fl.from_mlx(case.build()) for _ in range(2)]
    call = fl.jit(lambda tree: found(case.use(tree)))
    for tree in trees:
        assert close(call(tree), found(case.use(tree)))
    assert call.trace_count == 1


def test_a_jitted_step_of_training():
    package = pytest.importorskip("mlx_diffuser")
    tree, opt = fl.from_mlx(with_adapters(package)), fl.optim.AdamW(1e-2)
    base, state = tree.blocks[0].attn.q_proj.linear, opt.init(tree)

    @fl.jit
    def step(tree, state, x, time, label):
        value, grads = fl.value_and_grad(lambda tree: (tree(x, time, label) - x).square().mean())(tree)
        return value, *opt.update(tree, grads, state)

    values = []
    for _ in range(5):
        value, tree, state = step(tree, state, given(IMAGE), TIME, LABEL)
        values.append(value.item())
    assert step.trace_count == 1
    assert values == sorted(values, reverse=True)
    assert same(tree.blocks[0].attn.q_proj.linear, base)
    merged = package.merge_lora(fl.to_mlx(tree))
    assert close(merged(given(IMAGE), TIME, LABEL), tree(given(IMAGE), TIME, LABEL))


@pytest.mark.parametrize("name", ["GCNConv", "GATConv", "GATv2Conv", "SAGEConv", "GINConv", "SimpleConv"])
def test_graphs(name):
    layers = pytest.importorskip("mlx_graphs.nn")

    def build():
        mx.random.seed(0)
        args = {"GINConv": (nn.Linear(4, 3),), "SimpleConv": ()}.get(name, (4, 3))
        return getattr(layers, name)(*args)

    edges = mx.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
    x = mx.random.normal((5, 4))
    model, tree = build(), fl.from_mlx(build())
    expected = model(edges, x)
    for each in (tree, fl.convert(tree), fl.to_mlx(tree), tree):
        assert same(each(edges, x), expected)
    assert close(fl.jit(tree)(edges, x), expected)
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(build()))


@pytest.mark.parametrize("name", ["bert", "modernbert", "xlm_roberta"])
def test_embeddings(name):
    try:
        module = pytest.importorskip(f"mlx_embeddings.models.{name}")
    except ImportError as error:
        pytest.skip(str(error))
    sizes = {
        "model_type": name, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32, "num_attention_heads": 2,
        "max_position_embeddings": 32, "vocab_size": 50, "local_attention": 8, "global_attn_every_n_layers": 3,
    }  # fmt: skip
    known = inspect.signature(module.ModelArgs).parameters
    args = module.ModelArgs(**{key: value for key, value in sizes.items() if key in known})
    mx.random.seed(0)
    model = module.Model(args).eval()
    tree = fl.from_mlx(model)
    x, mask = mx.array([[1, 2, 3]]), mx.ones((1, 3))
    expected = model(x, attention_mask=mask)
    for each in (tree, fl.convert(tree), fl.to_mlx(tree), tree):
        out = each(x, attention_mask=mask)
        assert type(out) is type(expected)
        assert same(out.text_embeds, expected.text_embeds)
    out = fl.jit(lambda tree, x, mask: tree(x, attention_mask=mask))(tree, x, mask)
    assert close(out.text_embeds, expected.text_embeds)
