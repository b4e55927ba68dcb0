"""Compare the tree in a file with one that it is to be read into: what is read, under which names, or why it can't be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..core.structure import Structure
from ..tree.selecting import Where
from .advice import of_maker, of_structure
from .complaints import complaint
from .description import Fact
from .meanings import other_meanings, with_deciding, without_meaning
from .packed_names import with_new_names
from .partial import Select
from .renaming import Rename, noting, renamed, unused_names
from .ties import tied_names, with_tied


class Compared(NamedTuple):
    """How the tree in a file compares with another.

    Attributes:
        reason: Why it can't be read, and what to write instead; an empty string if it can.
        in_file: The facts about the tree in the file that the other can take, under the names that it has for them.
        selected: Those of them that are about what is selected.
        wanted: The facts about what is selected of the other tree.
        origins: The names in the file by these names, where they are others.
        unused: What to say of names in ``rename`` that the file has not; an empty string if there are none.
    """

    reason: str
    in_file: Sequence[Fact]
    selected: Sequence[Fact]
    wanted: Sequence[Fact]
    origins: Mapping[str, str]
    unused: str


def compared(
    stored: Sequence[Fact],
    like: Sequence[Fact],
    structure: Structure,
    select: Select,
    where: Where | None,
    strict: bool,
    rename: Rename | None,
) -> Compared:
    """Compare the tree in a file with the one that it is to be read into.

    Args:
        stored: The facts about the tree in the file, as it has them.
        like: The facts about the other.
        structure: The structure of that.
        select: What :func:`frostleaf.io.partial.selection` returns for it.
        where: From what that was made.
        strict: Whether what is selected has to be the same in all.
        rename: What gives the names that the other has.

    Raises:
        TypeError: If ``rename`` is or gives something else.
        ValueError: If it gives one name twice.
    """
    asked: set[str] = set()
    noted = None if rename is None else noting(rename, asked)
    file = with_new_names(stored, noted)
    in_file, in_like, origins = renamed(file, like, noted)
    if not strict:
        in_file, sources = with_tied(in_file, in_like, stored, noted)
        origins = origins | sources
    foreign = other_meanings(structure, in_file, in_like)
    selected, wanted = select(in_file, in_like)
    if strict:
        selected, wanted = with_deciding(selected, in_file, foreign), with_deciding(wanted, in_like, foreign)
        foreign = {holder: path for holder, path in foreign.items() if any(fact.path == path for fact in wanted)}
    else:
        in_file, selected = without_meaning(in_file, foreign), without_meaning(selected, foreign)
    reason, remedy = complaint(selected, wanted, strict, file, like, origins, foreign)
    unused = "" if rename is None else unused_names(rename, asked | tied_names(stored).keys())
    if reason:
        advice = of_maker(structure.static_values(), file)
        reason += f"\n{unused}" if unused else ""
        reason += advice or of_structure(selected, wanted, strict, in_file, in_like, where) or remedy
    return Compared(reason, in_file, selected, wanted, origins, unused)
