"""The class of a wrapped module: one for each class of MLX and each set of names that its instances have."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import attrs
from mlx.nn.layers.base import Module as MLXModule

from ..core import fields
from ..core.hidden import PLAIN
from ..core.instance import Instance, field_values, level_of
from ..core.kept import AT, Kept
from ..core.words import Path
from ..module import Module
from .left import warn_if_left

# What a module of MLX has under a name: arrays or modules in its dict; no arrays; arrays in its dict that are no parameters,
# since they are in a tuple; or arrays that are not in its dict.
CHILD, STATIC, IN_TUPLE, HIDDEN = "child", "static", "in a tuple", "hidden"


class Layout(NamedTuple):
    """What instances of a class of MLX may differ in: their names, and the kinds of their containers.

    Attributes:
        kind: The class.
        places: Each name, and where its value is.
        containers: The class of each container that is neither a list nor a dict, by its path.
    """

    kind: type
    places: tuple[tuple[str, str], ...]
    containers: tuple[tuple[tuple[Any, ...], type], ...]


class LayoutType(type):
    """The class of these classes, by which pickle knows them."""

    __layout__: Layout
    __class_for__: Callable[[Layout], Any]


copyreg.pickle(LayoutType, lambda cls: (cls.__class_for__, (cls.__layout__,)))

CONSTRUCTED = "{cls} stands for a class of MLX and is not called. Build the module of MLX, and give it to fl.from_mlx"


class Wrapped(Module):
    """A module of MLX as a frozen tree. :func:`frostleaf.from_mlx` makes them.

    Attributes:
        __mlx__: Its class in MLX.
        __layout__: What it has and others of that class may not.
    """

    __mlx__: ClassVar[type]
    __layout__: ClassVar[Layout]
    __class_for__: ClassVar[Callable[[Layout], Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(CONSTRUCTED.format(cls=type(self).__name__))

    def _shown_fields(self) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in field_values(self).items() if _is_shown(self, name, value)]


def _is_shown(node: Wrapped, name: str, value: Any) -> bool:
    return name in node.__frostleaf__.children or (
        type(value) in PLAIN and type(value) is not Kept and not name.startswith("_")
    )


def held(value: Any) -> Any:
    """Return what a field holds for a value of any kind: itself if it is one that never changes, or else a copy."""
    return value if is_atom(value) else Kept(Kept(value).copy({}))


def is_atom(value: Any) -> bool:
    """Return whether a value never changes, and equals another only if they are interchangeable."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, type):
        return True
    return kind is tuple and all(map(is_atom, value))


def at(node: Any, path: Path) -> Any:
    """Return what is at a path below a node, whatever its methods are called."""
    for name in path:
        if isinstance(node, tuple | Mapping):
            node = node[name]
        else:
            node = field_values(node)[name] if isinstance(node, Instance) else getattr(node, name)
    return node


class Field:
    """A field that is read by this, and not where it is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, node: Any, owner: type) -> Any:
        if node is None:
            return self
        level_of(node)
        warn_if_left(node, self._name)
        value = node.__dict__[self._name]
        return value.copy({AT: lambda path: at(node, path)}) if type(value) is Kept else value

    def __set__(self, node: Any, value: Any) -> None:  # so that Python asks this first
        raise AttributeError(self._name)


class Method:
    """A method of every module that a field has the name of."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, node: Any, owner: type) -> Any:
        method = getattr(Wrapped, self._name)
        return method if node is None else method.__get__(node, owner)

    def __set__(self, node: Any, value: Any) -> None:
        raise AttributeError(self._name)


_KINDS = {
    "parameter": fields.parameter(),
    "private": fields.buffer(persistent=False, cast=False),
    "static": fields.static(converter=held),
}
_TEMPLATES = attrs.fields(attrs.make_class("_Fields", _KINDS))


def declared(layout: Layout) -> dict[str, attrs.Attribute[Any]]:
    """Return the fields of a layout."""
    found = {}
    for name, place in layout.places:
        template = _TEMPLATES.parameter
        if place == STATIC:
            template = _TEMPLATES.static
        elif place != CHILD or name.startswith("_"):
            template = _TEMPLATES.private
        found[name] = template.evolve(name=name, alias=name, default=attrs.NOTHING)
    return found


def is_module(value: Any) -> bool:
    """Return whether a value is a module itself. Weak proxies and what MLX compiled look like what they stand for."""
    return issubclass(type(value), MLXModule)
