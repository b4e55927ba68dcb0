"""Where two trees differ in what is no array, and is that of the tree into which arrays are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from .alignment import aligned, is_moved
from .description import Fact, array_kind, enclosing, is_object
from .differences import outer_modes, shown_place


def differing(in_file: Sequence[Fact], in_like: Sequence[Fact], parameters: Set[str]) -> tuple[str, ...]:
    """Return what another tree has otherwise, of modules in both, as :class:`LoadReport` has it.

    Args:
        in_file: The facts about the tree in a file.
        in_like: Those about the tree that is compared with it.
        parameters: The names of the arrays of the latter that can be frozen.
    """
    there = aligned(in_file, in_like)
    both = {fact.path for fact in there if is_object(fact)} & {fact.path for fact in in_like if is_object(fact)}
    return (*_static(there, in_like), *_modes(there, in_like, both), *_frozen(there, in_like, both, parameters))


def _static(in_file: Sequence[Fact], in_like: Sequence[Fact]) -> dict[str, None]:
    """Return the paths at which there is another static value, function or class of a module."""
    there, wanted = [{fact[:2]: fact for fact in facts} for facts in (in_file, in_like)]
    found: dict[str, None] = {}
    for path, aspect in dict.fromkeys([*wanted, *there]):
        holder = (path.rpartition(".")[0] if aspect == "static" else path, "")
        one, other = there.get((path, aspect)), wanted.get((path, aspect))
        if one == other or holder not in there or holder not in wanted:
            continue
        if aspect in ("static", "metadata") or (one and other and not aspect and _are_unlike(one, other)):
            found[path] = None
    return found


def _are_unlike(one: Fact, other: Fact) -> bool:
    """Return whether two facts are about a function, or a module, and another."""
    return is_object(one) and is_object(other) and not is_moved(one.text, other.text)


def _modes(in_file: Sequence[Fact], in_like: Sequence[Fact], both: Set[str]) -> Iterator[str]:
    """Yield the modules that are in another mode: the outermost of those that are in the same."""
    there, wanted = [{fact.path for fact in facts if fact.aspect == "mode"} & both for facts in (in_file, in_like)]
    unlike = there ^ wanted
    modes = {fact.path: fact.path in there for fact in in_like if is_object(fact) and fact.path in unlike}
    yield from [shown_place(path, "mode") for path, outer in outer_modes(modes).items() if outer is None]


def _frozen(in_file: Sequence[Fact], in_like: Sequence[Fact], both: Set[str], parameters: Set[str]) -> dict[str, None]:
    """Return the modules of which other arrays are frozen: once one of which all are in one tree, and none in the other."""
    there, wanted = [{fact.path for fact in facts if array_kind(fact) is not None} for facts in (in_file, in_like)]
    common = there & wanted & parameters
    one, other = [_frozen_arrays(facts, common) for facts in (in_file, in_like)]
    found: dict[str, None] = {}
    for frozen in filter(None, (one - other, other - one)):
        partly = {path for name in common - frozen for path in enclosing(name)}
        for name in [fact.path for fact in in_like if fact.path in frozen]:
            around = [path for path in enclosing(name) if path in both]
            if around:
                found[shown_place(next((path for path in around if path not in partly), around[-1]), "frozen")] = None
    return found


def _frozen_arrays(facts: Sequence[Fact], names: Set[str]) -> set[str]:
    """Return which arrays are frozen. A name covers all below it."""
    covered = {
        f"{fact.path}.{name}".removeprefix(".") for fact in facts if fact.aspect == "frozen" for name in fact.text.split(", ")
    }
    return {name for name in names if not covered.isdisjoint([*enclosing(name), name])} if covered else set()
