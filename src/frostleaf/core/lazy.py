"""Names of a package that are imported when they are first used, so that a program loads what it needs and no more."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any


def lazily(package: str, places: Mapping[str, str], instead: Mapping[str, str] = MappingProxyType({})) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package, which imports a name when it is first used, and keeps it in the package.

    For checkers, a package has the same imports below ``if TYPE_CHECKING``.

    Args:
        package: Its ``__name__``.
        places: For each file of the package, a string of the names that it has. The file may be in a folder of the package.
            Files and folders are names too.
        instead: For names that other libraries have there, what to write here. The error says it. Default: none.

    >>> __getattr__ = lazily("frostleaf.nn", {"linear": "Identity Linear"})
    >>> __getattr__("Linear")
    <class 'frostleaf.nn.linear.Linear'>
    """
    files = {name: file for file, names in places.items() for name in names.split()}
    modules = {file.partition(".")[0] for file in places}

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in files:
            value = getattr(importlib.import_module(f"{package}.{files[name]}"), name)
            setattr(sys.modules[package], name, value)
            return value
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        advice = f". Write {instead[name]}" if name in instead else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{advice}", name=name, obj=sys.modules[package])

    return __getattr__
