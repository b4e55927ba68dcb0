"""Static values in words that are the same in every process, and in every version of Python."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import numbers
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import attrs

# The classes whose repr is all that their values are, by name: most are in modules that take long to import.
_TOLD_BY_REPR = {
    "datetime.date", "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    "ipaddress.IPv4Address", "ipaddress.IPv6Address", "ipaddress.IPv4Network", "ipaddress.IPv6Network",
}  # fmt: skip


def value_text(value: Any, text: Callable[[Any], str]) -> str | None:
    """Return a text that two values share if they are interchangeable; ``None`` if nothing tells what the value is.

    A value of a class with an ``__eq__`` of its own is what is in its ``__dict__`` and its slots.

    Args:
        value: The value, neither a container nor a function.
        text: Returns the text of a value inside.
    """
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _TOLD_BY_REPR:
        return repr(value)
    if isinstance(value, numbers.Number | str):  # such as NumPy's numbers
        return f"{qualified_name(kind)}({value!s})"
    if kind in (datetime.datetime, datetime.time):
        return f"{value.replace(tzinfo=None)!r} in {text(value.tzinfo)}"
    if name == "zoneinfo.ZoneInfo" and value.key is not None:
        return f"{name}({value.key!r})"
    if kind in (range, slice):
        return f"{kind.__name__}({text(value.start)}, {text(value.stop)}, {text(value.step)})"
    if kind is re.Pattern:
        return f"re.compile({text(value.pattern)}, {value.flags})"
    if isinstance(value, pathlib.PurePath) and kind.__module__.startswith("pathlib"):  # in Python 3.13 it is a package
        concrete = isinstance(value, pathlib.Path)  # of another class on Windows
        return f"pathlib.{'Path' if concrete else kind.__name__}({value.as_posix()!a})"
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    fields = _own_fields(value)
    return None if fields is None else fields_text(value, fields, text)


def fields_text(value: Any, fields: Iterable[tuple[str, Any]], text: Callable[[Any], str]) -> str:
    """Return the text of a value that is made of fields."""
    return f"{qualified_name(type(value))}({', '.join(f'{name}={text(each)}' for name, each in fields)})"


def qualified_name(value: Any) -> str:
    """Return the module and the qualified name of a class or a function.

    What the running script defines gets the name under which another script would import it. What MLX and frostleaf define gets
    the name of the package that exports it, whichever file it is in.
    """
    module = getattr(value, "__module__", None) or "builtins"  # methods written in C have no module
    packages = module.split(".")
    if packages[0] in ("frostleaf", "mlx"):
        above = (".".join(packages[:length]) for length in range(1, len(packages)))
        module = next((name for name in above if getattr(sys.modules[name], value.__qualname__, None) is value), module)
    if module in ("__main__", "__mp_main__"):
        main = sys.modules[module]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else os.path.splitext(os.path.basename(file))[0] if file else module
    return f"{module}.{value.__qualname__}"


def declared_fields(value: Any) -> list[tuple[str, Any]] | None:
    """Return the names and values of the fields that an attrs class or a dataclass compares; ``None`` for another value."""
    kind = type(value)
    if attrs.has(kind):
        names = [field.name for field in attrs.fields(kind) if field.eq]
    elif dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind) if field.compare]
    else:
        return None
    return _present(value, names)


def _own_fields(value: Any) -> list[tuple[str, Any]] | None:
    """Return what is in the ``__dict__`` and the slots of a value of a class with an ``__eq__`` of its own."""
    kind = type(value)
    # What a base that is written in C holds is in neither.
    equality: Any = kind.__eq__
    if equality is object.__eq__ or any(not base.__flags__ & _HEAP_TYPE for base in kind.__mro__[:-1]):
        return None
    inherited = {name: each for base in reversed(kind.__mro__) for name, each in vars(base).items()}
    slots = [name for name, each in inherited.items() if isinstance(each, types.MemberDescriptorType)]
    # Whether a property is cached says only that somebody has asked for it.
    own = (
        [name for name in vars(value) if not isinstance(inherited.get(name), functools.cached_property)]
        if hasattr(value, "__dict__")
        else []
    )
    return _present(value, sorted({*slots, *own})) or None


_HEAP_TYPE = 1 << 9  # Python's flag for classes that are not built in


def _present(value: Any, names: list[str]) -> list[tuple[str, Any]]:
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
