"""What to write instead if a file's names are not those of a model: they stand elsewhere, or one has adapters or ties."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from types import FunctionType
from typing import Any

from ..core.words import Path, keystr, listed
from ..tree.selecting import Where
from .description import KEYS, TIED, Fact, enclosing, is_container, is_leaf

_ADAPTERS = ("lora_a", "lora_b")
_SHOWN = 8

_NOT_ADAPTED = (
    "\nThey are of a model with adapters, and this one has none: make them first, fl.lora(model, where, rank=...), of the same "
    "layers and rank"
)
_NOT_YET_ADAPTED = (
    "\nThey are of a model without adapters, and this one has some: load into the model without them, and call fl.lora then"
)
_NOT_QUANTIZED = (
    "\nThey are of a quantized model, and this one isn't: quantize it first, fl.quantize(model, group_size=..., bits=...), as "
    "that one was, and load into what that returns"
)
_NOT_YET_QUANTIZED = (
    "\nThey are of a model that isn't quantized, and this one is: load into the model without that, and call fl.quantize then"
)
_TIED_IN_FILE = "\nArrays are tied in the file: tie the same first, {advice}"
_TIED_IN_LIKE = "\nlike has ties that the file has not: load into the model without them, and tie what is loaded"
_BELOW = "\nThe file has them below {places}: give {like} for like{where}, and take {taken} of what is loaded"
_ABOVE = "\nThe file has them without {place!r}: give for like what is at {place!r} in it{where}"


_NOT_MADE = (
    "\nlike has {kind} {name}{place}, and none of what it makes: give fl.eval_shape({name}) instead, with its arguments if it "
    "has any, as in fl.eval_shape({name}, 2, 3)"
)


def of_maker(values: Iterable[tuple[Path, Any]], in_file: Sequence[Fact]) -> str:
    """Return what to write if ``like`` has a class or function where the file has what one makes; an empty string otherwise.

    Args:
        values: The static values in ``like``, with their paths.
        in_file: All facts about the tree in the file.
    """
    holders = {above for fact in in_file if is_leaf(fact) for above in enclosing(fact.path)}
    for path, value in values:
        if keystr(path) in holders and isinstance(value, type | FunctionType | partial):
            kind = "the class" if isinstance(value, type) else "the function"
            name = getattr(value, "__name__", "")
            place = f" at {keystr(path)!r:.80}" if path else ""
            return _NOT_MADE.format(kind=kind, name=name if name.isidentifier() else "make", place=place)
    return ""


def of_layers(given: Set[str], wanted: Set[str]) -> str:
    """Return what to do if of two models, whose names are given, one has adapters, or is quantized; else an empty string."""
    return _of_adapters(given, wanted) or of_quantized(given, wanted)


def of_quantized(given: Set[str], wanted: Set[str]) -> str:
    """Return what to do if of two models one has scales for a weight that both have; an empty string otherwise."""
    common = {name.removesuffix("weight") for name in given & wanted if name.rpartition(".")[2] == "weight"}
    has, has_to_have = ({layer for layer in common if f"{layer}scales" in names} for names in (given, wanted))
    if has == has_to_have:
        return ""
    return _NOT_QUANTIZED if has - has_to_have else _NOT_YET_QUANTIZED


def _of_adapters(given: Iterable[str], wanted: Iterable[str]) -> str:
    has, has_to_have = (any(name.rpartition(".")[2] in _ADAPTERS for name in names) for names in (given, wanted))
    if has == has_to_have:
        return ""
    return _NOT_ADAPTED if has else _NOT_YET_ADAPTED


def of_structure(
    in_file: Sequence[Fact], in_like: Sequence[Fact], there: Sequence[Fact], wanted: Sequence[Fact], where: Where | None
) -> str:
    """Return what to write if a file has another structure; an empty string if that can't be told.

    Args:
        in_file: All facts about the tree in the file.
        in_like: All facts about ``like``.
        there: Those of the first that are about what is selected.
        wanted: Those of the second that are.
        where: The selection.
    """
    advice = _of_ties(in_file, in_like, {fact.path for fact in (*there, *wanted)})
    advice = advice or of_layers(_leaves(there), _leaves(wanted))
    return advice or _of_place(in_file, _leaves(in_file), _leaves(wanted), where)


def _leaves(facts: Iterable[Fact]) -> set[str]:
    return {fact.path for fact in facts if is_leaf(fact)}


def _of_ties(in_file: Sequence[Fact], in_like: Sequence[Fact], selected: Set[str]) -> str:
    there, here = [_ties(facts, selected) for facts in (in_file, in_like)]
    missing = {target: source for target, source in there.items() if here.get(target) != source}
    ties: dict[str, dict[str, str]] = {}  # by the module that is to have them
    for target, source in missing.items():
        where, name = place_in(target, in_like)
        above = target.removesuffix(name)
        if source.startswith(above):
            ties.setdefault(where, {})[name] = source.removeprefix(above)
    if missing:
        calls = [f"{where}.tie({_shown(names)})" for where, names in ties.items()]
        return _TIED_IN_FILE.format(
            advice=f"as in {listed(calls)}" if calls else f"of which all are in one module: {_shown(missing)}"
        )
    return _TIED_IN_LIKE if there != here else ""


def _shown(names: Mapping[str, str]) -> str:
    pairs = [f"{target!r}: {source!r}" for target, source in names.items()]
    return f"{{{', '.join(pairs[:_SHOWN])}{', ...' * (len(pairs) > _SHOWN)}}}"


def _ties(facts: Sequence[Fact], selected: Set[str]) -> dict[str, str]:
    """Return the places that are tied among those that are selected, and to what."""
    pairs = [(fact.path, pair.split(" to ")) for fact in facts if fact.aspect == TIED for pair in fact.text.split(", ")]
    ties = [[f"{path}.{name}".removeprefix(".") for name in pair] for path, pair in pairs]
    return {target: source for target, source in ties if target in selected}


def _of_place(in_file: Sequence[Fact], there: Set[str], names: Set[str], where: Where | None) -> str:
    if not names or not names.isdisjoint(there):
        return ""
    places = [prefix.removesuffix(".") for prefix in prefixes_of(there, names)]
    if places:
        like, taken = "model", ""
        for path, entry in _steps(places[0]):
            like, access = _held(in_file, path, entry, like)
            taken = access + taken
        selected = f"{places[0]}.{where}" if isinstance(where, str) else places[0]
        selected = f", where={selected!r}" if isinstance(where, str | None) else ""
        return _BELOW.format(places=listed(map(repr, places)), like=like, where=selected, taken=taken) if like else ""
    first = min(names)
    for prefix in [first[: at + 1] for at, character in enumerate(first) if character == "."]:
        if all(name.startswith(prefix) and name.removeprefix(prefix) in there for name in names):
            inner = where.removeprefix(prefix) if isinstance(where, str) else ""
            return _ABOVE.format(place=prefix[:-1], where=f", where={inner!r}" if inner not in ("", where, prefix[:-1]) else "")
    return ""


def _steps(place: str) -> list[tuple[str, str]]:
    """Return the entries of a dotted path and what each is in, from the innermost."""
    entries = place.split(".")
    return [(".".join(entries[:at]), entries[at]) for at in reversed(range(len(entries)))]


def _held(in_file: Sequence[Fact], path: str, entry: str, inner: str) -> tuple[str, str]:
    """Return how to write a container as the file has it at a path, with something in it, and how to take that out again."""
    about = {fact.aspect: fact.text for fact in in_file if fact.path == path}
    kind = about.get("", "").split(" ")[0]
    if inner and kind in ("tuple", "list") and entry.isdecimal():
        items = ", ".join([*["None"] * int(entry), inner])
        return f"[{items}]" if kind == "list" else f"({items}{',' * (entry == '0')})", f"[{entry}]"
    if inner and repr(entry) in about.get(KEYS, "").split(", "):
        return f"{{{entry!r}: {inner}}}", f"[{entry!r}]"
    return "", ""


def prefixes_of(longer: Set[str], names: Set[str]) -> list[str]:
    """Return the texts that other names have before all of some names, in order; none if there are no names."""
    first = min(names, default="")
    prefixes = [name.removesuffix(first) for name in longer if names and name.endswith(f".{first}")]
    return [prefix for prefix in sorted(prefixes) if all(prefix + name in longer for name in names)]


def place_in(path: str, like: Sequence[Fact]) -> tuple[str, str]:
    """Return the code for the outermost module around a place of ``like``, and the name of the place in there."""
    containers = {fact.path for fact in like if is_container(fact)}
    where, above, names = "like", "", path.split(".") if path else []
    while names and above in containers:
        name = names.pop(0)
        where, above = f"{where}[{name if name.isdecimal() else repr(name)}]", f"{above}.{name}".removeprefix(".")
    return where, ".".join(names)
