"""The places that are tied in a tree that a file describes: it has their arrays, and numbers, under other names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from .description import NONE, TIED, Fact, enclosing, is_leaf, leaves_in, shape_in
from .renaming import Rename, new_names, renaming


def ties_in(facts: Iterable[Fact]) -> dict[str, str]:
    """Return the tied places of a tree and to what they are tied: arrays and modules."""
    pairs = [(fact.path, pair.split(" to ")) for fact in facts if fact.aspect == TIED for pair in fact.text.split(", ")]
    # A key of a dict may have these words in it.
    named = [[f"{path}.{name}".removeprefix(".") for name in pair] for path, pair in pairs if len(pair) == 2]
    return {each[0]: each[1] for each in named}


def tied_names(facts: Sequence[Fact]) -> dict[str, str]:
    """Return for the name of each array and number at a tied place, or in a tied module, the name that the file has for it."""
    ties = ties_in(facts)
    # What is tied in a module is so at the other places of that module.
    inside, below = _Below(ties.values()), _Below(ties.values())
    inside.add(ties)
    try:
        order = [*TopologicalSorter({target: inside[source] for target, source in ties.items()}).static_order()]
    except CycleError:  # a forged file says that a module is in itself
        return {}
    found = {fact.path: fact.path for fact in facts if is_leaf(fact)}
    below.add(found)
    for target in order:
        source = ties[target]
        new = {target + name[len(source) :]: found[name] for name in below[source]}
        below.add(new.keys() - found.keys())
        found |= new
    return {name: place for name, place in found.items() if name != place}


class _Below(dict[str, list[str]]):
    """Which of the names that were added are at each of some paths, or below it."""

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__({path: [] for path in paths})

    def add(self, names: Iterable[str]) -> None:
        """Add names, each of which is new."""
        for name in names:
            for path in (*enclosing(name), name):
                if path in self:
                    self[path].append(name)


def followed(ties: Mapping[str, str], missing: Iterable[str], rename: Rename | None) -> dict[str, str]:
    """Return for each missing name that is a tied place's the name that the file has for what is there.

    Args:
        ties: What :func:`tied_names` returns.
        missing: The names that a tree has, and a file has not under new names.
        rename: What gives the new names, which is asked about tied places as well.

    Raises:
        TypeError: As :func:`renaming` says.
        ValueError: If two of these that have different sources become one that is missing.
    """
    wanted, new_name = {*missing}, renaming({} if rename is None else rename)
    news = {name: new_name(name) for name in ties}
    # Several places of one array may well become one.
    needed = {(news[name], source): name for name, source in ties.items() if news[name] in wanted}
    return {new: ties[name] for new, name in new_names(needed.values(), news).items()}


def with_tied(
    there: Sequence[Fact], like: Sequence[Fact], in_file: Sequence[Fact], rename: Rename | None
) -> tuple[Sequence[Fact], dict[str, str]]:
    """Return the facts about a tree in a file with those about what ``like`` has at its tied places, and by name their sources.

    What is of another shape there, as a new head is, is not the array of the source.

    Args:
        there: The facts, under new names.
        like: The facts about the tree that is compared with it.
        in_file: The facts, under the names that the file has.
        rename: What gave the new names.
    """
    known, stored, wanted = map(leaves_in, (there, in_file, like))
    missing = [path for path in wanted if path not in known]
    sources = followed(tied_names(in_file), missing, rename) if missing else {}
    sources = {name: source for name, source in sources.items() if shape_in(stored[source]) == shape_in(wanted[name])}
    nothing = {each for name in sources for each in (*enclosing(name), name)}  # is said of what is tied, and around these
    rest = [fact for fact in there if fact.text != NONE or fact.path not in nothing]
    return [*rest, *[Fact(name, "", stored[source].text) for name, source in sources.items()]], sources
