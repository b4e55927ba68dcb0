"""Which places of a tree are read from a file: those that are selected, and of these all, or those that the file has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..core.structure import Static, flat_of, specs_in
from ..core.words import Path, describe, keystr, listed
from ..tree.selecting import Where, globs_in, is_path, matches_glob, require_found, require_no_alias, search
from .alignment import aligned, is_moved
from .description import SCALARS, Fact, array_kind, differences, enclosing, is_leaf, is_value
from .safetensors import fail

_SHOWN = 3
_LONGEST = 1000


class LoadReport(NamedTuple):
    """What ``fl.load(..., strict=False)`` has done, each as dotted paths in order.

    Attributes:
        taken: What was read from the file.
        left: What the file has and was not read: the tree has no such place, or it was not selected.
        new: What the tree has and was selected, and the file has not: it is as it was.

    >>> import frostleaf as fl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save(f"{folder}/run", {"a": 1, "b": 2})
    ...     fl.load(f"{folder}/run", {"b": 0, "c": 3}, strict=False)
    ({'b': 2, 'c': 3}, LoadReport(1 taken: 'b'; 1 left: 'a'; 1 new: 'c'))
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    new: tuple[str, ...]

    def __repr__(self) -> str:
        shown = {name: listed([f"{path!r:.80}" for path in paths], _SHOWN) for name, paths in self._asdict().items()}
        counted = [f"{len(getattr(self, name)):,} {name}{': ' * bool(paths)}{paths}" for name, paths in shown.items()]
        return f"{type(self).__name__}({'; '.join(counted)})"


def selector(like: Any, where: Where | None) -> Callable[[Fact], bool]:
    """Return the function that says whether a fact about ``like``, or about the tree in a file, is about what is selected.

    That is what is selected in ``like``, with all that is in there, and in a file whatever else a glob fits.

    Raises:
        LookupError: If the selection, or one of several, selects nothing.
        ValueError: If it selects by the name of a tied place only.
    """
    if where is None:
        return lambda fact: True
    # One that ends in two stars selects arrays and numbers, and never what holds them.
    globs = [(matches_glob(glob), glob.split(".")[-1] == "**") for glob in globs_in(where)]
    found = search(like, where)
    specs = [*specs_in(flat_of(like).structure)]
    values = {path for path, spec in specs if isinstance(spec, Static) and type(spec.value) in SCALARS}
    chosen = {path for path in values if any(of_leaves and matches(path) for matches, of_leaves in globs)}
    require_found(like, found._replace(missing=[part for part in found.missing if not _matches_any(part, values)]))
    require_no_alias(like, where)
    names = {keystr(path) for path in found.values}
    inside, outside, leaves = {*names}, set[str](), set[str]()
    for path, spec in specs:
        is_inside = path in chosen or any(path[:length] in found.values for length in range(len(path) + 1))
        if is_inside or spec is not None:  # where like has None, the file may have what is selected
            (inside if is_inside else outside).add(keystr(path))
        if not isinstance(spec, tuple):
            leaves.add(keystr(path))
    holders = names - leaves

    def fits_glob(fact: Fact) -> bool:
        path = tuple(fact.path.split(".")) if fact.path else ()
        return any(
            is_leaf(fact) and matches(path) if of_leaves else any(matches(path[:length]) for length in range(1, len(path) + 1))
            for matches, of_leaves in globs
        )

    def is_selected(fact: Fact) -> bool:
        # A dot in a name may be one of a key: what like has by that name is known, and what only the file has may be in there.
        known = fact.path in inside or fact.path in outside
        return fact.path in inside if known else not holders.isdisjoint(enclosing(fact.path)) or fits_glob(fact)

    return is_selected


def _matches_any(where: Where, paths: Iterable[Path]) -> bool:
    return isinstance(where, str) and not is_path(where) and any(map(matches_glob(where), paths))


_OTHER_STRUCTURE = "the tree in the file doesn't have the structure of like:\n{differences}"
_FREEZE_LATER = (
    "\nThey differ in what is frozen: load into a model in which the same is frozen as in the file's, and freeze or unfreeze "
    "the one that is loaded"
)
_NOTHING_COMMON = "nothing in the file has the name of anything in like:\n{differences}"
_OTHER_KINDS = (
    "strict=False reads what has the same name, and some of that is of another kind:\n{differences}\nLet like have there what "
    "the file has{advice}"
)
_MOVED = (
    "\nWhat is of the same class name may have moved to another module: strict=False reads by the names of arrays and numbers, "
    "whatever the classes are"
)
_OTHER_DTYPES = "\nOnly dtypes differ: give like the dtypes that the file has, and cast what is loaded, as with .astype(...)"


def complaint(in_file: Sequence[Fact], in_like: Sequence[Fact], strict: bool) -> str:
    """Return what keeps a file from being read, of the facts about what is selected; an empty string if nothing does."""
    if strict:
        if in_file == in_like or sorted(there := aligned(in_file, in_like)) == sorted(in_like):
            return ""
        return _told(_OTHER_STRUCTURE, there, in_like) + _remedy(there, in_like)
    saved, wanted = [{fact.path: fact for fact in facts if is_leaf(fact)} for facts in (in_file, in_like)]
    common = [path for path in wanted if path in saved]
    other = [path for path in common if saved[path] != wanted[path]]
    if other:
        one, two = [saved[path] for path in other], [wanted[path] for path in other]
        return _told(_OTHER_KINDS, one, two, advice=_leave_out(other, wanted)) + _remedy(one, two)
    return "" if common else _told(_NOTHING_COMMON, [*saved.values()], [*wanted.values()])


def _leave_out(names: Sequence[str], wanted: Mapping[str, Fact]) -> str:
    """Return what selects all that is wanted but some names; an empty string if that is nothing, or takes too long to say."""
    left_out = {*names}
    left = [fact for path, fact in wanted.items() if path not in left_out]
    function = f"lambda path, array: path not in [{', '.join(map(repr, names))}]"
    # A function is asked about arrays alone.
    parts = [function] * any(not is_value(fact) for fact in left) + [repr(fact.path) for fact in left if is_value(fact)]
    where = f"[{', '.join(parts)}]" if len(parts) > 1 else "".join(parts)
    return f", or leave it out by where={where}" if 0 < len(where) <= _LONGEST else ""


def _remedy(in_file: Sequence[Fact], in_like: Sequence[Fact]) -> str:
    unfrozen, ours = [[fact for fact in facts if fact.aspect != "frozen"] for facts in (in_file, in_like)]
    if unfrozen == ours:
        return _FREEZE_LATER
    wanted = {(fact.path, fact.aspect): fact for fact in in_like}
    pairs = [(fact, wanted.get((fact.path, fact.aspect))) for fact in in_file]
    other = [(fact, like) for fact, like in pairs if fact != like]
    if any(like is not None and is_moved(fact.text, like.text) for fact, like in other):
        return _MOVED
    shapes = [[array_kind(fact) for fact in pair if fact is not None] for pair in other]
    if len(in_file) == len(in_like) and all(len({kind and kind.partition("[")[2] for kind in each}) == 1 for each in shapes):
        return _OTHER_DTYPES if all(None not in each for each in shapes) else ""
    return ""


def _told(message: str, in_file: Sequence[Fact], in_like: Sequence[Fact], **others: str) -> str:
    return message.format(differences="\n".join(differences(in_file, in_like)), **others)


_NOTHING = "where={where} selects no array, and no number"
_SAME_NAME = (
    "two values have the name {name!r}, so that neither can be read by its name: rename a key of the dict that holds one of "
    "them, or load the whole tree"
)


def report_of(file: str, in_file: Iterable[Fact], in_like: Iterable[Fact], where: Where | None) -> LoadReport:
    """Return what is read of a file.

    Args:
        file: The file.
        in_file: All facts about the tree in the file.
        in_like: Those about what is selected in ``like``.
        where: The selection.

    Raises:
        LookupError: If the selection has no array and no number.
        ValueError: If two of ``like`` have the same dotted name.
        CheckpointError: If two in the file have.
    """
    there, wanted = [Counter(fact.path for fact in facts if is_leaf(fact)) for facts in (in_file, in_like)]
    if where is not None and not wanted:
        raise LookupError(_NOTHING.format(where=describe(where)))
    taken = [name for name in wanted if name in there]
    for name in taken:
        if there[name] > 1:
            fail(file, _SAME_NAME.format(name=name))
        if wanted[name] > 1:
            raise ValueError(_SAME_NAME.format(name=name))
    left, new = [name for name in there if name not in wanted], [name for name in wanted if name not in there]
    return LoadReport(tuple(taken), tuple(left), tuple(new))
