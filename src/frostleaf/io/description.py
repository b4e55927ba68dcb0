"""Describe a tree's structure in words that are the same in every process."""

from __future__ import annotations

import enum
import functools
import json
import re
import types
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from ..core.definition import Node
from ..core.kept import Kept
from ..core.levels import Recipe
from ..core.structure import Static, Structure, flat_of, specs_in
from ..core.words import keystr, shape_and_dtype
from . import safetensors
from .values import declared_fields, fields_text, qualified_name, value_text

# The leaves that are no arrays, and are saved with their values.
SCALARS = (bool, int, float, complex, str, bytes)

KEYS, TIED = "keys", "tied"
STRUCTURE = "frostleaf.structure"  # the key of the header's metadata under which a checkpoint has its facts
TRAINING, _EVALUATION = "training", "evaluation"


class Fact(NamedTuple):
    """One fact about a tree: the path, the aspect (``""`` for the value at that path) and the text."""

    path: str
    aspect: str
    text: str


class Description(NamedTuple):
    """The description of a tree, as a checkpoint has it.

    Attributes:
        facts: Everything in which another tree may differ, in order.
        arrays: The dtype and shape of each array by its name in the file, in order. A ``ShapeDtypeStruct`` counts as an array.
        values: The leaves that are numbers, strings and bytes, in order.
        unknown: The class of each static value of which it is all that can be told, by path.
        is_lasting: Whether all static values are of kinds that never change.
    """

    facts: list[Fact]
    arrays: dict[str, str]
    values: list[Any]
    unknown: dict[str, str]
    is_lasting: bool


_SAME_NAME = (
    "two arrays have the name {name!r}, so that a file can't tell them apart: rename a key of the dict that holds one of them"
)


def describe_tree(structure: Structure, leaves: Iterable[mx.array], *, built_in: bool = False) -> Description:
    """Describe a tree that has been flattened.

    Args:
        structure: The structure.
        leaves: The arrays.
        built_in: Whether the leaves that are no arrays are facts about the tree, as in a compiled function, and not saved.

    Raises:
        TypeError: If a leaf can be neither saved nor described.
        ValueError: If two arrays have the same dotted name.
    """
    rest = zip(structure.leaf_names(), leaves, strict=True)
    kind_of = functools.cache(shape_and_dtype)
    writer = Writer()
    facts: list[Fact] = []
    arrays: dict[str, str] = {}
    values: list[Any] = []
    for path, shape in specs_in(structure):
        if shape is mx.array:
            name, leaf = next(rest)
            kind = kind_of(leaf.shape, leaf.dtype)
            facts.append(Fact(name, "", f"{ARRAY}{kind}"))
            in_file = name_in_file(name)
            if in_file in arrays:
                raise ValueError(_SAME_NAME.format(name=name))
            arrays[in_file] = kind
            continue
        name = keystr(path)
        value = shape.value if isinstance(shape, Static) else None
        if isinstance(shape, Static) and built_in:
            facts.append(Fact(name, "", writer.static(name, value)))
        elif type(value) in SCALARS:
            facts.append(Fact(name, "", value_kind(value)))
            values.append(value)
        else:
            facts += writer.facts_of(name, shape, functools.partial(_refuse, name or ROOT))
    return Description(facts, arrays, values, writer.unknown, writer.is_lasting)


ARRAY, _VALUE, NONE = "array ", "a Python ", "None"
ROOT = "the root"


def facts_text(facts: list[Fact]) -> str:
    """Return facts as a checkpoint has them."""
    return json.dumps(facts, separators=(",", ":"))


def read_facts(header: safetensors.Header) -> list[Fact]:
    """Return the facts about the tree in a checkpoint, whose header may be of any file.

    Raises:
        CheckpointError: If the header says no such facts. The message names the file.
    """
    given = safetensors.parse_json(header.metadata.get(STRUCTURE, ""), header.file)
    well_formed = isinstance(given, list) and all(
        isinstance(fact, list) and len(fact) == 3 and all(isinstance(text, str) for text in fact) for fact in given
    )
    if not well_formed:
        safetensors.fail(header.file, f"the header's {STRUCTURE} isn't what it should be")
    return [Fact(*fact) for fact in given]


def array_kind(fact: Fact) -> str | None:
    """Return the dtype and the shape of the array that a fact is about; ``None`` if it is about something else."""
    return fact.text.removeprefix(ARRAY) if not fact.aspect and fact.text.startswith(ARRAY) else None


def shape_in(fact: Fact) -> str:
    """Return what a fact about an array says of its shape; of anything else the text."""
    return fact.text.partition("[")[2] if fact.text.startswith(ARRAY) else fact.text


def value_kind(value: Any) -> str:
    """Return what a fact says of a number, a string or bytes."""
    return f"{_VALUE}{type(value).__name__}"


def is_value(fact: Fact) -> bool:
    """Return whether a fact is about a number, a string or bytes."""
    return not fact.aspect and fact.text.startswith(_VALUE)


def is_leaf(fact: Fact) -> bool:
    """Return whether a fact is about what a file holds besides its description: an array, a number, a string, bytes."""
    return not fact.aspect and fact.text.startswith((ARRAY, _VALUE))


def leaves_in(facts: Iterable[Fact]) -> dict[str, Fact]:
    """Return the facts about what a file holds besides its description, by path."""
    return {fact.path: fact for fact in facts if is_leaf(fact)}


_CONTAINER = re.compile(r"(?:list|tuple) of \d+|dict|OrderedDict|mappingproxy")


def is_container(fact: Fact) -> bool:
    """Return whether a fact is about one of Python's containers."""
    return not fact.aspect and _CONTAINER.fullmatch(fact.text) is not None


def is_object(fact: Fact) -> bool:
    """Return whether a fact is about what is neither such a leaf nor such a container: a module, a function, ``None``."""
    return not (fact.aspect or is_leaf(fact) or is_container(fact))


def enclosing(path: str) -> Iterator[str]:
    """Yield the path of every node that contains the one at a path."""
    if path:
        yield ""
    for end, character in enumerate(path):
        if character == ".":
            yield path[:end]


def name_in_file(name: str) -> str:
    """Return a dotted path as an array's name in the file, with unsafe characters percent-encoded."""
    encoded = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")), name)
    return "%" + encoded if encoded == safetensors.METADATA else encoded


_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f\ud800-\udfff]")


Fallback = Callable[[Any, Callable[[Any], str]], str]


class Writer:
    """Puts the places of a tree in words, and notes what it has none for.

    Attributes:
        unknown: The class of each static value that is described by its class alone, by path.
        is_lasting: Whether nothing was put in words that may change.
    """

    def __init__(self) -> None:
        self.unknown: dict[str, str] = {}
        self.is_lasting = True
        self._class_name = functools.cache(qualified_name)

    def facts_of(self, name: str, shape: Any, fallback: Fallback) -> list[Fact]:
        """Return the facts about one place of a tree: a node without its children, ``None``, or a static value."""
        if shape is None:
            return [Fact(name, "", NONE)]
        if isinstance(shape, Static):
            return [Fact(name, "", self.canonical(shape.value, fallback))]
        kind, metadata, _ = shape
        if not isinstance(metadata, Recipe):
            facts = [Fact(name, "", self._class_name(kind))]
            facts += [Fact(name, "mode", _EVALUATION)] * (not metadata.training)
            facts += [Fact(name, "frozen", ", ".join(sorted(metadata.frozen)))] * bool(metadata.frozen)
            ties = ", ".join(f"{keystr(target)} to {keystr(source)}" for target, source in metadata.ties)
            facts += [Fact(name, TIED, ties)] * bool(ties)
            shards = ", ".join(f"{keystr(path)} as {shard}" for path, shard in metadata.shards)
            facts += [Fact(name, "shards", shards)] * bool(shards)
            prefix = f"{name}." if name else ""
            return facts + [
                Fact(prefix + field, "static", self.static(prefix + field, value)) for field, value in metadata.static.items()
            ]
        if kind in (tuple, list):
            return [Fact(name, "", f"{kind.__name__} of {len(metadata.entries)}")]
        if kind in (dict, OrderedDict, types.MappingProxyType):
            return [
                Fact(name, "", kind.__name__),
                Fact(name, KEYS, ", ".join(self.canonical(key, fallback) for key in metadata.entries)),
            ]
        return [Fact(name, "", self._class_name(kind)), Fact(name, "metadata", self.static(name, metadata.metadata))]

    def canonical(self, value: Any, fallback: Fallback, around: tuple[int, ...] = ()) -> str:
        """Return a text that two values share if they are interchangeable; what ``fallback`` says of an unknown kind.

        Args:
            value: The value.
            fallback: Called with a value of an unknown kind and the function that returns the text of what is inside.
            around: The ids of the values that this one is in.
        """

        def text(each: Any) -> str:
            return self.canonical(each, fallback, (*around, id(value)))

        def texts(each: Iterable[Any]) -> str:
            return ", ".join(map(text, each))

        if id(value) in around:  # it holds itself
            return "..."
        if isinstance(value, enum.Flag):  # a combination has no name before Python 3.11
            return f"{qualified_name(type(value))}({value.value})"
        if isinstance(value, enum.Enum):
            return f"{qualified_name(type(value))}.{value.name}"
        if value is None or value is ... or type(value) in (bool, str, bytes, float, complex):
            return ascii(value)
        if type(value) is int:
            return str(value) if abs(value) < 2**64 else hex(value)
        if isinstance(value, mx.Dtype):
            return str(value)
        if isinstance(value, tuple):
            return f"({texts(value)})" if type(value) is tuple else f"{qualified_name(type(value))}({texts(value)})"
        if (origin := typing.get_origin(value)) is not None:  # such as list[int]
            return f"{text(origin)}[{texts(typing.get_args(value))}]"
        owner = value.__self__ if isinstance(value, types.MethodType | types.BuiltinMethodType) else None
        is_method = not isinstance(owner, types.ModuleType | None)
        if callable(value) and not is_method and isinstance(getattr(value, "__qualname__", None), str):
            return qualified_name(value)
        self.is_lasting = False
        if is_method:
            return f"{text(owner)}.{value.__name__}"
        if isinstance(value, list):
            return f"[{texts(value)}]"
        if type(value) in (set, frozenset):
            return f"{type(value).__name__}({', '.join(sorted(map(text, value)))})"
        if type(value) in (dict, OrderedDict, defaultdict, types.MappingProxyType):
            return f"{type(value).__name__}({', '.join(f'{text(key)}: {text(item)}' for key, item in value.items())})"
        if isinstance(value, functools.partial):
            return f"partial({text(value.func)}, {text(value.args)}, {text(value.keywords)})"
        if isinstance(value, Structure):
            shapes = [(keystr(path), shape) for path, shape in specs_in(value)]
            facts = [fact for name, shape in shapes if shape is not mx.array for fact in self.facts_of(name, shape, fallback)]
            arrays = texts(name for name, shape in shapes if shape is mx.array)
            return f"({'; '.join(' '.join(fact) for fact in facts)}; {arrays})"
        if isinstance(value, Node):
            return text(flat_of(value).structure)
        if isinstance(value, Kept):
            return text(value.content)
        fields = declared_fields(value)
        return fallback(value, text) if fields is None else fields_text(value, fields, text)

    def static(self, path: str, value: Any) -> str:
        """Return the text of a static value, which is never refused."""

        def fallback(each: Any, text: Callable[[Any], str]) -> str:
            found = value_text(each, text)
            if found is None:
                found = f"a {qualified_name(type(each))}"
                self.unknown[path or ROOT] = found
            return found

        return self.canonical(value, fallback)


_NOT_SAVEABLE = (
    "what stands at {path} is a {kind}, which a checkpoint can't keep. It keeps arrays, numbers, strings, bytes and None; give "
    "it as one of these, or leave it out"
)


def _refuse(path: str, value: Any, _: Callable[[Any], str]) -> str:
    advice = ""
    if value is mx.random.state:
        advice = ". Its array is mx.random.state[0]"
    elif hasattr(type(value), "__array__") and hasattr(type(value), "item"):
        advice = ". Of a number of NumPy write .item(), which is Python's"
    raise TypeError(_NOT_SAVEABLE.format(path=path, kind=qualified_name(type(value))) + advice)
