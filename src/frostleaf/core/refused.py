"""What may not stand in a tree: arrays of other libraries, and values that hide arrays."""

from __future__ import annotations

import types
from typing import Any

from .hidden import Hidden, advice_for, find_hidden, is_opaque
from .words import Path, class_name, keystr


class ForeignArrayError(TypeError):
    """Raised where a tree has an array of NumPy or another library, which is no leaf.

    Attributes:
        path: Where in the tree.
        value: The array.

    >>> import frostleaf as fl, numpy as np
    >>> try:
    ...     fl.tree.leaves({"table": np.zeros(3)})
    ... except fl.ForeignArrayError as error:
    ...     print(error)
    a numpy.ndarray of shape (3,) at table is no leaf of a tree: leaves are mx.array. Convert it with mx.array(...).
    """

    def __init__(self, path: Path, value: Any) -> None:
        place = f" at {keystr(path)}" if path else ""
        given = f"a {class_name(value)} of shape {getattr(value, 'shape', None)}{place}"
        super().__init__(f"{given} is no leaf of a tree: leaves are mx.array. Convert it with mx.array(...).")
        self.path = path
        self.value = value


HIDDEN = (
    "the {kind}{place} holds arrays ({hidden}), which are no leaves: they would not be trained, cast, mapped or saved. {advice}"
)


OPAQUE = "the {kind}{place} is an iterator, in which arrays can't be found, trained, cast, mapped or saved. {advice}"


class HiddenArrayError(TypeError):
    """Raised where a tree has a value that hides arrays or modules, or an iterator, which may.

    Attributes:
        path: Where in the tree.
        value: The value.

    >>> import frostleaf as fl, mlx.core as mx
    >>> try:
    ...     fl.tree.leaves([{mx.zeros(2)}])
    ... except fl.HiddenArrayError as error:
    ...     print(error)
    the set at 0 holds arrays (0: f32[2]), which are no leaves: they would not be ... or saved. Give a list or a tuple.
    """

    def __init__(self, path: Path, value: Any, hidden: Hidden) -> None:
        place = f" at {keystr(path)}" if path else ""
        message = OPAQUE if hidden.value is value else HIDDEN
        super().__init__(message.format(kind=type(value).__name__, place=place, hidden=hidden, advice=advice_for(value)))
        self.path = path
        self.value = value


def hidden_in(value: Any) -> Hidden | None:
    """Find an array or a module that a static value hides. A plain function may have some in its variables.

    An iterator of which nothing can be seen is itself what it hides. A generator is a function that is running, as that may be
    which gives a program its data.
    """
    if isinstance(value, types.FunctionType | types.GeneratorType | types.AsyncGeneratorType):
        return None
    return Hidden((), value) if is_opaque(value) else find_hidden(value)
