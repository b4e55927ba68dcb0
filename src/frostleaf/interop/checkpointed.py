"""Layers that are computed again for their gradients, in a module of MLX: of the class that they have, but for the call."""

from __future__ import annotations

import functools
from typing import Any, Protocol

from mlx.nn.layers.base import Module as MLXModule

from ..display.calls import watching
from ..transforms.checkpoint import Checkpointed, checkpoint
from ..transforms.stateful import recording

# Under which a function has what it wraps.
WRAPPED = "__wrapped__"
# The attribute in which a module has what makes its trees.
KEPT = "_trees"


class Trees(Protocol):
    """Makes trees of modules."""

    def of(self, live: MLXModule) -> Any:
        """Return the tree of a module as it is now."""


def computed_again(module: Any, trees: Trees) -> None:
    """Make a live module compute as :func:`frostleaf.checkpoint` of the tree that it stands for, which ``trees`` makes."""
    vars(module)[KEPT] = trees
    plain: Any = type(module)
    module.__class__ = _class(plain)


@functools.cache
def _class(plain: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if recording() or watching.get() is not None:  # where nothing is computed again
            return plain.__call__(self, *args, **kwargs)
        return checkpoint(vars(self)[KEPT].of(self))(*args, **kwargs)

    members = {"__call__": call, "__plain__": plain, "__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (plain,), members)


def is_computed_again(module: MLXModule) -> bool:
    """Return whether a module was made so."""
    return plain_class(module) is not type(module)


def plain_class(module: MLXModule) -> type:
    """Return the class of a module, without what :func:`computed_again` made of it."""
    return vars(type(module)).get("__plain__", type(module))  # type: ignore[no-any-return]


def held(value: Any) -> Any:
    """Return the module that a value computes again, or ``None``."""
    return value.__wrapped__ if isinstance(value, Checkpointed) else None
