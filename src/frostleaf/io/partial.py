"""Which places of a tree are read from a file: those that are selected, and of these all, or those that the file has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, NamedTuple

import attrs

from ..core.instance import Metadata
from ..core.structure import Static, flat_of, specs_in
from ..core.words import Path, describe, keystr, listed
from ..tree.selecting import Where, functions_in, globs_in, is_path, matches_glob, require_found, require_no_alias, search
from .description import SCALARS, Fact, array_kind, enclosing, is_leaf
from .differing import differing
from .safetensors import fail

_SHOWN = 3


class LoadReport(NamedTuple):
    """What ``fl.load(..., strict=False)`` has done, each as dotted paths in order.

    Attributes:
        taken: What was read from the file.
        left: What the file has and was not read: the tree has no such place, or it was not selected.
        new: What the tree has and was selected, and the file has not: it is as it was.
        differs: Where the file has another static value, function or class of a module than the tree, of what was selected: the
            tree keeps its own, and may compute something else with what was taken. Then, as ``"encoder (mode)"``, which modules
            are in another mode, and as ``"encoder (frozen)"``, of which other arrays are frozen: all of a module is told once.

    >>> import frostleaf as fl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save(f"{folder}/run", {"a": 1, "b": 2})
    ...     fl.load(f"{folder}/run", {"b": 0, "c": 3}, strict=False)
    ({'b': 2, 'c': 3}, LoadReport(1 taken: 'b'; 1 left: 'a'; 1 new: 'c'))
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    new: tuple[str, ...]
    differs: tuple[str, ...] = ()

    def __repr__(self) -> str:
        fields = {name: paths for name, paths in self._asdict().items() if paths or name != "differs"}
        shown = {name: listed([f"{path!r:.80}" for path in paths], _SHOWN) for name, paths in fields.items()}
        counted = [f"{len(getattr(self, name)):,} {name}{': ' * bool(paths)}{paths}" for name, paths in shown.items()]
        return f"{type(self).__name__}({'; '.join(counted)})"


Select = Callable[[Sequence[Fact], Sequence[Fact]], tuple[list[Fact], list[Fact]]]


def selection(like: Any, where: Where | None) -> Select:
    """Return the function that picks, of the facts about the tree in a file and about ``like``, those about what is selected.

    That is what is selected in ``like``, with all that is in there, and in a file whatever else a glob fits. A module all of
    whose arrays are selected, in both, counts as selected itself.

    Raises:
        LookupError: If the selection, or one of several, selects nothing.
        ValueError: If it selects by the name of a tied place only.
    """
    if where is None:
        return lambda in_file, in_like: ([*in_file], [*in_like])
    # One that ends in two stars selects arrays and numbers, and never what holds them.
    globs = [(matches_glob(glob), glob.split(".")[-1] == "**") for glob in globs_in(where)]
    found = search(like, where)
    specs = [*specs_in(flat_of(like).structure)]
    values = {path for path, spec in specs if isinstance(spec, Static) and type(spec.value) in SCALARS}
    chosen = {path for path in values if any(of_leaves and matches(path) for matches, of_leaves in globs)}
    require_found(like, found._replace(missing=[part for part in found.missing if not _matches_any(part, values)]))
    require_no_alias(like, where)
    names = {keystr(path) for path in found.values}
    inside, outside, leaves, modules = {*names}, set[str](), set[str](), set[str]()
    for path, spec in specs:
        is_inside = path in chosen or any(path[:length] in found.values for length in range(len(path) + 1))
        if is_inside or spec is not None:  # where like has nothing, the file may have an array
            (inside if is_inside else outside).add(keystr(path))
        if not isinstance(spec, tuple):
            leaves.add(keystr(path))
        elif isinstance(spec[1], Metadata):
            modules.add(keystr(path))
    return _Selection(inside, outside, names - leaves, modules, globs, any(functions_in(where)))


@attrs.frozen
class _Selection:
    """What is selected in a tree, and by that in the tree in a file.

    Attributes:
        inside: The paths of what is selected, with all that is in there.
        outside: Those of all else in the tree.
        holders: Those of what is selected that holds arrays and numbers.
        modules: Those of all modules.
        globs: What tells whether a glob fits a path, and whether it selects arrays and numbers alone.
        asks: Whether a function selects, which can't be asked about what only a file has.
    """

    inside: Set[str]
    outside: Set[str]
    holders: Set[str]
    modules: Set[str]
    globs: Sequence[tuple[Callable[[Path], bool], bool]]
    asks: bool

    def __call__(self, in_file: Sequence[Fact], in_like: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
        selected = self._whole(in_file) & self._whole(in_like) & _holders_of(filter(self._selects, in_like))

        def picked(fact: Fact) -> bool:
            if self._selects(fact):
                return True
            is_of_module = not selected.isdisjoint([*enclosing(fact.path), fact.path])
            return is_of_module and not (is_leaf(fact) and self._knows(fact))

        return [*filter(picked, in_file)], [*filter(picked, in_like)]

    def _selects(self, fact: Fact) -> bool:
        # A dot in a name may be one of a key: what like has by that name is known, and what only the file has may be in there.
        if self._knows(fact):
            return fact.path in self.inside
        return not self.holders.isdisjoint(enclosing(fact.path)) or self._fits_glob(fact)

    def _knows(self, fact: Fact) -> bool:
        return fact.path in self.inside or fact.path in self.outside

    def _fits_glob(self, fact: Fact) -> bool:
        path = tuple(fact.path.split(".")) if fact.path else ()
        return any(
            is_leaf(fact) and matches(path) if of_leaves else any(matches(path[:length]) for length in range(1, len(path) + 1))
            for matches, of_leaves in self.globs
        )

    def _whole(self, facts: Iterable[Fact]) -> set[str]:
        """Return the modules all of whose arrays are selected."""
        left = [fact for fact in facts if not (self._selects(fact) or (self.asks and not self._knows(fact)))]
        return {*self.modules} - _holders_of(left)


def _holders_of(facts: Iterable[Fact]) -> set[str]:
    """Return the paths of all that holds one of the arrays that some facts are about."""
    return {path for fact in facts if array_kind(fact) is not None for path in enclosing(fact.path)}


def _matches_any(where: Where, paths: Iterable[Path]) -> bool:
    return isinstance(where, str) and not is_path(where) and any(map(matches_glob(where), paths))


_NOTHING = "where={where} selects no array, and no number"
_SAME_NAME = (
    "two values have the name {name!r}, so that neither can be read by its name: rename a key of the dict that holds one of "
    "them, or load the whole tree"
)


def report_of(
    file: str,
    in_file: Iterable[Fact],
    selected: Sequence[Fact],
    in_like: Sequence[Fact],
    where: Where | None,
    parameters: Set[str],
) -> LoadReport:
    """Return what is read of a file.

    Args:
        file: The file.
        in_file: All facts about the tree in the file.
        selected: Those about what is selected.
        in_like: Those about what is selected in ``like``.
        where: The selection.
        parameters: The names of the arrays of ``like`` that can be frozen.

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
    return LoadReport(tuple(taken), tuple(left), tuple(new), differing(selected, in_like, parameters))
