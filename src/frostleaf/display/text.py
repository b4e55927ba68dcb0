"""``repr`` of a module: an indented tree with dtypes and shapes for arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..core.definition import Node
from ..core.instance import field_values, is_finished, metadata_of
from ..core.shapes import LEAF
from ..core.words import Path, describe, keystr, shape_and_dtype
from .repeats import repeats, told_apart

WIDTH = 100
FROZEN_MARK = "❄"
TIED_MARK = "→"
DEEPEST = 32
# So many equal modules in a row are shown once, and two if one takes several lines.
FOLDED = 3


def text(node: Node) -> str:
    """Print a node as text. Nothing is evaluated.

    A frozen array is marked with a snowflake. A module whose mode differs from that of the module around it is marked ``eval``
    or ``train``, and so is a whole model in evaluation mode. A tied place shows an arrow and the path of its source in the
    module that has the tie. A node that fits on one line takes one. Modules in a row that differ in nothing but their numbers
    are shown once: ``(0-11): 12 × Block(...)``. What lies deeper than ``DEEPEST`` levels is shown by its class.
    """
    return _text(node, None, (), 0, True, False, {})


def _text(value: Any, owner: Node | None, path: Path, start: int, training: bool, frozen: bool, tied: dict[Path, str]) -> str:
    """Return the text of a value that stands at a path in ``owner``, inside something in the given mode, or frozen as a whole.

    The path is that from the root, and in ``owner`` it is what begins at ``start``. ``tied`` has the source of each tied place.
    """
    if tied and path in tied:
        return TIED_MARK + tied[path]
    if owner is not None and isinstance(value, (*LEAF, Node)):
        frozen = frozen or metadata_of(owner).freezes(path[start:])
    if isinstance(value, LEAF):
        return f"{FROZEN_MARK * frozen}{shape_and_dtype(value.shape, value.dtype)}"
    if len(path) >= DEEPEST:
        return describe(value)
    if isinstance(value, Node):
        if not is_finished(value):
            return f"{type(value).__name__}(<being built>)"
        metadata = metadata_of(value)
        mode = metadata.training
        mark = "" if mode == training else "[train]" if mode else "[eval]"
        tied.update(((*path, *target), keystr(source)) for target, source in metadata.ties)
        plain = not frozen and not metadata.frozen and not tied
        shown_fields = getattr(type(value), "_shown_fields", None)
        parts = []
        for field, child in shown_fields(value) if shown_fields else field_values(value).items():
            if plain and type(child) is mx.array:
                parts.append(f"{field}={shape_and_dtype(child.shape, child.dtype)}")
            else:
                shown = _text(child, value, (*path, field), len(path), mode, frozen, tied)
                parts.append(f"{field}={shown}" if field.isidentifier() else f"{field}{shown}")
        return _bracketed(f"{type(value).__name__}{mark}(", parts, ")")
    if isinstance(value, tuple | list):
        parts = _texts_in_a_row(value, owner, path, start, training, frozen, tied)
        if isinstance(value, list):
            return _bracketed("[", parts, "]")
        if hasattr(value, "_fields"):
            named = [f"{name}={shown}" for name, shown in zip(value._fields, parts, strict=True)]
            return _bracketed(f"{type(value).__name__}(", named, ")")
        return _bracketed("(", parts, ",)" if len(parts) == 1 else ")")
    if isinstance(value, Mapping):
        parts = [f"{key!r}: {_text(child, owner, (*path, key), start, training, frozen, tied)}" for key, child in value.items()]
        return _bracketed("{", parts, "}")
    return describe(value)


def _texts_in_a_row(
    values: Sequence[Any], owner: Node | None, path: Path, start: int, training: bool, frozen: bool, tied: dict[Path, str]
) -> list[str]:
    """Return the texts of the values in a tuple or list, one for several modules that differ in nothing that is shown."""
    parts: list[str] = []
    for first, last in repeats(values, told_apart(owner, path, start, tied)):
        text = _text(values[first], owner, (*path, first), start, training, frozen, tied)
        if last - first + 1 >= (2 if "\n" in text else FOLDED):
            parts.append(f"({first}-{last}): {last - first + 1} × {text}")
        else:
            parts += [text] * (last - first + 1)
    return parts


def _bracketed(left: str, parts: list[str], right: str) -> str:
    line = f"{left}{', '.join(parts)}{right}"
    if len(line) <= WIDTH and "\n" not in line:
        return line
    inner = ",\n".join(parts).replace("\n", "\n  ")
    return f"{left}\n  {inner},\n{right.removeprefix(',')}"
