"""Tied places: one leaf at several places of a model."""

import copy
import pickle
import re

import attrs
import mlx.core as mx
import mlx.nn
import mlx.utils
import optree
import pytest

import frostleaf as fl
from frostleaf.core.ties import CONFLICT, GONE, TIED_INSIDE
from frostleaf.optim.optimizer import NO_MODULE, OTHERS, SHARED
from frostleaf.optim.optimizer import TIE as TIE_THEM

TIED = "{where!r} is tied to {source!r}: select that, and the edit is made at both places"
ALREADY = "{cls}.{path} is tied to {source} already: {advice}"
CHAIN = "{cls}.{path} is tied to {source}, so it can't be the source of {target}: tie {target} to {source} too"
ITSELF = "{cls}.{path} can't be tied to itself: give the path of another array as its source"
NO_ARRAY = "{cls} has no array at {path!r}{nearest}"
NOT_PLACES = (
    "tie takes a dict from each place to be tied to its source, such as {{'head.weight': 'embedding.weight'}}, and was given "
    "{given!r}"
)
NOT_TIED = "{cls} has no tie at {path!r}; {tied}"
WRONG_SHAPE = "{cls}.{target} can't be tied to {source}: they are {given} and {expected}, and must be of one shape"

WORDS, DIMS = 5, 3
TIE = {"head.weight": "embedding.weight"}


class Language(fl.Module):
    embedding: fl.nn.Embedding
    middle: dict[str, tuple[fl.nn.Linear, ...]]
    head: fl.nn.Linear

    def __init__(self, words=WORDS, dims=DIMS, key=None):
        self.embedding = fl.nn.Embedding(words, dims)
        self.middle = {"layers": [fl.nn.Linear(dims, dims)]}
        self.head = fl.nn.Linear(dims, words)

    def __call__(self, x):
        return self.head(self.middle["layers"][0](self.embedding(x)))


def tied_model():
    return Language().tie(TIE)


class Wrapped(fl.Module):
    inner: Language
    scale: mx.array

    def __call__(self, x):
        return self.inner(x) * self.scale


def one_leaf(model):
    """Return the model, having looked that both places have one array, which is one leaf."""
    inner = model.inner if isinstance(model, Wrapped) else model
    assert inner.head.weight is inner.embedding.weight
    paths = fl.tree.paths(model)
    assert len(paths) == len(fl.tree.leaves(model))
    assert not any(path.endswith("head.weight") for path in paths)
    assert sum(path.endswith("embedding.weight") for path in paths) == 1
    return model


class Pair(fl.Module):
    ws: list[mx.array]
    named: dict[str, mx.array]


def loss(model, x):
    return model(x).square().sum()


X = mx.array([1, 2])


# What a tie is


def test_the_source_stands_at_both_places_and_is_one_leaf():
    model = Language()
    tied = one_leaf(model.tie(TIE))
    assert tied.embedding is model.embedding
    assert tied.head.bias is model.head.bias
    assert tied.middle is model.middle
    assert model.head.weight is not model.embedding.weight
    assert len(fl.tree.leaves(tied)) == len(fl.tree.leaves(model)) - 1
    assert fl.tree.size(tied) == fl.tree.size(model) - WORDS * DIMS


def test_the_gradient_is_the_sum_of_those_of_the_two_places():
    tied = tied_model()
    grads = one_leaf(fl.grad(loss)(tied, X))
    apart = fl.grad(loss)(tied.untie(), X)
    assert mx.allclose(grads.embedding.weight, apart.embedding.weight + apart.head.weight)
    assert mx.array_equal(grads.head.bias, apart.head.bias)


def test_the_order_of_the_classes_fields_does_not_matter():
    model = Language().tie({"embedding.weight": "head.weight"})
    assert model.embedding.weight is model.head.weight
    assert fl.tree.paths(model)[0] == "middle.layers.0.weight"


def test_several_places_and_containers():
    model = fl.nn.Sequential(*(fl.nn.Linear(2, 2) for _ in range(3)))
    tied = model.tie({"layers.2.weight": "layers.0.weight"}).tie({"layers.1.weight": "layers.0.weight"})
    assert tied.layers[0].weight is tied.layers[1].weight is tied.layers[2].weight is model.layers[0].weight
    assert tied.tie({"layers.1.weight": "layers.0.weight"}) is tied
    other = model.tie({"layers.1.weight": "layers.0.weight", "layers.2.weight": "layers.0.weight"})
    assert fl.tree.structure(other) == fl.tree.structure(tied)
    assert len(fl.tree.leaves(tied)) == 4
    halves = tied.untie("layers.2.weight")
    assert fl.tree.paths(halves) == [
        "layers.0.weight", "layers.0.bias", "layers.1.bias", "layers.2.weight", "layers.2.bias",
    ]  # fmt: skip
    assert tied.untie("layers.2.weight", "layers.1.weight").untie().layers[1].weight is tied.layers[0].weight


def test_a_module_in_a_module_keeps_its_ties_and_may_be_tied_again():
    wrapped = one_leaf(Wrapped(tied_model(), mx.array(2.0)))
    one_leaf(wrapped.astype(mx.float16))
    assert wrapped.tie({}) is wrapped
    pair = fl.nn.Sequential(tied_model(), tied_model()).tie({"layers.1.embedding.weight": "layers.0.embedding.weight"})
    first, second = pair.layers
    assert first.embedding.weight is second.embedding.weight is second.head.weight is first.head.weight
    assert len(fl.tree.leaves(pair)) == 7
    half = pair.astype(mx.float16)
    assert half.layers[1].head.weight is half.layers[0].embedding.weight
    assert half.layers[1].head.weight.dtype == mx.float16


def test_what_is_taken_out_of_the_model_is_whole():
    head = tied_model().head
    assert head(mx.ones((1, DIMS))).shape == (1, WORDS)
    assert fl.tree.paths(head) == ["weight", "bias"]


# One leaf after everything that can be done to a model


EDITS = {
    "nothing": lambda m: m.update({}),
    "cast": lambda m: m.astype(mx.float16),
    "cast in part": lambda m: m.at("embedding.weight").astype(mx.float16),
    "freeze": lambda m: m.freeze(),
    "freeze a key": lambda m: m.freeze(keys="weight"),
    "unfreeze": lambda m: m.freeze().unfreeze(keys="bias"),
    "freeze the source": lambda m: m.with_frozen("embedding.weight"),
    "freeze beside the tied place": lambda m: m.with_frozen("head.bias"),
    "freeze the layer": lambda m: m.with_frozen("head"),
    "eval": lambda m: m.eval(),
    "apply": lambda m: m.apply(lambda a: a * 2),
    "apply at all": lambda m: m.at("**").apply(lambda a: a + 1),
    "set the source": lambda m: m.at("embedding.weight").set(mx.ones((WORDS, DIMS))),
    "replace the source's layer": lambda m: m.replace(embedding=fl.nn.Embedding(WORDS + 1, DIMS)),
    "replace the tied layer": lambda m: m.replace(head=fl.nn.Linear(DIMS, WORDS)),
    "replace by class": lambda m: m.at(fl.nn.Linear).apply(lambda layer: layer.astype(mx.float16)),
    "replace another": lambda m: m.replace(middle={"layers": [fl.nn.Linear(DIMS, DIMS, bias=False)]}),
    "update": lambda m: m.update(Language().tie(TIE)),
    "update_modules": lambda m: m.update_modules({"head": fl.nn.Linear(DIMS, WORDS)}),
    "map_modules": lambda m: m.map_modules(lambda path, module: module.replace(bias=None) if path == "head" else None),
    "flatten and unflatten": lambda m: fl.tree.unflatten(*reversed(fl.tree.flatten(m))),
    "map": lambda m: fl.tree.map(lambda a: a + 1, m),
    "map_with_path": lambda m: fl.tree.map_with_path(lambda path, a: a + 1, m),
    "partition": lambda m: fl.tree.combine(*fl.tree.partition(m, "embedding")),
    "stack": lambda m: fl.tree.stack([m, m]),
    "unstack": lambda m: fl.tree.unstack(fl.tree.stack([m, m]))[1],
    "ravel": lambda m: (lambda vectors, back: back(vectors))(*fl.tree.ravel(m)),
    "pack": lambda m: fl.optim.pack(m).unpack(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "jit": lambda m: fl.jit(lambda m: m.astype(mx.float16))(m),
    "jit that returns it": lambda m: fl.jit(lambda m: m)(m),
    "tie in jit": lambda m: fl.jit(lambda m: m.untie().tie(TIE))(m),
    "stateful": lambda m: fl.stateful(m, X)[1],
    "policy": lambda m: fl.Policy(param_dtype=mx.bfloat16).cast_to_param(m),
    "load_weights": lambda m: m.load_weights(list(mlx.utils.tree_flatten(Language().tie(TIE).parameters()))),
    "tie again": lambda m: m.untie().tie(TIE),
    "a tie more": lambda m: m.replace(head=fl.nn.Linear(DIMS, WORDS)).tie(TIE),
    "vmap": lambda m: fl.vmap(lambda m: m.apply(lambda a: a * 2))(fl.tree.stack([m, m])),
    "checkpoint": lambda m: fl.grad(lambda m: fl.checkpoint(loss)(m, X))(m),
    "grad": lambda m: fl.grad(loss)(m, X),
    "jvp": lambda m: fl.jvp(lambda m: m, (m,), (m,))[1],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("wrap", [False, True], ids=["itself", "in another"])
def test_both_places_have_one_array_after(edit, wrap):
    model = tied_model()
    before = fl.tree.leaves(model)
    if wrap:
        after = Wrapped(model, mx.array(1.0)).replace(inner=edit(model))
        after = after.astype(mx.bfloat16)
    else:
        after = edit(model)
    one_leaf(after)
    one_leaf(model)
    assert all(new is old for new, old in zip(fl.tree.leaves(model), before, strict=True))


UNTOUCHED = {
    "cast": lambda m: m.astype(mx.float32),
    "train": lambda m: m.train(),
    "unfreeze": lambda m: m.unfreeze(),
    "unfreeze by selection": lambda m: m.with_frozen("head", frozen=False),
    "update": lambda m: m.update(m.parameters()),
    "update with itself": lambda m: m.update(m),
    "replace": lambda m: m.replace(head=m.head, embedding=m.embedding),
    "map_modules": lambda m: m.map_modules(lambda path, module: module),
    "set": lambda m: m.at("embedding.weight").set(m.embedding.weight),
    "apply": lambda m: m.apply(lambda a: a),
    "tie": lambda m: m.tie(TIE),
    "load_weights": lambda m: m.load_weights(list(mlx.utils.tree_flatten(m.parameters()))),
}


@pytest.mark.parametrize("edit", UNTOUCHED.values(), ids=UNTOUCHED)
def test_an_edit_that_changes_nothing_returns_the_model(edit):
    model = tied_model()
    assert edit(model) is model
    frozen = model.freeze()
    assert frozen.freeze() is frozen
    assert frozen.with_frozen("embedding.weight") is frozen


def test_an_edit_shares_what_it_did_not_touch():
    model = tied_model()
    after = model.at("head.bias").set(mx.zeros(WORDS))
    assert after.embedding is model.embedding
    assert after.middle["layers"][0] is model.middle["layers"][0]
    assert after.head.weight is model.embedding.weight


def test_an_array_is_asked_about_once():
    seen = []
    tied_model().at(lambda path, array: bool(seen.append(path)) or True).paths()
    assert seen.count("embedding.weight") == 1
    assert "head.weight" not in seen


def test_a_changed_place_takes_the_other_along():
    weight = mx.ones((WORDS, DIMS))
    for model in (
        tied_model().at("embedding.weight").set(weight),
        tied_model().replace(head=fl.nn.Linear(DIMS, WORDS).replace(weight=weight)),
        tied_model().update({"embedding": {"weight": weight}}),
    ):
        assert model.head.weight is model.embedding.weight is weight


@pytest.mark.parametrize("source", range(3))
@pytest.mark.parametrize("changed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_a_changed_place_takes_all_others_along(source, changed):
    model = fl.nn.Sequential(*(fl.nn.Linear(2, 2) for _ in range(3)))
    model = model.tie({f"layers.{place}.weight": f"layers.{source}.weight" for place in range(3) if place != source})
    new = [fl.nn.Linear(2, 2) if place in changed else layer for place, layer in enumerate(model.layers)]
    after = model.replace(layers=new)
    stays = new[source if source in changed else changed[0]].weight
    assert all(layer.weight is stays for layer in after.layers)
    assert all(layer.bias is given.bias for layer, given in zip(after.layers, new, strict=True))
    halves = model.at([f"layers.{place}" for place in changed]).astype(mx.float16)
    assert halves.layers[0].weight is halves.layers[1].weight is halves.layers[2].weight
    assert halves.layers[0].weight.dtype == mx.float16


def test_the_places_may_hold_something_else_than_arrays():
    numbers = fl.tree.map(lambda array: 0, tied_model())
    others = fl.tree.map(lambda array: 1000 * array.ndim, Language())
    after = numbers.replace(embedding=others.embedding, head=others.head.replace(weight="another"))
    assert after.head.weight is after.embedding.weight == 2000


def test_a_place_inside_a_module_that_was_mapped_to_a_number_stays_gone():
    numbers = optree.tree_map(
        lambda layer: 0, tied_model(), is_leaf=lambda value: isinstance(value, fl.nn.Linear), namespace="frostleaf"
    )
    assert numbers.head == 0
    assert fl.tree.leaves(numbers) == []


def sees_an_array(instance, attribute, layer):
    assert layer.weight.shape == (WORDS, DIMS)


class Checked(fl.Module):
    embedding: fl.nn.Embedding = attrs.field(validator=sees_an_array)
    head: fl.nn.Linear = attrs.field(validator=sees_an_array)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update({"head": {"bias": mx.ones(WORDS)}}),
        lambda m: m.update_modules({"head": fl.nn.Linear(DIMS, WORDS)}),
        lambda m: m.with_frozen("head.bias"),
        lambda m: m.at("head.bias").set(mx.ones(WORDS)),
        lambda m: m.load_weights([("head.bias", mx.ones(WORDS))], strict=False),
    ],
)
@pytest.mark.parametrize("tie", [TIE, {"embedding.weight": "head.weight"}], ids=str)
def test_validators_see_whole_modules(edit, tie):
    model = Checked(fl.nn.Embedding(WORDS, DIMS), fl.nn.Linear(DIMS, WORDS)).tie(tie)
    after = edit(model)
    assert after is not model
    assert after.head.weight is after.embedding.weight


def test_quantizing_every_layer_keeps_the_tie():
    model = fl.quantize(Language(64, 64).tie(TIE))
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.dtype == mx.uint32
    alone = fl.quantize(Language(64, 64).tie(TIE).untie())
    assert fl.tree.structure(model.untie()) == fl.tree.structure(alone)


@pytest.mark.parametrize("path", ["head", "embedding"])
def test_quantizing_one_of_two_tied_layers_is_refused(path):
    model = Language(64, 64).tie(TIE)
    arrays = {"head": "u32[64,8] and f32[64,64]", "embedding": "f32[64,64] and u32[64,8]"}
    given, expected = arrays[path].split(" and ")
    shown = CONFLICT.format(cls="Language", target="head.weight", source="embedding.weight", given=given, expected=expected)
    with pytest.raises(ValueError, match=re.escape(shown)):
        fl.quantize(model, class_predicate=lambda name, layer: name == path)
    untied = fl.quantize(model.untie(), class_predicate=lambda name, layer: name == path)
    assert getattr(untied, path).bits == 4


def test_views_name_the_source_alone_and_modules_are_whole():
    model = tied_model()
    assert (
        list(model.parameters()["head"]) == list(model.trainable_parameters()["head"]) == list(model.state["head"]) == ["bias"]
    )
    assert all("weight" in dict(module.parameters()) for path, module in model.named_modules() if path == "head")
    assert model.children()["head"] is model.head
    assert model.leaf_modules()["head"].weight is model.embedding.weight
    assert str(model.at(fl.nn.Linear).paths()) == "['middle.layers.0', 'head']"


@pytest.mark.parametrize("model", [tied_model(), Wrapped(tied_model(), X)], ids=["itself", "in another"])
def test_filter_and_map_is_given_whole_modules_and_an_array_once(model):
    seen = []
    model.filter_and_map(lambda owner, key, value: seen.append(value) or True)
    inner = model.inner if isinstance(model, Wrapped) else model
    assert sum(value is inner.head for value in seen) == 1
    assert sum(value is inner.embedding.weight for value in seen) == 1
    found = model.filter_and_map(model.valid_child_filter, is_leaf_fn=lambda owner, key, value: model.is_module(value))
    assert found == model.children()


def test_a_tied_place_in_a_container_is_shown_empty():
    both = Pair([mx.ones(2), mx.ones(2)], {"a": mx.ones(2), "b": mx.zeros(3)}).tie({"ws.1": "ws.0", "named.a": "ws.0"})
    shapes = both.filter_and_map(lambda owner, key, value: True, lambda array: array.shape)
    assert shapes == {"ws": [(2,), {}], "named": {"a": {}, "b": (3,)}}
    assert both.update(both.parameters()) is both


def test_frozen_is_what_the_source_is():
    model = tied_model().with_frozen("embedding")
    grads = fl.grad(loss)(model, X)
    assert grads.embedding.weight is None
    assert grads.head.weight is None
    assert grads.head.bias is not None
    assert list(fl.optim.Adam(0.1).init(model).slots) == [
        "middle.layers.0.weight", "middle.layers.0.bias", "head.bias",
    ]  # fmt: skip


def test_the_structure_knows_ties():
    model = Language()
    tied = model.tie(TIE)
    assert fl.tree.structure(model) != fl.tree.structure(tied)
    assert fl.tree.structure(tied) == fl.tree.structure(Language().tie(TIE))
    assert hash(fl.tree.structure(tied)) == hash(fl.tree.structure(Language().tie(TIE)))
    assert pickle.loads(pickle.dumps(fl.tree.structure(tied))) == fl.tree.structure(tied)
    assert repr(fl.tree.diff(tied.untie(), tied)) == "(root): ties {} -> {head.weight = embedding.weight}"
    assert repr(fl.tree.diff(tied, tied.astype(mx.float16).at("*.bias").astype(mx.float32))).startswith(
        "embedding.weight: dtype"
    )
    assert "head.weight" not in repr(fl.tree.diff(tied, tied.astype(mx.float16)))
    function = fl.jit(loss)
    for each in (model, tied, Language().tie(TIE)):
        function(each, X)
    assert function.trace_count == 2


def test_a_tied_place_is_shown_as_such():
    assert "head=Linear(weight=→embedding.weight, bias=f32[5])" in repr(tied_model())
    assert "head=Linear(weight=→embedding.weight, bias=f32[5])" in repr(Wrapped(tied_model(), X))
    layers = fl.nn.Sequential(fl.nn.Linear(1, 1), fl.nn.Linear(1, 1)).tie({"layers.1.weight": "layers.0.weight"})
    assert "(Linear(weight=f32[1,1], bias=f32[1]), Linear(weight=→layers.0.weight, bias=f32[1]))" in repr(layers)


# Training


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("flat", [False, True], ids=["plain", "flattened"])
def test_training_equals_that_of_mlx_with_one_embedding(jitted, flat):
    class Reference(mlx.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = mlx.nn.Embedding(WORDS, DIMS)
            self.bias = mx.zeros(WORDS)

        def __call__(self, x):
            return self.embedding.as_linear(self.embedding(x)) + self.bias

    class Tied(fl.Module):
        embedding: fl.nn.Embedding
        head: fl.nn.Linear

        def __call__(self, x):
            return self.embedding(x) @ self.head.weight.T + self.head.bias

    theirs, by_mlx = Reference(), mlx.optimizers.Adam(0.1)
    model = Tied(fl.nn.Embedding(WORDS, DIMS), fl.nn.Linear(DIMS, WORDS)).tie(TIE)
    model = model.update({"embedding": theirs.embedding.parameters(), "head": {"bias": theirs.bias}})
    optimizer = fl.optim.flatten(fl.optim.Adam(0.1)) if flat else fl.optim.Adam(0.1)
    state = optimizer.init(model)

    def step(model, state, x):
        return optimizer.update(model, fl.grad(loss)(model, x), state)

    function = fl.jit(step) if jitted else step
    for _ in range(5):
        model, state = function(model, state, X)
        one_leaf(model)
        by_mlx.update(theirs, mlx.nn.value_and_grad(theirs, loss)(theirs, X)[1])
    assert mx.allclose(model.embedding.weight, theirs.embedding.weight, rtol=1e-5, atol=1e-6)
    assert mx.allclose(model.head.bias, theirs.bias, rtol=1e-5, atol=1e-6)


def test_one_slot_in_the_state_of_each_optimizer():
    state = fl.optim.chain(fl.optim.clip_by_global_norm(1.0), fl.optim.ema(fl.optim.Adam(0.1), 0.9)).init(tied_model())
    paths = [path for path in fl.tree.paths(state) if "embedding" in path or "head" in path]
    assert not any("head.weight" in path for path in paths)


def test_a_file_has_the_array_once(tmp_path):
    file = tmp_path / "weights.safetensors"
    model = tied_model()
    model.save_weights(file)
    assert "head.weight" not in mx.load(str(file))
    loaded = one_leaf(Language().tie(TIE).load_weights(file))
    assert mx.array_equal(loaded.head.weight, model.embedding.weight)


def shared_model():
    model = Language()
    return model.replace(head=model.head.replace(weight=model.embedding.weight))


def test_an_array_at_two_places_that_are_not_tied_is_warned_of():
    shown = SHARED.format(paths="'embedding.weight' and 'head.weight'", advice=TIE_THEM.format(ties=TIE))
    assert "model.tie({'head.weight': 'embedding.weight'})" in shown
    with pytest.warns(fl.optim.SharedArrayWarning) as caught:
        fl.optim.chain(fl.optim.clip_by_value(1.0), fl.optim.ema(fl.optim.Adam(0.1), 0.9)).init(shared_model())
    assert [str(each.message) for each in caught] == [shown]
    assert caught[0].filename == __file__
    model = shared_model()
    fl.optim.Adam(0.1).init(model.tie(TIE))
    fl.optim.Adam(0.1).init(model.with_frozen("head.weight"))


def test_the_advice_in_the_warning_ties_all_places_and_is_for_modules():
    weight = mx.ones((2, 2))
    model = fl.nn.Sequential(*(fl.nn.Linear(2, 2, bias=False).replace(weight=weight) for _ in range(3)))
    ties = {"layers.1.weight": "layers.0.weight", "layers.2.weight": "layers.0.weight"}
    with pytest.warns(fl.optim.SharedArrayWarning, match=re.escape(TIE_THEM.format(ties=ties))):
        fl.optim.SGD(0.1).init(model)
    fl.optim.SGD(0.1).init(model.tie(ties))
    with pytest.warns(fl.optim.SharedArrayWarning, match=NO_MODULE.format(tree="list")):
        fl.optim.SGD(0.1).init([weight, weight])


def test_many_shared_arrays_are_warned_of_once():
    big = fl.nn.Sequential(*(fl.nn.Linear(2, 2) for _ in range(50)))
    first = "'online.layers.0.weight' and 'target.layers.0.weight'"
    with pytest.warns(fl.optim.SharedArrayWarning) as caught:
        fl.optim.SGD(0.1).init({"online": big, "target": big})
    advice = NO_MODULE.format(tree="dict")
    assert [str(each.message) for each in caught] == [
        SHARED.format(paths=first + OTHERS.format(do="do", count=99, s="s"), advice=advice)
    ]
    with pytest.warns(fl.optim.SharedArrayWarning) as caught:
        fl.optim.SGD(0.1).init(fl.nn.Sequential(big, big))
    (message,) = [str(each.message) for each in caught]
    assert "layers.1.layers.3.bias': 'layers.0.layers.3.bias', ...})" in message
    assert len(message) < 1000
    with pytest.warns(fl.optim.SharedArrayWarning) as caught:
        fl.optim.SGD(0.1).init([mx.ones(2)] * 100)
    assert "'7' and 92 more" in str(caught[0].message)


# Wrong input


@pytest.mark.parametrize(
    ("places", "kind", "shown"),
    [
        ("head.weight", TypeError, NOT_PLACES.format(given="head.weight")),
        ({"head.weight": 3}, TypeError, NOT_PLACES.format(given={"head.weight": 3})),
        (
            {"head.wieght": "embedding.weight"},
            LookupError,
            NO_ARRAY.format(cls="Language", path="head.wieght", nearest=". The nearest paths are 'head.weight'"),
        ),
        ({"head": "embedding"}, LookupError, "Language has no array at 'head'"),
        ({"head.weight": "x"}, LookupError, NO_ARRAY.format(cls="Language", path="x", nearest="")),
        (
            {"head.bias": "embedding.weight"},
            ValueError,
            WRONG_SHAPE.format(
                cls="Language", target="head.bias", source="embedding.weight", given="f32[5]", expected="f32[5,3]"
            ),
        ),
        (
            {"head.weight": "head.weight"},
            ValueError,
            ITSELF.format(cls="Language", path="head.weight"),
        ),
        (
            {"head.weight": "embedding.weight", "embedding.weight": "head.weight"},
            ValueError,
            "so it can't be the source of",
        ),
    ],
)
def test_what_can_not_be_tied_is_refused(places, kind, shown):
    model = Language()
    with pytest.raises(kind, match=re.escape(shown)):
        model.tie(places)
    assert len(fl.tree.leaves(model)) == 5


INSIDE = {
    "modules": (
        {"layers.1": "layers.0"},
        "layers.1",
        ". Tie each array inside: {'layers.1.weight': 'layers.0.weight', 'layers.1.bias': 'layers.0.bias'}",
    ),
    "one name in common": ({"layers.2": "layers.0"}, "layers.2", ". Tie each array inside: {'layers.2.bias': 'layers.0.bias'}"),
    "containers": ({"layers": "layers.0"}, "layers", ", but 'layers.0.weight', 'layers.0.bias', 'layers.1.weight'"),
    "a module and an array": (
        {"layers.1": "layers.0.bias"},
        "layers.1",
        ", but 'layers.1.weight', 'layers.1.bias' inside. Tie each",
    ),
    "an array and a module": (
        {"layers.1.bias": "layers.0"},
        "layers.0",
        ", but 'layers.0.weight', 'layers.0.bias' inside. Tie each",
    ),
}


@pytest.mark.parametrize(("places", "path", "advice"), INSIDE.values(), ids=INSIDE)
def test_for_a_module_the_arrays_inside_are_named(places, path, advice):
    model = fl.nn.Sequential(fl.nn.Linear(2, 3), fl.nn.Linear(2, 3), fl.nn.Linear(4, 3))
    shown = NO_ARRAY.format(cls="Sequential", path=path, nearest=advice)
    with pytest.raises(LookupError, match=re.escape(shown)):
        model.tie(places)


def test_arrays_of_another_length_can_not_be_tied():
    model = fl.nn.Sequential(fl.nn.Linear(2, 3), fl.nn.Linear(3, 2))
    with pytest.raises(ValueError, match=re.escape("they are f32[2,3] and f32[3,2], and must be of one shape")):
        model.tie({"layers.1.weight": "layers.0.weight"})


def test_what_is_tied_can_not_be_tied_to_something_else():
    model = fl.nn.Sequential(*(fl.nn.Linear(2, 2) for _ in range(3))).tie({"layers.1.weight": "layers.0.weight"})
    advice = "take that tie away first, with .untie('layers.1.weight')"
    shown = ALREADY.format(cls="Sequential", path="layers.1.weight", source="layers.0.weight", advice=advice)
    with pytest.raises(ValueError, match=re.escape(shown)):
        model.tie({"layers.1.weight": "layers.2.weight"})
    shown = ALREADY.format(
        cls="Sequential", path="layers.1.weight", source="layers.0.weight", advice="tie layers.2.weight to that"
    )
    with pytest.raises(ValueError, match=re.escape(shown)):
        model.tie({"layers.2.weight": "layers.1.weight"})
    shown = CHAIN.format(cls="Sequential", path="layers.0.weight", source="layers.2.weight", target="layers.1.weight")
    with pytest.raises(ValueError, match=re.escape(shown)):
        model.tie({"layers.0.weight": "layers.2.weight"})


def test_what_a_module_inside_has_tied_can_not_be_tied_to_something_else():
    model = Wrapped(tied_model(), mx.ones((WORDS, DIMS)))
    assert model.tie({"inner.head.weight": "inner.embedding.weight"}) is model
    advice = "take that tie away first, with .untie() of the module inside that has the tie"
    shown = ALREADY.format(cls="Wrapped", path="inner.head.weight", source="inner.embedding.weight", advice=advice)
    with pytest.raises(ValueError, match=re.escape(shown)):
        model.tie({"inner.head.weight": "scale"})
    with pytest.raises(ValueError, match="tie scale to that"):
        model.tie({"scale": "inner.head.weight"})


@pytest.mark.parametrize(
    ("outer", "inner", "path"),
    [
        ({"inner.head.weight": "scale"}, TIE, "inner.head.weight"),
        ({"scale": "inner.head.weight"}, TIE, "inner.head.weight"),
        ({"inner.head.weight": "inner.embedding.weight"}, TIE, "inner.head.weight"),
        ({"inner.head.weight": "inner.embedding.weight"}, {"embedding.weight": "head.weight"}, "inner.embedding.weight"),
    ],
)
def test_a_place_can_not_be_tied_in_two_modules(outer, inner, path):
    model = Wrapped(Language(), mx.ones((WORDS, DIMS))).tie(outer)
    [(target, source)] = outer.items()
    shown = TIED_INSIDE.format(cls="Wrapped", target=target, source=source, path=path, holder="inner")
    with pytest.raises(ValueError, match=re.escape(shown)):
        model.at("inner").apply(lambda module: module.tie(inner))
    _ = model.untie().at("inner").apply(lambda module: module.tie(inner))


def test_what_is_not_tied_can_not_be_untied():
    model = tied_model()
    for given, tied in ((model, "tied are 'head.weight'"), (Language(), "nothing in it is tied")):
        with pytest.raises(LookupError, match=re.escape(NOT_TIED.format(cls="Language", path="head.bias", tied=tied))):
            given.untie("head.bias")


def test_updating_the_tied_place_is_refused_as_it_is_no_parameter():
    model, update = tied_model(), {"head": {"weight": mx.zeros((WORDS, DIMS))}}
    with pytest.raises(ValueError, match='does not have parameter named "weight" in head'):
        model.update(update)
    assert model.update(update, strict=False) is model


def test_selecting_the_tied_place_says_where_its_array_is():
    with pytest.raises(LookupError, match=re.escape(TIED.format(where="head.weight", source="embedding.weight"))):
        tied_model().at("head.weight").set(mx.zeros((WORDS, DIMS)))
    with pytest.raises(LookupError, match=re.escape(TIED.format(where="inner.head.weight", source="inner.embedding.weight"))):
        Wrapped(tied_model(), X).at("inner.head.weight").get()


@pytest.mark.parametrize(
    ("change", "missing"),
    [({"head": fl.nn.Identity()}, "head.weight"), ({"embedding": None}, "embedding.weight"), ({"head": None}, "head.weight")],
)
def test_a_tied_place_can_not_go(change, missing):
    model = tied_model()
    shown = GONE.format(cls="Language", target="head.weight", source="embedding.weight", missing=missing)
    with pytest.raises(ValueError, match=re.escape(shown)):
        model.replace(**change)
    _ = model.untie().replace(**change)


@pytest.mark.parametrize("value", [None, "text", [X, X], fl.nn.Identity(), {"a": X}], ids=str)
@pytest.mark.parametrize(
    "edit",
    [
        lambda m, value: m.at("embedding.weight").set(value),
        lambda m, value: m.at("**.weight").apply(lambda _: value),
        lambda m, value: m.replace(embedding=m.embedding.replace(weight=value)),
    ],
    ids=["set", "apply", "replace"],
)
def test_the_source_of_a_tie_keeps_an_array(edit, value):
    shown = GONE.format(cls="Language", target="head.weight", source="embedding.weight", missing="embedding.weight")
    for model in (tied_model(), fl.eval_shape(tied_model)):
        with pytest.raises(ValueError, match=re.escape(shown)):
            edit(model, value)
        _ = edit(model.untie(), value)


NEW_HEADS = {
    "replace": lambda m: m.replace(head=fl.nn.Linear(DIMS, 9)),
    "set": lambda m: m.at("head").set(fl.nn.Linear(DIMS, 9)),
    "map_modules": lambda m: m.map_modules(lambda path, layer: fl.nn.Linear(DIMS, 9) if path == "head" else None),
    "update_modules": lambda m: m.update_modules({"head": fl.nn.Linear(DIMS, 9)}),
    "an array": lambda m: m.replace(head=m.head.replace(weight=mx.zeros((9, DIMS)))),
    "in another dtype": lambda m: m.replace(head=fl.nn.Linear(DIMS, 9, dtype=mx.float16)),
}


@pytest.mark.parametrize("edit", NEW_HEADS.values(), ids=NEW_HEADS)
def test_another_shape_at_the_tied_place_does_not_replace_the_source(edit):
    model = tied_model()
    with pytest.raises(ValueError, match=re.escape("Language.head.weight is tied to embedding.weight")) as raised:
        edit(model)
    assert ".untie('head.weight')" in str(raised.value)
    after = edit(model.untie("head.weight"))
    assert (after.head.weight.shape, after.embedding) == ((9, DIMS), model.embedding)


@pytest.mark.parametrize("changed", [(1,), (1, 2)])
def test_one_of_several_tied_places_of_another_shape_is_refused(changed):
    model = fl.nn.Sequential(*(fl.nn.Linear(2, 2, bias=False) for _ in range(3)))
    model = model.tie({f"layers.{place}.weight": "layers.0.weight" for place in (1, 2)})
    new = [fl.nn.Linear(2, 3, bias=False) if place in changed else layer for place, layer in enumerate(model.layers)]
    with pytest.raises(ValueError, match=r"layers\.1\.weight is tied to layers\.0\.weight.*f32\[3,2\] and f32\[2,2\].*untie"):
        model.replace(layers=new)


def test_another_shape_at_the_source_takes_the_tied_place_along():
    model = tied_model()
    after = model.replace(embedding=fl.nn.Embedding(9, DIMS))
    assert after.head.weight is after.embedding.weight
    assert after.head.weight.shape == (9, DIMS)


def test_arrays_of_two_dtypes_can_not_be_put_at_tied_places():
    model = tied_model()
    weight = mx.ones((WORDS, DIMS))
    embedding = model.embedding.replace(weight=weight)
    head = model.head.replace(weight=weight.astype(mx.float16))
    with pytest.raises(ValueError, match=re.escape("f16[5,3]")):
        model.replace(embedding=embedding, head=head)


def test_two_different_arrays_can_not_be_put_at_tied_places():
    model = tied_model()
    shown = CONFLICT.format(
        cls="Language", target="head.weight", source="embedding.weight", given="f32[5,4]", expected="f32[7,3]"
    )
    with pytest.raises(ValueError, match=re.escape(shown)):
        model.replace(head=fl.nn.Linear(4, 5), embedding=fl.nn.Embedding(7, 3))


def three_layers():
    model = fl.nn.Sequential(*(fl.nn.Linear(2, 2) for _ in range(3)))
    return model.tie({f"layers.{index}.{name}": f"layers.0.{name}" for index in (1, 2) for name in ("weight", "bias")})


@pytest.mark.parametrize(
    ("places", "left"),
    [
        (["layers.1"], 4),
        (["layers.*.bias"], 4),
        (["layers"], 6),
        (["**"], 6),
        (["layers.1.weight", "layers.2"], 5),
        (["layers.?.w*"], 4),
    ],
    ids=str,
)
def test_places_are_untied_by_globs_and_by_what_holds_them(places, left):
    model = three_layers()
    untied = model.untie(*places)
    assert len(fl.tree.leaves(untied)) == left
    assert model.untie(*untied_names(model, untied)) is not model
    assert fl.tree.structure(model.untie(*untied_names(model, untied))) == fl.tree.structure(untied)


def untied_names(model, untied):
    return sorted({*fl.tree.paths(untied)} - {*fl.tree.paths(model)})


@pytest.mark.parametrize("place", ["layers.0", "layers.*.scale", "layer", "layers.1.weight.x"])
def test_a_selection_of_no_tied_place_is_refused(place):
    with pytest.raises(LookupError, match=re.escape(f"Sequential has no tie at {place!r}; tied are 'layers.1.bias', ")):
        three_layers().untie("layers.1", place)


def test_all_places_that_an_edit_leaves_unlike_are_named():
    model, new = three_layers(), [fl.nn.Linear(2, 5) for _ in range(2)]
    with pytest.raises(ValueError, match="unlike values") as raised:
        model.replace(layers=[model.layers[0], *new])
    for index in (1, 2):
        for name in ("weight", "bias"):
            assert f"layers.{index}.{name}" in str(raised.value)
    assert model.untie("layers.*").replace(layers=[model.layers[0], *new]).layers[1] is new[0]
