"""Packed models: nothing is lost, what is not packed is shared, and a packed model is a tree like any other."""

import copy
import pickle
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from laws.strategies import Snapshot, arrays_of, law, modules, parts, trees

import frostleaf as fl
from frostleaf import optim
from frostleaf.core.instance import metadata_of
from frostleaf.core.words import describe
from frostleaf.edits.freezing import trainable
from frostleaf.optim.packing import KEEPS_MODE
from frostleaf.tree.prefixes import flatten_up_to


class Mixed(fl.Module):
    """Something of every kind."""

    weight: mx.array
    parts: Any
    seen: mx.array = fl.buffer(factory=lambda: mx.ones(2))
    count: mx.array = fl.parameter(factory=lambda: mx.array([1, 2]))
    note: str = fl.static(default="note")


def mixed():
    layer = fl.nn.Linear(2, 3)
    return Mixed(
        mx.arange(6.0).reshape(2, 3),
        [layer.freeze(keys="bias"), {"a": mx.ones(2, mx.bfloat16), "b": None, "c": 3}, fl.nn.Dropout(0.5).eval(), layer],
    )


def nested(depth):
    tree = mx.array([1.0, 2.0])
    for _ in range(depth):
        tree = [tree]
    return tree


SHARED = mx.array([1.0, 2.0])
TREES = {
    "a module": mixed,
    "a frozen module": lambda: fl.nn.Linear(2, 3).freeze(),
    "a module in evaluation mode": lambda: fl.nn.Linear(2, 3).eval(),
    "a module with buffers": lambda: fl.nn.BatchNorm(2),
    "a module without arrays": lambda: fl.nn.Dropout(0.5),
    "an array": lambda: mx.array([1.0, 2.0]),
    "a scalar": lambda: mx.array(1.0),
    "an integer": lambda: mx.array(1),
    "no array": lambda: {"n": 3, "none": None},
    "nothing": lambda: None,
    "an empty tuple": lambda: (),
    "an array without elements": lambda: mx.zeros((0, 2)),
    "arrays without elements": lambda: [mx.zeros((0,)), mx.array(1.0), mx.zeros((2, 0)), mx.ones(3), mx.zeros((0,))],
    "every floating dtype": lambda: [mx.array([1.0, 2.0]).astype(dtype) for dtype in (mx.float16, mx.bfloat16, mx.float32) * 2],
    "no floating dtype": lambda: [mx.array([1]), mx.array([True]), mx.array([1 + 2j])],
    "an array at two places": lambda: {"a": SHARED, "b": (SHARED, SHARED)},
    "a deep tree": lambda: nested(100),
    "many arrays": lambda: [mx.full((number % 3, 2), number) for number in range(40)],
}
each_tree = pytest.mark.parametrize("make", TREES.values(), ids=TREES)
each_size = pytest.mark.parametrize("max_size", [0, 2, 4096])


def assert_same_tree(after, before):
    """Fail unless the trees are equal, and alike in every class, mode and frozen name."""
    assert type(after) is type(before)
    assert fl.tree.structure(after) == fl.tree.structure(before)
    assert fl.tree.equal(after, before)
    for (path, left), (other, right) in zip(parts(after), parts(before), strict=True):
        assert path == other
        assert type(left) is type(right)
        if isinstance(left, fl.Module):
            assert metadata_of(left) == metadata_of(right)


@each_size
@each_tree
def test_what_is_packed_is_unpacked_as_it_was(make, max_size):
    tree = make()
    packed = optim.pack(tree, max_size)
    assert_same_tree(packed.unpack(), tree)
    assert_same_tree(optim.pack(packed.unpack(), max_size), packed)


@law
@given(st.one_of(trees(), modules()), st.sampled_from([0, 1, 3, 4096]))
def test_the_round_trip_of_any_tree(tree, max_size):
    snapshot, packed = Snapshot(tree), optim.pack(tree, max_size)
    again = packed.unpack()
    assert_same_tree(again, tree)
    leaves, standing = fl.tree.leaves(tree), trainable(tree)
    for (path, after), before, trains in zip(arrays_of(again), leaves, standing, strict=True):
        assert (after is before) or (trains and before.size <= max_size), path
    small = [leaf for leaf, trains in zip(leaves, standing, strict=True) if trains and leaf.size <= max_size]
    assert set(packed.vectors) == {str(leaf.dtype).removeprefix("mlx.core.") for leaf in small}
    assert all(vector.ndim == 1 for vector in packed.vectors.values())
    assert sum(vector.size for vector in packed.vectors.values()) == sum(leaf.size for leaf in small)
    snapshot.assert_unchanged()


@law
@given(st.one_of(trees(), modules()), st.sampled_from([0, 2, 4096]))
def test_packs_of_trees_of_one_structure_have_one_structure(tree, max_size):
    packed, other = optim.pack(tree, max_size), optim.pack(fl.tree.map(lambda leaf: mx.zeros_like(leaf), tree), max_size)
    assert fl.tree.structure(other) == fl.tree.structure(packed)
    assert hash(fl.tree.structure(other)) == hash(fl.tree.structure(packed))
    assert fl.tree.structure(optim.pack(packed.unpack(), max_size)) == fl.tree.structure(packed)


@law
@given(st.one_of(trees(), modules()))
def test_a_packed_tree_of_any_kind_is_pickled_copied_and_compiled(tree):
    assume(all(array.dtype != mx.float64 for _, array in arrays_of(tree)))  # which MLX pickles as float32
    packed = optim.pack(tree, 2)
    for again in (
        pickle.loads(pickle.dumps(packed)),
        copy.deepcopy(packed),
        copy.copy(packed),
        fl.jit(lambda given: given)(packed),
    ):
        assert_same_tree(again, packed)
        assert_same_tree(again.unpack(), tree)


# What is packed where


def test_small_trainable_arrays_are_laid_end_to_end_and_the_others_are_the_same_objects():
    tree = {"a": mx.ones(2), "b": mx.zeros(5), "c": mx.array(1), "d": mx.zeros((2, 2)), "e": mx.zeros(2, mx.float16)}
    packed = optim.pack(tree, 4)
    assert {name: vector.tolist() for name, vector in packed.vectors.items()} == {
        "float32": [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "float16": [0.0, 0.0],
    }  # fmt: skip
    assert len(packed.large) == len(packed.rest) == 1
    assert packed.large[0] is tree["b"] is packed.unpack()["b"]
    assert packed.rest[0] is tree["c"] is packed.unpack()["c"]


@pytest.mark.parametrize(
    ("max_size", "vectors"), [(0, {}), (2, {"float32": (2,)}), (3, {"float32": (5,)}), (10**9, {"float32": (5,)})]
)
def test_arrays_of_up_to_max_size_elements_are_packed(max_size, vectors):
    packed = optim.pack([mx.ones(2), mx.ones((1, 3))], max_size)
    assert {name: vector.shape for name, vector in packed.vectors.items()} == vectors
    assert len(packed.large) == 2 - {0: 0, 2: 1}.get(max_size, 2)


def test_the_default_leaves_large_arrays_alone():
    packed = optim.pack([mx.zeros(4096), mx.zeros(4097)])
    assert packed.vectors["float32"].shape == (4096,)
    assert packed.large[0].shape == (4097,)


def test_what_is_not_trained_is_not_packed():
    model = fl.nn.Sequential(fl.nn.Linear(2, 3).freeze(), fl.nn.BatchNorm(3))
    packed = optim.pack(model)
    assert packed.vectors["float32"].shape == (6,)
    assert packed.rest == (*fl.tree.leaves(model.layers[0]), model.layers[1].running_mean, model.layers[1].running_var)
    assert optim.pack(model.freeze()).vectors == {}


@pytest.mark.parametrize(
    ("change", "packed_alike"),
    [
        (lambda model: fl.nn.Linear(2, 3), True),
        (lambda model: model.freeze(keys="bias"), False),
        (lambda model: model.freeze(), False),
        (lambda model: model.eval(), False),
        (lambda model: model.replace(bias=None), False),
        (lambda model: model.replace(weight=model.weight.T), False),
        (lambda model: model.astype(mx.float16), False),
        (lambda model: model.at("bias").astype(mx.float16), False),
    ],
    ids=[
        "of the same kind",
        "with a frozen bias",
        "frozen",
        "in evaluation mode",
        "without bias",
        "turned",
        "half",
        "half a bias",
    ],
)
def test_models_of_different_structure_are_packed_differently(change, packed_alike):
    model = fl.nn.Linear(2, 3)
    packed, other = optim.pack(model), optim.pack(change(model))
    assert (fl.tree.structure(packed) == fl.tree.structure(other)) is packed_alike
    traced = fl.jit(lambda packed: packed.unpack())
    assert_same_tree(traced(packed), model)
    assert_same_tree(traced(other), change(model) if not packed_alike else other.unpack())
    assert traced.trace_count == (1 if packed_alike else 2)


@each_size
def test_a_packed_tree_is_packed_already(max_size):
    packed = optim.pack(mixed(), 2)
    assert optim.pack(packed, max_size) is packed


def test_a_packed_part_of_a_tree_is_packed_as_any_module():
    inner = optim.pack(mixed(), 2)
    outer = optim.pack({"inner": inner, "more": mx.ones(1)})
    assert_same_tree(outer.unpack(), {"inner": inner, "more": mx.ones(1)})
    assert_same_tree(outer.unpack()["inner"].unpack(), mixed().replace(**{
        name: getattr(inner.unpack(), name) for name in ("weight", "parts")
    }))  # fmt: skip


@pytest.mark.parametrize("given", [-1, 4096.0, "many", None, True, mx.array(3)], ids=repr)
@pytest.mark.parametrize("tree", [{"a": mx.ones(2)}, optim.pack({"a": mx.ones(2)})], ids=["a tree", "a packed tree"])
def test_what_is_no_number_of_elements_is_refused(tree, given):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        optim.pack(tree, given)
    assert (
        str(raised.value)
        == f"max_size is the number of elements up to which an array is packed, 0 or more, and was {describe(given)}"
    )


# A tree like any other


PACKED = optim.pack(mixed(), 3)
X = mx.array([[1.0, 2.0], [3.0, 4.0]])


def loss_of(model):
    return sum((leaf.astype(mx.float32) ** 2).sum() for leaf in fl.tree.leaves(model))


def test_a_packed_model_is_printed():
    assert repr(PACKED) == "Packed(bfloat16=(2,), float32=(3,), large=3, rest=3)"
    assert repr(fl.tree.structure(PACKED)) == "Structure(Packed(bfloat16=*, float32=*, large=3, rest=3))"
    assert repr(fl.grad(lambda packed: loss_of(packed.unpack()))(PACKED.at("vectors.float32").freeze())) == (
        "Packed(bfloat16=(2,), float32=None, large=3, rest=3)"
    )
    assert repr(fl.tree.map(lambda leaf: leaf.size, PACKED)) == "Packed(bfloat16=2, float32=3, large=3, rest=3)"
    assert repr(optim.pack(None)) == "Packed(large=0, rest=0)"


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        PACKED.vectors = {}
    with pytest.raises(TypeError):
        PACKED.vectors["float32"] = mx.ones(3)


def test_its_leaves_can_be_mapped():
    doubled = fl.tree.map(lambda leaf: leaf * 2, PACKED).unpack()
    assert fl.tree.equal(doubled, fl.tree.map(lambda leaf: leaf * 2, mixed().replace(parts=PACKED.unpack().parts)))
    assert fl.tree.paths(PACKED) == [
        "vectors.bfloat16", "vectors.float32", "large.0", "large.1", "large.2", "rest.0", "rest.1", "rest.2",
    ]  # fmt: skip


def test_it_can_be_cast():
    half = PACKED.astype(mx.float16)
    assert fl.tree.equal(half.unpack(), PACKED.unpack().astype(mx.float16))
    assert half.rest[-1] is PACKED.rest[-1]


def test_it_goes_through_compiled_functions_and_is_traced_once():
    @fl.jit
    def scaled(packed, factor):
        return optim.pack(fl.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), packed.unpack()), 3), packed

    after, factor = PACKED, mx.array(2.0)
    for _ in range(3):
        after, same = scaled(after, factor)
    assert scaled.trace_count == 1
    assert fl.tree.structure(after) == fl.tree.structure(same) == fl.tree.structure(PACKED)
    assert_same_tree(after.unpack(), fl.tree.map(lambda leaf: leaf * mx.array(8).astype(leaf.dtype), PACKED.unpack()))
    assert scaled(PACKED, factor)[1].rest[0] is PACKED.rest[0]


def test_it_is_differentiated_as_the_tree_is():
    model = PACKED.unpack()
    value, gradients = fl.value_and_grad(lambda packed: loss_of(packed.unpack()))(PACKED)
    expected, plain = fl.value_and_grad(loss_of)(model)
    assert value.item() == expected.item()
    assert gradients.rest == (None, None, None)
    assert [gradient is None for gradient in flatten_up_to(model, plain, "the gradient")] == [
        not each for each in trainable(model)
    ]
    for left, right in zip(
        fl.tree.leaves(gradients.replace(rest=PACKED.rest).unpack()), flatten_up_to(model, plain, "the gradient"), strict=True
    ):
        assert right is None or mx.array_equal(left, right)


@pytest.mark.parametrize("take", [lambda packed: packed, lambda packed: packed.unpack()], ids=["packed", "unpacked"])
def test_it_is_mapped_over(take):
    layers = [fl.nn.Linear(2, 3, key=key) for key in mx.random.split(mx.random.key(0), 4)]
    stacked = fl.tree.stack([optim.pack(layer) for layer in layers])
    assert stacked.vectors["float32"].shape == (4, 9)
    outputs = fl.vmap(lambda packed, x: packed.unpack()(x), in_axes=(0, None))(stacked, X)
    assert mx.allclose(outputs, mx.stack([layer(X) for layer in layers]))
    taken = fl.tree.unstack(fl.vmap(take)(stacked))
    assert all(fl.tree.equal(take(optim.pack(layer)), each) for layer, each in zip(layers, taken, strict=True))


def test_packing_is_mapped_over():
    layers = [fl.nn.Linear(2, 3, key=key) for key in mx.random.split(mx.random.key(0), 4)]
    packed = fl.vmap(optim.pack)(fl.tree.stack(layers))
    assert all(fl.tree.equal(each.unpack(), layer) for each, layer in zip(fl.tree.unstack(packed), layers, strict=True))


def test_its_shapes_are_evaluated():
    shapes = fl.eval_shape(lambda packed: (packed.unpack(), packed), PACKED)
    assert shapes[0].weight.shape == (2, 3)
    assert (shapes[1].vectors["float32"].shape, shapes[1].vectors["bfloat16"].dtype) == ((3,), mx.bfloat16)


def test_buffers_are_recorded_in_what_is_unpacked():
    norm = fl.nn.BatchNorm(2)
    out, after = fl.stateful(optim.pack(norm).unpack(), X)
    expected, plain = fl.stateful(norm, X)
    assert mx.array_equal(out, expected)
    assert_same_tree(after, plain)
    again = optim.pack(after)
    assert fl.tree.structure(again) == fl.tree.structure(optim.pack(norm))
    assert again.rest[0] is after.running_mean


def test_freezing_it_freezes_vectors_and_nothing_in_the_tree():
    frozen = PACKED.freeze()
    assert trainable(frozen) == [False] * 8
    assert_same_tree(frozen.unpack(), PACKED.unpack())
    assert_same_tree(frozen.unfreeze(), PACKED)
    partly = PACKED.at("vectors.float32").freeze()
    gradients = fl.grad(lambda packed: loss_of(packed.unpack()))(partly)
    assert gradients.vectors["float32"] is None
    assert gradients.vectors["bfloat16"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("change", [lambda packed: packed.eval(), lambda packed: packed.train(False)])
def test_it_can_not_be_unpacked_in_a_mode_that_its_modules_do_not_have(change):
    evaluated = change(PACKED)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        evaluated.unpack()
    assert str(raised.value) == KEEPS_MODE
    assert_same_tree(evaluated.train(), PACKED)
    assert_same_tree(evaluated.train().unpack(), PACKED.unpack())
    assert not PACKED.unpack().eval().parts[0].training


def test_the_modes_of_its_modules_are_kept():
    assert PACKED.unpack().parts[0].training
    assert not PACKED.unpack().parts[2].training
    assert not optim.pack(mixed().eval()).unpack().training


def test_an_optimizer_is_told_how_to_differentiate():
    packed, optimizer = optim.pack(fl.nn.Linear(2, 2)), optim.flatten(optim.SGD(0.1))
    grads = fl.grad(lambda packed: packed.unpack()(mx.ones((1, 2))).sum())(packed)
    with pytest.raises(ValueError, match=r"fl.value_and_grad\(loss_fn\)\(packed.unpack\(\)\)"):
        optimizer.update(packed, grads, optimizer.init(packed))


@pytest.mark.parametrize("optimizer", [fl.optim.SGD(0.1), fl.optim.ema(fl.optim.SGD(0.1), 0.9)])
def test_an_optimizer_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"pack takes a model, and was given .*: write fl\.optim\.flatten for an optimizer"):
        fl.optim.pack(optimizer)


OF_THE_MODEL = {
    "call": lambda packed: packed(mx.ones(2)),
    "jit": lambda packed: fl.jit(packed)(mx.ones(2)),
    "grad": lambda packed: fl.grad(lambda model: model(mx.ones(2)).sum())(packed),
    "summary": lambda packed: fl.summary(packed, mx.ones(2)),
    "stateful": lambda packed: fl.stateful(packed, mx.ones(2)),
    "eval_shape": lambda packed: fl.eval_shape(packed, mx.ones(2)),
    "export_function": lambda packed: fl.export_function("model.mlxfn", packed, mx.ones(2)),
    "fuse": fl.fuse,
    "lora": lambda packed: fl.lora(packed, "**.q_proj"),
    "lora of a class": lambda packed: fl.lora(packed, fl.nn.Linear),
    "save_adapters": lambda packed: fl.save_adapters(packed, "adapters"),
    "load_adapters": lambda packed: fl.load_adapters(packed, "adapters"),
    "quantize": fl.quantize,
    "quantize in a tree": lambda packed: fl.quantize({"model": [packed]}),
    "convert": fl.convert,
    "convert in a tree": lambda packed: fl.convert((packed, None)),
    "to_mlx": fl.to_mlx,
    "generate": lambda packed: list(fl.generate(packed, mx.array([1]), 2)),
    "save_weights": lambda packed: packed.save_weights("model.safetensors"),
    "load_weights": lambda packed: packed.load_weights("model.safetensors", strict=False),
    "load_weights of pairs": lambda packed: packed.load_weights([("layers.0.bias", mx.ones(2))]),
    "update": lambda packed: packed.update({"layers": [{"bias": mx.ones(2)}]}),
    "update_modules": lambda packed: packed.update_modules({"layers": [fl.nn.Linear(2, 2)]}),
    "map_modules": lambda packed: packed.map_modules(lambda path, module: None),
    "tie": lambda packed: packed.tie({"layers.0.weight": "layers.1.weight"}),
    "untie": lambda packed: packed.untie(),
    "at a path": lambda packed: packed.at("layers.0.bias").get(),
    "at a glob": lambda packed: packed.at("**.bias").get(),
    "at a class": lambda packed: packed.at(fl.nn.Linear).get(),
    "at a predicate": lambda packed: packed.at(lambda path, array: path.endswith("bias")).get(),
    "with_frozen": lambda packed: packed.with_frozen("**.bias"),
    "an attribute": lambda packed: packed.layers,
}


@pytest.mark.parametrize("use", OF_THE_MODEL)
@pytest.mark.parametrize("max_size", [0, 4096])
def test_what_is_for_the_model_says_to_unpack_it_first(use, max_size, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packed = optim.pack(fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)).at("layers.0").freeze(), max_size)
    with pytest.raises((TypeError, LookupError, AttributeError), match=r"write packed\.unpack\(\)"):
        OF_THE_MODEL[use](packed)
    assert not list(tmp_path.iterdir())


def test_a_misspelt_name_of_a_vector_is_said():
    with pytest.raises(LookupError, match=r"The nearest paths are 'vectors.float32'"):
        optim.pack(fl.nn.Linear(2, 2)).at("vectors.flaot32").get()


class Unseen(fl.Module):
    layers: Any
    _unseen: int = fl.static(default=1)


class OfMLX(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 2), nn.Linear(2, 2)]


class Holder:
    def __init__(self):
        self.layers, self.array = ["one", "two"], mx.ones(2)


@pytest.mark.parametrize("model", [OfMLX(), Holder(), Unseen([fl.nn.Linear(2, 2)] * 2)], ids=lambda model: type(model).__name__)
def test_any_model_gets_a_cache_that_is_not_packed(model):
    assert len(fl.nn.make_cache(model, 4)) == 2


@pytest.mark.parametrize("beside", [OfMLX(), Holder()], ids=lambda beside: type(beside).__name__)
def test_a_model_is_quantized_and_converted_whatever_stands_beside_it(beside):
    assert fl.quantize({"model": fl.nn.Linear(64, 2), "other": beside})["other"] is beside
    converted = fl.convert({"model": Unseen([fl.from_mlx(nn.Linear(2, 2))]), "other": beside})
    assert type(converted["model"].layers[0]) is fl.nn.Linear
    assert converted["other"] is beside
