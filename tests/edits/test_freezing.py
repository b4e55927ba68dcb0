"""Freezing by name as mlx.nn.Module freezes, and by selection."""

from __future__ import annotations

import itertools
import re
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from twins import MODELS, Bag, Block, Norm, Stack, linear, outcome, same, subject

import frostleaf as fl
from frostleaf.edits.freezing import trainable as trainable_leaves

KEYS = [
    None, "weight", "bias", "ws", "ws.0", "ws.1", "table", "table.a", "layers", "layers.0", "second", "running_mean",
    "_private", "no such key", ["weight", "bias"], ["weight", "no such key"], [],
]  # fmt: skip
RECURSE = [True, False]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return subject(request.param)


def compare(ours: Any, theirs: Any) -> None:
    assert same(ours.trainable_parameters(), theirs.trainable_parameters())
    assert same(ours.parameters(), theirs.parameters())
    for (_, one), (_, other) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        assert same(one.trainable_parameters(), other.trainable_parameters())


@pytest.mark.parametrize("recurse", RECURSE)
@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_freeze_leaves_trainable_what_mlx_leaves_trainable(model: tuple[Any, Any], keys: Any, recurse: bool) -> None:
    ours, theirs = model
    compare(ours.freeze(recurse=recurse, keys=keys), theirs.freeze(recurse=recurse, keys=keys))


@pytest.mark.parametrize("recurse", RECURSE)
@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("frozen", [None, pytest.param("weight", marks=pytest.mark.long), ["ws", "table", "layers"]], ids=str)
def test_unfreeze_makes_trainable_what_mlx_makes_trainable(
    model: tuple[Any, Any], frozen: Any, keys: Any, recurse: bool
) -> None:
    ours, theirs = model
    ours, theirs = ours.freeze(keys=frozen), theirs.freeze(keys=frozen)
    compare(ours.unfreeze(recurse=recurse, keys=keys), theirs.unfreeze(recurse=recurse, keys=keys))


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
@pytest.mark.parametrize("recurse", RECURSE)
@pytest.mark.parametrize("keys", [keys for keys in KEYS if keys is not None], ids=str)
def test_a_strict_key_is_an_error_where_it_is_one_in_mlx(model: tuple[Any, Any], method: str, keys: Any, recurse: bool) -> None:
    ours, theirs = model
    one = outcome(lambda: getattr(ours, method)(recurse=recurse, keys=keys, strict=True))
    other = outcome(lambda: getattr(theirs, method)(recurse=recurse, keys=keys, strict=True))
    assert one[0] == other[0]
    if one[0] == "raised":
        assert one[1] is other[1] is KeyError
    else:
        compare(one[1], theirs)


def test_the_error_for_a_strict_key_names_the_class_and_the_key() -> None:
    with pytest.raises(KeyError, match=r"no module in this Stack has a field 'wieght'"):
        Stack([linear()]).freeze(keys="wieght", strict=True)


def test_strict_without_keys_is_no_error() -> None:
    model = Stack([linear()])
    assert fl.tree.structure(model.freeze(strict=True)) == fl.tree.structure(model.freeze())
    assert fl.tree.structure(model.unfreeze(strict=True)) == fl.tree.structure(model)


steps = st.tuples(st.sampled_from(["freeze", "unfreeze"]), st.booleans(), st.sampled_from(KEYS))


@pytest.mark.parametrize("examples", [20, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["deep", "arrays in a list", "arrays in a dict", "all things", "a dict of layers", "buffers"])
def test_any_sequence_of_freezing_and_unfreezing_ends_as_in_mlx(name: str, examples: int) -> None:
    @settings(deadline=None, max_examples=examples)
    @given(st.lists(steps, max_size=5))
    def check(sequence: list[Any]) -> None:
        ours, theirs = subject(name)
        for method, recurse, keys in sequence:
            ours = getattr(ours, method)(recurse=recurse, keys=keys)
            getattr(theirs, method)(recurse=recurse, keys=keys)
        compare(ours, theirs)

    check()


FEW_STEPS = list(itertools.product(["freeze", "unfreeze"], [None, "ws", "ws.0", ["ws.1", "bias"]]))


@pytest.mark.parametrize("first", FEW_STEPS, ids=str)
def test_each_short_sequence_over_arrays_in_a_list_ends_as_in_mlx(first: Any) -> None:
    for rest in itertools.product(FEW_STEPS, repeat=2):
        ours, theirs = subject("arrays in a list")
        for method, keys in (first, *rest):
            ours = getattr(ours, method)(keys=keys)
            getattr(theirs, method)(keys=keys)
        assert same(ours.trainable_parameters(), theirs.trainable_parameters()), (first, *rest)


def test_freezing_returns_a_new_model_and_leaves_the_old_one_trainable() -> None:
    model = Stack([linear()])
    frozen = model.freeze()
    assert frozen is not model
    assert tree_flatten(frozen.trainable_parameters()) == []
    assert len(tree_flatten(model.trainable_parameters())) == 2


@pytest.mark.parametrize("keys", [("weight",), {"weight"}, iter(["weight"])], ids=["tuple", "set", "iterator"])
def test_keys_may_be_any_iterable(keys: Any) -> None:
    assert list(linear().freeze(keys=keys).trainable_parameters()) == ["bias"]


def trainable(model: Any) -> list[str]:
    return [name for name, _ in tree_flatten(model.trainable_parameters())]


NESTED = Stack([linear(1), linear(2)], {"a": [linear(3), mx.ones(2)], "b": mx.ones(1)}, head=linear(4))
ALL = trainable(NESTED)
SELECTIONS = {
    "head": {"head.weight", "head.bias"},
    "head.bias": {"head.bias"},
    "layers.*.bias": {"layers.0.bias", "layers.1.bias"},
    "**.weight": {name for name in ALL if name.endswith("weight")},
    "**": set(ALL),
    "layers": {name for name in ALL if name.startswith("layers")},
    "experts": {name for name in ALL if name.startswith("experts")},
    "experts.a": {name for name in ALL if name.startswith("experts.a")},
    "experts.a.1": {"experts.a.1"},
    "experts.b": {"experts.b"},
}


@pytest.mark.parametrize("where", SELECTIONS)
def test_with_frozen_freezes_the_selection_and_nothing_else(where: str) -> None:
    frozen = NESTED.with_frozen(where)
    assert set(trainable(frozen)) == set(ALL) - SELECTIONS[where]
    assert trainable(frozen.with_frozen(where, frozen=False)) == ALL
    assert fl.tree.structure(frozen.with_frozen(where, frozen=False)) == fl.tree.structure(NESTED)
    assert fl.tree.structure(NESTED.at(where).freeze()) == fl.tree.structure(frozen)


@pytest.mark.parametrize("where", SELECTIONS)
@pytest.mark.parametrize(
    "frozen",
    [
        NESTED.freeze(),
        NESTED.freeze(keys=["layers", "experts", "head"]),
        NESTED.freeze(keys=["experts.a", "head", "layers.0", "experts.b", "weight", "bias", "experts.a.1", "layers.1"]),
        NESTED.with_frozen("**"),
    ],
    ids=["all", "by the names of containers", "by all names", "by selection"],
)
def test_a_selection_of_a_frozen_model_can_be_made_trainable_alone(frozen: Any, where: str) -> None:
    before = set(trainable(frozen))
    assert set(trainable(frozen.with_frozen(where, frozen=False))) == before | SELECTIONS[where]
    assert set(trainable(frozen.at(where).unfreeze())) == before | SELECTIONS[where]


@pytest.mark.parametrize("first", SELECTIONS)
@pytest.mark.parametrize("second", SELECTIONS)
def test_selections_frozen_one_after_the_other_add_up(first: str, second: str) -> None:
    both = NESTED.with_frozen(first).with_frozen(second)
    assert set(trainable(both)) == set(ALL) - SELECTIONS[first] - SELECTIONS[second]
    less = both.with_frozen(first, frozen=False)
    assert set(trainable(less)) == set(ALL) - (SELECTIONS[second] - SELECTIONS[first])


def test_freezing_each_array_by_selection_is_freezing_all() -> None:
    assert trainable(NESTED.with_frozen(mx.array)) == trainable(NESTED.freeze()) == []


def test_a_buffer_that_is_selected_stays_what_it_is() -> None:
    norm = Norm(mx.ones(2))
    assert norm.with_frozen("running_mean") is norm
    assert list(norm.with_frozen("running_mean", frozen=False).trainable_parameters()) == ["weight"]


def test_a_frozen_field_stays_frozen_when_it_is_replaced() -> None:
    layer = linear().freeze(keys="weight").replace(weight=mx.zeros(1))
    assert list(layer.trainable_parameters()) == ["bias"]


def test_a_module_below_a_frozen_name_is_not_trained_by_the_model_but_by_itself() -> None:
    block = Block(linear(1), linear(2)).freeze(keys="second", recurse=False)
    assert trainable(block) == ["first.weight", "first.bias"]
    assert list(block.second.trainable_parameters()) == ["weight", "bias"]


def test_a_private_field_is_not_trained() -> None:
    model = Block(None, mx.ones(1), mx.ones(1))
    assert trainable(model) == ["first"]
    gradient = fl.grad(lambda model: (model.first + model._private).sum())(model)
    assert gradient.first.tolist() == [1.0]
    assert gradient._private is None


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
def test_a_model_without_arrays_can_be_frozen(method: str) -> None:
    model = Bag([], {}, None, None)
    assert getattr(model, method)() is model


def test_the_arguments_of_freeze_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        linear().freeze(True)


class Table(fl.Module):
    table: Any


def arrays(*keys: Any) -> dict[Any, Any]:
    return {key: mx.ones(1) for key in keys}


DOTTED: list[tuple[Any, str, list[str]]] = [
    (arrays("enc", "enc.attn"), "table.enc", ["enc"]),
    (arrays("enc", "enc.attn"), "table.enc.attn", ["enc.attn"]),
    ({"enc": arrays("a", "b"), "enc.attn": mx.ones(1)}, "table.enc", ["enc"]),
    ({"enc": arrays("a", "b"), "enc.a.x": mx.ones(1)}, "table.enc.a", ["enc.a"]),
    ({"enc": linear(), "enc.attn": linear()}, "table.enc", ["enc"]),
    ({"enc": linear(), "enc.weight.x": mx.ones(1)}, "table.enc.weight", ["enc.weight"]),
    (arrays("1", "10", "1.0", "1.1"), "table.1", ["1"]),
    (arrays(1, 10, "1.5"), "table.1", ["1"]),
    ([arrays("0", "0.0"), mx.ones(1)], "table.0.0", ["0.0"]),
    (arrays("table", "weight", "table.weight"), "table.table", ["table"]),
    ({"a": arrays("b.c", "b"), "a.b": mx.ones(1)}, "table.a.b.c", ["a.b.c"]),
]


@pytest.mark.parametrize(("table", "where", "expected"), DOTTED, ids=[f"{where} of {[*held]}" for held, where, _ in DOTTED])
def test_keys_with_dots_do_not_freeze_their_neighbours(table: Any, where: str, expected: list[str]) -> None:
    model = Table(table)
    every = fl.tree.paths(model)
    chosen = {path for path in every if path in fl.tree.paths(fl.tree.filter(model, where))}
    assert chosen
    assert chosen < {*every}
    one, others = model.with_frozen(where), model.freeze().with_frozen(where, frozen=False)
    assert trained(one) == {*every} - chosen
    assert trained(others) == chosen
    assert {*fl.tree.paths(one.trainable_parameters())} == {*every} - chosen
    assert {*fl.tree.paths(others.trainable_parameters())} == chosen
    assert repr(one).count("❄") == len(chosen)


def trained(model: Any) -> set[str]:
    return {path for path, trains in zip(fl.tree.paths(model), trainable_leaves(model), strict=True) if trains}


def test_places_of_one_dotted_name_can_not_be_frozen_apart() -> None:
    model = Table({"enc": arrays("a", "b"), "enc.a": mx.ones(1)})
    with pytest.raises(ValueError, match=r"Table has two places of the name 'table\.enc\.a'.*rename a key"):
        model.with_frozen("table.enc")
    assert trained(model.with_frozen("table.enc.a")) == {"table.enc.b"}
    assert trained(model.freeze(keys="table.enc.a")) == {"table.enc.b"}


SOURCE = "{target!r} is tied to {source!r}, which is not selected and would stay {now}: select that as well, or instead"


class Tied(fl.Module):
    source: fl.nn.Linear
    others: tuple[fl.nn.Linear, ...]
    name: Any = fl.static(default=(1, 2))


def tied(ties: Any) -> Tied:
    return Tied(fl.nn.Linear(2, 2), [fl.nn.Linear(2, 2, bias=False)]).tie(ties)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("where", [["others.0"], ["others"], ["others", "source.bias"], ["others.*"]])
@pytest.mark.parametrize("prefix", ["", "table.inner."])
def test_selected_places_whose_sources_are_elsewhere_are_refused(prefix: str, where: list[str], frozen: bool) -> None:
    model = tied({"others.0.weight": "source.weight"})
    model = model if frozen else model.freeze()
    outer: Any = Table({"inner": model}) if prefix else model
    where = [prefix + each for each in where]
    now = "trainable" if frozen else "frozen"
    shown = SOURCE.format(target=f"{prefix}others.0.weight", source=f"{prefix}source.weight", now=now)
    with pytest.raises(LookupError, match=re.escape(shown)):
        outer.with_frozen(where, frozen=frozen)
    for both in ([*where, f"{prefix}source"], fl.nn.Linear, "**"):
        assert trained(outer.with_frozen(both, frozen=frozen)) == (set() if frozen else {*fl.tree.paths(outer)})
    assert outer.with_frozen(where, frozen=not frozen) is outer


def test_a_class_that_selects_a_tied_place_without_its_source_is_refused() -> None:
    model = fl.nn.Sequential(fl.nn.Embedding(3, 2), fl.nn.Linear(2, 3, bias=False)).tie({"layers.1.weight": "layers.0.weight"})
    with pytest.raises(
        LookupError, match=re.escape(SOURCE.format(target="layers.1.weight", source="layers.0.weight", now="trainable"))
    ):
        model.with_frozen(fl.nn.Linear)
    assert trained(model.with_frozen("layers.0").with_frozen(fl.nn.Linear)) == set()


def test_a_source_that_is_tied_further_out_is_followed() -> None:
    inner = tied({"others.0.weight": "source.weight"})
    model = fl.nn.Sequential(fl.nn.Linear(2, 2), inner).tie({"layers.1.source.weight": "layers.0.weight"})
    with pytest.raises(LookupError, match=r"'layers\.1\.others\.0\.weight' is tied to 'layers\.0\.weight'"):
        model.with_frozen("layers.1.others")
    assert trained(model.with_frozen(["layers.0", "layers.1"])) == set()


def test_a_place_that_is_tied_to_a_buffer_may_be_selected() -> None:
    model = Norm(mx.ones(2)).tie({"weight": "running_mean"})
    assert model.with_frozen("**") is not None
    assert fl.nn.Sequential(model).with_frozen("layers.0") is not None


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
@pytest.mark.parametrize("where", ["name", "name.0", ["source", "name"]])
def test_a_static_field_has_nothing_to_freeze(where: Any, method: str) -> None:
    model = tied({})
    with pytest.raises(LookupError, match=r"'name(\.0)?' is a static field of this Tied, which has no arrays to freeze"):
        getattr(model.at(where), method)()
    assert trained(model.with_frozen(["*", "source.bias"])) == set()


@pytest.mark.parametrize("value", [1, 0, "no", None, []], ids=repr)
def test_a_flag_is_a_bool(value: Any) -> None:
    model = Stack([linear()])
    for method, name in [(m, n) for m in ("freeze", "unfreeze") for n in ("recurse", "strict")]:
        with pytest.raises(TypeError, match=rf"^{name} is True or False, and was given as {re.escape(repr(value))}$"):
            getattr(model, method)(**{name: value})
    with pytest.raises(TypeError, match=r"^frozen is True or False, and was given as"):
        model.with_frozen("layers", value)


@pytest.mark.parametrize("keys", [3, ["weight", 3], [["weight"]], {"weight": 1, 2: 3}, mx.ones(2), b"ab", True], ids=str)
def test_keys_are_names(keys: Any) -> None:
    with pytest.raises(TypeError, match=r"^keys is the name of a field, such as 'bias', or several names, and was given as "):
        linear().freeze(keys=keys)
