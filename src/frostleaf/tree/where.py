"""A selection said in words: a path, a glob, a type, a predicate, or several of these."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ..node import Path
from .functions import dotted

Where = str | type | Callable[[str, Any], bool] | Sequence[Any]

NOT_A_WHERE = (
    "can't select by {where!r}. Give a path ('layers.0.weight'), a glob ('layers.*.bias', '**.weight'), a class, a function of "
    "(path, array) that returns a bool, or a list of these."
)


def matcher(where: Where) -> Callable[[Path, Any], bool]:
    """Return the function of a path and a value that says whether ``where`` selects that value.

    A path names one value. In a glob ``*`` stands for any part of one name and ``**`` for any number of names; a glob that
    ends in ``**`` selects the arrays below. A class selects its instances. A predicate is asked about each array, with its
    dotted path.

    Raises:
        TypeError: If ``where`` is none of these.
    """
    if isinstance(where, str):
        pattern = re.compile(_regex(where), re.DOTALL)
        arrays_only = where.split(".")[-1] == "**"
        # The root has no name, so only "**" selects it, where it is an array.
        return lambda path, value: (
            (isinstance(value, mx.array) if arrays_only else bool(path)) and pattern.fullmatch(dotted(path)) is not None
        )
    if isinstance(where, type):
        return lambda path, value: isinstance(value, where)
    if callable(where) and _takes_two(where):
        return lambda path, value: isinstance(value, mx.array) and bool(where(dotted(path), value))
    if isinstance(where, list | tuple | set | frozenset):
        matchers = [matcher(one) for one in where]
        return lambda path, value: any(matches(path, value) for matches in matchers)
    raise TypeError(NOT_A_WHERE.format(where=where))


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind("path", None)
    except TypeError:
        return False
    except ValueError:  # a function of MLX has no signature
        return True
    return True


def _regex(glob: str) -> str:
    """Return the regular expression of a glob over dotted names; ``**`` may stand for no name, and then takes its dot along."""
    any_names = "\0"
    names = [
        any_names if name == "**" else re.escape(name).replace(r"\*", "[^.]*").replace(r"\?", "[^.]")
        for name in glob.split(".")
    ]
    pattern = r"\.".join(names)
    return pattern.replace(any_names + r"\.", r"(?:.+\.)?").replace(r"\." + any_names, r"(?:\..+)?").replace(any_names, ".*")
