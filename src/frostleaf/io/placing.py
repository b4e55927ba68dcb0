"""Put what was read of a file into a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ..core.sharing import with_values
from ..core.structure import flat_of, unflatten
from ..core.words import keystr
from .description import SCALARS
from .partial import LoadReport


class Read(NamedTuple):
    """What was read of a file for a tree.

    Attributes:
        arrays: Arrays, evaluated; what was one object is one.
        values: Numbers, strings and bytes.
        names: The dotted names of the arrays and then the values, or ``None`` if these are all in the order of the tree.
        report: What ``fl.load`` is to report, or ``None``.
        stored: The dotted names of the arrays in the file.
    """

    arrays: list[mx.array]
    values: list[Any]
    names: list[str] | None = None
    report: LoadReport | None = None
    stored: Sequence[str] = ()


def placed(like: Any, read: Read) -> Any:
    """Return the tree that ``fl.load`` returns, and with a report that too."""
    structure = flat_of(like).structure
    if read.names is None:
        values = iter(read.values)

        def restored(value: Any) -> Any:
            return next(values) if type(value) in SCALARS else value

        return unflatten(structure, iter(read.arrays), restored)
    paths = [*structure.leaf_paths(), *[path for path, value in structure.static_values() if type(value) in SCALARS]]
    places = {keystr(path): path for path in paths}
    new = zip(read.names, [*read.arrays, *read.values], strict=True)
    tree = with_values(like, {places[name]: value for name, value in new}, convert=False)
    return tree if read.report is None else (tree, read.report)
