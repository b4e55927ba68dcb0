"""What subclassing Module does: the definition of the class, construction, freezing, and every error on the way."""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
import gc
import pickle
import typing
import weakref
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import attrs
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import optree
import pytest
from laws.strategies import Snapshot, identical

import frostleaf as fl
from frostleaf.core.definition import FrozenModuleError
from frostleaf.core.instance import metadata_of

ONE = mx.array(1.0)


class Affine(fl.Module):
    """With attrs' constructor."""

    weight: mx.array
    bias: Any = None
    size: int = fl.static(default=3)


class Written(fl.Module):
    """With a constructor of its own."""

    weight: mx.array
    layers: tuple[Any, ...]
    size: int = fl.static()
    scale: Any = 2.0

    def __init__(self, size: int, *, depth: int = 1) -> None:
        self.size = size
        self.layers = []
        for _ in range(depth):
            self.layers.append(Affine(mx.ones(size)))
        self.weight = mx.zeros(size)

    def total(self, x: Any = 0) -> Any:
        return self.weight.sum() + self.size + x


# Definition


def test_without_a_constructor_a_class_gets_that_of_attrs() -> None:
    module = Affine(ONE, size=4)
    assert (module.weight, module.bias, module.size) == (ONE, None, 4)
    assert attrs.fields_dict(Affine).keys() == {"weight", "bias", "size"}


@pytest.mark.parametrize("arguments", [{}, {"weight": ONE, "nope": 1}], ids=["missing", "unknown"])
def test_the_constructor_of_attrs_refuses_wrong_arguments(arguments: Any) -> None:
    with pytest.raises(TypeError, match=r"missing 1 required|unexpected keyword"):
        Affine(**arguments)


def test_a_constructor_of_its_own_assigns_and_appends() -> None:
    module = Written(2, depth=3)
    assert type(module.layers) is tuple
    assert len(module.layers) == 3
    assert module.size == 2
    assert module.scale == 2.0
    assert fl.tree.paths(module) == ["weight", "layers.0.weight", "layers.1.weight", "layers.2.weight"]


def test_the_fields_stand_in_the_order_of_their_declaration_whatever_the_order_of_assignment() -> None:
    assert list(metadata_of(Written(1)).static) == ["size"]
    assert Written.__frostleaf__.children == ("weight", "layers", "scale")
    assert list(Written.__frostleaf__.fields) == ["weight", "layers", "size", "scale"]


def test_what_is_appended_is_not_appended_to_another_instance() -> None:
    assert [len(Written(1, depth=depth).layers) for depth in (2, 1)] == [2, 1]


def test_a_class_without_annotations_has_no_fields() -> None:
    class Bare(fl.Module):
        constant = 3

        def __call__(self) -> int:
            return self.constant

    assert Bare()() == 3
    assert Bare.__frostleaf__.fields == {}
    assert fl.tree.leaves(Bare()) == []


def test_a_class_variable_is_no_field() -> None:
    class Counted(fl.Module):
        kinds: ClassVar[int] = 7
        weight: mx.array

    assert list(Counted.__frostleaf__.fields) == ["weight"]
    assert Counted(ONE).kinds == 7


@pytest.mark.parametrize("name", ["weight", "bias", "size"])
def test_modules_are_compared_by_identity(name: str) -> None:
    one = Affine(ONE)
    assert one == copy.copy([one])[0]
    assert one != Affine(ONE)
    assert len({one, Affine(ONE), one}) == 2
    assert getattr(one, name) is getattr(copy.copy(one), name)


def test_the_docstring_and_the_name_of_the_class_and_its_constructor_are_kept() -> None:
    assert Written.__doc__ == "With a constructor of its own."
    assert Written.__name__ == "Written"
    assert Written.__init__.__name__ == "__init__"
    assert list(Written.__init__.__annotations__) == ["size", "depth", "return"]


def test_the_class_is_registered_in_our_namespace_with_attribute_names() -> None:
    paths, leaves, _ = optree.tree_flatten_with_path(Affine(ONE, mx.zeros(1)), namespace="frostleaf")
    assert paths == [("weight",), ("bias",)]
    assert len(leaves) == 2
    accessors = optree.tree_accessors(Affine(ONE), namespace="frostleaf")
    assert [accessor.codify("m") for accessor in accessors] == ["m.weight"]


def test_a_class_made_in_a_function_twice_is_two_classes() -> None:
    def make() -> type[fl.Module]:
        class Local(fl.Module):
            weight: mx.array

        return Local

    first, second = make(), make()
    assert fl.tree.structure(first(ONE)) != fl.tree.structure(second(ONE))
    assert fl.tree.structure(first(ONE)) == fl.tree.structure(first(ONE))


def test_module_itself_can_be_instantiated() -> None:
    assert fl.tree.leaves(fl.Module()) == []
    assert repr(fl.Module()) == "Module()"


@pytest.mark.parametrize("name", ["training", "parameters", "at", "update", "freeze", "is_module"])
def test_a_field_that_hides_what_every_module_has_is_an_error(name: str) -> None:
    message = f"Hiding declares a field '{name}', which hides Module.{name} of every module. Choose another name."
    with pytest.raises(TypeError, match=message):
        type("Hiding", (fl.Module,), {"__annotations__": {name: Any}})


# Defaults, factories, converters, validators: all with attrs' constructor and with one that somebody wrote


def positive(instance: Any, attribute: Any, value: Any) -> None:
    if value <= 0:
        raise ValueError(f"{attribute.name} must be positive")


class Options(fl.Module):
    """Everything that attrs offers for a field."""

    weight: mx.array = fl.parameter(converter=mx.array)
    rate: float = fl.static(default=0.5, validator=positive, converter=float)
    sizes: Any = fl.static(factory=list)
    doubled: float = fl.static(default=attrs.Factory(lambda self: self.rate * 2, takes_self=True))
    extra: Any = fl.buffer(factory=lambda: mx.zeros(1))
    decorated: int = fl.static()
    named: Any = fl.parameter(default=None, alias="called")

    @decorated.default
    def _decorated(self) -> int:
        return len(self.sizes) + 1

    @decorated.validator
    def _checked(self, attribute: Any, value: Any) -> None:
        if value > 10:
            raise ValueError("decorated must be at most 10")


class WrittenOptions(fl.Module):
    """The same with a constructor of its own that sets only what it is given."""

    weight: mx.array = fl.parameter(converter=mx.array)
    rate: float = fl.static(default=0.5, validator=positive, converter=float)
    sizes: Any = fl.static(factory=list)
    doubled: float = fl.static(default=attrs.Factory(lambda self: self.rate * 2, takes_self=True))
    extra: Any = fl.buffer(factory=lambda: mx.zeros(1))
    decorated: int = fl.static()
    named: Any = fl.parameter(default=None)

    @decorated.default
    def _decorated(self) -> int:
        return len(self.sizes) + 1

    @decorated.validator
    def _checked(self, attribute: Any, value: Any) -> None:
        if value > 10:
            raise ValueError("decorated must be at most 10")

    def __init__(self, weight: Any, **given: Any) -> None:
        given["weight"] = weight
        given["named"] = given.pop("called", None)
        for name, value in given.items():
            setattr(self, name, value)


both = pytest.mark.parametrize("cls", [Options, WrittenOptions])


@both
def test_defaults_and_factories_fill_what_is_not_given(cls: Any) -> None:
    module = cls([1.0])
    assert (module.rate, module.sizes, module.doubled, module.decorated, module.named) == (0.5, (), 1.0, 1, None)
    assert module.extra.shape == (1,)
    assert module.extra is not cls([1.0]).extra


@both
def test_a_factory_that_takes_self_sees_the_fields_before_it(cls: Any) -> None:
    module = cls([1.0], rate=2, sizes=[1, 2])
    assert module.doubled == 4.0
    assert module.decorated == 3


@both
def test_converters_run_at_construction_and_in_replace(cls: Any) -> None:
    module = cls([1.0], rate=1)
    assert isinstance(module.weight, mx.array)
    assert type(module.rate) is float
    after = module.replace(weight=[2.0, 3.0], rate=4)
    assert after.weight.tolist() == [2.0, 3.0]
    assert type(after.rate) is float


@both
@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rate": -1}, "rate must be positive"), ({"decorated": 11}, "decorated must be at most 10")],
)
@pytest.mark.parametrize("how", ["constructor", "replace", "at"])
def test_validators_run_at_construction_and_in_edits(cls: Any, changes: Any, message: str, how: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "constructor": lambda: cls([1.0], **changes),
        "replace": lambda: cls([1.0]).replace(**changes),
        "at": lambda: cls([1.0]).at(next(iter(changes))).set(next(iter(changes.values()))),
    }
    with pytest.raises(ValueError, match=message):
        calls[how]()


def test_an_alias_is_the_name_of_the_argument() -> None:
    assert Options([1.0], called=ONE).named is ONE


def test_a_private_field_is_given_without_its_underscore() -> None:
    class Private(fl.Module):
        _table: mx.array

    assert Private(table=ONE)._table is ONE
    assert Private(ONE).parameters() == {}


def test_a_name_with_two_underscores_is_mangled_as_in_any_class() -> None:
    class Mangled(fl.Module):
        __weight: mx.array
        größe: int = fl.static(default=1)

        def weight(self) -> mx.array:
            return self.__weight

    module = Mangled(ONE)
    assert module.weight() is ONE
    assert fl.tree.paths(module) == ["_Mangled__weight"]
    assert module.parameters() == {}
    assert identical(fl.tree.map(lambda leaf: leaf, module), module)


def test_a_field_can_be_left_out_of_the_constructor_and_set_after_it() -> None:
    class Derived(fl.Module):
        weight: mx.array
        size: int = fl.static(init=False)

        def __attrs_post_init__(self) -> None:
            self.size = self.weight.size

    assert Derived(mx.zeros(5)).size == 5
    with pytest.raises(TypeError, match="unexpected keyword"):
        Derived(mx.zeros(5), size=3)


def test_a_keyword_only_field_can_come_before_one_without_default() -> None:
    class Mixed(fl.Module):
        rate: float = fl.static(default=1.0, kw_only=True)
        weight: mx.array

    assert Mixed(ONE, rate=2.0).rate == 2.0
    with pytest.raises(TypeError, match="positional"):
        Mixed(ONE, 2.0)


def test_in_a_class_with_its_own_constructor_defaults_can_come_first() -> None:
    class First(fl.Module):
        rate: float = fl.static(default=1.0)
        weight: mx.array

        def __init__(self) -> None:
            self.weight = ONE

    assert First().weight is ONE


# Inheritance


class Child(Affine):
    more: Any = None


class WrittenChild(Written):
    added: Any = 7


class WrittenChildWithConstructor(Written):
    own: Any

    def __init__(self, size: int) -> None:
        super().__init__(size, depth=2)
        self.own = [size]


def test_a_subclass_has_the_fields_of_its_base_first() -> None:
    assert list(Child.__frostleaf__.fields) == ["weight", "bias", "size", "more"]
    assert Child(ONE, more=2).more == 2
    assert list(Affine.__frostleaf__.fields) == ["weight", "bias", "size"]


def test_an_inherited_constructor_takes_the_defaults_of_added_fields() -> None:
    module = WrittenChild(2, depth=2)
    assert module.added == 7
    assert len(module.layers) == 2


def test_an_inherited_constructor_that_leaves_an_added_field_unset_is_an_error() -> None:
    class Incomplete(Written):
        first: Any
        second: Any

    with pytest.raises(TypeError, match=r"Incomplete\.__init__ returned without setting 'first', 'second'"):
        Incomplete(1)


def test_a_constructor_may_call_that_of_its_base_and_go_on() -> None:
    module = WrittenChildWithConstructor(3)
    assert module.own == (3,)
    assert len(module.layers) == 2


def test_a_constructor_may_call_one_that_attrs_made() -> None:
    class Sized(Affine):
        doubled: Any

        def __init__(self, size: int) -> None:
            super().__init__(mx.zeros(size), size=size)
            self.doubled = self.size * 2
            self.bias = ONE

    assert Sized(4).doubled == 8
    assert Sized(4).bias is ONE


def test_a_constructor_may_call_that_of_module_itself() -> None:
    class Plain(fl.Module):
        weight: mx.array

        def __init__(self) -> None:
            super().__init__()
            self.weight = ONE

    assert Plain().weight is ONE


def test_a_subclass_can_give_a_field_another_kind() -> None:
    class Buffered(Affine):
        weight: mx.array = fl.buffer(kw_only=True)

    assert list(Buffered(weight=ONE).trainable_parameters()) == []
    assert list(Affine(ONE).trainable_parameters()) == ["weight"]


def test_multiple_inheritance_calls_each_constructor_once() -> None:
    calls: list[str] = []

    class Left(fl.Module):
        left: Any

        def __init__(self) -> None:
            calls.append("left")
            super().__init__()
            self.left = 1

    class Right(fl.Module):
        right: Any

        def __init__(self) -> None:
            calls.append("right")
            super().__init__()
            self.right = 2

    class Diamond(Left, Right):
        pass

    module = Diamond()
    assert (module.left, module.right) == (1, 2)
    assert calls == ["left", "right"]


class Shouting:
    """A mixin that is no module."""

    def shout(self) -> str:
        return type(self).__name__.upper()


class WithInit:
    """A mixin with a constructor."""

    def __init__(self) -> None:
        self.weight = ONE


def test_a_mixin_gives_methods() -> None:
    class Loud(Shouting, fl.Module):
        weight: mx.array

    assert Loud(ONE).shout() == "LOUD"
    with pytest.raises(FrozenModuleError):
        Loud(ONE).weight = ONE


def test_a_mixin_can_give_the_constructor() -> None:
    class Made(WithInit, fl.Module):
        weight: mx.array

    assert Made().weight is ONE
    with pytest.raises(FrozenModuleError):
        Made().weight = ONE


class Tagged(Shouting, fl.Module):
    """A mixin that is a module, with the constructor that attrs makes."""

    tag: str = fl.static(default="none")


def test_a_mixin_that_is_a_module_does_not_hide_the_constructor_of_a_layer() -> None:
    class Loud(Tagged, fl.nn.Linear):
        pass

    layer = Loud(2, 3, bias=False)
    assert (layer.weight.shape, layer.bias, layer.tag, layer.shout()) == ((3, 2), None, "none", "LOUD")
    assert layer.replace(tag="some")(mx.ones((1, 2))).shape == (1, 3)
    assert pickle.loads(pickle.dumps(Tagged("x"))).tag == "x"

    class Given(Loud):
        def __init__(self, tag: str) -> None:
            super().__init__(1, 2)
            self.tag = tag

    assert Given("x").tag == "x"
    assert Given("x").weight.shape == (2, 1)


def test_an_abstract_class_can_not_be_instantiated_and_its_subclass_can() -> None:
    class Abstract(fl.Module, abc.ABC):
        weight: mx.array

        @abc.abstractmethod
        def __call__(self) -> Any: ...

    class Concrete(Abstract):
        def __call__(self) -> Any:
            return self.weight

    with pytest.raises(TypeError, match="abstract"):
        Abstract(ONE)
    assert Concrete(ONE)() is ONE


Held = TypeVar("Held")


class Box(fl.Module, Generic[Held]):
    content: Held


def test_a_generic_class_can_be_parametrised() -> None:
    assert typing.get_args(Box[int]) == (int,)
    assert Box[mx.array](ONE).content is ONE
    assert fl.tree.structure(Box[mx.array](ONE)) == fl.tree.structure(Box(ONE))

    class IntBox(Box[int]):
        size: int = fl.static(default=1)

    assert list(IntBox.__frostleaf__.fields) == ["content", "size"]


class Calling(Protocol):
    weight: mx.array

    def __call__(self) -> Any: ...


def test_a_protocol_can_be_a_base() -> None:
    class Implementation(fl.Module, Calling):
        weight: mx.array

        def __call__(self) -> Any:
            return self.weight

    assert Implementation(ONE)() is ONE

    class OtherOrder(Calling, fl.Module):
        weight: mx.array

    assert OtherOrder(ONE).weight is ONE


class Rich(fl.Module):
    """A class with every kind of attribute that is no field."""

    weight: mx.array
    size: int = fl.static(default=2)

    @property
    def half(self) -> float:
        return self.size / 2

    @classmethod
    def zeros(cls, size: int) -> Rich:
        return cls(mx.zeros(size), size)

    @staticmethod
    def twice(value: int) -> int:
        return value * 2

    @functools.cached_property
    def computed(self) -> list[int]:
        return [self.size]

    def scaled(self, factor: Any, offset: Any = 0) -> Any:
        return self.weight * factor + offset


def test_properties_class_methods_and_static_methods_work() -> None:
    module = Rich.zeros(4)
    assert type(module) is Rich
    assert module.half == 2.0
    assert module.twice(3) == 6


def test_a_property_can_not_be_set() -> None:
    with pytest.raises(FrozenModuleError, match=r"can't set Rich\.half"):
        Rich(ONE).half = 3


def test_a_cached_property_is_computed_once_and_is_no_part_of_the_tree() -> None:
    module = Rich(ONE)
    before = fl.tree.structure(module)
    assert module.computed is module.computed
    assert fl.tree.structure(module) == before
    assert "computed" not in repr(module)
    # An edit makes a module of its own, which computes its own.
    assert module.replace(size=5).computed == [5]
    assert pickle.loads(pickle.dumps(module)).computed == [2]
    assert fl.tree.map(lambda leaf: leaf, module).computed == [2]


def test_a_partial_function_of_a_bound_method_works() -> None:
    module = Rich(mx.array([1.0, 2.0]))
    assert functools.partial(module.scaled, 2.0, offset=1.0)().tolist() == [3.0, 5.0]
    assert module.scaled == module.scaled
    assert module.scaled.__self__ is module


# Copies


def test_a_pickled_module_keeps_its_mode_and_its_frozen_fields() -> None:
    module = Written(2, depth=2).freeze(keys="weight").eval()
    again = pickle.loads(pickle.dumps(module))
    assert fl.tree.equal(again, module)
    assert again.training is False
    with pytest.raises(FrozenModuleError):
        again.size = 3


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_each_protocol_of_pickle_works(protocol: int) -> None:
    module = Affine([ONE, {"a": (ONE, None)}], {"b": [1]}, 5)
    again = pickle.loads(pickle.dumps(module, protocol))
    assert fl.tree.equal(again, module)
    assert type(again.bias) is MappingProxyType


def test_pickling_does_not_run_the_constructor() -> None:
    options = WrittenOptions([1.0], rate=3)
    again = pickle.loads(pickle.dumps(options))
    assert again.rate == 3.0
    assert again.weight.tolist() == [1.0]


def test_a_copy_shares_the_arrays_and_a_deep_copy_does_not() -> None:
    module = Affine([ONE], Affine(ONE))
    shallow, deep = copy.copy(module), copy.deepcopy(module)
    assert identical(shallow, module)
    assert fl.tree.equal(deep, module)
    assert deep.weight[0] is not ONE
    assert deep.bias is not module.bias


def test_a_deep_copy_keeps_one_object_at_two_places_one_object() -> None:
    layer = Affine(ONE)
    deep = copy.deepcopy(Affine([layer, layer]))
    assert deep.weight[0] is deep.weight[1]


@pytest.mark.parametrize(
    "value",
    [
        mx.float16, mx.bool_, mx.tanh, mx.random.normal, nn.relu, nn.tanh, len, functools.partial(len), Affine,
        functools.partial(mx.softmax, axis=-1), functools.partial(functools.partial(nn.gelu), mx.float16, x=MappingProxyType),
        frozenset({mx.float16, mx.bool_, 1}),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)  # fmt: skip
def test_a_module_can_be_copied_and_pickled_whatever_is_static_in_it(value: Any) -> None:
    held = Affine({"a": value}, [value], size=(value, {"a": value}))
    assert fl.tree.equal(copy.deepcopy(held), held)
    assert fl.tree.equal(pickle.loads(pickle.dumps(held)), held)


def scaled(x: Any) -> Any:
    return x * 2


@pytest.mark.parametrize("value", [mx.vmap(scaled), mx.grad(scaled), mx.compile(scaled), mx.compile(lambda x: x)])
def test_what_mlx_made_of_a_function_is_not_pickled_as_that_function(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot pickle 'function' object"):
        pickle.dumps(Affine(ONE, size=value))


class Rows(dict):  # type: ignore[type-arg]
    """A dict of somebody's own."""


class Shape(tuple):  # type: ignore[type-arg]
    """A tuple of somebody's own."""


fl.register_pytree_node(Rows, lambda rows: (rows.values(), tuple(rows)), lambda keys, rows: Rows(zip(keys, rows, strict=True)))


def test_classes_of_dict_and_tuple_are_those_that_they_were_when_pickled() -> None:
    held = Affine(Rows(a=ONE), size=Shape([1, 2]))
    again = pickle.loads(pickle.dumps(held))
    assert (type(again.weight), type(again.size)) == (Rows, Shape)
    assert fl.tree.equal(again, held)


def test_a_module_can_be_held_weakly() -> None:
    module = Affine(ONE)
    reference = weakref.ref(module)
    assert reference() is module
    del module
    gc.collect()
    assert reference() is None


# Errors, each by its message


def _added(module: Any) -> None:
    module.weight += 1


MESSAGES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "set a field",
        lambda: setattr(Affine(ONE), "weight", ONE),
        FrozenModuleError,
        "can't set Affine.weight: a finished module never changes. .replace(weight=...) returns a new module that shares the "
        "rest.",
    ),
    (
        "delete a field",
        lambda: delattr(Affine(ONE), "weight"),
        FrozenModuleError,
        "can't delete Affine.weight: a finished module never changes. .replace(weight=...) returns a new module that shares "
        "the rest.",
    ),
    (
        "set what is no field",
        lambda: setattr(Affine(ONE), "nope", 1),
        FrozenModuleError,
        "can't set Affine.nope: a finished module never changes. .replace(...) returns a new module that shares the rest.",
    ),
    (
        "replace what is no field",
        lambda: Affine(ONE).replace(wieght=ONE),
        TypeError,
        "Affine has no field 'wieght'; the nearest is 'weight'",
    ),
    (
        "replace what is like no field",
        lambda: Affine(ONE).replace(xyz=ONE),
        TypeError,
        "Affine has no field 'xyz'; its fields are weight, bias, size",
    ),
    (
        "change an array in place",
        lambda: _added(Affine(mx.zeros(1))),
        FrozenModuleError,
        "can't set Affine.weight: a finished module never changes. .replace(weight=...) returns a new module that shares the "
        "rest. (An array that += was tried on has changed already: write .at('weight').apply(lambda array: array + ...).)",
    ),
    (
        "a class with its own __setattr__",
        lambda: type("Own", (fl.Module,), {"__setattr__": object.__setattr__, "__module__": __name__}),
        TypeError,
        "Own defines __setattr__, and a module can't: its attributes are set while __init__ runs, and never again. Give the "
        "field a converter or a validator, or edit a copy with .replace(...).",
    ),
    (
        "two fields of one argument",
        lambda: type("Two", (fl.Module,), {"__annotations__": {"w": Any, "_w": Any}, "__module__": __name__}),
        TypeError,
        "the constructor of Two has a duplicate argument 'w' in function definition: a field's name without its underscore is "
        "its argument, beside self. Rename the field, or write fl.parameter(alias=...).",
    ),
    (
        "a dataclass",
        lambda: dataclasses.dataclass(type("Data", (fl.Module,), {"__annotations__": {"w": Any}, "__module__": __name__}))(ONE),
        TypeError,
        "Data is decorated with @dataclass, which replaces how modules are printed, compared and hashed. Take the decorator "
        "away: a class of fl.Module gets its constructor without one.",
    ),
    *[
        (
            f"assign an undeclared {kind}",
            lambda value=value: _written(lambda self: setattr(self, "xyz", value)),
            TypeError,
            f"Assigned has no field 'xyz'. Declare it in the class body, for example as `xyz: {kind}`.",
        )
        for kind, value in {
            "fl.nn.Linear": fl.nn.Linear(1, 1),
            "Affine": Affine(ONE),
            "mx.array": ONE,
            "list": [ONE],
            "float = fl.static()": 0.5,
        }.items()
    ],
    (
        "leave fields unset",
        lambda: _written(lambda self: None),
        TypeError,
        "Assigned.__init__ returned without setting 'weight', 'size'. Set each declared field on self, or give it a default "
        "in the class body.",
    ),
    (
        "assign what is not declared",
        lambda: _written(lambda self: setattr(self, "weigth", ONE)),
        TypeError,
        "Assigned has no field 'weigth'; the nearest is 'weight'. Declare it in the class body, for example as `weigth: "
        "mx.array`.",
    ),
    (
        "an array in a static field",
        lambda: Affine(ONE, size=mx.zeros((2, 3), mx.int8)),
        TypeError,
        "Affine.size is a static field and was given an array (i8[2,3]). Static values are structure, compared and "
        "hashed; an array belongs in a bare annotation (a parameter) or in fl.buffer().",
    ),
    (
        "an array in a list in a static field",
        lambda: Affine(ONE).replace(size=[1, {"a": ONE}]),
        TypeError,
        "Affine.size is a static field and was given an array (f32[]) at 1.a.",
    ),
    (
        "what can't be hashed in a static field",
        lambda: Affine(ONE, size=bytearray(b"x")),
        TypeError,
        "Affine.size is a static field and was given bytearray(b'x'), a bytearray that can't be hashed (unhashable type: "
        "'bytearray'). Give the class __eq__ and __hash__, or store numbers, strings and tuples instead.",
    ),
    (
        "a numpy array in a static field",
        lambda: Affine(ONE, size=np.zeros(1)),
        TypeError,
        "Affine.size is a static field and was given an array (array([0.])).",
    ),
    (
        "a numpy array in a parameter",
        lambda: Affine(np.zeros(1)),
        TypeError,
        "Affine.weight was given a numpy.ndarray; the leaves of a module are mx.array. Convert it with mx.array(...).",
    ),
    (
        "a numpy array deep in a parameter",
        lambda: Affine([{"a": np.zeros(1)}]),
        TypeError,
        "Affine.weight was given a numpy.ndarray; the leaves of a module are mx.array. Convert it with mx.array(...).",
    ),
    (
        "flatten a module that is being built",
        lambda: _written(lambda self: fl.tree.flatten(self)),
        TypeError,
        "this Assigned is still being built: until its __init__ has returned it is not a tree, and can't be cast, frozen or "
        "flattened. Do that with the finished module, and declare what is never trained with fl.buffer().",
    ),
    (
        "call __init__ of a finished module",
        lambda: Written(1).__init__(2),  # type: ignore[misc]
        TypeError,
        "__init__ was called on a finished Written, which can't change. Build a new one.",
    ),
    (
        "call the constructor of attrs on a finished module",
        lambda: Affine(ONE).__init__(ONE),  # type: ignore[misc]
        TypeError,
        "__init__ was called on a finished Affine, which can't change. Build a new one.",
    ),
]


class Assigned(fl.Module):
    weight: mx.array
    size: int = fl.static()

    def __init__(self, assign: Callable[[Any], Any]) -> None:
        assign(self)


def _written(assign: Callable[[Any], Any]) -> Assigned:
    return Assigned(assign)


@pytest.mark.parametrize(("call", "error", "message"), [row[1:] for row in MESSAGES], ids=[row[0] for row in MESSAGES])
def test_an_error_says_what_is_wrong_and_what_to_do(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_the_error_of_a_frozen_module_is_the_one_of_attrs() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError) as caught:
        Affine(ONE).weight = ONE
    assert isinstance(caught.value, AttributeError)
    assert caught.value.msg == str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda self: self.astype(mx.float16),
        lambda self: self.replace(weight=ONE),
        lambda self: self.at("weight").set(ONE),
        lambda self: self.at("weight").get(),
        lambda self: self.apply(mx.zeros_like),
        lambda self: self.update({"weight": ONE}),
        lambda self: self.map_modules(lambda path, module: None),
        lambda self: self.with_frozen("**"),
        lambda self: self.training,
        lambda self: fl.tree.leaves([self]),
        lambda self: copy.copy(self),
        lambda self: pickle.dumps(self),
    ],
)
@pytest.mark.parametrize("complete", [False, True], ids=["unset fields", "all fields set"])
def test_a_module_that_is_being_built_is_no_tree_yet(edit: Any, complete: bool) -> None:
    def build(self: Any) -> None:
        if complete:
            self.weight, self.size = ONE, 1
        edit(self)

    with pytest.raises(TypeError, match="still being built"):
        Assigned(build)


class Language(fl.Module):
    embedding: fl.nn.Embedding
    head: fl.nn.Linear
    norm: fl.nn.BatchNorm

    def __init__(self) -> None:
        self.tie({"head.weight": "embedding.weight"})
        self.freeze(keys="bias")
        self.eval()
        self.embedding, self.head, self.norm = fl.nn.Embedding(9, 4), fl.nn.Linear(4, 9), fl.nn.BatchNorm(4)


def test_ties_modes_and_what_is_frozen_can_be_declared_in_init() -> None:
    model = Language()
    assert model.head.weight is model.embedding.weight
    assert fl.tree.paths(model)[:2] == ["embedding.weight", "head.bias"]
    assert not model.training
    assert not model.norm.training
    assert list(fl.optim.SGD(0.1).init(model).slots) == ["embedding.weight", "norm.weight"]
    assert fl.tree.structure(Language()) == fl.tree.structure(model)
    assert fl.tree.structure(fl.tree.map(lambda leaf: leaf, model)) == fl.tree.structure(model)


def test_what_init_declares_and_can_not_be_is_an_error() -> None:
    class Wrong(fl.Module):
        weight: mx.array

        def __init__(self) -> None:
            self.weight = ONE
            self.tie({"wieght": "weight"})

    with pytest.raises(LookupError, match=r"Wrong has no array at 'wieght'. The nearest paths are 'weight'"):
        Wrong()


def test_post_init_runs_after_a_generated_constructor() -> None:
    class Scaled(fl.Module):
        weight: mx.array
        scale: float = fl.static(default=1.0)

        def __post_init__(self) -> None:
            self.scale = self.weight.size**-0.5

    class Deeper(Scaled):
        pass

    for cls in (Scaled, Deeper):
        assert cls(mx.ones((2, 2))).scale == 0.5
    with pytest.raises(FrozenModuleError):
        Scaled(ONE).scale = 2.0


def test_fields_of_dataclasses_are_understood() -> None:
    class Bag(fl.Module):
        layers: list[Any] = dataclasses.field(default_factory=list)
        size: int = dataclasses.field(default=3, kw_only=True, metadata={"note": "mine"})

    assert (Bag().layers, Bag([ONE], size=4).size) == ((), 4)
    assert attrs.fields(Bag).size.metadata["note"] == "mine"


def test_a_class_hook_that_does_not_call_super_hides_nothing() -> None:
    seen: list[type] = []

    class Layer(fl.Module):
        w: mx.array

        def __init_subclass__(cls, **options: Any) -> None:
            seen.append(cls)

    class Scale(Layer):
        v: mx.array

    class Further(Scale):
        u: mx.array

    assert seen == [Scale, Further]
    module = Further(ONE, ONE, ONE)
    assert fl.tree.paths(module) == ["w", "v", "u"]
    assert type(fl.jit(lambda m: m)(module)) is Further


def test_a_registered_class_that_can_be_changed_is_taken_as_it_is_at_construction() -> None:
    class Pair:
        def __init__(self, a: Any, b: Any) -> None:
            self.a, self.b = a, b

    fl.register_pytree_node(Pair, lambda p: ([p.a, p.b], None, ["a", "b"]), lambda _, c: Pair(*c))
    pair = Pair(ONE, [ONE])
    module = Affine({"pair": pair}, size=1)
    pair.a = None
    pair.b.append(ONE)
    assert module.weight["pair"].a is ONE
    assert len(fl.tree.leaves(module)) == 2


def test_a_module_that_is_being_built_has_a_repr() -> None:
    shown = []
    Assigned(lambda self: (shown.append(repr(self)), setattr(self, "weight", ONE), setattr(self, "size", 1)))
    assert shown == ["Assigned(<being built>)"]


def test_a_module_that_is_being_built_can_be_assigned_to_again_but_not_deleted_from() -> None:
    def build(self: Any) -> None:
        self.size = 1
        self.size = 2
        self.weight = ONE
        with pytest.raises(FrozenModuleError):
            del self.weight

    assert Assigned(build).size == 2


def test_an_unfinished_module_can_not_be_put_into_another() -> None:
    def build(self: Any) -> None:
        self.weight, self.size = ONE, 1
        fl.tree.flatten(Affine(self))

    with pytest.raises(
        TypeError, match=r"Affine\.weight was given a .*Assigned of the module that is being built, which can't hold itself"
    ):
        Assigned(build)


def test_what_init_raises_comes_through_and_the_module_stays_unfinished() -> None:
    kept: list[Any] = []

    def build(self: Any) -> None:
        kept.append(self)
        self.weight = ONE
        raise KeyError("from __init__")

    with pytest.raises(KeyError, match="from __init__"):
        Assigned(build)
    with pytest.raises(TypeError, match="still being built"):
        fl.tree.leaves(kept[0])
    with pytest.raises(FrozenModuleError):
        kept[0].size = 3
    assert isinstance(repr(kept[0]), str)


def test_after_an_exception_in_init_the_same_class_can_be_built() -> None:
    with pytest.raises(ZeroDivisionError):
        Assigned(lambda self: 1 / 0)
    assert Assigned(lambda self: (setattr(self, "weight", ONE), setattr(self, "size", 1))).size == 1


@pytest.mark.parametrize("cls", [Affine, Written, Options], ids=lambda cls: cls.__name__)
def test_a_failed_second_init_changes_nothing(cls: Any) -> None:
    module = cls(2) if cls is Written else cls(ONE)
    snapshot = Snapshot(module)
    with pytest.raises(TypeError, match="__init__ was called on a finished"):
        module.__init__(3)
    snapshot.assert_unchanged()


@pytest.mark.parametrize("cls", [Affine, Written, fl.nn.Identity], ids=lambda cls: cls.__name__)
def test_a_module_that_jit_returned_is_finished_before_anything_reads_it(cls: Any) -> None:
    module = cls(2) if cls is Written else cls(ONE)
    late = fl.jit(lambda given: given)(module)
    with pytest.raises(TypeError, match="__init__ was called on a finished"):
        late.__init__(3)
    assert repr(late) == repr(module)
    assert vars(late).keys() == vars(module).keys()
    with pytest.raises(TypeError, match="__init__ was called on a finished"):
        late.__init__(3)


def test_init_may_be_called_again_after_it_failed() -> None:
    module = Assigned.__new__(Assigned)
    with pytest.raises(ZeroDivisionError):
        module.__init__(lambda self: (setattr(self, "size", 1), 1 / 0))  # type: ignore[misc]
    module.__init__(lambda self: (setattr(self, "weight", ONE), setattr(self, "size", 2)))  # type: ignore[misc]
    assert module.size == 2


def test_new_may_put_something_beside_the_fields() -> None:
    class Marked(fl.Module):
        weight: mx.array

        def __new__(cls, *args: Any) -> Any:
            new = super().__new__(cls)
            new.__dict__["mark"] = 3
            return new

    assert vars(Marked(ONE))["mark"] == 3


def test_a_module_built_inside_the_constructor_of_another_is_finished_before() -> None:
    class Outer(fl.Module):
        inner: Any

        def __init__(self) -> None:
            self.inner = Written(1)
            with pytest.raises(FrozenModuleError):
                self.inner.size = 2
            self.inner = self.inner.eval()

    assert Outer().inner.training is False
    assert Outer().training is True


# What fields hold


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ([ONE], (ONE,)),
        ({"a": [ONE]}, MappingProxyType({"a": (ONE,)})),
        ((ONE, [2]), (ONE, (2,))),
        (Pair([ONE], None), Pair((ONE,), None)),
        ({1, 2}, frozenset({1, 2})),
        (None, None),
        ("three", "three"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "make",
    [
        Affine,
        lambda value: Affine(ONE).replace(weight=value),
        lambda value: Affine(ONE).at("weight").set(value),
        lambda value: Affine(value).replace(size=4),
        lambda value: Assigned(lambda self: (setattr(self, "weight", value), setattr(self, "size", 1))),
    ],
    ids=["constructor", "replace", "at", "replace another", "handwritten"],
)
def test_what_is_given_is_held_in_immutable_containers(given: Any, held: Any, make: Any) -> None:
    weight = make(given).weight
    assert type(weight) is type(held)
    assert weight == held


def test_replace_changes_the_fields_that_are_named_and_no_other() -> None:
    module = Affine(ONE, mx.zeros(1), 5).freeze(keys="bias").eval()
    after = module.replace(weight=mx.zeros(2), size=6)
    assert after.bias is module.bias
    assert after.size == 6
    assert after.training is False
    assert list(after.trainable_parameters()) == ["weight"]
    assert module.size == 5


def test_a_static_field_is_part_of_the_structure_and_not_of_the_leaves() -> None:
    assert fl.tree.structure(Affine(ONE, size=1)) != fl.tree.structure(Affine(ONE, size=2))
    assert fl.tree.leaves(Affine(ONE, size=1)) == [ONE]


def test_metadata_is_shown_with_what_is_unusual() -> None:
    assert repr(metadata_of(Affine(ONE))) == "Metadata(size=3)"
    assert repr(metadata_of(Affine(ONE).eval().freeze())) == "Metadata(size=3, training=False, frozen=['weight'])"


def test_metadata_is_equal_when_it_is_interchangeable_and_survives_pickling() -> None:
    one = metadata_of(Affine(ONE, size=1))
    assert one == metadata_of(Affine(mx.zeros(3), size=1))
    assert one != metadata_of(Affine(ONE, size=True))
    assert one != "something else"
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
    held = metadata_of(Affine(ONE, size={"a": [mx.float16, nn.relu]}).freeze().eval())
    assert repr(pickle.loads(pickle.dumps(held))) == repr(held)
    assert copy.deepcopy(held) == pickle.loads(pickle.dumps(held)) == held
