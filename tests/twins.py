"""The same model twice: as a frozen tree, and as a module of mlx.nn, holding the very same arrays."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

import frostleaf as fl
from frostleaf.core.fields import kind, persistent


class Twin(nn.Module):
    """A module of mlx.nn with the arrays, submodules and containers of a module of frostleaf."""

    def __init__(self, module: fl.Module) -> None:
        super().__init__()
        for name, field in type(module).__frostleaf__.fields.items():
            # MLX keeps every list in the dict of the module; what is static is kept out of it.
            put = object.__setattr__ if kind(field) == "static" else setattr
            put(self, name, twin(getattr(module, name)))
        buffers = [
            name for name, field in type(module).__frostleaf__.fields.items() if kind(field) == "buffer" and persistent(field)
        ]
        object.__setattr__(self, "buffers", buffers)
        self.freeze(recurse=False, keys=buffers)

    def unfreeze(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the buffers frozen, as mlx.nn.BatchNorm does, and also where an outer module is unfrozen, as it does not."""
        super().unfreeze(*args, **kwargs)
        for module in self.modules():
            module.freeze(recurse=False, keys=module.buffers)
        return self


def twin(value: Any) -> Any:
    """Return what MLX would hold in place of the value."""
    if isinstance(value, fl.Module):
        return Twin(value)
    if isinstance(value, tuple | list):
        return [twin(item) for item in value]
    if isinstance(value, dict | MappingProxyType):
        return {key: twin(item) for key, item in value.items()}
    return value


def same(ours: Any, theirs: Any) -> bool:
    """Return whether a view of ours is one of MLX's: the same keys in the same order, and the same arrays."""
    if isinstance(theirs, Twin):
        if not isinstance(ours, fl.Module):
            return False
        return same(ours.filter_and_map(lambda *_: True), theirs.filter_and_map(lambda *_: True))
    if isinstance(theirs, dict):
        return (
            type(ours) is dict
            and list(ours) == list(theirs)
            and all(same(one, other) for one, other in zip(ours.values(), theirs.values(), strict=True))
        )
    if isinstance(theirs, list):
        return (
            type(ours) is list
            and len(ours) == len(theirs)
            and all(same(one, other) for one, other in zip(ours, theirs, strict=True))
        )
    if isinstance(theirs, mx.array):
        return isinstance(ours, mx.array) and (
            ours is theirs or (ours.dtype == theirs.dtype and ours.shape == theirs.shape and bool(mx.array_equal(ours, theirs)))
        )
    return type(ours) is type(theirs) and ours == theirs


def outcome(call: Any, *arguments: Any) -> tuple[str, Any]:
    """Return what a call returns, or the type of what it raises."""
    try:
        return "returned", call(*arguments)
    except Exception as error:
        return "raised", type(error)


class Linear(fl.Module):
    """A leaf module with a static field between its parameters."""

    weight: mx.array
    size: int = fl.static(default=3)
    bias: Any = None


class Norm(fl.Module):
    """A leaf module with buffers: one that is saved, and one with a private name, which MLX does not save."""

    weight: mx.array
    running_mean: mx.array = fl.buffer(factory=lambda: mx.zeros(2))
    _table: mx.array = fl.buffer(factory=lambda: mx.ones(2))


class Block(fl.Module):
    """Submodules of several kinds, in an order that is not alphabetical."""

    second: Any
    first: Any
    _private: Any = None
    scale: Any = 0.5


class Stack(fl.Module):
    """Modules in containers."""

    layers: Any
    experts: Any = None
    head: Any = None


class Bag(fl.Module):
    """Arrays in containers, and things that are no arrays."""

    ws: Any
    table: Any = None
    name: Any = "bag"
    bias: Any = None


class Nothing(fl.Module):
    """A module without fields."""


class Pair(NamedTuple):
    """A namedtuple of parts."""

    left: Any
    right: Any


def linear(start: float = 0.0) -> Linear:
    return Linear(mx.arange(4.0).reshape(2, 2) + start, bias=mx.zeros(2) + start)


def _shared() -> Stack:
    layer = linear(5)
    return Stack([layer, layer], {"again": layer})


MODELS: dict[str, Any] = {
    "a leaf": lambda: linear(),
    "without bias": lambda: Linear(mx.ones((2, 2))),
    "nothing": lambda: Nothing(),
    "buffers": lambda: Norm(mx.ones(2)),
    "nested": lambda: Block(linear(1), linear(2)),
    "deep": lambda: Block(Block(Block(linear(1), linear(2)), Norm(mx.ones(2))), linear(3)),
    "private": lambda: Block(linear(1), mx.ones(2), linear(2), 2.0),
    "private array": lambda: Block(None, mx.ones(2), mx.zeros(3)),
    "a list of layers": lambda: Stack([linear(1), Nothing(), linear(2)], head=linear(3)),
    "a dict of layers": lambda: Stack([], {"b": linear(1), "a": [linear(2), None], "_c": linear(3)}),
    "lists in lists": lambda: Stack([[linear(1)], [], [[linear(2)], linear(3)]]),
    "a shared layer": _shared,
    "arrays in a list": lambda: Bag([mx.ones(1), mx.ones(2), mx.ones(3)], bias=mx.zeros(1)),
    "arrays in a dict": lambda: Bag([], {"b": mx.ones(1), "a": [mx.ones(2)], "_c": mx.ones(3)}),
    "odd things in a list": lambda: Bag([None, mx.ones(1), 3, "text", [], {}], {"x": 0.5, "y": mx.ones(1)}),
    "a namedtuple": lambda: Bag(Pair(mx.ones(1), linear(1)), Pair(None, [mx.ones(2)])),
    "all things": lambda: Bag([linear(1), mx.ones(1)], {"a": Norm(mx.ones(2))}, None, Block(linear(2), mx.ones(3))),
}


def subject(name: str) -> tuple[Any, Twin]:
    """Return the model of that name, and its twin."""
    model = MODELS[name]()
    return model, Twin(model)
