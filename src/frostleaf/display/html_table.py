"""Summaries and differences as tables of HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..core.words import describe, in_a_line
from ..io.inventory import CheckpointInfos
from ..tree.differences import Diff
from ..tree.folding import fold
from .markup import Markup, element
from .page import page
from .rows import Summary, totals
from .table import in_bytes

# So many rows are in a table at most.
_MOST = 1_000
_METRICS = 8


def summary_page(summary: Summary) -> Markup:
    """Return a summary as a page."""
    shown = [(row.kind, row.output, row.parameters, row.trainable, row.buffers, row.nbytes) for row in summary.rows]
    folded = fold([row.path for row in summary.rows], shown)
    called = any(row.calls is not None for row in summary.rows)
    rows = []
    for path, numbers in folded[:_MOST]:
        row = summary.rows[numbers[0]]
        share = f"{100 * len(numbers) * row.nbytes / max(summary.nbytes, 1):.3g}%"
        times = f"{len(numbers):,} × " if len(numbers) > 1 else ""
        rows.append(
            [
                _path(path, len(numbers)),
                element("code", f"{times}{row.kind}"),
                *([element("code", row.output)] if called else []),
                f"{row.parameters:,}",
                f"{row.trainable:,}",
                element("em", f"{times}{in_bytes(row.nbytes)}", style=f"--w:{share}"),
            ]
        )
    head = ["path", "module", *(["output"] if called else []), "parameters", "trainable", "bytes"]
    about = [element("div", element("small", line)) for line in totals(summary)]
    return page(_table(head, rows, len(folded) - len(rows), 3), *about)


def diff_page(diff: Diff) -> Markup:
    """Return differences as a page."""
    found = diff.rows
    measured = any(row.norm is not None for row in found)
    rows = [
        [
            _path(row.path, row.places),
            element("i", row.kind, class_=_KINDS.get(row.kind, "f")),
            element("code", row.before),
            element("code", row.after),
            *([row.by] if measured else []),
        ]
        for row in found[:_MOST]
    ]
    title = f"{len(diff):,} changes" if len(diff) > 1 else "1 change" if diff else repr(diff)
    head = ["path", "kind", "before", "after", *(["by"] if measured else [])]
    return page(_table(head, rows, len(found) - len(rows), int(measured)) if rows else None, title=title)


def checkpoints_page(infos: CheckpointInfos) -> Markup:
    """Return what there is in a directory of checkpoints as a page, the latest of them if there are too many."""
    found = infos[-_MOST:]
    metrics = [*dict.fromkeys(name for info in found for name in info.metrics)][:_METRICS]
    rows = [
        [
            _path(str(info.step), 1),
            element("code", f"{info.saved:%Y-%m-%d %H:%M:%S}"),
            *[describe(info.metrics[name]) if name in info.metrics else "" for name in metrics],
            in_bytes(info.own),
            in_bytes(info.shared),
        ]
        for info in found
    ]
    title = f"{len(infos):,} checkpoints" if len(infos) > 1 else "1 checkpoint" if infos else "no checkpoints"
    head = ["step", "saved", *map(in_a_line, metrics), "bytes", "shared"]
    return page(_table(head, rows, len(infos) - len(rows), len(metrics) + 2) if rows else None, title=title)


_KINDS = {"frozen": "z", "dtype": "g", "removed": "m", "added": "a", "class": "n", "shape": "n", "type": "n"}


def _path(path: str, places: int) -> Markup:
    """Return the name of a row. That of several places, or of none, can't be copied."""
    return element("b", in_a_line(path) or "(root)", class_="range" if places > 1 or not path else None)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], more: int, numbers: int) -> Markup:
    """Return a table whose last columns are ``numbers``."""
    first = len(head) - numbers
    kinds = [None] * first + ["number"] * numbers
    top = element("tr", *[element("th", each, class_=kind) for each, kind in zip(head, kinds, strict=True)])
    lines = [element("tr", *[element("td", each, class_=kind) for each, kind in zip(row, kinds, strict=True)]) for row in rows]
    table = element("table", element("thead", top), element("tbody", *lines))
    return element("div", table, element("small", f"and {more:,} more") if more else None, class_="wide")
