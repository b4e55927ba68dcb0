"""Arrays that are packed end to end: their numbers are those of the same arrays only where these lie in the same order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from .description import Fact, enclosing
from .differences import differences

# What says which arrays lie in the vectors of a packed model, or of an optimizer's state.
_LAYOUT = re.compile(r"frostleaf\.optim\.(?:packing\.)?(?:TrainedArrays|_Layout)\(")
_PACKING = "frostleaf.optim."  # the classes that hold one
_PACKED = {"vectors", "large", "rest"}

_OTHER_ARRAYS = "what is packed end to end is of other arrays in the file than in like, or of these in another order:\n{lines}"
PACKED_ADVICE = (
    "\nstrict=False would read the numbers in the file's order, as those of other arrays. To go on by name, by "
    "opt.adapt(state, model), or model.unpack() of a packed model, first give like the arrays of the file in their order, such "
    "as opt.init(model) of the model as it was, with rename= for those that have other names now (it is asked about each as if "
    "it were not packed)"
)


def otherwise_packed(
    in_file: Sequence[Fact], in_like: Sequence[Fact], names: Iterable[str], origins: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Return what to say of vectors in which ``like`` has other arrays than the file, and their names in ``like``, if any.

    Args:
        in_file: All facts about the tree in the file, under the names that it has there.
        in_like: All facts about ``like``.
        names: The names in ``like`` of what is to be read.
        origins: The names in the file by these, where they are others.
    """
    there, here = layouts_in(in_file), layouts_in(in_like)
    if not there and not here:
        return "", []
    of_file, of_like = _nearest(in_file, there), _nearest(in_like, here)
    found = sorted([name for name in names if of_file(origins.get(name, name)) != of_like(name)])
    return _OTHER_ARRAYS.format(lines="\n".join(differences([*there.values()], [*here.values()]))), found


def layouts_in(facts: Sequence[Fact]) -> dict[str, Fact]:
    """Return the facts that say which arrays are packed, by path."""
    return {fact.path: fact for fact in facts if fact.aspect == "static" and _LAYOUT.match(fact.text)}


_STRUCTURE = re.compile(r"structure=\((.*)\), places=", re.DOTALL)
_EVALUATION = " mode evaluation"


def modules_apart(one: Fact, other: Fact) -> tuple[list[str], list[str]] | None:
    """Return what each of two packed models has of its modules, and the other not; ``None`` if they have other arrays."""
    if one.text.rpartition("; ")[2] != other.text.rpartition("; ")[2]:
        return None
    found = [_STRUCTURE.search(fact.text) for fact in (one, other)]
    there, wanted = [found[1].split("; ") if found else [] for found in found]
    return [each for each in there if each not in wanted], [each for each in wanted if each not in there]


def modes_in(parts: Sequence[str]) -> list[str]:
    """Return of what a packed model has of its modules which are in evaluation mode: the outermost of these, by path."""
    paths = [each.removesuffix(_EVALUATION) for each in parts if each.endswith(_EVALUATION)]
    return [path for path in paths if not {*enclosing(path)} & {*paths}]


def readable(in_file: Sequence[Fact], in_like: Sequence[Fact]) -> tuple[Sequence[Fact], Sequence[Fact]]:
    """Return the facts, which say of the modules of packed models only what differs."""
    there, wanted = layouts_in(in_file), layouts_in(in_like)
    for path in there.keys() & wanted.keys():
        if there[path] != wanted[path] and (apart := modules_apart(there[path], wanted[path])):
            in_file, in_like = [
                [fact._replace(text=_told(parts)) if fact.path == path and fact.aspect == "static" else fact for fact in facts]
                for facts, parts in zip((in_file, in_like), apart, strict=True)
            ]
    return in_file, in_like


def _told(parts: Sequence[str]) -> str:
    modes = modes_in(parts)
    told = [f"{path or 'the model'} in evaluation mode" for path in modes]
    return ", ".join([*told, *[each for each in parts if not each.endswith(_EVALUATION)]]) or "the others"


def _nearest(facts: Sequence[Fact], layouts: Mapping[str, Fact]) -> Callable[[str], list[tuple[str, str]]]:
    """Return the function that gives, for a name, what is packed in the innermost state or model around it that packs."""
    packing = {fact.path for fact in facts if not fact.aspect and fact.text.startswith(_PACKING)}
    found: dict[str, list[tuple[str, str]]] = {}
    for path, fact in layouts.items():
        # A packed model says of what classes it is as well: before the last semicolon.
        order = fact.text.partition("(")[2].rpartition("; ")[2]
        for above in packing.intersection(enclosing(path)):
            found.setdefault(above, []).append((path[len(above) :].removeprefix("."), order))

    def of(name: str) -> list[tuple[str, str]]:
        above = max(found.keys() & {*enclosing(name)}, key=len, default=None)
        return [] if above is None or _PACKED.isdisjoint(name[len(above) :].split(".")) else found[above]

    return of
