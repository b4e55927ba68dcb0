"""What holds of modules whatever way they were put together: late, in one pass, with ties, with modules in static fields."""

from __future__ import annotations

import functools
import pickle
import weakref
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.core import instance

ONE, TWO = mx.ones(1), mx.array([2.0])


class Field(fl.Module):
    content: Any
    static: Any = fl.static(default=None)


class Three(NamedTuple):
    x: Any
    y: Any
    z: Any


class OwnMode(fl.Module):
    weight: mx.array

    def __init__(self) -> None:
        self.weight = mx.ones(2)
        self.eval()

    def _set_training_mode(self, mode: bool) -> Any:
        return super()._set_training_mode(mode).astype(mx.float16)


def test_an_edit_in_the_constructor_that_is_late_reaches_fields_and_tree() -> None:
    module = OwnMode()
    assert module.weight.dtype == fl.tree.leaves(module)[0].dtype == mx.float16
    assert list(vars(module)) == ["weight"]


@pytest.mark.parametrize("path", ["content", "content.0", "content.a"])
@pytest.mark.parametrize("edit", ["set", "apply"])
def test_a_mapping_that_is_put_in_is_copied(path: str, edit: str) -> None:
    given = {"b": ONE}
    value: Any = MappingProxyType(given)
    content: Any = {"content": ONE, "content.0": [ONE], "content.a": {"a": ONE}}[path]
    selection = Field(content).at(path)
    after = selection.set(value) if edit == "set" else selection.apply(lambda _: value)
    shown = repr(after)
    given["b"] = given["c"] = TWO
    assert repr(after) == shown
    assert len(fl.tree.leaves(after)) == 1


class Delegating(fl.Module):
    inner: fl.nn.Linear
    extra: mx.array

    def __init__(self) -> None:
        self.inner = fl.nn.Linear(2, 2)
        with pytest.raises(TypeError, match="is still being built"):
            fl.tree.size(self)
        self.extra = mx.ones(100)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)


def test_a_module_that_delegates_is_flattened_itself() -> None:
    assert fl.tree.paths(Delegating()) == ["inner.weight", "inner.bias", "extra"]


# Ties


def positive(module: Any, field: Any, value: Any) -> None:
    assert module.weight is not None


class Head(fl.Module):
    weight: mx.array
    bias: mx.array = fl.parameter(factory=lambda: mx.ones(3), validator=positive)
    count: int = fl.static(default=0)

    def _set_training_mode(self, mode: bool) -> Any:
        return super()._set_training_mode(mode).replace(count=self.weight.size)


class Tied(fl.Module):
    embedding: fl.nn.Embedding
    head: Any
    other: fl.nn.Linear
    layers: tuple[Any, ...] = ()


def tied(head: Any) -> Tied:
    model = Tied(fl.nn.Embedding(3, 2), head, fl.nn.Linear(2, 2), (fl.nn.Linear(2, 3), fl.nn.Linear(2, 3)))
    return model.tie({"head.weight": "embedding.weight", "layers.1.weight": "layers.0.weight"})


def test_what_holds_a_tied_array_is_whole_for_those_who_look_at_it() -> None:
    model = tied(Head(mx.ones((3, 2))))
    assert model.eval().head.count == 6
    assert model.apply(lambda array: array + 1).head.weight is not None
    assert model.load_weights([("head.bias", mx.zeros(3))], strict=False).head.bias.tolist() == [0, 0, 0]


ONE_ELSEWHERE: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "freeze": lambda m: (m, m.freeze(keys="other", recurse=False)),
    "unfreeze": lambda m: (m.at("other").freeze(), m.at("other").freeze().unfreeze()),
    "apply": lambda m: (m, m.apply(lambda array: array * 2 if array.shape == (2, 2) else array)),
    "train": lambda m: (m, m.at("other").set(m.other.eval()).train()),
    "astype": lambda m: (m, m.at("other").set(m.other.astype(mx.float16)).astype(mx.float32)),
    "load_weights": lambda m: (m, m.load_weights([("other.bias", mx.ones(2))], strict=False)),
    "update": lambda m: (m, m.update({"other": {"bias": mx.ones(2)}})),
    "optimizer": lambda m: (m, updated(m)),
}


def updated(model: Any) -> Any:
    opt = fl.optim.masked(fl.optim.SGD(0.1), "other.**")
    return opt.update(model, fl.grad(lambda model: model.other(mx.ones(2)).sum())(model), opt.init(model))[0]


@pytest.mark.parametrize("edit", ONE_ELSEWHERE)
def test_an_edit_elsewhere_keeps_what_is_tied(edit: str) -> None:
    model = tied(fl.nn.Linear(2, 3))
    before, after = ONE_ELSEWHERE[edit](model)
    assert after is not before
    assert after.head is model.head
    assert after.layers is model.layers
    assert after.head.weight is after.embedding.weight


# Modules in static fields


HELD: dict[str, Callable[[Any], Any]] = {
    "a module": lambda layer: layer,
    "a tuple": lambda layer: (1, layer),
    "a set": lambda layer: frozenset([layer]),
    "a partial": lambda layer: functools.partial(layer, key=None),
    "an argument": lambda layer: functools.partial(print, 1, end=layer),
}


def layers_in(value: Any) -> list[Any]:
    if isinstance(value, fl.Module):
        return [value]
    parts = (value.func, *value.args, *value.keywords.values()) if isinstance(value, functools.partial) else value
    return [layer for part in parts if not isinstance(part, int) and part is not None for layer in layers_in_part(part)]


def layers_in_part(part: Any) -> list[Any]:
    return [part] if isinstance(part, fl.Module) else []


@pytest.mark.parametrize("held", HELD)
def test_modules_in_static_fields_are_switched_and_compared_by_what_they_are(held: str) -> None:
    def make(p: float) -> Any:
        return Field(ONE, HELD[held](fl.nn.Dropout(p)))

    model = make(0.1)
    assert [layer.training for layer in layers_in(model.eval().static)] == [False]
    assert model.train() is model
    assert fl.tree.structure(make(0.1)) == fl.tree.structure(model.eval().train()) == fl.tree.structure(model)
    assert fl.tree.structure(make(0.2)) != fl.tree.structure(model) != fl.tree.structure(model.eval())
    step = fl.jit(lambda model: model.content * 2)
    for _ in range(3):
        step(make(0.1).eval())
    assert step.trace_count == 1


def test_a_model_with_a_module_in_a_static_field_equals_its_pickle() -> None:
    model = Field(ONE, fl.nn.Dropout(0.1))
    assert fl.tree.equal(pickle.loads(pickle.dumps(model)), model)


# Late modules


class ReadsItself(fl.Module):
    a: mx.array
    b: mx.array

    def norm(self) -> Any:
        return sum(value.sum() for value in vars(self).values())


def test_a_class_that_reads_its_dict_is_never_late() -> None:
    assert ReadsItself(ONE, TWO).astype(mx.float16).norm().item() == 3


def test_an_interrupt_while_it_is_put_together_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fl.nn.Sequential(fl.nn.Linear(2, 2)).astype(mx.float16)
    assert not instance.is_built(model)

    def interrupted(*_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(instance, "set_level", interrupted)
    with pytest.raises(KeyboardInterrupt):
        instance.level_of(model)
    layers = model.layers
    assert model.training
    assert model.layers is layers
    assert fl.tree.leaves(model)[0] is model.layers[0].weight


# And


def test_equal_modules_in_a_named_tuple_are_shown_with_their_names() -> None:
    assert repr(Field(Three(*[fl.nn.ReLU()] * 3))) == "Field(content=Three(x=ReLU(), y=ReLU(), z=ReLU()), static=None)"


def test_a_weak_proxy_is_refused_at_a_path_too() -> None:
    layer = fl.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="a weak proxy of an object that may go at any time"):
        fl.nn.Sequential(layer).at("layers.0").set(weakref.proxy(layer))


@pytest.mark.parametrize(
    "content", [[ONE, TWO], {"a": ONE, "b": [TWO]}, (fl.nn.Linear(2, 2), [ONE])], ids=["list", "dict", "nested"]
)
def test_giving_a_field_its_own_items_changes_nothing(content: Any) -> None:
    model = Field(content)
    again = (
        {key: list(each) if isinstance(each, tuple) else each for key, each in model.content.items()}
        if isinstance(content, dict)
        else list(model.content)
    )
    assert model.replace(content=again) is model
    assert model.at("content").set(again) is model
    assert model.replace(content=[*model.content, ONE]) is not model
