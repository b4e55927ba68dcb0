"""Describe a tree's structure in words that are the same in every process, and tell where two descriptions differ."""

from __future__ import annotations

import dataclasses
import enum
import functools
import numbers
import os
import re
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import mlx.core as mx

from ..core.definition import Node
from ..core.levels import Recipe
from ..core.structure import Static, Structure, flat_of, specs_in
from ..core.words import describe, keystr, nearest
from ..tree.shapes import ShapeDtypeStruct
from . import safetensors

# The leaves that are no arrays, and are saved with their values.
SCALARS = (bool, int, float, complex, str, bytes)

_LINES = 6
_LONGEST = 80
_SUGGESTIONS = 5  # each takes as long as comparing one name with all others
_TRAINING, _EVALUATION = "training", "evaluation"


class Fact(NamedTuple):
    """One fact about a tree: the path, the aspect (``""`` for the value at that path) and the text."""

    path: str
    aspect: str
    text: str


_NOTHING = Fact("", "", "nothing")


class Description(NamedTuple):
    """The description of a tree, as a checkpoint has it.

    Attributes:
        facts: Everything in which another tree may differ, in order.
        arrays: The dtype and shape of each array by its name in the file, in order. A ``ShapeDtypeStruct`` counts as an array.
        values: The leaves that are numbers, strings and bytes, in order.
    """

    facts: list[Fact]
    arrays: dict[str, str]
    values: list[Any]


_SAME_NAME = (
    "two arrays have the name {name!r}, so that a file can't tell them apart: rename a key of the dict that holds one of them"
)


def describe_tree(structure: Structure, leaves: Iterable[mx.array]) -> Description:
    """Describe a tree that has been flattened.

    Raises:
        TypeError: If a leaf can be neither saved nor described.
        ValueError: If two arrays have the same dotted name.
    """
    rest = iter(leaves)
    facts: list[Fact] = []
    arrays: dict[str, str] = {}
    values: list[Any] = []
    for path, shape in specs_in(structure):
        name = keystr(path)
        value = shape.value if isinstance(shape, Static) else None
        if shape is mx.array or isinstance(value, ShapeDtypeStruct):
            kind = describe(next(rest) if shape is mx.array else value)
            facts.append(Fact(name, "", f"array {kind}"))
            in_file = _name_in_file(name)
            if in_file in arrays:
                raise ValueError(_SAME_NAME.format(name=name))
            arrays[in_file] = kind
        elif type(value) in SCALARS:
            facts.append(Fact(name, "", f"a Python {type(value).__name__}"))
            values.append(value)
        else:
            facts += _facts_of(name, shape, functools.partial(_refuse, name or "the root"))
    return Description(facts, arrays, values)


def differences(file: Sequence[Fact], like: Sequence[Fact]) -> list[str]:
    """Return a line for each place where the structure in the file differs from that of ``like``, and none for those below."""
    in_file = {(fact.path, fact.aspect): fact.text for fact in file}
    in_like = {(fact.path, fact.aspect): fact.text for fact in like}
    found: dict[tuple[str, str], None] = {}
    for path, aspect in dict.fromkeys([*in_file, *in_like]):
        if in_file.get((path, aspect)) == in_like.get((path, aspect)) or (aspect and (path, "") in found):
            continue
        if not any((each, "") in found for each in _ancestors(path)):
            found[path, aspect] = None
    # Missing keys are told by their paths, so the list of the dict's keys need not be.
    told = {each for path, aspect in found if aspect != "keys" for each in _ancestors(path)}
    places = [(path, aspect) for path, aspect in found if aspect != "keys" or path not in told]
    lines = [_difference(place, in_file, in_like, count < _SUGGESTIONS) for count, place in enumerate(places[:_LINES])]
    if not places:  # they differ in their order, or in what no path shows, such as the keys 1 and "1" of one dict
        pairs = zip(file, like, strict=False)
        one, other = next((pair for pair in pairs if pair[0] != pair[1]), (_NOTHING, _NOTHING))
        lines = [f"{one.path or '(root)'}: {one.text} in the file, where like has {other.path or '(root)'}: {other.text}"]
    return [*lines, f"and {len(places) - _LINES:,} more"] if len(places) > _LINES else lines


def _ancestors(path: str) -> Iterator[str]:
    """Yield the path of every node that contains the one at a path."""
    if path:
        yield ""
    for end, character in enumerate(path):
        if character == ".":
            yield path[:end]


def _difference(
    place: tuple[str, str], in_file: Mapping[tuple[str, str], str], in_like: Mapping[tuple[str, str], str], suggest: bool
) -> str:
    path, aspect = place
    suggestion = ""
    if suggest and not aspect and not (place in in_file and place in in_like):
        known, others = (in_file, in_like) if place in in_file else (in_like, in_file)
        suggestion = nearest(path, [name for name, its in others if not its and (name, its) not in known])
    shown = f"{path or '(root)'} ({aspect})" if aspect else path or "(root)"
    absent = _TRAINING if aspect == "mode" else "nothing"
    one, other = _excerpts(in_file.get(place, absent), in_like.get(place, absent))
    return f"{shown}: {one} in the file, {other} in like{suggestion}"


def _excerpts(one: str, other: str) -> tuple[str, str]:
    """Return two texts, cut down around the place where they begin to differ if they are long."""
    pairs = zip(one, other, strict=False)
    same = next((at for at, (first, second) in enumerate(pairs) if first != second), min(len(one), len(other)))
    start = max(0, same - _LONGEST // 4) if max(len(one), len(other)) > _LONGEST else 0

    def excerpt(text: str) -> str:
        return f"{'...' * (start > 0)}{text[start : start + _LONGEST]}{'...' * (len(text) > start + _LONGEST)}"

    return excerpt(one), excerpt(other)


def _qualified_name(value: Any) -> str:
    """Return the module and the qualified name of a class or a function.

    What the running script defines gets the name under which another script would import it. What MLX and frostleaf define gets
    the name of the package that exports it, whichever file it is in.
    """
    module = getattr(value, "__module__", None) or "builtins"  # methods written in C have no module
    packages = module.split(".")
    if packages[0] in ("frostleaf", "mlx"):
        above = (".".join(packages[:length]) for length in range(1, len(packages)))
        module = next((name for name in above if getattr(sys.modules[name], value.__qualname__, None) is value), module)
    if module in ("__main__", "__mp_main__"):
        main = sys.modules[module]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else os.path.splitext(os.path.basename(file))[0] if file else module
    return f"{module}.{value.__qualname__}"


def _name_in_file(name: str) -> str:
    """Return a dotted path as an array's name in the file, with unsafe characters percent-encoded."""
    encoded = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")), name)
    return "%" + encoded if encoded == safetensors.METADATA else encoded


_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f\ud800-\udfff]")


def _facts_of(name: str, shape: Any, fallback: Callable[[Any], str]) -> list[Fact]:
    """Return the facts about one place of a tree: a node without its children, ``None``, or a static value."""
    if shape is None:
        return [Fact(name, "", "None")]
    if isinstance(shape, Static):
        return [Fact(name, "", _canonical(shape.value, fallback))]
    kind, metadata, _ = shape
    if not isinstance(metadata, Recipe):
        facts = [Fact(name, "", _qualified_name(kind))]
        facts += [Fact(name, "mode", _EVALUATION)] * (not metadata.training)
        facts += [Fact(name, "frozen", ", ".join(sorted(metadata.frozen)))] * bool(metadata.frozen)
        ties = ", ".join(f"{keystr(target)} to {keystr(source)}" for target, source in metadata.ties)
        facts += [Fact(name, "tied", ties)] * bool(ties)
        prefix = f"{name}." if name else ""
        return facts + [
            Fact(prefix + field, "static", _canonical(value, _by_class)) for field, value in metadata.static.items()
        ]
    if kind in (tuple, list):
        return [Fact(name, "", f"{kind.__name__} of {len(metadata.entries)}")]
    if kind in (dict, OrderedDict, types.MappingProxyType):
        return [
            Fact(name, "", kind.__name__),
            Fact(name, "keys", ", ".join(_canonical(key, fallback) for key in metadata.entries)),
        ]
    return [Fact(name, "", _qualified_name(kind)), Fact(name, "metadata", _canonical(metadata.metadata, _by_class))]


def _canonical(value: Any, fallback: Callable[[Any], str]) -> str:
    """Return a text that two values share if they are interchangeable; ``fallback(value)`` if the kind of value is unknown."""

    def text(each: Any) -> str:
        return _canonical(each, fallback)

    def texts(each: Iterable[Any]) -> str:
        return ", ".join(map(text, each))

    if isinstance(value, enum.Flag):  # a combination has no name before Python 3.11
        return f"{_qualified_name(type(value))}({value.value})"
    if isinstance(value, enum.Enum):
        return f"{_qualified_name(type(value))}.{value.name}"
    if value is None or value is ... or type(value) in (bool, str, bytes, float, complex):
        return ascii(value)
    if type(value) is int:
        return str(value) if abs(value) < 2**64 else hex(value)
    if isinstance(value, mx.Dtype):
        return str(value)
    if isinstance(value, tuple):
        return f"({texts(value)})" if type(value) is tuple else f"{_qualified_name(type(value))}({texts(value)})"
    if isinstance(value, list):
        return f"[{texts(value)}]"
    if type(value) in (set, frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(text, value)))})"
    if type(value) in (dict, OrderedDict, defaultdict, types.MappingProxyType):
        return f"{type(value).__name__}({', '.join(f'{text(key)}: {text(item)}' for key, item in value.items())})"
    if isinstance(value, functools.partial):
        return f"partial({text(value.func)}, {text(value.args)}, {text(value.keywords)})"
    owner = value.__self__ if isinstance(value, types.MethodType | types.BuiltinMethodType) else None
    if not isinstance(owner, types.ModuleType | None):
        return f"{text(owner)}.{value.__name__}"
    if callable(value) and isinstance(getattr(value, "__qualname__", None), str):
        return _qualified_name(value)
    if isinstance(value, Structure):
        shapes = [(keystr(path), shape) for path, shape in specs_in(value)]
        facts = [fact for name, shape in shapes if shape is not mx.array for fact in _facts_of(name, shape, fallback)]
        return f"({'; '.join(' '.join(fact) for fact in facts)}; {texts(name for name, shape in shapes if shape is mx.array)})"
    if isinstance(value, Node):
        return text(flat_of(value).structure)
    if attrs.has(type(value)) or dataclasses.is_dataclass(value):
        fields: Iterable[Any] = attrs.fields(type(value)) if attrs.has(type(value)) else dataclasses.fields(value)
        items = (f"{field.name}={text(getattr(value, field.name))}" for field in fields)
        return f"{_qualified_name(type(value))}({', '.join(items)})"
    return fallback(value)


def _by_class(value: Any) -> str:
    if isinstance(value, numbers.Number | str):  # such as NumPy's numbers
        return f"{_qualified_name(type(value))}({value!s})"
    return f"a {_qualified_name(type(value))}"


_NOT_SAVEABLE = (
    "what stands at {path} is a {kind}, which a checkpoint can't keep. It keeps arrays, numbers, strings, bytes and None; give "
    "it as one of these, or leave it out"
)


def _refuse(path: str, value: Any) -> str:
    raise TypeError(_NOT_SAVEABLE.format(path=path, kind=_qualified_name(type(value))))
