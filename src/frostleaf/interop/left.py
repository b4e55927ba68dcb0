"""What trees have as it was before a call that changed it: who reads it from outside is told where the new value is."""

from __future__ import annotations

import types
from typing import Any
from weakref import WeakKeyDictionary

from ..transforms.jit.code import names_read
from ..transforms.stateful import recorded, warn_uncollected

# Of a module of a tree, by the name of an attribute, the method that gave it another value, and whether that was recorded.
_left: WeakKeyDictionary[Any, dict[str, tuple[str, bool]]] = WeakKeyDictionary()


def note_left(node: Any, name: str, method: str, is_recorded: bool) -> None:
    """Note that a call of a method gave an attribute another value, which the module of the tree has not.

    Args:
        node: The module.
        name: The name of the attribute.
        method: What was called, with the name of its class.
        is_recorded: Whether :func:`frostleaf.stateful` recorded it.
    """
    _left.setdefault(node, {})[name] = method, is_recorded


def warn_if_left(node: Any, name: str) -> None:
    """Warn if an attribute is read that a call gave another value."""
    found = _left.get(node, {}).get(name) if _left else None
    if found is not None:
        method, is_recorded = found
        advice = ", or after the call from fl.recorded(model), of the model that was called" if is_recorded else ""
        warn_uncollected(LEFT.format(cls=type(node).__name__, name=name, method=method, advice=advice))


def warn_if_code_reads_left(node: Any, function: Any) -> None:
    """Warn if the code of a property reads an attribute that a call of what is around its module gave another value."""
    names = _left.get(node) if _left and recorded(node) is node else None
    if names and isinstance(function, types.FunctionType):
        for name in names:
            if ("attribute", name) in names_read(function.__code__):
                warn_if_left(node, name)


LEFT = (
    "{cls}.{name} is read as it was before {method} changed it, since a tree never changes. Write y, model = "
    "fl.stateful(model, x), in a loss too, and read it from that model{advice}"
)
