"""Switching to training or evaluation mode in copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ..core.construction import postpone
from ..core.definition import Node
from ..core.instance import Metadata
from ..core.sharing import change_modules, remade

T = TypeVar("T")


def train(tree: T, mode: bool) -> T:
    """Switch every module in a tree to training mode, or to evaluation mode."""
    if isinstance(tree, Node) and postpone(tree, lambda finished: train(finished, mode)):
        return tree
    training = bool(mode)

    def switched(module: Any, metadata: Metadata, children: Sequence[Any]) -> Any:
        if type(module)._set_training_mode is not Node._set_training_mode:
            return remade(module, metadata, children)._set_training_mode(training)
        return remade(module, metadata.evolve(training, metadata.frozen), children)

    return change_modules(tree, switched)  # type: ignore[no-any-return]
