"""Numbers where arrays are expected, and arrays where nothing would look for them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar, Optional

import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl


class Scaled(fl.Module):
    weight: mx.array
    offset: mx.array | None = None


class Written(fl.Module):
    weight: mx.array

    def __init__(self, weight: Any) -> None:
        self.weight = weight


class Old(fl.Module):
    weight: Optional[mx.array] = fl.buffer()  # noqa: UP045


class Evaluated(fl.Module):
    weight: int
    __annotations__ = {"weight": mx.array | None}


NOT_ARRAYS = [0.5, 3, True, 1j, [1.0, 2.0], (1, 2), [[1.0], [2]], np.float32(1), {"a": 1.0}]


@pytest.mark.parametrize("value", NOT_ARRAYS, ids=str)
@pytest.mark.parametrize("cls", [Scaled, Written, Old, Evaluated])
def test_a_number_is_no_array(cls: Any, value: Any) -> None:
    shown = rf"{cls.__name__}\.weight is declared as an array, and was given .*, which would not be trained, cast or saved\. "
    with pytest.raises(TypeError, match=shown):
        cls(value)


def test_the_message_says_what_to_write() -> None:
    with pytest.raises(TypeError, match=re.escape("Write mx.array(...) of it, or fl.static() at the field.")):
        Scaled(0.5)


def test_a_default_is_checked_too() -> None:
    class Defaulted(fl.Module):
        scale: mx.array = 1.0  # type: ignore[assignment]

    with pytest.raises(TypeError, match=r"Defaulted\.scale is declared as an array, and was given 1\.0"):
        Defaulted()
    assert Defaulted(mx.ones(2)).scale.shape == (2,)


def test_what_is_not_declared_as_an_array_may_be_a_number() -> None:
    class Free(fl.Module):
        either: mx.array | float
        number: float
        anything: Any
        sizes: tuple[int, ...]

    assert Free(0.5, 0.5, 0.5, (1, 2)).either == 0.5


@pytest.mark.parametrize("annotation", ["float | mx.array", "int | None | mx.array", float | mx.array], ids=str)
def test_what_is_declared_as_either_may_be_a_number_again(annotation: Any) -> None:
    cls: Any = type("Either", (fl.Module,), {"__annotations__": {"temperature": annotation}, "__module__": __name__})
    assert cls(mx.ones(2)).replace(temperature=3).at("temperature").set(4).temperature == 4


def test_a_dataclass_that_is_not_frozen_is_told_so() -> None:
    @dataclasses.dataclass
    class Config:
        dims: int = 8

    class Configured(fl.Module):
        config: Any = fl.static()

    shown = r"was given .*Config\(dims=8\), a Config that can't be hashed\. Make Config a @dataclass\(frozen=True\), or store"
    with pytest.raises(TypeError, match=shown):
        Configured(Config())


def test_a_converter_may_make_the_array() -> None:
    class Converted(fl.Module):
        weight: mx.array = fl.parameter(converter=mx.array)

    assert Converted(0.5).weight.item() == 0.5
    assert Converted([1.0]).replace(weight=[2.0]).weight.tolist() == [2.0]


class Holder(fl.Module):
    anything: Any
    several: Any = ()


EDITS: dict[str, Any] = {
    "replace": lambda model, value: model.replace(anything=value),
    "set": lambda model, value: model.at("anything").set(value),
    "apply": lambda model, value: model.at("anything").apply(lambda array: value),
    "set in a list": lambda model, value: model.at("several.1").set(value),
    "set in a dict": lambda model, value: model.at("several.0.a").set(value),
    "replace a list": lambda model, value: model.replace(several=[model.several[0], value]),
}


@pytest.mark.parametrize("held", [mx.ones(2), fl.nn.Linear(2, 2), fl.ShapeDtypeStruct((2,), mx.float32)], ids=repr)
@pytest.mark.parametrize("value", NOT_ARRAYS[:-1], ids=str)
@pytest.mark.parametrize("edit", EDITS)
def test_a_number_does_not_take_the_place_of_an_array(edit: str, value: Any, held: Any) -> None:
    model = Holder(held, [{"a": held}, held])
    place = {"set in a list": "several.1", "set in a dict": "several.0.a", "replace a list": "several.1"}.get(edit, "anything")
    shown = rf"Holder\.{re.escape(place)} held .*, and was given .*, which would not be trained, cast or saved"
    with pytest.raises(TypeError, match=shown):
        EDITS[edit](model, value)


def test_other_values_take_the_place_of_an_array() -> None:
    model = Holder(mx.ones(2), [mx.ones(2), mx.ones(2)])
    for value in (None, mx.zeros(3), fl.nn.relu, [mx.ones(2), 3], (), fl.nn.Linear(2, 2)):
        assert fl.tree.leaves(model.replace(anything=value).anything) == fl.tree.leaves(value)
    assert model.replace(several=[]).several == ()
    shapes = fl.tree.map(lambda array: array.shape, model)
    assert shapes.replace(anything=3).anything == 3


CONSTANTS: dict[str, Any] = {
    "array": mx.ones(2),
    "module": fl.nn.Linear(2, 2),
    "list": [mx.ones(2)],
    "dict": {"a": (fl.nn.Linear(2, 2),)},
    "numpy": np.ones(2),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_an_array_in_the_class_body_needs_an_annotation(kind: str) -> None:
    shown = r"Slip\.gain is .* in the class body, without an annotation: .* would not be trained, cast or saved"
    with pytest.raises(TypeError, match=shown):
        type("Slip", (fl.Module,), {"gain": CONSTANTS[kind], "__module__": __name__})


def test_an_array_in_a_mixin_needs_an_annotation_too() -> None:
    class Mixin:
        gain = mx.ones(2)

    with pytest.raises(TypeError, match=r"Slip\.gain is f32\[2\] in the class body of its base Mixin, without"):

        class Slip(Mixin, fl.Module):
            pass


def test_a_class_variable_may_be_an_array() -> None:
    class Constant(fl.Module):
        gain: ClassVar[mx.array] = mx.ones(2)
        names = ("a", "b")
        sizes: ClassVar = [1, 2]

    class Child(Constant):
        pass

    assert Child().gain.shape == (2,)


def test_check_init_runs_when_the_constructor_returns() -> None:
    ran: list[Any] = []

    class Base(fl.Module):
        weight: mx.array

        def __check_init__(self) -> None:
            ran.append((Base, self.weight.ndim))
            if self.weight.ndim != 1:
                raise ValueError("weight must be a vector")

    class Child(Base):
        extra: Any = None

        def __init__(self, weight: mx.array) -> None:
            self.weight = weight

        def __check_init__(self) -> None:
            ran.append((Child, self.extra))

    Child(mx.ones(2))
    assert ran == [(Child, None), (Base, 1)]
    for cls in (Base, Child):
        with pytest.raises(ValueError, match="weight must be a vector"):
            cls(mx.ones((2, 2)))


def test_check_init_can_not_change_the_module() -> None:
    class Changing(fl.Module):
        weight: mx.array

        def __check_init__(self) -> None:
            self.weight = mx.zeros(2)

    with pytest.raises(fl.FrozenModuleError, match=r"can't set Changing\.weight"):
        Changing(mx.ones(2))
