"""What the arguments of a jitted function may hold besides arrays."""

from __future__ import annotations

import dataclasses
import functools
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, MappingView, Sequence
from typing import Any

import attrs
import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule

from ...core.containers import find_unhashable, is_namespace
from ...core.hidden import BOUND, CACHE, OF_MLX, Hidden, cache_classes, find_hidden, is_foreign_array
from ...core.instance import Metadata
from ...core.structure import Structure, flat_of, specs_in
from ...core.words import Path, class_name, function_name, keystr, level_of_caller, with_article
from .captured import attributes_of, attributes_used, is_from_outside, is_method_of, is_of_library, names_read_by
from .code import escapes, is_used

_FIRST = 4


class MutableArgumentWarning(UserWarning):
    """An argument of a jitted function is an object that can change, and later changes would not be seen.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> class Config:
    ...     def __init__(self):
    ...         self.scale = 2
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = fl.jit(lambda config, x: config.scale * x)(Config(), mx.ones(2))
    >>> caught[0].category.__name__
    'MutableArgumentWarning'
    """


class RetraceWarning(UserWarning):
    """A jitted function is traced again and again, for a reason that can be mended.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> step = fl.jit(lambda x, number: x * number)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     for number in range(40):
    ...         _ = step(mx.ones(2), number)  # write mx.array(number)
    >>> [each.category.__name__ for each in caught]
    ['RetraceWarning']
    """


UNHASHABLE = (
    "{name} of {fn} is {given}, which can be neither a leaf (only mx.array is) nor part of the structure, since it can't be "
    "hashed. {advice}"
)


def unhashable(fn: Callable[..., Any], static: Iterable[tuple[str, Any]]) -> TypeError | None:
    """Return the error for the first static value that can't be hashed, which names the place inside it."""
    for name, value in static:
        found = find_unhashable(value)
        if found is not None:
            path, inner = found
            given, place = with_article(class_name(inner)), keystr((name, *path))
            if isinstance(inner, Iterator | MappingView):
                return _used_up(fn, place, inner)
            if is_foreign_array(inner):
                advice = "Pass mx.array(...) of it."
            elif isinstance(inner, MLXModule):
                advice = OF_MLX
            elif isinstance(inner, list | dict | set):
                advice = "Give a tuple, a frozenset or a frozen dataclass in its place."
            elif isinstance(inner, MappingView):
                advice = "Pass a list of what is in it."
            elif dataclasses.is_dataclass(inner):
                advice = f"Make {type(inner).__name__} a @dataclass(frozen=True), or a tree with fl.register_dataclass."
            elif attrs.has(type(inner)):
                advice = f"Make {type(inner).__name__} @attrs.frozen, or a tree with fl.register_dataclass."
            elif is_namespace(inner):
                advice = "Pass what is in it, or a frozen dataclass of that."
            else:
                advice = "Give its class __eq__ and __hash__."
            return TypeError(UNHASHABLE.format(name=place, fn=function_name(fn), given=given, advice=advice))
    return None


HIDDEN = (
    "{name} of {fn} is {kind} that holds arrays ({hidden}), which fl.jit can't find there: they would be compiled in as "
    "constants. {advice}"
)


def require_no_arrays(fn: Callable[..., Any], static: Iterable[tuple[str, Any]]) -> None:
    """Raise an error if a static value is an object that holds arrays. Those of a function are warned of as captured.

    Raises:
        TypeError: If it does; the message says where.
    """
    for name, value in static:
        hidden = None if isinstance(value, types.FunctionType) else _hidden_in(value, fn)
        if hidden is not None:
            cls = type(value).__name__
            if isinstance(value, (*BOUND, functools.partial)):
                advice = "Pass what it is bound to as an argument, and call the function with it inside."
            elif cache_classes(value):
                advice = CACHE
            else:
                known = "fl.register_dataclass or fl.register_pytree_node"
                advice = f"Pass the arrays as arguments, or make {cls} a tree with {known}."
            said = {"name": name, "fn": function_name(fn), "kind": with_article(cls), "hidden": hidden, "advice": advice}
            raise TypeError(HIDDEN.format(**said))


def _hidden_in(value: Any, fn: Callable[..., Any]) -> Hidden | None:
    """Find an array in an object; in one of which the function is a method, in an attribute that the function uses."""
    used = attributes_used(fn, value) if is_method_of(fn, value) else None
    if used is None:
        return find_hidden(value)
    attributes = {name: each for name, each in attributes_of(value).items() if name in used}
    hidden = [(name, find_hidden(each)) for name, each in attributes.items()]
    return next((Hidden((name, *each.path), each.value) for name, each in hidden if each is not None), None)


USED_UP = (
    "{name} of {fn} is {kind}, an iterator or a view: fl.jit would compile in what it gives when it is traced. Pass a list of "
    "what is in it."
)


def require_no_iterator(fn: Callable[..., Any], static: Iterable[tuple[str, Any]]) -> None:
    """Raise an error if a static value gives something else each time.

    Raises:
        TypeError: If it does; the message says where.
    """
    for name, value in static:
        if isinstance(value, Iterator | MappingView):
            raise _used_up(fn, name, value)


def _used_up(fn: Callable[..., Any], name: str, value: Any) -> TypeError:
    return TypeError(USED_UP.format(name=name, fn=function_name(fn), kind=with_article(type(value).__name__)))


MUTABLE = (
    "{name} of {fn} is {kind}, an object that can change. fl.jit compiles in what {attributes} are when it traces, and does "
    "not see later changes, nor repeats its own. Make the class a frozen dataclass if it never changes, a tree with "
    "fl.register_pytree_node if it does."
)


def warn_of_mutable(
    fn: Callable[..., Any], static: Iterable[tuple[str, Any]], classes: Sequence[type], warned: set[type]
) -> None:
    """Warn of each static value that is a mutable object, once for each class; ``warned`` has those that have been.

    Named are the attributes that the function reads, if only from the class, or else, if it gives the object to others, those
    that the object has. It may read them in a method of one of the ``classes``, which are those of modules. Nobody can make a
    class of a library another, and an object of one is taken to be what it is.
    """
    for name, value in static:
        if type(value) in warned or not _is_plain(value) or is_of_library(type(value)):
            continue
        own = [each for each, held in attributes_of(value).items() if find_hidden(held) is None]  # arrays are told of elsewhere
        given_away = _is_given_away(fn, name)
        read, of_variables = (names_read_by(fn, [type(value), *classes], each, called=given_away) for each in (False, True))
        shown = [each for each in own if each in read]
        shown += [each for each in _class_attributes(value) if each in of_variables and each not in own]
        shown = shown or own * given_away
        if shown:
            warned.add(type(value))
            attributes = ", ".join(shown[:_FIRST]) + ", ..." * (len(shown) > _FIRST)
            kind = with_article(type(value).__name__)
            message = MUTABLE.format(name=name, fn=function_name(fn), kind=kind, attributes=attributes)
            warnings.warn(message, MutableArgumentWarning, stacklevel=level_of_caller())


def _is_given_away(fn: Callable[..., Any], name: str) -> bool:
    """Return whether a function may do more than read attributes of an argument, or may do anything with what is inside one."""
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    variable, *inside = name.split(".")
    if code is None or variable not in code.co_varnames:
        return True
    return is_used(code, variable) if inside else escapes(code, variable)


def owner_of(fn: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Return the object that a method is bound to, or that is called like a function, and a name for it."""
    return [] if isinstance(fn, types.FunctionType) else [("self", getattr(fn, "__self__", fn))]


def objects_in_fields(fn: Callable[..., Any], structure: Structure, classes: Sequence[type]) -> list[tuple[Path, Any]]:
    """Return the path and the value of each object that could change in a static field of a module, if the field is read."""
    found = structure.remember(_objects_in_fields)
    read = names_read_by(fn, classes) if found else set()
    return [(path, value) for field, path, value in found if field in read]


def _objects_in_fields(structure: Structure) -> list[tuple[str, Path, Any]]:
    return [each for each in _in_fields(structure, ()) if _is_plain(each[2])]


def _in_fields(structure: Structure, above: Path) -> Iterator[tuple[str, Path, Any]]:
    """Yield the static field, the path and the value of everything in static fields of modules."""
    for path, spec in specs_in(structure):
        if isinstance(spec, tuple) and isinstance(spec[1], Metadata):
            for field, held in spec[1].static.items():
                place = (*above, *path, field)
                inner = flat_of(held, hidden=True).structure
                yield from [(field, (*place, *inside), value) for inside, value in inner.static_values()]
                yield from _in_fields(inner, place)


def is_mutable(value: Any) -> bool:
    """Return whether a value is a plain object: with attributes that can be set, and equal to nothing but itself."""
    return _is_plain(value) and bool(attributes_of(value))


def _is_plain(value: Any) -> bool:
    """Return whether the attributes of a value can be set, if it has any, and it is equal to nothing but itself."""
    kind: Any = type(value)
    plain = kind.__hash__ is object.__hash__ and kind.__setattr__ is object.__setattr__
    return plain and not isinstance(value, _OF_OTHER_KINDS) and not hasattr(value, "__wrapped__")


def _class_attributes(value: Any) -> list[str]:
    """Return the names of what an object has from its classes, other than methods, descriptors, classes and arrays."""
    found: dict[str, Any] = {}
    for cls in type(value).__mro__:
        if cls.__module__ != "builtins":
            found = {**vars(cls), **found}
    return [
        name
        for name, each in found.items()
        if not (name.startswith("__") or isinstance(each, type | mx.array) or hasattr(type(each), "__get__"))
    ]


RETURNED = (
    "{fn} returned {kind}{where}, an object that can change: each call would return the one that was made when it was traced. "
    "Return a tuple, a dict or a module, or make {cls} a tree with fl.register_pytree_node."
)


def require_unchanging(fn: Callable[..., Any], result: Structure, static: Iterable[tuple[str, Any]]) -> None:
    """Raise an error if the result has a mutable object in it that was neither given nor there before.

    Raises:
        TypeError: If it has; the message says where.
    """
    for path, value in result.static_values():
        if is_mutable(value) and not is_from_outside(value, fn, static):
            cls = type(value).__name__
            where = f" ({keystr(path)} of the result)" if path else ""
            raise TypeError(RETURNED.format(fn=function_name(fn), kind=with_article(cls), where=where, cls=cls))


_OF_OTHER_KINDS = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, functools.partial)


FOR_EACH_SHAPE = (
    "{fn} is traced for each shape, although shapeless=True: {why}. {advice}; else leave shapeless=True out, and pad to a few "
    "shapes."
)
WITHOUT_SHAPES = (
    "If it need not depend on shapes, write x.reshape(-1, n), x.flatten(1) and the like, without numbers from x.shape"
)


def warn_of_shapes(fn: Callable[..., Any], why: str, advice: str | None) -> None:
    """Warn that a function can't be traced without shapes."""
    message = FOR_EACH_SHAPE.format(fn=function_name(fn), why=why, advice=advice or WITHOUT_SHAPES)
    warnings.warn(message, RetraceWarning, stacklevel=level_of_caller())
