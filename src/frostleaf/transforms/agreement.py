"""What all ranks find out together before they exchange anything: whether they can, and if not, why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from numbers import Number
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..core.instance import Instance
from ..core.levels import entries_of
from ..core.shapes import require_no_shapes
from ..core.structure import Kind, Static, Structure, child_specs, kind_of
from ..core.words import Path, describe, keystr
from ..tree.functions import flatten
from .collectives import all_gather, is_evaluated, mapped, restore_tokens, tokens
from .group import Group
from .peers import PeerLostError, out_of_step
from .shards import shards_in

T = TypeVar("T")

# What each rank is about to give, by name: on all ranks the same.
Said = Mapping[str, str]

Settled = tuple[Group, Sequence[str], Sequence[Kind]]

_MOST = 8
_FUNCTION = "the function"
# With what each exchange here begins, so that one of something else is noticed.
_MARK = b"fl"
_NOTHING = "nothing"
_OTHER_FUNCTIONS = (
    ". The ranks are out of step, as they are if one goes on after an error that was raised on it alone, or calls something "
    "inside an if. What ranks do together, each has to call: call it before the `if`, on every rank, and print the result on "
    "one"
)

# While an optimizer updates what all ranks have agreed on: the ranks, and the names, shapes and dtypes of the gradients.
settled: ContextVar[Settled | None] = ContextVar("settled", default=None)

NOT_REDUCED = "{name} takes arrays, and {path} is the number {value}, which it would leave as it is: write mx.array({value})"


class Apart(NamedTuple):
    """A tree of arrays taken apart, and what to call each array."""

    leaves: list[mx.array]
    structure: Structure
    names: list[str]


def taken_apart(name: str, tree: Any, shapes: bool = False) -> tuple[Apart, Said]:
    """Take a tree of arrays apart, and say the shape and the dtype of each, and each number and string, by their paths.

    Args:
        name: The function that was given it.
        tree: The tree.
        shapes: Whether shapes may stand for arrays.

    Raises:
        TypeError: If they may not, and one does.
    """
    leaves, structure = flatten(tree)
    if not shapes:
        require_no_shapes(f"fl.distributed.{name}", leaves)
    names = [path or "the array" for path in structure.leaf_names()]
    arrays = {path: describe(leaf) for path, leaf in zip(names, leaves, strict=True)}
    return Apart(leaves, structure, names), {**arrays, **structure.remember(_said_of_plain)}


def is_settled(tree: Any, group: Group) -> bool:
    """Return whether a tree is known to be alike on all ranks of a group: it is the gradients of an update."""
    known = settled.get()
    if known is None or known[0] != group:
        return False
    leaves, structure = flatten(tree)
    return structure.leaf_names() == tuple(known[1]) and tuple(map(kind_of, leaves)) == tuple(known[2])


def require_arrays(name: str, structure: Structure) -> None:
    """Require that no number is where an array may be meant: outside modules, of which numbers are settings.

    Raises:
        TypeError: If one is; the message has its path.
    """
    found = structure.remember(_numbers_outside_modules)
    if found:
        path, value = found[0]
        raise TypeError(NOT_REDUCED.format(name=name, path=path, value=describe(value)))


def said_of_shards(tree: Any) -> Said:
    """Say the shape and the dtype of each array of a tree, and how it is divided, by their paths."""
    apart, said = taken_apart("", tree, shapes=True)
    divided = zip(apart.names, shards_in(apart.structure), strict=True)
    return {**said, **{name: f"{said[name]} as {', '.join(map(str, shards))}" for name, shards in divided if shards}}


def groups_among(*trees: Any) -> list[Group]:
    """Return the groups of several ranks among which arrays in trees are divided."""
    structures = [flatten(tree)[1] for tree in trees]
    found = (shard.group for structure in structures for shards in shards_in(structure) for shard in shards)
    return [group for group in dict.fromkeys(found) if group.size() > 1]


def is_number(value: Any) -> bool:
    """Return whether a value is a number of Python or numpy."""
    return isinstance(value, Number) or hasattr(value, "__array__")


def _said_of_plain(structure: Structure) -> Said:
    values = structure.static_values()
    return {
        keystr(path) or "the value": describe(value) for path, value in values if isinstance(value, str) or is_number(value)
    }


def _numbers_outside_modules(structure: Structure) -> list[tuple[str, Any]]:
    found = _outside_modules(structure.spec, ())
    return [(keystr(path) or "what was given", value) for path, value in found if is_number(value)]


def _outside_modules(spec: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(spec, Structure):
        spec = spec.spec
    if isinstance(spec, Static):
        yield path, spec.value
    elif isinstance(spec, tuple) and not issubclass(spec[0], Instance):
        kind, metadata, specs = spec
        for entry, child in zip(entries_of(kind, metadata), child_specs(specs), strict=True):
            yield from _outside_modules(child, (*path, entry))


def agreed(name: str, group: Group, prepare: Callable[[], tuple[T, Said]], advice: str = "", own: bool = False) -> T:
    """Prepare what is to be exchanged, on all ranks or on none.

    One small exchange tells whether all ranks have said the same. It needs values: while a function is being traced, ranks are
    not compared, since one may trace what another has traced before.

    Args:
        name: The function that exchanges it.
        group: The ranks.
        prepare: Returns what this rank gives, and what is to be the same on all ranks.
        advice: What to write if they say different things.
        own: Whether a rank on which ``prepare`` fails raises that error, as it does without others.

    Raises:
        ValueError: On every rank, if ``prepare`` fails on one, or they say different things.
        PeerLostError: If a rank is lost, or exchanges something else.
    """
    if group.size() == 1:
        return prepare()[0]
    failed: Exception | None = None
    said: Said = {}
    try:
        made, said = prepare()
    except PeerLostError:
        raise
    except Exception as error:
        failed = error
    text = json.dumps([(_FUNCTION, name), *said.items()]) if failed is None else str(failed)
    digest = hashlib.blake2b(_encoded(text), digest_size=16).digest()
    given = _exchanged(_MARK + bytes([failed is not None]) + digest, group)
    if given is not None and not all(each.startswith(_MARK) for each in given):
        raise out_of_step(name)
    if given is not None and (failed is not None or len(set(given)) > 1):
        texts = _texts(text, group)
        if own and failed is not None:
            raise failed
        problems = {rank: text for rank, (each, text) in enumerate(zip(given, texts, strict=True)) if each[len(_MARK)]}
        raise ValueError(_failure(name, problems) if problems else _difference(name, texts, advice)) from failed
    if failed is not None:
        raise failed
    return made


def agreed_by_all(name: str, groups: Sequence[Group], prepare: Callable[[], tuple[T, Said]]) -> T:
    """As :func:`agreed`, in each of some groups. A rank that fails raises its own error, and others a ``ValueError``."""
    return [agreed(name, group, prepare, own=True) for group in groups][-1] if groups else prepare()[0]


def _exchanged(data: bytes, group: Group) -> list[bytes] | None:
    """Return the data of each rank, all of the same length, or ``None`` while a function is being traced."""
    if mapped.get():
        return None
    before = tokens()
    gathered = all_gather(mx.array([*data], mx.uint8), group)
    if not is_evaluated(gathered):
        restore_tokens(before)
        return None
    whole = bytes(gathered.tolist())  # type: ignore[arg-type]
    return [whole[start : start + len(data)] for start in range(0, len(whole), len(data))]


def _texts(text: str, group: Group) -> list[str]:
    """Return what each rank says, of any length."""
    data = _encoded(text)
    lengths = [int.from_bytes(each, "big") for each in _exchanged(len(data).to_bytes(8, "big"), group) or ()]
    texts = _exchanged(data.ljust(max(lengths)), group) or ()
    return [each[:length].decode() for each, length in zip(texts, lengths, strict=True)]


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _failure(name: str, problems: Mapping[int, str]) -> str:
    rank, problem = next(iter(problems.items()))
    others = f" (and on {len(problems) - 1} others)" if len(problems) > 1 else ""
    return f"{name} on rank {rank}{others}: {problem}"


def _difference(name: str, texts: list[str], advice: str) -> str:
    by_rank = [dict(json.loads(text)) for text in texts]
    if len({said[_FUNCTION] for said in by_rank}) > 1:  # so that nothing else can be alike
        by_rank, advice = [{_FUNCTION: said[_FUNCTION]} for said in by_rank], _OTHER_FUNCTIONS
    first = by_rank[0]
    found: dict[str, str] = {}
    for rank, said in enumerate(by_rank):
        for path in {**first, **said}:
            here, there = first.get(path, _NOTHING), said.get(path, _NOTHING)
            if here != there:
                found.setdefault(path, f"{path} is {here} on rank 0 and {there} on rank {rank}")
    shown = ", ".join([*found.values()][:_MOST]) + ", ..." * (len(found) > _MOST)
    return f"{name} takes what is alike on all ranks: {shown or 'the order of the paths differs'}{advice}"
