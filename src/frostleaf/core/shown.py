"""What a notebook asks a value for: found in ``display`` when it first does."""

from __future__ import annotations

import importlib
from typing import Any


class Shown:
    """What can be shown in a notebook. ``display`` knows how, and is not imported until a notebook asks."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return a tree that can be folded, or a table, as HTML; nothing is evaluated."""
        return _display("html", self)  # type: ignore[no-any-return]

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """Return what Treescope shows."""
        return _display("treescope", self, path, subtree_renderer)


def _display(name: str, *args: Any) -> Any:
    return importlib.import_module(f"frostleaf.display.{name}").show(*args)
