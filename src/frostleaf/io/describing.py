"""What a checkpoint says of a tree's structure: words that two processes choose alike, and where they differ."""

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

from ..node import Node, nearest
from ..transforms.shapes import ShapeDtypeStruct
from ..tree.compare import describe
from ..tree.functions import dotted
from ..tree.structure import Recipe, Static, Structure, flat_of, parts_of
from . import safetensors

# What may stand in the place of an array and is saved with its value.
SCALARS = (bool, int, float, complex, str, bytes)

NOT_SAVEABLE = (
    "what stands at {path} is a {kind}, which a checkpoint can't keep. It keeps arrays, numbers, strings, bytes and None; give "
    "it as one of these, or leave it out"
)
SAME_NAME = (
    "two arrays have the name {name!r}, so that a file can't tell them apart: rename a key of the dict that holds one of them"
)
LINES = 20
_LONGEST = 200
# To look for the nearest names takes longer with each.
_NEAREST_FOR = 5
TRAINING, EVALUATION = "training", "evaluation"


class Fact(NamedTuple):
    """One thing that is so in a tree: at which path, in which aspect (``""`` is what stands there), and what."""

    path: str
    aspect: str
    text: str


_NOTHING = Fact("", "", "nothing")


class Description(NamedTuple):
    """What a checkpoint says of a tree, and what it has to hold for it.

    Attributes:
        facts: Everything in which another tree may differ, in order.
        arrays: The dtype and shape of each array by its name in the file, in order. A ``ShapeDtypeStruct`` counts as an array.
        values: The numbers, strings and bytes in the places of arrays, in order.
    """

    facts: list[Fact]
    arrays: dict[str, str]
    values: list[Any]


def described(structure: Structure, leaves: Iterable[mx.array]) -> Description:
    """Return the description of a tree that has been taken apart.

    Raises:
        TypeError: If something stands in the place of an array that can be neither saved nor described.
        ValueError: If two arrays have the same dotted name.
    """
    rest = iter(leaves)
    facts: list[Fact] = []
    arrays: dict[str, str] = {}
    values: list[Any] = []
    for path, part in parts_of(structure, ()):
        name = dotted(path)
        placeholder = part.value if isinstance(part, Static) and isinstance(part.value, ShapeDtypeStruct) else None
        if part is mx.array or placeholder is not None:
            kind = describe(next(rest) if placeholder is None else placeholder)
            facts.append(Fact(name, "", f"array {kind}"))
            in_file = _name_in_file(name)
            if in_file in arrays:
                raise ValueError(SAME_NAME.format(name=name))
            arrays[in_file] = kind
        elif isinstance(part, Static) and type(part.value) in SCALARS:
            facts.append(Fact(name, "", f"a Python {type(part.value).__name__}"))
            values.append(part.value)
        else:
            facts += _facts_of(name, part, functools.partial(_refuse, name or "the root"))
    return Description(facts, arrays, values)


def differences(file: Sequence[Fact], like: Sequence[Fact]) -> list[str]:
    """Return in words where the structure in the file is another than that of ``like``, without what is below such a place."""
    there = {(fact.path, fact.aspect): fact.text for fact in file}
    here = {(fact.path, fact.aspect): fact.text for fact in like}
    found: dict[tuple[str, str], None] = {}
    for path, aspect in dict.fromkeys([*there, *here]):
        if there.get((path, aspect)) == here.get((path, aspect)) or (aspect and (path, "") in found):
            continue
        if not any((each, "") in found for each in _around(path)):
            found[path, aspect] = None
    # That a dict has other keys is told by the paths of those that are missing.
    told = {each for path, aspect in found if aspect != "keys" for each in _around(path)}
    places = [(path, aspect) for path, aspect in found if aspect != "keys" or path not in told]
    lines = [_difference(place, there, here, count < _NEAREST_FOR) for count, place in enumerate(places[:LINES])]
    if not places:  # only in the order, or in what no path tells, such as the keys 1 and "1" of one dict
        pairs = zip(file, like, strict=False)
        one, other = next((pair for pair in pairs if pair[0] != pair[1]), (_NOTHING, _NOTHING))
        lines = [f"{one.path or '(root)'}: {one.text} in the file, where like has {other.path or '(root)'}: {other.text}"]
    return [*lines, f"and {len(places) - LINES} more"] if len(places) > LINES else lines


def _around(path: str) -> Iterator[str]:
    """Yield the paths of all parts of a tree that the part at a path is in."""
    if path:
        yield ""
    for end, character in enumerate(path):
        if character == ".":
            yield path[:end]


def _difference(
    place: tuple[str, str], there: Mapping[tuple[str, str], str], here: Mapping[tuple[str, str], str], with_nearest: bool
) -> str:
    path, aspect = place
    others = () if place in there and place in here else (there if place in here else here)
    known = there if place in there else here
    near = ""
    if with_nearest and not aspect:
        near = nearest(path, [name for name, its in others if not its and (name, its) not in known])
    shown = f"{path or '(root)'} ({aspect})" if aspect else path or "(root)"
    absent = TRAINING if aspect == "mode" else "nothing"
    one, other = _shortened(there.get(place, absent), here.get(place, absent))
    return f"{shown}: {one} in the file, {other} in like{near}"


def _shortened(one: str, other: str) -> tuple[str, str]:
    """Return two texts, and of long ones the part where they begin to differ."""
    pairs = zip(one, other, strict=False)
    same = next((at for at, (first, second) in enumerate(pairs) if first != second), min(len(one), len(other)))
    start = max(0, same - _LONGEST // 4) if max(len(one), len(other)) > _LONGEST else 0

    def part(text: str) -> str:
        return f"{'...' * (start > 0)}{text[start : start + _LONGEST]}{'...' * (len(text) > start + _LONGEST)}"

    return part(one), part(other)


def name_of(value: Any) -> str:
    """Return the module and the qualified name of a class or a function.

    What is defined in the script that runs is known by the name under which another script would import it, and what MLX and
    frostleaf offer by the package that offers it, whatever file it is in.
    """
    module = getattr(value, "__module__", None) or "builtins"  # which methods of C don't say
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
    """Return a dotted path as an array's name in the file: what could mean something else there is coded, as in addresses."""
    coded = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")), name)
    return "%" + coded if coded == safetensors.METADATA else coded


_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f\ud800-\udfff]")


def _facts_of(name: str, part: Any, otherwise: Callable[[Any], str]) -> list[Fact]:
    """Return what is so at one place of a tree: a node without its children, ``None``, or a static value."""
    if part is None:
        return [Fact(name, "", "None")]
    if isinstance(part, Static):
        return [Fact(name, "", _text(part.value, otherwise))]
    kind, metadata, _ = part
    if not isinstance(metadata, Recipe):
        facts = [Fact(name, "", name_of(kind))]
        facts += [Fact(name, "mode", EVALUATION)] * (not metadata.training)
        facts += [Fact(name, "frozen", ", ".join(sorted(metadata.frozen)))] * bool(metadata.frozen)
        ties = ", ".join(f"{dotted(target)} to {dotted(source)}" for target, source in metadata.ties)
        facts += [Fact(name, "tied", ties)] * bool(ties)
        prefix = f"{name}." if name else ""
        return facts + [Fact(prefix + field, "static", _text(value, _by_class)) for field, value in metadata.static.items()]
    if kind in (tuple, list):
        return [Fact(name, "", f"{kind.__name__} of {len(metadata.entries)}")]
    if kind in (dict, OrderedDict, types.MappingProxyType):
        return [Fact(name, "", kind.__name__), Fact(name, "keys", ", ".join(_text(key, otherwise) for key in metadata.entries))]
    return [Fact(name, "", name_of(kind)), Fact(name, "metadata", _text(metadata.metadata, _by_class))]


def _text(value: Any, otherwise: Callable[[Any], str]) -> str:
    """Return a text that two values share if they are interchangeable; ``otherwise(value)`` for one of an unknown kind."""

    def text(each: Any) -> str:
        return _text(each, otherwise)

    def texts(each: Iterable[Any]) -> str:
        return ", ".join(map(text, each))

    if isinstance(value, enum.Flag):  # of a combination the name is told only since Python 3.11
        return f"{name_of(type(value))}({value.value})"
    if isinstance(value, enum.Enum):
        return f"{name_of(type(value))}.{value.name}"
    if value is None or value is ... or type(value) in (bool, str, bytes, float, complex):
        return ascii(value)
    if type(value) is int:
        return str(value) if abs(value) < 2**64 else hex(value)
    if isinstance(value, mx.Dtype):
        return str(value)
    if isinstance(value, tuple):
        return f"({texts(value)})" if type(value) is tuple else f"{name_of(type(value))}({texts(value)})"
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
        return name_of(value)
    if isinstance(value, Structure):
        parts = [(dotted(path), part) for path, part in parts_of(value, ())]
        facts = [fact for name, part in parts if part is not mx.array for fact in _facts_of(name, part, otherwise)]
        return f"({'; '.join(' '.join(fact) for fact in facts)}; {texts(name for name, part in parts if part is mx.array)})"
    if isinstance(value, Node):
        return text(flat_of(value).structure)
    if attrs.has(type(value)) or dataclasses.is_dataclass(value):
        fields: Iterable[Any] = attrs.fields(type(value)) if attrs.has(type(value)) else dataclasses.fields(value)
        said = (f"{field.name}={text(getattr(value, field.name))}" for field in fields)
        return f"{name_of(type(value))}({', '.join(said)})"
    return otherwise(value)


def _by_class(value: Any) -> str:
    if isinstance(value, numbers.Number | str):  # such as NumPy's numbers
        return f"{name_of(type(value))}({value!s})"
    return f"a {name_of(type(value))}"


def _refuse(path: str, value: Any) -> str:
    raise TypeError(NOT_SAVEABLE.format(path=path, kind=name_of(type(value))))
