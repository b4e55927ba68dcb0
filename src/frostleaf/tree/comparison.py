"""Comparing trees: whether they are equal, or close, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..core.arguments import require_bool
from ..core.containers import static_key
from ..core.definition import Node
from ..core.depth import tells_depth
from ..core.instance import Metadata, metadata_of
from ..core.shapes import LEAF
from ..core.structure import Structure, flat_of
from ..core.words import BUILD_AGAIN, Path, is_defined_again, keystr, listed
from .differences import Change, Diff
from .functions import flatten
from .walk import field_level, ties_in


def equal(*trees: Any) -> bool:
    """Return whether trees have the same structure, and leaves of the same dtypes, shapes and values.

    ``nan`` equals ``nan``. Arrays are evaluated unless they are the same objects.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.equal((mx.array(1), "a"), (mx.array(1), "a")), fl.tree.equal(mx.array(1), mx.array(1.0))
    (True, False)
    """
    flat = [flatten(tree) for tree in trees]
    return all(structure == flat[0][1] and all(map(_same, flat[0][0], leaves)) for leaves, structure in flat[1:])


def allclose(left: Any, right: Any, rtol: float = 1e-5, atol: float = 1e-8, *, equal_nan: bool = False) -> bool:
    """Return whether two trees have the same structure, and leaves of the same shapes and nearly the same values.

    Two leaves are close where ``abs(left - right) <= atol + rtol * abs(right)``, as in :func:`mlx.core.allclose`. Dtypes may
    differ, so a model can be compared with its cast.

    Args:
        left, right: The trees.
        rtol: Relative tolerance. Default: ``1e-5``.
        atol: Absolute tolerance. Default: ``1e-8``.
        equal_nan: Whether ``nan`` is close to ``nan``. Default: ``False``.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.allclose([mx.array(1.0)], [mx.array(1.0 + 1e-7)])
    True
    """
    (first, structure), (second, other) = flatten(left), flatten(right)
    if structure != other or any(a.shape != b.shape or type(a) is not type(b) for a, b in zip(first, second, strict=True)):
        return False
    arrays = [(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, mx.array)]
    return all(bool(mx.allclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)) for a, b in arrays)


@tells_depth
def diff(before: Any, after: Any, *, values: bool = False) -> Diff:
    """List where two trees differ: in classes, modes, frozen names, ties, shards, static values, dtypes, shapes or values.

    Arrays that are the same object are not looked into; others of the same shape and dtype are evaluated.

    Args:
        before, after: The trees, of any kind: models, optimizer states, dicts, shapes.
        values: Whether to measure by how much arrays of one shape differ, in value or by a cast. Each :class:`Change` then has
            its ``norm``, computed in float32 (complex64, float64 for arrays of these), and ``relative``. Default: ``False``.

    Returns:
        A :class:`Diff`: a tuple of :class:`Change`, which prints what changed alike once.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.tree.diff({"w": mx.zeros(3), "n": 1}, {"w": mx.zeros(3, mx.float16), "n": 2})
    w: dtype f32[3] -> f16[3]
    n: static 1 -> 2
    >>> fl.tree.diff([mx.array([3.0, 4.0])], [mx.array([3.0, 4.5])], values=True)
    0: value f32[2] -> f32[2], by 0.5 (10.00%)
    """
    changes: list[Change] = []
    flat_of(before), flat_of(after)  # raises where there is an array of another library, which can't be compared
    _compare((), before, after, changes, frozenset(), values=True)
    changes = _without_equal(changes)
    return Diff(_measured(changes) if require_bool("values", values) else changes)


def _without_equal(changes: list[Change]) -> list[Change]:
    """Leave out pairs of arrays of equal values, all compared at once."""
    equals = {number: _equal(each.before, each.after) for number, each in enumerate(changes) if each.kind == "value"}
    mx.eval([equal for equal in equals.values() if isinstance(equal, mx.array)])
    return [each for number, each in enumerate(changes) if not equals.get(number, False)]


def _measured(changes: list[Change]) -> list[Change]:
    """Return changes with the norms of those between arrays of one shape, one after another, which takes little memory."""
    return [_with_norms(each) if _has_norm(each) else each for each in changes]


def _has_norm(change: Change) -> bool:
    both = isinstance(change.before, mx.array) and isinstance(change.after, mx.array)
    return both and change.kind in ("value", "dtype") and change.before.shape == change.after.shape


def _with_norms(found: Change) -> Change:
    """Return a change with the norm of the difference, and the same relative to that of ``before``."""
    before, after = found.before, found.after
    wide = next((each for each in (mx.complex64, mx.float64) if each in (before.dtype, after.dtype)), mx.float32)
    if before.dtype == after.dtype and mx.issubdtype(before.dtype, mx.integer):
        change = (mx.maximum(before, after) - mx.minimum(before, after)).astype(wide)  # which unsigned numbers can hold
    else:
        change = after.astype(wide) - before.astype(wide)
    change = mx.where(before == after, mx.zeros_like(change), change)  # infinities that are equal
    norm, size = (_norm(each.reshape(-1)) for each in (change, before.astype(wide)))
    return found._replace(norm=norm, relative=norm / size if size else math.inf if norm else 0.0)


def _norm(vector: mx.array) -> float:
    """Return the norm of a vector, also of one whose squares are too small or too large for its dtype."""
    if not vector.size:
        return 0.0
    largest = mx.abs(vector).max()
    is_apart = ((largest < 1e-12) | (largest > 1e12)) & (largest > 0) & mx.isfinite(largest)
    scale = mx.where(is_apart, largest, mx.ones_like(largest))
    return float((mx.linalg.norm(vector / scale) * scale).item())  # type: ignore[arg-type]


def require_alike(trees: Sequence[Any]) -> Structure:
    """Return the structure of at least one tree, and require that all have the same.

    Raises:
        ValueError: If one has another; the message shows where.
    """
    first = flat_of(trees[0]).structure
    for number, tree in enumerate(trees[1:], 2):
        if flat_of(tree).structure != first:
            raise unlike(number, trees[0], tree)
    return first


def unlike(number: int, first: Any, tree: Any) -> ValueError:
    """Return the error for a tree that is not of the same structure as the first."""
    changes: list[Change] = []
    _compare((), first, tree, changes, frozenset(), values=False)
    shown = listed(map(str, Diff(changes).rows), separator="\n")
    again = next((each.before for each in changes if each.kind == "class" and is_defined_again(each.before, each.after)), None)
    advice = "" if again is None else f"\n{BUILD_AGAIN.format(name=again.__name__)}."
    return ValueError(f"tree {number} does not have the structure of the first:\n{shown}{advice}")


MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()


def _compare(path: Path, left: Any, right: Any, changes: list[Change], tied: frozenset[Path], values: bool) -> None:
    """Append the changes below a path. Where ``values``, pairs of arrays of one shape and dtype are among them."""
    if left is right or path in tied:
        return
    name = keystr(path)
    if isinstance(left, LEAF) and isinstance(right, LEAF):
        if left.dtype != right.dtype:
            changes.append(Change(name, "dtype", left, right))
        elif left.shape != right.shape:
            changes.append(Change(name, "shape", left, right))
        elif values:
            changes.append(Change(name, "value", left, right))
        return
    first, second = field_level(left), field_level(right)
    if first is None or second is None:
        if first or second or isinstance(left, LEAF) or isinstance(right, LEAF):
            changes.append(Change(name, "type", left, right))
        elif static_key(left) != static_key(right):
            changes.append(Change(name, "static", left, right))
        return
    if type(left) is not type(right):
        changes.append(Change(name, "class", type(left), type(right)))
        return
    if isinstance(left, Node):
        ours, theirs = metadata_of(left), metadata_of(right)
        if ours.training != theirs.training:
            changes.append(Change(name, "mode", _mode(ours), _mode(theirs)))
        if ours.frozen != theirs.frozen:
            changes.append(Change(name, "frozen", ours.frozen, theirs.frozen))
        if ours.ties != theirs.ties:
            changes.append(Change(name, "ties", _shown_ties(ours), _shown_ties(theirs)))
        if ours.shards != theirs.shards:
            changes.append(Change(name, "shards", _shown_shards(ours), _shown_shards(theirs)))
    if isinstance(left, Mapping) and left.keys() == right.keys() and list(left) != list(right):
        changes.append(Change(name, "order", ", ".join(map(str, left)), ", ".join(map(str, right))))
    tied |= ties_in(left, path) & ties_in(right, path)
    here = dict(zip(first.entries, first.children, strict=True))
    there = dict(zip(second.entries, second.children, strict=True))
    for entry, child in here.items():
        if entry in there:
            _compare((*path, entry), child, there[entry], changes, tied, values)
        else:
            changes.append(Change(keystr((*path, entry)), "removed", child, MISSING))
    for entry, child in there.items():
        if entry not in here:
            changes.append(Change(keystr((*path, entry)), "added", MISSING, child))


def _mode(metadata: Metadata) -> str:
    return "train" if metadata.training else "eval"


def _shown_ties(metadata: Metadata) -> frozenset[str]:
    return frozenset(f"{keystr(target)} = {keystr(source)}" for target, source in metadata.ties)


def _shown_shards(metadata: Metadata) -> frozenset[str]:
    return frozenset(f"{keystr(path)}: {shard}" for path, shard in metadata.shards)


def _same(left: Any, right: Any) -> bool:
    return bool(_equal(left, right))


def _equal(left: Any, right: Any) -> bool | mx.array:
    """Return whether two leaves are the same, as an array where their values have to be looked at."""
    if left is right:
        return True
    if not (isinstance(left, mx.array) and isinstance(right, mx.array)):
        return bool(left == right)  # one of them is a shape
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    inexact = mx.issubdtype(left.dtype, mx.inexact)
    return mx.array_equal(left, right, equal_nan=inexact)
