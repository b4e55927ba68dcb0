"""What is selected in a tree by a path, a glob, a class, a predicate, or a list of these."""

from __future__ import annotations

import fnmatch
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeGuard

from mlx.nn.layers.base import Module as MLXModule

from ..core.definition import Node
from ..core.instance import metadata_of
from ..core.leaves import leaf_spans, unseen_in
from ..core.shapes import LEAF
from ..core.structure import flat_of
from ..core.words import (
    BUILD_AGAIN,
    Path,
    describe,
    is_defined_again,
    keystr,
    level_of_caller,
    nearest,
    nearest_class,
    nearest_glob,
    nearest_paths,
)
from .walk import Descend, field_level, nodes_in, rewrite, tied_leaves, ties_in

Where = str | type | Callable[[str, Any], bool] | Sequence[Any]
Matcher = Callable[[Path, Any], bool]


NOT_OF_TWO = (
    "can't select by {}, which can't be called with two arguments: a function that selects is called with (path, array) and "
    "returns a bool. For one place give its path ('layers.0.bias')"
)


def matcher(where: Where) -> Matcher:
    """Return the function of a path and a value that says whether ``where`` selects that value.

    A path names one value. In a glob ``*`` matches any text in one name and ``**`` any number of names; a glob that ends in
    ``**`` selects the arrays below. A class selects its instances. A predicate is called with each array's dotted path and the
    array.

    Raises:
        TypeError: If ``where`` is none of these.
        LookupError: From the function, if a class was defined again and the value is of the old definition.
    """
    if is_path(where):
        return lambda path, value: bool(path) and keystr(path) == where
    if isinstance(where, str):
        matches = matches_glob(where)
        # The root has no name, so only "**" selects it, where it is an array.
        if where.split(".")[-1] == "**":
            return lambda path, value: isinstance(value, LEAF) and matches(path)
        return lambda path, value: bool(path) and matches(path)
    if isinstance(where, type):
        is_current = _is_current(where)
        return lambda path, value: _is_of(type(value), where) or (is_current and _refuse_old(where, path, value))
    if callable(where) and _takes_two(where):
        return lambda path, value: isinstance(value, LEAF) and _as_bool(where(keystr(path), value), path)
    if _is_several(where):
        matchers = [matcher(one) for one in where]
        return lambda path, value: any(matches(path, value) for matches in matchers)
    if callable(where) and not isinstance(where, Node):
        raise TypeError(NOT_OF_TWO.format(describe(where)))
    of_bools = ", a tree: none of bools is taken" * isinstance(where, Node | Mapping)
    raise TypeError(
        f"can't select by {describe(where)}{of_bools}. Give a path ('layers.0.weight'), a glob ('layers.*.bias', '**.weight'), "
        "a class, a function of (path, array) that returns a bool, or a list of these."
    )


def _is_of(kind: type, where: type) -> bool:
    """Return whether a class is another, or stands for a class of MLX that is."""
    return issubclass(kind, where) or issubclass(getattr(kind, "__mlx__", kind), where)


def _is_current(cls: type) -> bool:
    """Return whether a class is what its name in its module stands for, as no class made in a function is."""
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def _refuse_old(cls: type, path: Path, value: Any) -> bool:
    """Return ``False``, and raise where a value is of an older definition of a class."""
    for base in type(value).__mro__:
        if is_defined_again(cls, base) and base not in cls.__mro__:
            place = keystr(path) or "the root"
            raise LookupError(f"{place} is of another definition of {cls.__name__}. {BUILD_AGAIN.format(name=cls.__name__)}")
    return False


def _as_bool(answer: Any, path: Path) -> bool:
    """Return what a predicate returned as a bool, which an array of several elements has none of."""
    try:
        return bool(answer)
    except ValueError as error:
        given = f"{describe(answer)} for {keystr(path) or 'the array'}"
        raise TypeError(f"a predicate that selects must return a bool, and returned {given}") from error


def is_path(where: Where) -> TypeGuard[str]:
    """Return whether a selection is one path, which must lead somewhere."""
    return isinstance(where, str) and "*" not in where and "?" not in where


def paths_in(where: Where) -> list[str]:
    """Return those of several selections that are one path, each once."""
    return [*dict.fromkeys(part for part in _parts(where) if is_path(part))]


def globs_in(where: Where) -> list[str]:
    """Return those of several selections that are a glob."""
    return [part for part in _parts(where) if isinstance(part, str) and not is_path(part)]


def functions_in(where: Where) -> list[Callable[[str, Any], bool]]:
    """Return those of several selections that are a function."""
    return [part for part in _parts(where) if callable(part) and not isinstance(part, type)]


class Found(NamedTuple):
    """What a selection selects in a tree.

    Attributes:
        values: The selected values by path. Where one is inside another, the outer one stands for both.
        missing: What selects nothing: the selection, or those of several.
    """

    values: dict[Path, Any]
    missing: list[Where]


def search(tree: Any, where: Where) -> Found:
    """Return what ``where`` selects. One path is followed; anything else takes one walk, however many they are."""
    if is_path(where):
        place = _only_place(tree, where)
        values = dict(places(tree, where) if place is None else [place])
        return Found(values, [] if values else [where])
    parts = [*_parts(where)]
    paths = {*paths_in(where)}
    # By number, since a part need not be hashable.
    others = {number: matcher(part) for number, part in enumerate(parts) if not is_path(part)}
    missing_paths, missing_others = set(paths), set(others)
    selected: dict[Path, Any] = {}
    inside: set[Path] = set()  # the paths of what is selected and of what was walked through in there

    def picks(path: Path, value: Any, covered: bool) -> bool:
        """Return whether a value is selected. What is ``covered`` is asked for only by what has selected nothing yet."""
        picked = bool(path) and keystr(path) in paths
        if picked:
            missing_paths.discard(keystr(path))
        for number, matches in others.items():
            if (number in missing_others or not (picked or covered)) and matches(path, value):
                missing_others.discard(number)
                picked = True
        return picked

    def enter(path: Path, value: Any) -> Any:
        covered = bool(path) and path[:-1] in inside
        picked = picks(path, value, covered)
        if picked and not covered:
            selected[path] = value
        if not picked and not covered:
            return Descend
        if not missing_paths and not missing_others:
            return value
        inside.add(path)
        return Descend

    rewrite(tree, enter)
    for name in sorted(missing_paths, key=len):  # which may lead through the other place of a module, where no walk goes
        for path, value in places(tree, name):
            missing_paths.discard(name)
            if not _is_inside(path, selected):
                selected[path] = value
    missing = [
        part for number, part in enumerate(parts) if number in missing_others or (is_path(part) and part in missing_paths)
    ]
    return Found(selected, missing)


def mask(tree: Any, where: Where) -> list[bool]:
    """Return for each leaf whether ``where`` selects it or something that holds it."""
    structure = flat_of(tree).structure
    spans, chosen = structure.remember(leaf_spans), [False] * structure.num_leaves
    for path in search(tree, where).values:
        start, stop = spans.get(path, (0, 0))
        chosen[start:stop] = [True] * (stop - start)
    return chosen


def _is_inside(path: Path, selected: Collection[Path]) -> bool:
    return any(path[:length] in selected for length in range(len(path) + 1))


def _only_place(tree: Any, name: str) -> tuple[Path, Any] | None:
    """Return the path and the value of what a dotted name leads to, by fields and indices; ``None`` if it isn't that simple."""
    path: list[Any] = []
    for part in name.split("."):
        if isinstance(tree, Node):
            if metadata_of(tree).ties or part not in tree.__frostleaf__.fields:
                return None
            path.append(part)
            tree = tree.__dict__[part]
        elif type(tree) is tuple and part.isdecimal() and int(part) < len(tree) and part == str(int(part)):
            path.append(int(part))
            tree = tree[path[-1]]
        elif type(tree) is MappingProxyType and part in tree and set(map(type, tree)) == {str} and "." not in "".join(tree):
            path.append(part)
            tree = tree[part]
        else:
            return None
    return tuple(path), tree


def places(value: Any, name: str, path: Path = (), tied: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the value of what a dotted name leads to: one place, or none, unless keys have dots in them.

    Args:
        value: The tree.
        name: The name, from there.
        path: The path of ``value`` in a larger tree.
        tied: The paths of the tied places of what is around ``value``, which lead nowhere.
    """
    here = field_level(value)
    if here is None:
        return
    tied |= ties_in(value, path)
    for entry, child in zip(here.entries, here.children, strict=True):
        own, below = str(entry), (*path, entry)
        if not name.startswith(own) or (below in tied and not isinstance(child, Node)):
            continue
        if own == name:
            yield below, child
        elif name[len(own)] == ".":
            yield from places(child, name[len(own) + 1 :], below, tied)


ENDING = ", whose paths begin at the model, like {path!r}. For all that end so, write {glob!r}"
ASKED = ", which is called with arrays, and none is an instance of {cls}. For all layers of a class, select by it: at({cls})"
BY_NUMBER = "{!r} is {!r}, since the fields of a named tuple go by their numbers"


def require_found(tree: Any, found: Found) -> None:
    """Raise an error unless the selection, and each of several, selects something: a misspelt path must not pass among others.

    Raises:
        LookupError: If one selects nothing; the message suggests the nearest paths, or the source of a tied place.
    """
    if not found.missing:
        return
    where, suggestion = found.missing[0], ""
    if where == "":
        suggestion = ", which has no path itself: edit it by its own methods, or select all its arrays by '**'"
    elif isinstance(where, str):
        tied = _tied_only(tree, where, tied_leaves(tree))
        if tied is not None:
            raise LookupError(f"{tied[0]!r} is tied to {tied[1]!r}: select that, and the edit is made at both places")
        numbered = _numbered(_by_name(tree), where)
        if numbered is not None:
            raise LookupError(f"{describe(where)} selects nothing in this {type(tree).__name__}: {BY_NUMBER.format(*numbered)}")
        paths: list[str] = []
        rewrite(tree, lambda path, value: paths.append(keystr(path)) or Descend)  # type: ignore[func-returns-value]
        ending = next((path for path in paths if is_path(where) and path.endswith(f".{where}")), None)
        glob = f"**.{where}"
        suggestion = ENDING.format(path=ending, glob=glob) if ending else nearest_paths(where, filter(None, paths))
        suggestion = suggestion or nearest_glob(where, paths)
    elif isinstance(where, type):
        suggestion = nearest_class(where, [*dict.fromkeys(_classes_in(tree))])
    elif asked := asked_for(where, [*_classes_in(tree)]):
        suggestion = ASKED.format(cls=asked[0])
    unseen = f", {whole}" if (whole := unseen_in(tree)) else ""
    raise LookupError(f"{describe(where)} selects nothing in this {type(tree).__name__}{unseen}{suggestion}.")


def _classes_in(tree: Any) -> Iterator[type]:
    """Yield the class of each module in a tree, and that of MLX for which it stands."""
    for node in nodes_in(tree):
        yield getattr(type(node), "__mlx__", type(node))


def require_arrays(tree: Any, where: Where) -> None:
    """Require that a path, and every path in a list, leads to an array. A glob, class or predicate may select nothing.

    Raises:
        ValueError: If one leads to none, with the nearest path. If a selection has tied places only, with the source of one.
    """
    require_no_alias(tree, where)
    paths = paths_in(where)
    there = _names_there(tree) if paths else ()
    for path in paths:
        if path not in there:
            raise ValueError(f"{describe(path)} selects no array of the {type(tree).__name__}{nearest(path, sorted(there))}")


def require_no_alias(tree: Any, where: Where) -> None:
    """Require that no selection, of several either, has arrays by other names only, and so selects nothing in silence.

    Raises:
        ValueError: If all its places are tied, with the source of one, or if it has fields of named tuples by their names.
    """
    ties = tied_leaves(tree)
    there = _names_there(tree)
    places: list[tuple[Path, Path]] | None = None
    for part in _parts(where):
        by_name_or_class = isinstance(part, str | type)  # a predicate is asked about arrays where they are
        if not by_name_or_class or part in there or any(mask(tree, part)):
            continue
        tied = _tied_only(tree, part, ties)
        advice = ""
        if tied is not None:
            advice = f"{'It' if tied[0] == part else repr(tied[0])} is tied to {tied[1]!r}: select that"
        elif isinstance(part, str):
            places = _by_name(tree) if places is None else places
            numbered = _numbered(places, part)
            advice = BY_NUMBER.format(*numbered) if numbered is not None else ""
        if advice:
            raise ValueError(f"{describe(part)} selects no array of the {type(tree).__name__}. {advice}")


def _names_there(tree: Any) -> set[str]:
    """Return the dotted names of the arrays in a tree and of all that holds one."""
    return {keystr(path[:length]) for path in flat_of(tree).structure.leaf_paths() for length in range(1, len(path) + 1)}


def _tied_only(tree: Any, where: Where, ties: Mapping[Path, Path]) -> tuple[str, str] | None:
    """Return the names of a tied place and its source, if ``where`` has tied places in it and no array of the tree."""
    if not ties or any(mask(tree, where)):
        return None
    selected = search(tree, where).values
    matches = matches_glob(where) if isinstance(where, str) else lambda names: False
    return next(
        (
            (keystr(target), keystr(source))
            for target, source in ties.items()
            if _is_inside(target, selected) or matches(target)
        ),
        None,
    )


def _numbered(places: Iterable[tuple[Path, Path]], where: str) -> tuple[str, str] | None:
    """Return the name of the first of some places that ``where`` would select by its name, and its path."""
    return next(((keystr(name), keystr(path)) for name, path in places if matches_glob(where)(name)), None)


def _by_name(tree: Any) -> list[tuple[Path, Path]]:
    """Return the path of each place in named tuples as it would be if their fields went by their names, and its path."""
    holders: dict[Path, Any] = {}
    names: dict[Path, Path] = {}

    def enter(path: Path, value: Any) -> Any:
        holders[path] = value
        fields = getattr(holders[path[:-1]], "_fields", None) if path and isinstance(holders[path[:-1]], tuple) else None
        names[path] = (*names[path[:-1]], fields[path[-1]] if fields else path[-1]) if path else ()
        return Descend

    rewrite(tree, enter)
    return [(name, path) for path, name in names.items() if name != path]


def covers(where: Where, other: Where) -> bool:
    """Return whether ``where`` selects all that ``other`` does in every tree, as far as paths and globs tell.

    >>> covers("**", "bias"), covers("layers.**", ("layers.0", "layers.1")), covers("layers.*", "layers.0.bias")
    (True, True, False)
    """
    globs = [part for part in _parts(where) if isinstance(part, str)]
    return "**" in globs or all(
        is_path(part) and any(matches_glob(glob)(tuple(part.split("."))) for glob in globs) for part in _parts(other)
    )


def _parts(where: Where) -> Iterator[Where]:
    """Yield each of several selections, and of several in these; none at all is one that selects nothing."""
    if not _is_several(where) or not where:
        yield where
        return
    for each in where:
        yield from _parts(each)


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


def matches_glob(glob: str) -> Callable[[Path], bool]:
    """Return the function of a path that says whether a glob matches it. A key with dots in it is several names.

    It follows all ways to match at once, name by name, so that the time is at most the product of the two lengths. It goes on
    from where it was for the path above.
    """
    any_names = None
    parts = [
        # fnmatch's stars never go back to an earlier one; its sets in brackets are text here.
        any_names if name == "**" else re.compile(fnmatch.translate(name.replace("[", "[[]"))).match
        for name in glob.split(".")
    ]

    def reached(positions: Iterable[int]) -> set[int]:
        """Return the positions in ``parts``, and those after each ``**``, which may stand for no name."""
        found: set[int] = set()
        for at in positions:
            found.add(at)
            while at < len(parts) and parts[at] is any_names and at + 1 not in found:
                at += 1
                found.add(at)
        return found

    known = {(): reached([0])}

    def after(positions: Iterable[int], entry: Any) -> set[int]:
        for name in str(entry).split("."):
            then = []
            for at in positions:
                part = parts[at] if at < len(parts) else None
                if at < len(parts) and (part is None or part(name)):
                    then.append(at if part is None else at + 1)
            positions = reached(then)
        return {*positions}

    def matches(path: Path) -> bool:
        if path not in known:
            length = len(path) - 1
            while path[:length] not in known:
                length -= 1
            for end in range(length, len(path)):
                known[path[: end + 1]] = after(known[path[:end]], path[end])
        return len(parts) in known[path]

    return matches


IN_VAIN = (
    "{fn} selects nothing, and asks for instances of {cls}, a class of MLX. No layer of a wrapped model is one, though some "
    "stand for one. Write model.at({cls}), or issubclass(layer.__mlx__, {cls})"
)


def warn_if_asked_in_vain(function: Any, tree: Any) -> None:
    """Warn of a function that selected no layer, and asks for a class of MLX that layers of a tree stand for."""
    if not _asks(function):
        return
    kinds = {type(node).__mlx__ for node in nodes_in(tree) if hasattr(type(node), "__mlx__")}
    for cls in asked_for(function, kinds):
        warnings.warn(IN_VAIN.format(fn=describe(function), cls=cls), UserWarning, stacklevel=level_of_caller())
        return


def asked_for(function: Any, kinds: Iterable[type]) -> list[str]:
    """Return the names of the classes that a function asks for with ``isinstance``, and of which one of some kinds is."""
    if not _asks(function):
        return []
    known = inspect.getclosurevars(function)
    values = [*known.nonlocals.values(), *known.globals.values()]
    for value in values:
        if type(value) is ModuleType:  # whose own modules come after
            found = [getattr(value, name, None) for name in function.__code__.co_names]
            values += [each for each in found if not any(each is value for value in values)]
    classes = [each for value in values for each in _modules_among(value)]
    return [each.__name__ for each in classes if any(issubclass(kind, each) for kind in kinds)]


def _asks(function: Any) -> bool:
    return type(function) is FunctionType and isinstance.__name__ in function.__code__.co_names


def _modules_among(value: Any) -> Iterator[type]:
    if isinstance(value, type) and issubclass(value, MLXModule | Node):
        yield value
    elif type(value) is tuple:  # as isinstance takes them
        for each in value:
            yield from _modules_among(each)
