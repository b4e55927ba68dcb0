"""The three kinds of field, and what they mean for the views of a module."""

from __future__ import annotations

import re
from typing import Any

import attrs
import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.core.fields import cast, frozen, kind, persistent


class Kinds(fl.Module):
    bare: Any
    declared: Any = fl.parameter()
    saved: Any = fl.buffer()
    recomputed: Any = fl.buffer(persistent=False)
    size: Any = fl.static()
    _private: Any = None
    _private_buffer: Any = fl.buffer(default=None)


@pytest.mark.parametrize(
    ("name", "expected_kind", "expected_persistent"),
    [
        ("bare", "parameter", True),
        ("declared", "parameter", True),
        ("saved", "buffer", True),
        ("recomputed", "buffer", False),
        ("size", "static", True),
        ("_private", "parameter", False),
        ("_private_buffer", "buffer", False),
    ],
)
def test_a_field_is_of_the_kind_it_was_declared_with(name: str, expected_kind: str, expected_persistent: bool) -> None:
    field = attrs.fields_dict(Kinds)[name]
    assert kind(field) == expected_kind
    assert persistent(field) is expected_persistent


def arrays(**changes: Any) -> Kinds:
    names = ["bare", "declared", "saved", "recomputed", "private", "private_buffer"]
    return Kinds(**{name: mx.array(float(number)) for number, name in enumerate(names)}, size=3, **changes)


def test_the_kinds_decide_what_the_views_show() -> None:
    module = arrays()
    assert list(module.parameters()) == ["bare", "declared", "saved"]
    assert list(module.trainable_parameters()) == ["bare", "declared"]
    assert list(module.state) == ["bare", "declared", "saved", "recomputed", "_private", "_private_buffer"]
    assert fl.tree.paths(module) == list(module.state)
    assert Kinds.__frostleaf__.static == ("size",)


@pytest.mark.parametrize("name", ["bare", "declared", "saved", "recomputed", "_private", "_private_buffer"])
def test_arrays_of_every_kind_are_leaves(name: str) -> None:
    assert getattr(arrays().astype(mx.float16), name).dtype == mx.float16


@pytest.mark.parametrize("declare", [fl.parameter, fl.buffer, fl.static])
def test_a_field_accepts_what_attrs_accepts(declare: Any) -> None:
    class Declared(fl.Module):
        value: Any = declare(
            default=2, converter=lambda value: value + 1, validator=attrs.validators.lt(10), alias="given",
            metadata={"mine": "kept"}, kw_only=True,
        )  # fmt: skip

    assert Declared().value == 3
    assert Declared(given=5).value == 6
    assert attrs.fields(Declared).value.metadata["mine"] == "kept"
    with pytest.raises(ValueError, match="must be < 10"):
        Declared(given=20)
    with pytest.raises(TypeError, match="positional"):
        Declared(1)


@pytest.mark.parametrize("declare", [fl.parameter, fl.buffer, fl.static])
def test_a_factory_is_called_for_each_module(declare: Any) -> None:
    made: list[int] = []

    class Made(fl.Module):
        value: Any = declare(factory=lambda: made.append(1) or len(made))

    assert (Made().value, Made().value, Made(7).value) == (1, 2, 7)


@pytest.mark.parametrize("declare", [fl.parameter, fl.buffer, fl.static])
def test_what_attrs_does_not_accept_is_an_error(declare: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nope'"):
        declare(nope=1)


def test_persistent_is_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        fl.buffer(False)


def test_the_metadata_that_is_given_is_not_changed() -> None:
    metadata = {"mine": 1}
    fl.buffer(metadata=metadata)
    fl.static(metadata=metadata)
    assert metadata == {"mine": 1}


@pytest.mark.parametrize(
    ("given", "held"),
    [([1, [2]], (1, (2,))), ({"a": [1]}, {"a": (1,)}), ({1, 2}, frozenset({1, 2})), ("text", "text"), (None, None)],
    ids=repr,
)
def test_a_static_field_makes_containers_immutable(given: Any, held: Any) -> None:
    size = arrays().replace(size=given).size
    assert size == held
    assert not isinstance(size, list | dict | set)


def test_a_subclass_inherits_the_kinds() -> None:
    class Child(Kinds):
        more: Any = fl.static(default=1)

    assert [kind(field) for field in attrs.fields(Child)] == [*[kind(field) for field in attrs.fields(Kinds)], "static"]
    assert Child.__frostleaf__.static == ("size", "more")


def test_a_module_in_a_buffer_is_not_trained_and_one_in_a_private_field_is_no_parameter() -> None:
    class Holder(fl.Module):
        inner: Any = fl.buffer()
        _hidden: Any = None

    holder = Holder(arrays(), arrays())
    assert list(holder.parameters()) == ["inner"]
    assert holder.trainable_parameters() == {}
    assert [name for name, _ in holder.named_modules()] == ["", "_hidden", "inner"]


class Marked(fl.Module):
    held: Any = fl.parameter(frozen=True)
    free: Any = fl.parameter(frozen=False)
    scales: Any = fl.buffer(cast=False, default=None)


def test_the_marks_are_off_unless_they_are_asked_for() -> None:
    marks = {name: (frozen(field), cast(field)) for name, field in attrs.fields_dict(Marked).items()}
    assert marks == {"held": (True, True), "free": (False, True), "scales": (False, False)}
    assert not any(frozen(field) or not cast(field) for field in attrs.fields(Kinds))


@pytest.mark.parametrize("value", [mx.ones(1), [mx.ones(1), {"a": mx.ones(1)}], Kinds(*[mx.ones(1)] * 4, 3)], ids=type)
def test_a_field_that_starts_frozen_is_as_if_it_had_been_frozen(value: Any) -> None:
    module = Marked(value, mx.ones(1))
    assert fl.tree.structure(module.unfreeze().freeze(keys="held")) == fl.tree.structure(module)
    gradient = fl.grad(lambda module: sum(leaf.sum() for leaf in fl.tree.leaves(module)))(module)
    assert fl.tree.paths(gradient) == ["free"]
    assert len(fl.tree.leaves(module.unfreeze().trainable_parameters())) > 1


def test_what_is_not_there_is_not_frozen() -> None:
    assert fl.tree.structure(Marked(None, mx.ones(1))) == fl.tree.structure(Marked(None, mx.ones(1)).unfreeze())


def test_a_subclass_and_a_hand_written_constructor_start_frozen_too() -> None:
    class Own(Marked):
        def __init__(self) -> None:
            self.held = mx.ones(1)
            self.free = mx.ones(1)

    assert list(Own().trainable_parameters()) == ["free"]
    assert list(Own().replace(held=mx.zeros(1)).trainable_parameters()) == ["free"]
    assert list(Own().unfreeze().replace(held=mx.zeros(1)).trainable_parameters()) == ["held", "free"]


def test_an_error_for_an_assigned_buffer_names_record() -> None:
    class Counter(fl.Module):
        seen: mx.array = fl.buffer(factory=lambda: mx.array(0))
        table: mx.array = fl.buffer(persistent=False, factory=lambda: mx.array(0))

        def __call__(self) -> None:
            self.seen = self.seen + 1

    said = "shares the rest. A call of it gives it another value with fl.record(self, seen=...)"
    with pytest.raises(fl.FrozenModuleError, match=re.escape(said)):
        Counter()()
    with pytest.raises(fl.FrozenModuleError, match=r"shares the rest\.$"):
        Counter().table = mx.array(1)  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["parameter", "buffer", "static"])
def test_a_default_that_is_given_by_position_says_how_to_give_it(kind):
    with pytest.raises(TypeError, match=rf"fl\.{kind} takes no positional arguments, .* fl\.{kind}\(default='x'\)$"):
        getattr(fl, kind)("x")
