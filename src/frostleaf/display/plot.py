"""Pictures of trees, drawn with matplotlib: where the weights lie, how norms go, what a copy lost."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..core.words import describe, listed
from ..tree.selecting import Where
from .plot_rows import Numbers, gathered, numbers_in, require_rows, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes = Any  # so that hints can be looked up without matplotlib

__all__ = ["changes", "histograms", "norms"]

_BINS = 80
_TRAINED, _NOT_TRAINED = "tab:blue", "tab:gray"
_ROW_HEIGHT = 0.28
_AT_ONCE = 2 * 2**20  # bytes
_NO_WIDTH = "\u200b"

NO_MATPLOTLIB = 'fl.plot draws with matplotlib, which is not installed. Install it with pip install "frostleaf[notebook]"'
OTHER_ARRAYS = "tree {which} has not the same floating-point arrays as the first tree: they differ at {names}"


def __dir__() -> list[str]:
    return sorted(__all__)


def histograms(tree: Any, where: Where | None = None, *, rows: int = 40, ax: Axes | None = None) -> Axes:
    """Draw how the numbers in a tree are distributed, a row for each array or module.

    All rows have the same axis; each is as high as its fullest bin allows. Those that are not trained are gray: buffers, and
    what is frozen. A quantized weight is shown as the numbers that it stands for; other integers are not shown. Numbers that
    are not finite are counted beside the name. Arrays are evaluated.

    Args:
        tree: Any tree with floating-point arrays: a model, gradients, the state of an optimizer.
        where: What to draw: a path, a glob, a class, a predicate, or a list of these. Default: everything.
        rows: How many rows there may be. Where there are more, they are gathered by module or by index. Default: ``40``.
        ax: The axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no floating-point array.

    >>> import frostleaf as fl
    >>> model = fl.nn.Sequential(fl.nn.Linear(2, 8), fl.nn.Linear(8, 1))
    >>> ax = fl.plot.histograms(model, "**.weight")
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['layers.0.weight', 'layers.1.weight']
    """
    require_rows(rows)
    found = numbers_in("fl.plot.histograms", tree, where)
    groups = gathered([*found], rows)
    low, high = _range(found.values())
    names: list[str] = []
    counts: list[list[float]] = []
    for name, label in zip(groups, shown(groups), strict=True):
        each_count = [_floats(_counted(found[member].values, low, high)) for member in groups[name]]
        *inside, infinite = [sum(each, 0.0) for each in zip(*each_count, strict=True)]
        counts.append(inside)
        names.append(f"{label} ({infinite:,.0f} not finite)" if infinite else label)
    ax = _axes(ax, len(groups))
    edges = [low + (high - low) * index / _BINS for index in range(_BINS + 1)]
    colors = [_TRAINED if any(found[each].trained for each in members) else _NOT_TRAINED for members in groups.values()]
    drawn: dict[str, Any] = {}
    for row, (count, color) in enumerate(zip(counts, colors, strict=True)):
        heights = [row + 0.4 - 0.9 * each / max(1, *count) for each in count]
        patch = ax.stairs(heights, edges, baseline=row + 0.4, fill=True, color=color)
        drawn.setdefault(color, patch)
    if len(drawn) > 1:
        _explain(ax, [drawn[_TRAINED], drawn[_NOT_TRAINED]], ["trained", "not trained"])
    _name_rows(ax, names)
    ax.set_xlabel("value")
    return ax


def norms(trees: Sequence[Any], where: Where | None = None, *, rows: int = 12, ax: Axes | None = None) -> Axes:
    """Draw the norms of arrays or modules over the steps of a run, a line for each.

    The norm is the root of the sum of squares, over all numbers of an array or module. A tree of norms is therefore as good as
    the tree itself: a step may return ``fl.tree.map(mx.linalg.norm, grads)``, which is small enough to keep. A line has a gap
    where a norm is not finite, and its name says at which step that began. Arrays are evaluated.

    Args:
        trees: A tree for each step, such as gradients or models; all have floating-point arrays at the same paths.
        where: What to draw, as in :func:`histograms`. Default: everything.
        rows: How many lines there may be. Where there are more, they are gathered by module or by index. Default: ``12``.
        ax: The axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If ``trees`` is no list or tuple.
        ValueError: If there is no tree, no floating-point array, or a tree has arrays at other paths than the first.

    >>> import frostleaf as fl, mlx.core as mx
    >>> ax = fl.plot.norms([{"w": mx.array([3.0, 4.0])}, {"w": mx.array([0.0, 1.0])}])
    >>> ax.lines[0].get_ydata().tolist()
    [5.0, 1.0]
    """
    require_rows(rows)
    if not isinstance(trees, list | tuple):
        raise TypeError(f"fl.plot.norms draws a list of trees, one for each step, and was given {describe(trees)}")
    if not trees:
        raise ValueError("fl.plot.norms draws a list of trees, one for each step, and was given none")
    first = numbers_in("fl.plot.norms", trees[0], where)
    groups = gathered([*first], rows)
    steps = []
    for found in _alike("fl.plot.norms", first, trees, where, 1):
        squares = dict(zip(first, _squares(found[name].values for name in first), strict=True))
        steps.append([math.sqrt(sum(squares[name] for name in names)) for names in groups.values()])
    ax = _axes(ax)
    colors = _pyplot().get_cmap("viridis")
    lines = list(zip(*steps, strict=True))
    labels = []
    for number, (label, values) in enumerate(zip(shown(groups), lines, strict=True)):
        ax.plot(values, color=colors(number / max(1, len(lines) - 0.5)), marker="." if len(values) == 1 else None)
        bad = next((step for step, value in enumerate(values) if not math.isfinite(value)), None)
        labels.append(label if bad is None else f"{label} (not finite from step {bad})")
    if any(0 < value < math.inf for values in lines for value in values):
        ax.set_yscale("log")
    _explain(ax, ax.lines[-len(lines) :], labels)
    locator: Any = ax.xaxis.get_major_locator()
    locator.set_params(integer=True)
    ax.set_xlabel("step")
    ax.set_ylabel("norm")
    return ax


def changes(
    tree: Any,
    *others: Any,
    labels: Sequence[str] | None = None,
    where: Where | None = None,
    rows: int = 40,
    ax: Axes | None = None,
) -> Axes:
    """Draw how far copies are from a tree, a row for each array or module: what a cast loses, what training changed.

    A point is at ``norm(other - tree) / norm(tree)``, over all numbers of an array or module. Quantized weights are compared as
    the numbers that they stand for. A point at 0 is an array that did not change. A distance that is not finite, as after an
    overflow, is a triangle at the right edge. Arrays are evaluated.

    Args:
        tree: Any tree with floating-point arrays.
        *others: At least one tree with arrays of the same shapes at the same paths, in any floating-point dtypes.
        labels: A name for each of ``others``. Default: its dtypes, and its number where several have the same.
        where: What to draw, as in :func:`histograms`. Default: everything.
        rows: How many rows there may be. Where there are more, they are gathered by module or by index. Default: ``40``.
        ax: The axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no other tree, no floating-point array, an array that only one of them has, or another shape;
            if there are more or fewer labels than trees.

    >>> import frostleaf as fl, mlx.core as mx
    >>> model = fl.nn.Linear(8, 8)
    >>> ax = fl.plot.changes(model, model.astype(mx.bfloat16), model.astype(mx.float16))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['bfloat16', 'float16']
    """
    require_rows(rows)
    if not others:
        raise ValueError("fl.plot.changes compares a tree with others: give at least one after the first")
    if labels is not None and len(labels) != len(others):
        raise ValueError(f"labels has a name for each tree after the first, here {len(others)}, and was given {len(labels)}")
    before = numbers_in("fl.plot.changes", tree, where)
    groups = gathered([*before], rows)
    columns, stored = [], []
    for after in _alike("fl.plot.changes", before, others, where, 2):
        stored.append(", ".join(dict.fromkeys(each.stored for each in after.values())))
        columns.append([_distance([(before[name], after[name]) for name in names]) for names in groups.values()])
    ax = _axes(ax, len(groups))
    least = min((value for column in columns for value in column if 0 < value < math.inf), default=1.0)
    ax.set_xscale("symlog", linthresh=10.0 ** math.floor(math.log10(least)), linscale=0.3)
    locator: Any = ax.xaxis.get_major_locator()
    locator.set_params(subs=[1.0, 3.0])
    ax.xaxis.set_major_formatter("{x:g}")
    handles = []
    for column in columns:
        finite = [(value, row) for row, value in enumerate(column) if math.isfinite(value)]
        beyond = [row for row, value in enumerate(column) if not math.isfinite(value)]
        points = ax.scatter([value for value, _ in finite], [row for _, row in finite], alpha=0.8)
        handles.append(points)
        at_edge, color = ax.get_yaxis_transform(), points.get_facecolor()
        ax.scatter([1.0] * len(beyond), beyond, marker=">", color=color, transform=at_edge, clip_on=False)
    ax.set_xlim(left=0)
    ax.grid(axis="x", alpha=0.3)
    _explain(ax, handles, labels or _distinct(stored))
    _name_rows(ax, shown(groups))
    ax.set_xlabel("relative change")
    return ax


def _pyplot() -> Any:
    try:
        return importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ImportError(NO_MATPLOTLIB) from error


def _axes(ax: Any, rows: int = 10) -> Any:
    """Return the axes given, or those of a new figure with room for some rows."""
    pyplot = _pyplot()
    if ax is None:
        return pyplot.subplots(figsize=(7, 1.2 + _ROW_HEIGHT * max(rows, 4)), layout="constrained")[1]
    if not isinstance(ax, pyplot.Axes):
        raise TypeError(f"ax is one of matplotlib's Axes, and was given as {describe(ax)}")
    return ax


def _distinct(stored: Sequence[str]) -> list[str]:
    """Return names for the trees after the first, by their dtypes."""
    several = len({*stored}) < len(stored)
    return [f"tree {number}, {dtypes}" if several else dtypes for number, dtypes in enumerate(stored, 2)]


def _explain(ax: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Name what is drawn, so that ``ax.legend(...)`` can be called again, and add a legend on the right.

    Matplotlib leaves out labels that begin with an underscore.
    """
    for handle, label in zip(handles, labels, strict=True):
        handle.set_label(f"{_NO_WIDTH}{label}" if label.startswith("_") else label)
    legend = ax.legend(handles=handles, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)


def _name_rows(ax: Any, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize="small", parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)


def _range(found: Iterable[Numbers]) -> tuple[float, float]:
    """Return the least and the greatest finite number, a little apart if they are the same, and 0 and 1 if there is none."""
    low, high = math.inf, -math.inf
    for values in (each.values for each in found):
        finite = mx.isfinite(values)
        ends = mx.stack([mx.where(finite, values, math.inf).min(), mx.where(finite, values, -math.inf).max()])
        least, greatest = _floats(ends)
        low, high = min(low, least), max(high, greatest)
    if low > high:
        return 0.0, 1.0
    margin = (abs(low) or 1.0) / 2 if low == high else 0.0
    return low - margin, high + margin


def _counted(values: mx.array, low: float, high: float) -> mx.array:
    """Return how many numbers are in each bin, and at the end how many are not finite."""
    finite = mx.isfinite(values)
    place = (mx.where(finite, values, low) / (high - low) - low / (high - low)) * _BINS
    bins = mx.where(finite, mx.clip(place, 0, _BINS - 1), _BINS).astype(mx.int32)
    return mx.zeros(_BINS + 1, mx.int32).at[bins].add(mx.ones(bins.shape, mx.int32))


def _floats(vector: mx.array) -> list[float]:
    """Return the numbers of a vector, computed now, so that what they were computed from is not kept."""
    return list(map(float, vector.tolist()))  # type: ignore[arg-type]


def _squares(vectors: Iterable[mx.array]) -> list[float]:
    """Return the sum of squares of each vector. A few are computed at a time, which takes little memory."""
    squares: list[float] = []
    waiting: list[mx.array] = []
    room = _AT_ONCE
    for each in vectors:
        waiting.append(mx.square(each).sum())
        room -= each.nbytes
        if room <= 0:
            squares += _floats(mx.stack(waiting))
            waiting, room = [], _AT_ONCE
    return squares + (_floats(mx.stack(waiting)) if waiting else [])


def _distance(pairs: Sequence[tuple[Numbers, Numbers]]) -> float:
    """Return the norm of the change of some vectors, relative to their norm. What did not change is at 0, zeros included."""
    changed = math.sqrt(sum(_squares(_change(before.values, after.values) for before, after in pairs)))
    whole = math.sqrt(sum(_squares(before.values for before, _ in pairs)))
    return changed / whole if changed and whole else math.inf if changed else 0.0


def _change(before: mx.array, after: mx.array) -> mx.array:
    return mx.where(after == before, 0, after - before)


def _alike(
    function: str, first: Mapping[str, Numbers], trees: Sequence[Any], where: Where | None, number: int
) -> Iterator[dict[str, Numbers]]:
    """Yield the numbers in each tree, which has floating-point arrays of the same shapes at the same paths as the first."""
    for which, tree in enumerate(trees, number):
        found = numbers_in(function, tree, where)
        unlike = [name for name in {**first, **found} if _size(first, name) != _size(found, name)]
        if unlike:
            raise ValueError(
                f"tree {which} has not the same floating-point arrays as the first: they differ at {listed(unlike)}"
            )
        yield found


def _size(found: Mapping[str, Numbers], name: str) -> int | None:
    return found[name].size if name in found else None
