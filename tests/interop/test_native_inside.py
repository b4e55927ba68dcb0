"""Native layers inside a wrapped model: its original code finds there what it finds in MLX."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop import architectures
from interop.checks import arrays, same
from mlx.utils import tree_map

import frostleaf as fl

X = mx.array([[1.0, 2.0, 3.0, 4.0]])


class Held(nn.Module):
    def __init__(self, run: Any, **layers: Any) -> None:
        super().__init__()
        self.lin, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        self.blocks = [nn.Linear(4, 4, bias=False), nn.LayerNorm(4)]
        self.update_modules(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def __call__(self, x: mx.array) -> Any:
        return self.run(self, x)


def held(run: Any, **layers: Any) -> Any:
    mx.random.seed(0)
    return Held(run, **layers)


def _named(module: nn.Module) -> list[Any]:
    return [(name, type(each).__name__, each.training) for name, each in module.named_modules()]


# What original code reads, of which MLX gives the same.
READS: dict[str, Callable[[Any, mx.array], Any]] = {
    "parameters": lambda m, x: m.parameters(),
    "trainable parameters": lambda m, x: m.trainable_parameters(),
    "named modules": lambda m, x: _named(m),
    "modules": lambda m, x: [type(each) for each in m.modules()],
    "children": lambda m, x: tree_map(type, m.children(), is_leaf=nn.Module.is_module),
    "leaf modules": lambda m, x: tree_map(type, m.leaf_modules(), is_leaf=nn.Module.is_module),
    "classes": lambda m, x: isinstance(m.lin, nn.Linear) and isinstance(m["blocks"][1], nn.Module),
    "no bias": lambda m, x: (hasattr(m.lin, "bias"), hasattr(m.blocks[0], "bias"), "bias" in m.blocks[0]),
    "as a dict": lambda m, x: (m.lin.get("weight"), [*m.lin.keys()], [*m.lin.values()], len(m.lin), m.lin["bias"]),
    "attributes": lambda m, x: (m.blocks[1].eps, m.drop._p_1, m.lin.weight.shape, m.drop.training),
    "a loss": lambda m, x: m.lin(x).mean() + sum((each**2).sum() for each in m.parameters()["lin"].values()),
}
# What it changes before it computes.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "update": lambda m: m.update(tree_map(lambda array: array * 0 + 1, m.parameters())),
    "update of a layer": lambda m: m.lin.update({"weight": mx.ones((4, 4))}),
    "update of modules": lambda m: m.update_modules({"lin": nn.Linear(4, 4, bias=False), "blocks": [nn.RMSNorm(4)]}),
    "apply": lambda m: m.apply(lambda array: array * 2),
    "apply of a layer": lambda m: m.lin.apply(lambda array: array * 2),
    "dtype": lambda m: m.set_dtype(mx.float16),
    "mode": lambda m: m.eval(),
    "mode of a layer": lambda m: m.drop.eval(),
    "freezing": lambda m: m.lin.freeze(keys="bias"),
    "children": lambda m: [setattr(each, "weight", each.weight * 3) for each in m.children()["blocks"]],
    "in place": lambda m: m.lin.weight.__setitem__(0, 7.0),
    "a layer": lambda m: setattr(m, "lin", nn.Linear(4, 4, bias=False)),
    "a new name": lambda m: setattr(m.lin, "scale", mx.ones(1)),
    "one name less": lambda m: m.lin.pop("bias"),
    "each module": lambda m: m.apply_to_modules(lambda _, each: each.train(False)),
}


@pytest.mark.parametrize("what", READS)
def test_original_code_reads_what_is_in_mlx(what: str) -> None:
    module = held(READS[what])
    expected, found = module(X), fl.convert(fl.from_mlx(module))(X)
    assert same(found, expected)
    assert fl.tree.structure(found) == fl.tree.structure(expected)


def _changed(m: Any, change: Callable[[Any], Any], x: mx.array) -> mx.array:
    change(m)
    for layer in (m.lin, m.drop, *m.blocks):
        x = layer(x)
    return x


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_original_code_changes_what_it_changes_in_mlx(what: str) -> None:
    def run(m: Any, x: mx.array) -> mx.array:
        return _changed(m, CHANGES[what], x)

    converted = fl.convert(fl.from_mlx(held(run)))
    before = [*map(mx.array, fl.tree.leaves(converted))]
    mx.random.seed(3)
    found, after = fl.stateful(converted, X)
    mx.random.seed(3)
    again = converted(X)
    module = held(run)
    mx.random.seed(3)
    expected = module(X)
    assert same(found, expected)
    assert same(again, expected)
    assert same(fl.tree.leaves(converted), before)
    assert fl.tree.equal(fl.convert(after), fl.convert(fl.from_mlx(module)))
    assert type(after.blocks[1]) is fl.nn.LayerNorm


def test_what_a_call_leaves_alone_stays_the_same() -> None:
    converted = fl.convert(fl.from_mlx(held(lambda m, x: CHANGES["update of a layer"](m) and m.lin(x))))
    _, after = fl.stateful(converted, X)
    assert type(after.lin) is fl.nn.Linear
    assert after.blocks is converted.blocks or all(map(lambda a, b: a is b, after.blocks, converted.blocks))
    assert after.lin.bias is converted.lin.bias


def test_a_layer_of_an_activation_that_only_it_has() -> None:
    layer = fl.nn.TransformerEncoderLayer(4, 2, activation=lambda x: x * 2)
    tree = fl.from_mlx(held(lambda m, x: CHANGES["update of a layer"](m) and m.lin(x))).at("drop").set(layer)
    _, after = fl.stateful(tree, X)
    assert after.drop is tree.drop


def test_layers_come_out_as_they_are_in_the_tree() -> None:
    converted = fl.convert(fl.from_mlx(held(lambda m, x: [m.lin, *m.blocks, m.lin.__call__])))
    *layers, bound = converted(X)
    assert [each is there for each, there in zip(layers, [converted.lin, *converted.blocks], strict=True)] == [True] * 3
    assert same(bound(X), converted.lin(X))


class Gate(fl.Module):
    """A class of the user, with a layer inside."""

    inner: object
    scale: mx.array
    calls: mx.array = fl.buffer(factory=lambda: mx.array(0.0))
    power: int = fl.static(default=2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.project(x) ** self.power

    def project(self, x: mx.array) -> mx.array:
        return self.inner(x) * self.scale

    @property
    def size(self) -> int:
        return self.scale.size


def gated(run: Any) -> Any:
    mx.random.seed(0)
    return fl.from_mlx(held(run)).at("lin").set(Gate(fl.nn.Linear(4, 4), mx.ones(4)))


def test_a_class_of_the_user_inside() -> None:
    tree = gated(lambda m, x: (m.lin(x), m.lin.project(x), m.lin.size, m.lin.power, m.lin.inner.weight, m.parameters()))
    called, projected, size, power, weight, parameters = tree(X)
    assert same([called, projected, weight], [tree.lin(X), tree.lin.project(X), tree.lin.inner.weight])
    assert (size, power) == (4, 2)
    assert same(parameters, tree.parameters())
    with pytest.raises(AttributeError, match="other"):
        gated(lambda m, x: m.lin.other)(X)
    with pytest.raises(AttributeError, match="Gate has no field 'other'"):
        gated(lambda m, x: setattr(m.lin, "other", 1))(X)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.lin.update({"scale": mx.full(4, 2.0)}),
        lambda m: m.lin.inner.update({"weight": mx.ones((4, 4))}),
        lambda m: setattr(m.lin, "inner", nn.Linear(4, 4, bias=False)),
        lambda m: m.lin.inner.pop("bias"),
        lambda m: m.lin.scale.__setitem__(0, 7.0),
        lambda m: setattr(m.lin, "power", 3),
    ],
    ids=["array", "array inside", "layer", "less", "in place", "static"],
)
@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_changes_of_a_class_of_the_user_inside(change: Any) -> None:
    def run(m: Any, x: mx.array) -> mx.array:
        before = m.lin(x)
        mx.random.seed(5)
        change(m)
        return mx.stack([before, m.lin(x)])

    tree = gated(run)
    module = fl.to_mlx(tree)
    found, after = fl.stateful(tree, X)
    assert same(found, module(X))
    assert not same(found[0], found[1])
    assert same(tree(X), found)
    assert type(after.lin) is Gate
    assert same(after.lin(X), found[1])
    assert fl.tree.equal(after, fl.from_mlx(module).at("blocks").apply(fl.convert)) or same(arrays(after), arrays(module))


def test_copies_of_a_class_of_the_user_have_their_own_arrays() -> None:
    module = fl.to_mlx(Gate(fl.nn.Linear(4, 4), mx.ones(4)))
    expected = module(X)
    for other in (copy.deepcopy(module), copy.copy(module)):
        assert same(other(X), expected)
        other.scale = mx.zeros(4)
        assert same(other(X), mx.zeros((1, 4)))
        assert same(module(X), expected)


def test_what_a_class_of_the_user_learns_inside() -> None:
    class Normed(fl.Module):
        norm: object

        def __call__(self, x: mx.array) -> mx.array:
            return self.norm(x)

    tree = fl.from_mlx(held(lambda m, x: m.lin(x))).at("lin").set(Normed(fl.nn.BatchNorm(4)))
    x = mx.random.normal((3, 4))
    _, expected = fl.stateful(fl.nn.BatchNorm(4), x)
    _, after = fl.stateful(tree, x)
    assert fl.tree.equal(after.lin.norm, expected)
    with pytest.warns(fl.UncollectedStateWarning):
        tree(x)


def test_ties_are_kept_by_a_call_that_changes_something() -> None:
    def run(m: Any, x: mx.array) -> mx.array:
        m.blocks[1].weight = m.blocks[1].weight * 2
        return m.blocks[0](x)

    pair = fl.nn.Sequential(fl.nn.Linear(4, 4), fl.nn.Linear(4, 4)).tie({"layers.1.weight": "layers.0.weight"})
    tree = fl.convert(fl.from_mlx(held(run))).tie({"blocks.0.weight": "lin.weight"})
    tree = tree.at("drop").set(Gate(pair, mx.ones(4)))
    _, after = fl.stateful(tree, X)
    assert fl.tree.structure(after) == fl.tree.structure(tree)
    assert same(after, tree.at("blocks.1.weight").apply(lambda array: array * 2))
    back = fl.convert(fl.from_mlx(fl.to_mlx(tree)))  # whose classes of MLX know no ties of arrays, while ours do
    assert fl.tree.structure(back.tie({"blocks.0.weight": "lin.weight"})) == fl.tree.structure(tree)
    assert fl.tree.structure(back).num_leaves == fl.tree.structure(tree).num_leaves + 1


@pytest.mark.parametrize("convert", [lambda tree: tree, fl.convert], ids=["wrapped", "converted"])
@pytest.mark.parametrize(("target", "source"), [("blocks.0.weight", "lin.weight"), ("lin.weight", "blocks.0.weight")])
def test_arrays_that_were_tied_are_so_until_one_is_another(convert: Any, target: str, source: str) -> None:
    def count(m: Any, x: mx.array) -> mx.array:
        m.calls = 1
        return m.lin(x)

    def assign(m: Any, x: mx.array) -> mx.array:
        m.lin.weight = m.lin.weight * 2
        return m.lin(x)

    tree = convert(fl.from_mlx(held(count))).tie({target: source})
    _, after = fl.stateful(tree, X)
    assert after.calls == 1
    assert fl.tree.structure(after).num_leaves == fl.tree.structure(tree).num_leaves
    _, apart = fl.stateful(convert(fl.from_mlx(held(assign))).tie({target: source}), X)
    assert fl.tree.structure(apart).num_leaves == fl.tree.structure(tree).num_leaves + 1


@pytest.fixture
def checkpointed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return mlx-lm's function that computes layers of a class again for gradients, for this test."""
    grad_checkpoint = pytest.importorskip("mlx_lm.tuner.trainer").grad_checkpoint

    def checkpoint(layer: Any) -> None:
        monkeypatch.setattr(type(layer), "__call__", type(layer).__call__)  # is undone
        grad_checkpoint(layer)

    return checkpoint


TOKENS = mx.array([[1, 2, 3, 4, 5]])


def quantized(model: Any) -> Any:
    return fl.quantize(model, group_size=32, class_predicate=lambda _, m: hasattr(m, "bias") and m.weight.shape[-1] == 32)


WAYS: dict[str, Callable[[Any], Any]] = {
    "convert": fl.convert,
    "one layer": lambda m: m.at("model.layers.0.input_layernorm").apply(fl.convert),
    "lora": lambda m: fl.lora(m, "**.q_proj", rank=2, key=mx.random.key(1)),
    "dora": lambda m: fl.lora(m, "**.q_proj", rank=2, dora=True, key=mx.random.key(1)),
    "qlora": lambda m: fl.lora(quantized(m), "**.q_proj", rank=2, key=mx.random.key(1)),
}


def token_loss(model: Any, tokens: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")


def build(name: str) -> Any:
    mx.random.seed(0)
    return architectures.build(name)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize(
    ("name", "way"),
    [
        *[("llama", way) for way in WAYS],
        ("qwen3", "lora"),
        ("gemma3_text", "qlora"),
        ("mixtral", "lora"),
        ("qwen3_moe", "convert"),
    ],
)
def test_gradients_where_mlx_lm_computes_layers_again(
    name: str, way: str, jit: bool, checkpointed: Callable[[Any], None]
) -> None:
    def gradients(model: Any) -> Any:
        compute = fl.value_and_grad(token_loss)
        return (fl.jit(compute) if jit else compute)(model, TOKENS)

    model = WAYS[way](fl.from_mlx(build(name)))
    if "lora_b" in str(fl.tree.paths(model)):
        model = model.at("**.lora_b").apply(lambda array: array + 0.1)
    expected = gradients(model)
    checkpointed(build(name).layers[0])
    found = gradients(model)
    assert fl.tree.structure(found) == fl.tree.structure(expected)
    assert fl.tree.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert any(mx.any(each != 0).item() for each in fl.tree.leaves(found[1]))


@pytest.mark.parametrize("convert", [fl.convert, lambda m: fl.lora(m, "lin")], ids=["convert", "lora"])
def test_layers_that_original_code_computes_again(convert: Any) -> None:
    tree = fl.from_mlx(held(lambda m, x: nn.utils.checkpoint(m.lin)(x).square().sum()))
    plain = fl.from_mlx(held(lambda m, x: m.lin(x).square().sum()))
    mx.random.seed(1)
    one = convert(tree)
    mx.random.seed(1)
    other = convert(plain)
    grads = [fl.value_and_grad(lambda m: m(X))(model) for model in (one, other)]
    assert same(*grads)
    assert fl.tree.leaves(grads[0][1])


@pytest.mark.parametrize("way", ["convert", "qlora"])
def test_mlx_lm_counts_the_parameters_inside(way: str) -> None:
    utils = pytest.importorskip("mlx_lm.utils")
    tree = WAYS[way](fl.from_mlx(build("llama")))

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 1)

        def __call__(self) -> Any:
            return utils.get_total_parameters(self), utils.compute_bits_per_weight(self)

    found = fl.from_mlx(Around()).at("inner").set(tree)()
    module = fl.to_mlx(tree)
    assert found == (utils.get_total_parameters(module), utils.compute_bits_per_weight(module))


def test_nothing_is_alive_that_was_dropped() -> None:
    module = fl.to_mlx(gated(lambda m, x: m.lin(x)).at("blocks.1").apply(fl.checkpoint).at("drop").set(Gate(fl.nn.ReLU(), X)))
    module(X), module.drop(X), module.blocks[1](X)
    gone = [weakref.ref(each) for each in (module, module.lin, module.lin.inner, module.blocks[1], module.drop)]
    gc.disable()
    try:
        del module
        assert [each() for each in gone] == [None] * 5
    finally:
        gc.enable()
