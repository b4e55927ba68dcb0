"""Other names for what a file has: the names that a model has for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

from ..core.words import describe, listed, nearest
from .description import KEYS, TIED, Fact, enclosing, is_container, is_leaf

# What says something of arrays by their names in what it is about.
_NAMING = ("frozen", TIED)
_BETWEEN = re.compile("(, | to )")

Rename = Callable[[str], str | None] | Mapping[str, str | None]


def renaming(rename: Rename) -> Callable[[str], str | None]:
    """Return the function that gives the new name for a name, or ``None`` to leave it out.

    Raises:
        TypeError: If ``rename`` is neither a function nor a mapping; the function, if it gives neither a string nor ``None``.
    """
    if not callable(rename) and not isinstance(rename, Mapping):
        raise TypeError(f"rename is a function of a name, or a mapping of names, and was given as a {type(rename).__name__}")

    def new_name(name: str) -> str | None:
        new = rename.get(name, name) if isinstance(rename, Mapping) else rename(name)
        if not isinstance(new, str | None):
            raise TypeError(f"rename gave {describe(new)} for {name!r}, where a string or None is needed")
        return new

    return new_name


_UNUSED = (
    "rename has {names}, and no weight has such a name{near}. A dict renames whole names, and a function may rename a part of "
    "each"
)
_SHOWN = 3


def unused_names(rename: Rename | None, names: Set[str]) -> str:
    """Return what to say of names in a mapping that a file has not; an empty string if there are none.

    One that is to be left out may be in other files, and what has its new name already may have been saved since.
    """
    if not isinstance(rename, Mapping):
        return ""
    unused = [old for old, new in rename.items() if new is not None and old not in names and new not in names]
    near = "".join([nearest(str(old), names) for old in unused[:_SHOWN]])
    return _UNUSED.format(names=listed([f"{old!r:.80}" for old in unused], _SHOWN), near=near) if unused else ""


def noting(rename: Rename, asked: set[str]) -> Callable[[str], str | None]:
    """Return the function that :func:`renaming` does, which notes what it is asked about."""
    new_name = renaming(rename)

    def noted(name: str) -> str | None:
        asked.add(name)
        return new_name(name)

    return noted


def new_names(names: Iterable[str], rename: Rename) -> dict[str, str]:
    """Return the names in a file by their new names, without those that are left out.

    Raises:
        TypeError: As :func:`renaming` says.
        ValueError: If two names become one.
    """
    new_name = renaming(rename)
    origins: dict[str, str] = {}
    for name in names:
        new = new_name(name)
        if new is None:
            continue
        if new in origins:
            raise ValueError(f"rename gives {new!r} for {origins[new]!r} and for {name!r}")
        origins[new] = name
    return origins


def renamed(
    facts: Sequence[Fact], like: Sequence[Fact], rename: Rename | None
) -> tuple[Sequence[Fact], Sequence[Fact], dict[str, str]]:
    """Return the facts about a tree under new names, those about ``like`` to compare them with, and by new name each old one.

    What holds arrays and numbers goes where all of these go, or stays where they stay; else nothing is said of it, nor where
    all of these are left out. Nothing is said of the keys of dicts, nor of containers that only one of the two trees has, or
    from which something is taken or left out. What is frozen or tied in a module is so under its new name.
    """
    if rename is None:
        return facts, like, {}
    leaves = [fact.path for fact in facts if is_leaf(fact)]
    origins = new_names(leaves, rename)
    given = {old: new for new, old in origins.items()}
    places, parted = _places(leaves, given)
    whole = [fact for fact in facts if not (is_container(fact) and fact.path in parted)]
    pairs = [(fact, given.get(fact.path) if is_leaf(fact) else _place(fact.path, places, parted)) for fact in whole]

    def new_name(name: str) -> str | None:
        return given.get(name) or _place(name, places, parted)

    new_facts = [_named(fact, path, new_name) for fact, path in pairs if path is not None]
    return _of_both(new_facts, like), _of_both(like, new_facts), origins


def _places(leaves: Iterable[str], given: Mapping[str, str]) -> tuple[dict[str, str | None], set[str]]:
    """Return where all goes that holds leaves which are not left out, if these agree, and what something doesn't follow."""
    moved: dict[str, set[str]] = {}
    parted: set[str] = set()
    for old in leaves:
        new = given.get(old)
        if new is None:
            parted.update(enclosing(old))
            continue
        for path in enclosing(old):
            below = old[len(path) :] if path else f".{old}"
            found = moved.setdefault(path, set())
            if f".{new}".endswith(below):
                found.add(f".{new}".removesuffix(below)[1:])
            else:
                parted.add(path)
    places = {path: min(found) if len(found) == 1 else None for path, found in moved.items()}
    taken = {*places.values()}
    return {path: path if new is None and path not in taken else new for path, new in places.items()}, parted


def _place(path: str, places: Mapping[str, str | None], parted: Set[str]) -> str | None:
    """Return where what is at a path goes; ``None`` if it is left out, or that can't be told."""
    around = [*enclosing(path), path]
    above = next((each for each in reversed(around) if each in places), None)
    left_out = any(each in parted and each not in places for each in around)
    if left_out or above is None or (place := places[above]) is None:
        return None
    return f"{place}.{path[len(above) :].removeprefix('.')}".strip(".")


def _named(fact: Fact, path: str, new_name: Callable[[str], str | None]) -> Fact:
    """Return a fact about what has another path now, in which names of what is in there are the new ones."""
    if fact.aspect not in _NAMING:
        return fact._replace(path=path)
    above, below = [f"{each}." if each else "" for each in (fact.path, path)]
    parts = _BETWEEN.split(fact.text)
    for at, name in enumerate(parts[::2]):
        new = new_name(above + name) or ""
        parts[2 * at] = new.removeprefix(below) if new.startswith(below) else name
    return Fact(path, fact.aspect, "".join(parts) if fact.aspect == TIED else ", ".join(sorted(parts[::2])))


def _of_both(facts: Sequence[Fact], others: Sequence[Fact]) -> list[Fact]:
    """Return facts without those about containers that others say nothing of, and about keys."""
    paths = {fact.path for fact in others if fact.aspect != KEYS}
    return [fact for fact in facts if fact.aspect != KEYS and (fact.path in paths or not is_container(fact))]
