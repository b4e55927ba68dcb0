"""What a notebook asks a value for: found in ``display``, which is not imported until a notebook asks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any


class Shown:
    """What a notebook shows as a page."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return a page of HTML; nothing is evaluated."""
        return _display("html", self)  # type: ignore[no-any-return]


class _OfInstances:
    """A method that instances have, and their class has not.

    Treescope looks in the class for ``_repr_html_``, and where there is one shows that page, or both.
    """

    def __get__(self, instance: Any, owner: type) -> Callable[[], str]:
        if instance is None:
            raise AttributeError(f"_repr_html_ is a method of the instances of {owner.__name__}")
        return partial(_display, "html", instance)


class ShownTree:
    """What a notebook shows as a tree: as Treescope draws it where that is set up, and else as a page."""

    __slots__ = ()

    _repr_html_ = _OfInstances()

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """Return what Treescope draws."""
        return _display("treescope", self, path, subtree_renderer)


def show_arrays() -> None:
    """Let Treescope, if it was imported before frostleaf, show arrays of MLX without a model beside them."""
    if sys.modules.get("treescope"):
        importlib.import_module("frostleaf.display.treescope")


def _display(name: str, *args: Any) -> Any:
    return importlib.import_module(f"frostleaf.display.{name}").show(*args)
