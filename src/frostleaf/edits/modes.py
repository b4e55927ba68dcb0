"""Switching to training or evaluation mode in copies."""

from __future__ import annotations

from typing import Any, TypeVar

from ..core.construction import postpone
from ..core.definition import Node
from ..core.words import Path
from ..tree.walk import rewrite

T = TypeVar("T")


def train(tree: T, mode: bool) -> T:
    """Switch every module in a tree to training mode, or to evaluation mode."""
    if isinstance(tree, Node) and postpone(tree, lambda finished: train(finished, mode)):
        return tree

    def leave(path: Path, value: Any) -> Any:
        return value._set_training_mode(bool(mode)) if isinstance(value, Node) else value

    return rewrite(tree, leave=leave)  # type: ignore[no-any-return]
