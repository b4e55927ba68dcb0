"""``repr`` of a module: an indented tree with dtypes and shapes for arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import mlx.core as mx

from ..core.definition import Node
from ..core.instance import field_values, is_finished, metadata_of
from ..core.shapes import LEAF
from ..core.words import FROZEN_MARK, Path, describe, in_a_line, keystr, shape_and_dtype
from ..tree.folding import fold
from .repeats import kind_of, repeats, told_apart

WIDTH = 100
TIED_MARK = "→"
DEEPEST = 32
# So many equal modules in a row are shown once, and two if one takes several lines.
FOLDED = 3
# What takes more lines, and shows more modules, is shown less deep.
LINES = 40
# Of a container so many values are shown, but for those that are shown with others.
_VALUES = 100
FEW = 16


def text(node: Node) -> str:
    """Print a node as text. Nothing is evaluated.

    A frozen array is marked with a snowflake. A module whose mode differs from that of the module around it is marked ``eval``
    or ``train``, and so is a whole model in evaluation mode. A tied place shows an arrow and the path of its source in the
    module that has the tie. A node that fits on one line takes one. Modules in a row that differ in nothing but their numbers
    are shown once: ``(0-11): 12 × Block(...)``, and so are values in a dict whose dotted names differ in an index.

    What lies deeper than ``DEEPEST`` levels is shown by its class. Where the whole takes more than ``LINES`` lines, what fits
    on a line shares it; and of more than ``FEW`` modules those inside of the most others are shown by their class, as few as
    need be.
    """
    showing = _Text(DEEPEST)
    whole = showing.of(node)
    if whole.count("\n") < LINES:
        return whole
    if showing.modules <= FEW:
        return _cut(_Text(DEEPEST - 1).of(node).split("\n"), _VALUES)
    best = _Text(1).of(node)
    for levels in range(2, DEEPEST):
        more = _Text(levels).of(node)
        if more.count("\n") >= LINES:
            break
        best = more
    return _cut(best.split("\n"), LINES)


def _cut(lines: list[str], most: int) -> str:
    """Leave out lines, but the last one, where even the outermost level has too many."""
    if len(lines) > most:
        lines = [*lines[: most - 2], f"  ... and {len(lines) - most + 1:,} more lines", lines[-1]]
    return "\n".join(lines)


class _Text:
    """The text of a tree.

    Args:
        levels: How many modules may be inside of one another; what is inside of more is shown by its class.

    Attributes:
        modules: How many have been shown.
    """

    def __init__(self, levels: int) -> None:
        self.modules = 0
        self._levels = levels
        self._dense = levels < DEEPEST
        self._inside = 0
        self._tied: dict[Path, str] = {}  # the source of each tied place

    def of(
        self,
        value: Any,
        owner: Node | None = None,
        path: Path = (),
        start: int = 0,
        training: bool = True,
        frozen: bool = False,
    ) -> str:
        """Return the text of a value at a path in ``owner``, inside something in the given mode, or frozen as a whole.

        The path is that from the root, and in ``owner`` it is what begins at ``start``.
        """
        if self._tied and path in self._tied:
            return TIED_MARK + in_a_line(self._tied[path])
        if owner is not None and isinstance(value, (*LEAF, Node)):
            frozen = frozen or metadata_of(owner).freezes(path[start:])
        if isinstance(value, LEAF):
            return f"{FROZEN_MARK * frozen}{shape_and_dtype(value.shape, value.dtype)}"
        if len(path) >= DEEPEST:
            return describe(value)
        if isinstance(value, Node):
            return self._of_node(value, path, training, frozen)
        if isinstance(value, tuple | list):
            parts = self._in_a_row(value, owner, path, start, training, frozen)
            if isinstance(value, list):
                return _bracketed("[", parts, "]", self._dense)
            if hasattr(value, "_fields"):
                named = [f"{name}={shown}" for name, shown in zip(value._fields, parts, strict=True)]
                return _bracketed(f"{type(value).__name__}(", named, ")", self._dense)
            return _bracketed("(", parts, ",)" if len(parts) == 1 else ")", self._dense)
        if isinstance(value, Mapping):
            return _bracketed("{", self._in_a_mapping(value, owner, path, start, training, frozen), "}", self._dense)
        return describe(value)

    def _of_node(self, value: Node, path: Path, training: bool, frozen: bool) -> str:
        if not is_finished(value):
            return f"{type(value).__name__}(<being built>)"
        metadata = metadata_of(value)
        mode = metadata.training
        mark = "" if mode == training else "[train]" if mode else "[eval]"
        if self._inside == self._levels:
            return f"{type(value).__name__}{mark}({'...' if value.__frostleaf__.fields else ''})"
        self._tied.update(((*path, *target), keystr(source)) for target, source in metadata.ties)
        plain = not frozen and not metadata.frozen and not self._tied
        shown_fields = getattr(type(value), "_shown_fields", None)
        parts = []
        self.modules += 1
        self._inside += 1
        for field, child in shown_fields(value) if shown_fields else field_values(value).items():
            if plain and type(child) is mx.array:
                parts.append(f"{field}={shape_and_dtype(child.shape, child.dtype)}")
            else:
                shown = self.of(child, value, (*path, field), len(path), mode, frozen)
                parts.append(f"{field}={shown}" if field.isidentifier() else f"{field}{shown}")
        self._inside -= 1
        return _bracketed(f"{type(value).__name__}{mark}(", parts, ")", self._dense)

    def _in_a_row(
        self, values: Sequence[Any], owner: Node | None, path: Path, start: int, training: bool, frozen: bool
    ) -> list[str]:
        """Return the texts of the values in a tuple or list, one for several modules that differ in nothing that is shown."""
        parts: list[str] = []
        for first, last in repeats(values, told_apart(owner, path, start, self._tied)):
            if len(parts) >= _VALUES:
                return [*parts, f"... and {len(values) - first:,} more"]
            text = self.of(values[first], owner, (*path, first), start, training, frozen)
            if last - first + 1 >= (2 if "\n" in text else FOLDED):
                parts.append(f"({first}-{last}): {last - first + 1} × {text}")
            else:
                parts += [text] * (last - first + 1)
        return parts

    def _in_a_mapping(
        self, values: Mapping[Any, Any], owner: Node | None, path: Path, start: int, training: bool, frozen: bool
    ) -> list[str]:
        """Return the texts of the items of a mapping, one for several of dotted names that differ in an index only."""
        if len(values) > _VALUES and not any(isinstance(each, (*LEAF, Node, Mapping, tuple, list)) for each in values.values()):
            shown_first = [f"{in_a_line(repr(key))}: {describe(each)}" for key, each in islice(values.items(), _VALUES)]
            return [*shown_first, f"... and {len(values) - _VALUES:,} more"]
        texts = {key: self.of(child, owner, (*path, key), start, training, frozen) for key, child in values.items()}
        if len(texts) < FOLDED or not all(type(key) is str for key in texts):
            return [f"{in_a_line(repr(key))}: {text}" for key, text in texts.items()]
        shown = [*texts.values()]
        kinds = [(text, _Kind(kind_of(child))) for text, child in zip(shown, values.values(), strict=True)]
        return [
            f"{in_a_line(repr(name))}: {f'{len(numbers)} × ' * (len(numbers) > 1)}{shown[numbers[0]]}"
            for name, numbers in fold([*texts], kinds)
        ]


class _Kind:
    """What is shown of a value, that equals another unless it is ``None``."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kind) and self._kind is not None and self._kind == other._kind

    def __hash__(self) -> int:
        return 0  # beside the text, which tells almost all apart


def _bracketed(left: str, parts: list[str], right: str, dense: bool) -> str:
    """Put parts in brackets: in one line if that is not too long, or else each in one, or if ``dense`` as many as fit."""
    line = f"{left}{', '.join(parts)}{right}"
    if len(line) <= WIDTH and "\n" not in line:
        return line
    lines: list[str] = []
    for part in parts:
        joined = f"{lines[-1]}, {part}" if dense and lines else ""
        if joined and len(joined) < WIDTH and "\n" not in joined:
            lines[-1] = joined
        else:
            lines.append(part)
    inner = ",\n".join(lines).replace("\n", "\n  ")
    return f"{left}\n  {inner},\n{right.removeprefix(',')}"
