"""Modules that can't be trees: each error says what is where."""

import functools
import re
import weakref

import mlx.core as mx
import mlx.nn as nn
import pytest

import frostleaf as fl


class Base(nn.Module):
    """Sets what it is given, and has a weight."""

    def __init__(self, **values):
        super().__init__()
        self.weight = mx.ones(3)
        for name, value in values.items():
            setattr(self, name, value)

    def __call__(self, x):
        return self.weight * x


def cyclic():
    model = Base()
    model.inner = Base()
    model.inner.parent = model
    return model


def sibling():
    model = Base(first=Base(), second=Base())
    model.second.other = Holder(model.first)
    return model


def sibling_after():
    model = Base(first=Base(), second=Base())
    second = model.second
    model.first.other = lambda x: second(x)
    return model


def weakly(reference):
    model = Base(inner=Base())
    model.inner.above = reference(model)
    return model


def bound_to_parent():
    model = Base(inner=Base())
    model.inner.callback = model.__call__
    return model


def closing(compiled=False):
    model = Base()
    model.fast = mx.compile(lambda x: model(x)) if compiled else lambda x: model(x)
    return model


def closing_inside(wrap):
    model = Base()
    model.fast = wrap(lambda x: model(x))
    return model


def compiled_method():
    model = Base()
    model.fast = mx.compile(model.__call__)
    return model


def compiled_layer(make):
    model = Base(inner=Base())
    model.fast = make(model.inner)
    return model


def in_a_class():
    model = Base(inner=Base())
    model.inner.helper = type("Helper", (), {"above": model})()
    return model


def waiting(make):
    model = Base(inner=Base())
    model.steps = make(model.inner)
    return model


class Slotted(Base):
    """Has a slot."""

    __slots__ = ("size",)


class Holder:
    """A plain object."""

    def __init__(self, held):
        self.held = held


class Bag(dict):
    """A container with an attribute."""

    def __init__(self, **items):
        super().__init__(**items)
        self.size = len(items)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.Linear,
            TypeError,
            "fl.from_mlx takes a module of mlx.nn, and was given the class Linear: give it an instance",
        ),
        (lambda: fl.nn.Linear(2, 2), TypeError, "was given a Linear, which is a frozen tree already"),
        (lambda: {"weight": mx.ones(1)}, TypeError, "was given {'weight': f32[1]}"),
        (cyclic, ValueError, "inner.parent is the module Base, which holds it: a tree has no way back up"),
        (bound_to_parent, ValueError, "inner.callback is the module Base, which holds it"),
        (sibling, ValueError, "second.other holds Base at first, which is not below it"),
        (closing, ValueError, "fast is a function with Base in its closure, which would go on using that module's weights"),
        (lambda: closing(True), ValueError, "fast is a function with Base in its closure"),
        (compiled_method, ValueError, "fast is a function with Base in its closure"),
        (lambda: closing_inside(lambda f: [f]), ValueError, "fast has Base inside, in the closure of a function or behind"),
        (lambda: closing_inside(lambda f: {"a": (1, f)}), ValueError, "fast has Base inside, in the closure of a function"),
        (lambda: closing_inside(functools.partial), ValueError, "fast has Base inside, in the closure of a function"),
        (
            lambda: closing_inside(Holder),
            ValueError,
            "fast has Base inside, in the closure of a function or behind a weak",
        ),
        (lambda: weakly(weakref.ref), ValueError, "inner.above is the module Base, which holds it: a tree has no way back up"),
        (lambda: weakly(weakref.proxy), ValueError, "inner.above is the module Base, which holds it: a tree has no way back"),
        (lambda: compiled_layer(mx.compile), ValueError, "fast is a function with Base in its closure, which MLX made of it"),
        (lambda: compiled_layer(mx.vmap), ValueError, "fast is a function with Base in its closure, which MLX made of it"),
        (lambda: compiled_layer(mx.compile).fast, TypeError, "fl.from_mlx takes a module of mlx.nn, and was given"),
        (in_a_class, ValueError, "inner.helper is the module Base, which holds it"),
        (lambda: waiting(lambda inner: (inner(x) for x in [mx.ones(1)])), ValueError, "steps has Base inside"),
        (lambda: Slotted(size=1), ValueError, "size is in a slot of the class Slotted"),
        (sibling_after, ValueError, "first.other holds Base at second, which is not below it"),
        (lambda: Base(bag=Bag(a=mx.ones(1))), ValueError, "bag is a Bag, which holds arrays or modules"),
    ],
)
def test_what_is_no_tree(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fl.from_mlx(make())


def test_a_wrapped_class_is_not_called():
    kind = type(fl.from_mlx(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="Linear stands for a class of MLX and is not called"):
        kind(2, 2)
    with pytest.raises(TypeError, match=r"fl\.to_mlx takes a module"):
        fl.to_mlx(mx.ones(2))


@pytest.mark.parametrize(
    "use",
    [fl.tree.leaves, lambda model: fl.eval_shape(type(model)), lambda model: fl.jit(lambda model: 1)(model), fl.eval],
    ids=["leaves", "eval_shape", "jit", "eval"],
)
def test_a_module_of_mlx_in_the_place_of_a_tree_is_told_of_from_mlx(use):
    with pytest.raises(TypeError, match=r"It is a module of mlx.nn: fl.from_mlx\(module\) makes a tree of it"):
        use(Base())
