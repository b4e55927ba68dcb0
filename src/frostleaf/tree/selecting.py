"""What is selected in a tree by a path, a glob, a class, a predicate, or a list of these."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeGuard

from ..core.shapes import LEAF
from ..core.structure import flat_of
from ..core.words import Path, describe, keystr, nearest, nearest_paths
from .walk import Descend, rewrite, tied_places

Where = str | type | Callable[[str, Any], bool] | Sequence[Any]


def matcher(where: Where) -> Callable[[Path, Any], bool]:
    """Make a function of a path and a value that tells whether ``where`` selects the value.

    A path names one value. In a glob ``*`` matches any text in one name and ``**`` any number of names; a glob that ends in
    ``**`` selects the arrays below. A class selects its instances. A predicate is called with each array's dotted path and the
    array.

    Raises:
        TypeError: If ``where`` is none of these.
    """
    if isinstance(where, str):
        pattern = re.compile(_regex(where), re.DOTALL)
        arrays_only = where.split(".")[-1] == "**"
        # The root has no name, so only "**" selects it, if it is an array.
        return lambda path, value: (
            (isinstance(value, LEAF) if arrays_only else bool(path)) and pattern.fullmatch(keystr(path)) is not None
        )
    if isinstance(where, type):
        return lambda path, value: isinstance(value, where)
    if callable(where) and _takes_two(where):
        return lambda path, value: isinstance(value, LEAF) and bool(where(keystr(path), value))
    if _is_several(where):
        matchers = [matcher(one) for one in where]
        return lambda path, value: any(matches(path, value) for matches in matchers)
    raise TypeError(
        f"can't select by {describe(where)}. Give a path ('layers.0.weight'), a glob ('layers.*.bias', '**.weight'), a class, "
        "a function of (path, array) that returns a bool, or a list of these."
    )


def is_path(where: Where) -> bool:
    """Return whether a selection is a single path, and no glob."""
    return isinstance(where, str) and not set("*?") & set(where)


def mask(tree: Any, where: Where) -> list[bool]:
    """Return for each leaf whether ``where`` selects it, or something that holds it."""
    matches = matcher(where)
    chosen: list[bool] = []
    holders: set[Path] = set()  # the selected nodes, and all nodes inside them

    def enter(path: Path, value: Any) -> Any:
        picked = path[:-1] in holders or matches(path, value)
        if isinstance(value, LEAF):
            chosen.append(picked)
        elif picked:
            holders.add(path)
        return Descend

    rewrite(tree, enter)
    return chosen


def select(tree: Any, where: Where) -> dict[Path, Any]:
    """Return what ``where`` selects, by path. A selected value inside another selected one is left out."""
    matches = matcher(where)
    found: dict[Path, Any] = {}

    def enter(path: Path, value: Any) -> Any:
        if not matches(path, value):
            return Descend
        found[path] = value
        return value

    rewrite(tree, enter)
    return found


def require_selected(tree: Any, where: Where, selected: Mapping[Path, Any]) -> None:
    """Require that ``where``, and every item of a list, selects something: a misspelt path must not hide among others.

    Args:
        tree: The tree.
        where: The selection.
        selected: What :func:`select` returned for it.

    Raises:
        LookupError: If one selects nothing; the message suggests the nearest paths, or the source of a tied place.
    """
    for each in where if _is_several(where) else ():
        require_selected(tree, each, select(tree, each))
    if selected:
        return
    tied = tied_places(tree)
    if isinstance(where, str) and where in tied:
        raise LookupError(f"{where!r} is tied to {tied[where]!r}: select that, and the edit is made at both places")
    paths: list[str] = []
    rewrite(tree, lambda path, value: paths.append(keystr(path)) or Descend)  # type: ignore[func-returns-value]
    suggestion = nearest_paths(where, paths) if isinstance(where, str) else ""
    raise LookupError(f"{describe(where)} selects nothing in this {type(tree).__name__}{suggestion}.")


def require_arrays(tree: Any, where: Where) -> None:
    """Require that a path, and every path in a list, leads to an array. A glob, class or predicate may select nothing.

    Raises:
        ValueError: If one leads to none; the message has the nearest path, or the source of a tied place.
    """
    for each in where if _is_several(where) else ():
        require_arrays(tree, each)
    if isinstance(where, str) and is_path(where) and not any(mask(tree, where)):
        source = tied_places(tree).get(where)
        leaves = flat_of(tree).structure.leaf_paths()
        places = {keystr(path[:length]) for path in leaves for length in range(1, len(path) + 1)}
        advice = f". It is tied to {source!r}: select that" if source else nearest(where, sorted(places))
        raise ValueError(f"{where!r} selects no array of the {type(tree).__name__}{advice}")


def _is_several(where: Any) -> TypeGuard[Collection[Any]]:
    return isinstance(where, list | tuple | set | frozenset)


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind("path", None)
    except TypeError:
        return False
    except ValueError:  # MLX's functions have no signature
        return True
    return True


def _regex(glob: str) -> str:
    """Translate a glob over dotted names to a regular expression; ``**`` may match no name, and then its dot goes too."""
    any_names = "\0"
    names = [
        any_names if name == "**" else re.escape(name).replace(r"\*", "[^.]*").replace(r"\?", "[^.]")
        for name in glob.split(".")
    ]
    pattern = r"\.".join(names)
    return pattern.replace(any_names + r"\.", r"(?:.+\.)?").replace(r"\." + any_names, r"(?:\..+)?").replace(any_names, ".*")
