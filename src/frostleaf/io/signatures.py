"""What an exported function takes: names for MLX, a description that is compared, and the axes that may vary."""

from __future__ import annotations

import inspect
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ..core.instance import Instance
from ..core.structure import Flat, Structure, child_specs
from ..core.words import describe, dtype_name, listed, shape_and_dtype
from ..tree.prefixes import argument, broadcast_prefix
from .description import ARRAY, ROOT, Fact, describe_tree
from .differences import differences

# What the trees of a call are called in messages.
_GIVEN = "the arguments"


class Leaf(NamedTuple):
    """An array that an exported function takes.

    Attributes:
        path: Its path in the arguments.
        name: The keyword under which MLX's own function takes it; empty if it takes it by position.
        dtype: The name of its dtype.
        shape: The length of each axis in the example.
        axes: The axes that may be of other lengths.
    """

    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        """The lengths in the example of the axes that may vary."""
        return [self.shape[axis] for axis in self.axes]


class Signature(NamedTuple):
    """The arguments for which a function was exported.

    Attributes:
        names: The name of each argument.
        facts: The description of the arguments, of which those of a call must have the same.
        leaves: The arrays, in order.
        unknown: The class of each static value of which it is all that can be told, by path.
        least: The least length, other than 1, of what has a length in the example and may vary.
    """

    names: list[str]
    facts: list[Fact]
    leaves: list[Leaf]
    unknown: dict[str, str]
    least: Mapping[int, int] = types.MappingProxyType({})

    def in_order(self, positional: Sequence[Flat], named: Mapping[str, Flat]) -> dict[str, Flat]:
        """Return the arguments of a call by name, in the order of the example's and then what is more.

        Raises:
            TypeError: If an argument is given by position and by name.
        """
        found = dict(zip([*self.names, *map(str, range(len(self.names), len(positional)))], positional, strict=False))
        twice = found.keys() & named.keys()
        if twice:
            raise TypeError(f"{listed(sorted(twice))} is given by position and by name")
        found.update(named)
        return {name: found[name] for name in (*self.names, *found) if name in found}

    def of_call(self, given: Mapping[str, Flat]) -> list[Fact]:
        """Describe the arguments of a call, with the same axes left open as in the example's."""
        return _described([*given], [*given.values()], self.leaves)[0]

    def differences(self, given: Mapping[str, Flat]) -> list[str]:
        """Return a line for each place where the arguments of a call differ from the example's."""
        facts = self.of_call(given)
        return differences(self.facts, facts, _GIVEN) if facts != self.facts else self._wrong_lengths(_arrays(given.values()))

    def fits(self, arrays: Sequence[mx.array]) -> bool:
        """Return whether the arrays of arguments of the right structure have the right shapes and dtypes."""
        pairs = zip(self.leaves, arrays, strict=True)
        return all(
            leaf.dtype == dtype_name(array.dtype) and _fits(leaf, array.shape) for leaf, array in pairs
        ) and not self._wrong_lengths(arrays)

    def has_other_lengths(self, given: Mapping[str, Flat]) -> bool:
        """Return whether the arguments of a call differ from the example's in nothing but the lengths of first axes."""
        others = [
            (leaf, array)
            for leaf, array in zip(self.leaves, _arrays(given.values()), strict=False)
            if leaf.shape != array.shape
        ]
        if any(leaf.shape[1:] != array.shape[1:] or len(leaf.shape) != array.ndim for leaf, array in others):
            return False
        paths = {leaf.path for leaf, _ in others}
        here, there = [[fact for fact in facts if fact.path not in paths] for facts in (self.of_call(given), self.facts)]
        same_dtypes = all(leaf.dtype == dtype_name(array.dtype) and not leaf.axes for leaf, array in others)
        return bool(others) and same_dtypes and here == there

    def is_frozen_otherwise(self, given: Mapping[str, Flat]) -> bool:
        """Return whether the arguments of a call differ from the example's in nothing but what is frozen in them."""
        facts = self.of_call(given)
        here, there = [[fact for fact in each if fact.aspect != "frozen"] for each in (facts, self.facts)]
        return facts != self.facts and here == there

    def _wrong_lengths(self, arrays: Sequence[mx.array]) -> list[str]:
        """Return a line for each length that is too small in a call, or of two sizes where it is one in the example."""
        found: dict[int, list[tuple[str, int]]] = {}
        for leaf, array in zip(self.leaves, arrays, strict=True):
            for axis in leaf.axes:
                found.setdefault(leaf.shape[axis], []).append((leaf.path, array.shape[axis]))
        lines = []
        for length, places in found.items():
            sizes, least = [size for _, size in places], self.least.get(length, 1)
            shown = listed(f"{path} has {size}" for path, size in places)
            if len({*sizes}) > 1:
                lines.append(f"{shown}, which are of one length ({length}) in the example")
            elif min(sizes) < least:
                lines.append(f"{shown}, and MLX can compute this with {least} or more: give it twice, or export it for that")
        return lines

    def split(self, arrays: Sequence[mx.array]) -> tuple[tuple[mx.array, ...], dict[str, mx.array]]:
        """Return the arrays as MLX's own function takes them: by position, and by name."""
        pairs = [(leaf.name, array) for leaf, array in zip(self.leaves, arrays, strict=True)]
        return tuple([array for name, array in pairs if not name]), {name: array for name, array in pairs if name}

    def joined(self, positional: Sequence[mx.array], named: dict[str, mx.array]) -> list[mx.array]:
        """Return the arrays in order; the inverse of :meth:`split`."""
        rest = iter(positional)
        return [named[leaf.name] if leaf.name else next(rest) for leaf in self.leaves]

    def __str__(self) -> str:
        top = {fact.path: fact.text for fact in self.facts if not fact.aspect}
        return ", ".join(f"{name}: {top[name].removeprefix('array ')}" for name in self.names)


def signature_of(
    fn: Callable[..., Any], trees: Sequence[Any], given: Sequence[Flat], keywords: Sequence[str], shapeless: Any
) -> Signature:
    """Describe the example arguments of a function.

    Args:
        fn: The function.
        trees: The arguments.
        given: The same, taken apart.
        keywords: The names of the last of them, which are given by name.
        shapeless: As given to ``fl.export_function``.

    Raises:
        ValueError: If two arrays would have the same name, or ``shapeless`` doesn't fit the arguments.
    """
    names = [*_names_of(fn, len(trees) - len(keywords)), *keywords]
    axes = _axes(shapeless, trees, given)
    plain = _without_prefix(trees)
    leaves = []
    rest = iter(axes)
    for position, (name, flat) in enumerate(zip(names, given, strict=True)):
        for own, array in zip(flat.structure.leaf_names(), flat.leaves, strict=True):
            path = f"{name}.{own}" if own else name
            keyword = own if position == plain else path if own or name in keywords else ""
            leaves.append(Leaf(path, keyword, dtype_name(array.dtype), tuple(array.shape), next(rest)))
    _require_unlike(leaves)
    facts, unknown = _described(names, given, leaves)
    return Signature(names, facts, leaves, unknown)


def _described(names: Sequence[str], given: Sequence[Flat], leaves: Sequence[Leaf]) -> tuple[list[Fact], dict[str, str]]:
    """Return the facts about arguments, with a letter in the place of each length that may vary, and what is unknown."""
    letters = _letters(leaves)
    axes = {leaf.path: dict(zip(leaf.axes, [letters[length] for length in leaf.lengths], strict=True)) for leaf in leaves}
    facts: list[Fact] = []
    unknown: dict[str, str] = {}
    shown: dict[str, str] = {}
    for name, flat in zip(names, given, strict=True):
        found = describe_tree(flat.structure, flat.leaves, built_in=True)
        facts += [fact._replace(path=_below(name, fact.path)) for fact in found.facts]
        unknown |= {_below(name, "" if path == ROOT else path): kind for path, kind in found.unknown.items()}
        for own, array in zip(flat.structure.leaf_names(), flat.leaves, strict=True):
            known = axes.get(_below(name, own), {})
            shape = [known.get(at, length) for at, length in enumerate(array.shape)]
            shown[_below(name, own)] = f"{ARRAY}{shape_and_dtype(shape, array.dtype)}"
    return [fact if fact.aspect else fact._replace(text=shown.get(fact.path, fact.text)) for fact in facts], unknown


def _letters(leaves: Sequence[Leaf]) -> dict[int, str]:
    """Return what stands for each length that may vary."""
    lengths = [*dict.fromkeys(length for leaf in leaves for length in leaf.lengths)]
    return {length: f"n{number}" if len(lengths) > 1 else "n" for number, length in enumerate(lengths, 1)}


def _arrays(given: Iterable[Flat]) -> list[mx.array]:
    return [leaf for flat in given for leaf in flat.leaves]


def _below(name: str, path: str) -> str:
    return f"{name}.{path}" if path else name


def _names_of(fn: Callable[..., Any], count: int) -> list[str]:
    """Return the name of each positional argument; of one of ``*args`` with its number, of one that has none the number."""
    try:
        parameters = [*inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):  # functions of MLX have no signature
        parameters = []
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), "")
    return [names[at] if at < len(names) else _below(rest, str(at - len(names))) if rest else str(at) for at in range(count)]


def _without_prefix(trees: Sequence[Any]) -> int | None:
    """Return which argument's arrays go by their own names: the first module, or if there is none the first tree."""
    modules = [at for at, tree in enumerate(trees) if isinstance(tree, Instance)]
    return next(iter([*modules, *[at for at, tree in enumerate(trees) if not isinstance(tree, mx.array)]]), None)


_TWICE = (
    "two arrays would have the name {name!r} in the file: {paths}. The first module's arrays go by their own names, those of "
    "the other arguments by the argument's name and theirs: rename one of these"
)


def _require_unlike(leaves: Sequence[Leaf]) -> None:
    for name, count in Counter(leaf.name for leaf in leaves if leaf.name).items():
        if count > 1:
            raise ValueError(_TWICE.format(name=name, paths=listed(leaf.path for leaf in leaves if leaf.name == name)))


def _fits(leaf: Leaf, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(leaf.shape) and _without(shape, leaf.axes) == _without(leaf.shape, leaf.axes)


def _without(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    return [length for position, length in enumerate(shape) if position not in axes]


_SHAPELESS = (
    "shapeless is True, False, or as in_axes of fl.vmap: a tuple with an entry for each argument, the axis that may vary, a "
    "tuple of such axes, or None, and was given as {given}"
)


def require_shapeless(shapeless: Any) -> None:
    """Raise a ``TypeError`` if ``shapeless`` is nothing that it may be."""
    if not isinstance(shapeless, bool | tuple | list):
        raise TypeError(_SHAPELESS.format(given=describe(shapeless)))


_NOTHING_OPEN = (
    "nothing may vary with shapeless={given}: no array outside modules has an axis. Export it without shapeless, or say which "
    "axes may vary with a tuple, as in_axes of fl.vmap does"
)


def _axes(shapeless: Any, trees: Sequence[Any], given: Sequence[Flat]) -> list[tuple[int, ...]]:
    """Return for each array in the arguments the axes that may be of other lengths."""
    leaves = _arrays(given)
    axes: list[tuple[int, ...]]
    if shapeless is False:
        return [()] * len(leaves)
    if shapeless is True:
        is_open = [each for flat in given for each in _outside_modules(flat.structure)]
        axes = [(0,) if each and leaf.ndim else () for each, leaf in zip(is_open, leaves, strict=True)]
    elif len(shapeless) != len(trees):
        raise ValueError(f"shapeless has {len(shapeless)} entries, and there are {len(trees)} arguments")
    else:
        prefixes = broadcast_prefix(tuple(shapeless), tuple(trees), "shapeless")
        axes = [_checked(argument(path), leaf, axis) for path, leaf, axis in prefixes]
    if not any(axes):
        raise ValueError(_NOTHING_OPEN.format(given=shapeless))
    if any(leaf.shape[axis] == 0 for leaf, each in zip(leaves, axes, strict=True) for axis in each):
        raise ValueError("with shapeless, the examples need rows: a length that may vary is 0")
    return axes


def _outside_modules(spec: Any) -> Iterator[bool]:
    """Yield for each array whether it is in no module. A structure stands in a tree where a module does."""
    if isinstance(spec, Structure):
        yield from [False] * spec.num_leaves if spec.is_of_module else _outside_modules(spec.spec)
    elif spec is mx.array:
        yield True
    elif isinstance(spec, tuple):
        for child in child_specs(spec[2]):
            yield from _outside_modules(child)


def _checked(place: str, leaf: mx.array, given: Any) -> tuple[int, ...]:
    axes = given if isinstance(given, tuple | list) else () if given is None else (given,)
    for axis in axes:
        if type(axis) is not int or not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(f"{place}, {describe(leaf)}, has no axis {describe(axis)}, which shapeless says may vary")
    return tuple(sorted({axis % leaf.ndim for axis in axes}))
