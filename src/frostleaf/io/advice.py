"""What to write instead if a file's names are not those of a model: they stand elsewhere, or one has adapters or ties."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from types import FunctionType
from typing import Any

from ..core.words import Path, keystr, listed
from ..tree.selecting import Where
from .description import KEYS, NONE, Fact, array_kind, enclosing, is_container, is_leaf, shape_in
from .ties import ties_in

_ADAPTERS = ("lora_a", "lora_b")
_WEIGHT, _SCALES = ".weight", ".scales"
_PACKED = "frostleaf.optim.Packed"
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
_NEITHER = (
    "\nThey are of a quantized model with adapters, and this one is neither: quantize it as that was, with fl.quantize, and "
    "make the adapters, fl.lora(model, where, rank=...), of the same layers and rank"
)
_NOT_YET_EITHER = (
    "\nThey are of a model without adapters that is not quantized, and this one is quantized and has some: load into a model "
    "with neither, and call fl.quantize and fl.lora then"
)
_ALONE = "\nThey are adapters of LoRA, for a model that has them: fl.lora(model) or fl.load_adapters(model, path)."
_PACKED_IN_FILE = "\nThe file has a packed model{place}: give like {like} there"
_PACKED_IN_LIKE = (
    "\nThe file has a model{place} that is not packed: give like {like} there, and call fl.optim.pack on what is loaded"
)
_TIED_IN_FILE = "\nArrays are tied in the file: tie the same first, {advice}"
_ONE_MODULE = (
    "\n{target!r} is the same module as {source!r} in the file: make like from a model of MLX that has one at both places, or "
    "read with strict=False, which reads it for both"
)
_TURNED = (
    "\nlike is tied the other way round than the file: strict=False keeps the ties of like, and strict=True takes like with "
    "those of the file, as in {advice}"
)
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
    """Return what to do if of two models, whose names are given, one has adapters around layers that the other has without.

    An empty string is returned where neither has, or both have.
    """
    has, has_to_have = ({name.rpartition(".")[2]: name for name in names}.keys() & {*_ADAPTERS} for names in (given, wanted))
    if bool(has) == bool(has_to_have):
        return ""
    adapted, plain = ({*given}, {*wanted}) if has else ({*wanted}, {*given})
    layers = sorted({name.rpartition(".")[0] for name in adapted if name.rpartition(".")[2] in _ADAPTERS})
    if has and all(name.rpartition(".")[0] in layers for name in adapted):
        return _ALONE
    weights = [name.removesuffix(_WEIGHT) for name in plain if name.endswith(_WEIGHT)]
    if not any(_ends_alike(layer, weight) for layer in layers[:_SHOWN] for weight in weights):
        return ""
    one, other = [any(name.endswith(_SCALES) for name in names) for names in (adapted, plain)]
    if one == other:
        return _NOT_ADAPTED if has else _NOT_YET_ADAPTED
    if other:
        return ""
    return _NEITHER if has else _NOT_YET_EITHER


def _ends_alike(one: str, other: str) -> bool:
    """Return whether of two paths one is the other, or that of the same place in a larger tree."""
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


def of_structure(
    in_file: Sequence[Fact],
    in_like: Sequence[Fact],
    there: Sequence[Fact],
    wanted: Sequence[Fact],
    where: Where | None,
    strict: bool,
) -> str:
    """Return what to write if a file has another structure; an empty string if that can't be told.

    Args:
        in_file: All facts about the tree in the file.
        in_like: All facts about ``like``.
        there: Those of the first that are about what is selected.
        wanted: Those of the second that are.
        where: The selection.
        strict: Whether the same has to be tied.
    """
    advice = _of_ties(in_file, in_like, {fact.path for fact in (*there, *wanted)}) if strict else ""
    advice = advice or _of_packed(there, wanted, in_like)
    advice = advice or of_layers(_leaves(there), _leaves(wanted))
    return advice or _of_place(in_file, _leaves(in_file), _leaves(wanted), where)


def _leaves(facts: Iterable[Fact]) -> set[str]:
    return {fact.path for fact in facts if is_leaf(fact)}


def _of_ties(in_file: Sequence[Fact], in_like: Sequence[Fact], selected: Set[str]) -> str:
    there, here = [
        {target: source for target, source in ties_in(facts).items() if target in selected} for facts in (in_file, in_like)
    ]
    kinds = {fact.path: shape_in(fact.text) for fact in in_like if not fact.aspect and fact.text != NONE}
    # Only what is of one shape, or of one class, can be one.
    missing = [(target, source) for target, source in there.items() if not _is_one(target, source, here) and target in kinds]
    missing = [(target, source) for target, source in missing if kinds[target] == kinds.get(source)]
    arrays = {fact.path for fact in in_like if array_kind(fact) is not None}
    pairs = [pair for pair in missing if pair[0] in arrays]
    if pairs:
        targets = {target for target, _ in pairs}
        calls = _calls([tie for tie in here.items() if tie[1] in targets], pairs, in_like)
        return _TIED_IN_FILE.format(
            advice=f"as in {listed(calls)}" if calls else f"of which all are in one module: {_shown(dict(pairs))}"
        )
    if missing:
        return _ONE_MODULE.format(target=missing[0][0], source=missing[0][1])
    if calls := _turned(there, here, arrays | {fact.path for fact in in_file if array_kind(fact) is not None}, in_like):
        return _TURNED.format(advice=listed(calls))
    untied = {fact.path for fact in in_file if not fact.aspect and fact.text != NONE} | there.keys()
    return _TIED_IN_LIKE if any(there.get(target) != source and target in untied for target, source in here.items()) else ""


def _is_one(place: str, other: str, ties: Mapping[str, str]) -> bool:
    """Return whether two places are tied, whichever is the source."""
    return ties.get(place, place) == ties.get(other, other)


def _turned(there: Mapping[str, str], here: Mapping[str, str], arrays: Set[str], in_like: Sequence[Fact]) -> list[str]:
    """Return how to give ``like`` the ties of the file, if they differ in nothing but which of the places is the source."""
    untied, tied = [
        [(target, source) for target, source in ties.items() if others.get(target) != source]
        for ties, others in ((here, there), (there, here))
    ]
    is_alike = all(_is_one(*pair, there) for pair in untied) and all(_is_one(*pair, here) for pair in tied)
    return _calls(untied, tied, in_like) if is_alike and all(arrays & {*pair} for pair in untied + tied) else []


def _calls(untied: Iterable[tuple[str, str]], tied: Iterable[tuple[str, str]], in_like: Sequence[Fact]) -> list[str]:
    """Return the code that takes some ties of ``like`` away, and ties others."""
    away = {where: f".untie({', '.join(map(repr, names))})" for where, names in _by_module(untied, in_like).items()}
    return [f"{where}{away.get(where, '')}.tie({_shown(names)})" for where, names in _by_module(tied, in_like).items()]


def _by_module(ties: Iterable[tuple[str, str]], in_like: Sequence[Fact]) -> dict[str, dict[str, str]]:
    """Return ties by the code for the module that is to have them, with names in there."""
    found: dict[str, dict[str, str]] = {}
    for target, source in ties:
        where, name = place_in(target, in_like)
        above = target.removesuffix(name)
        if source.startswith(above):
            found.setdefault(where, {})[name] = source.removeprefix(above)
    return found


def _of_packed(there: Sequence[Fact], wanted: Sequence[Fact], like: Sequence[Fact]) -> str:
    in_file, in_like = [{fact.path: fact.text for fact in facts if _is_module(fact)} for facts in (there, wanted)]
    for path in [path for path in in_file if path in in_like]:
        is_packed = [facts[path] == _PACKED for facts in (in_file, in_like)]
        if is_packed[0] != is_packed[1]:
            place, (outer, name) = f" at {path!r}" if path else "", place_in(path, like)
            here = f"{outer}.at({name!r}).get()" if name else outer
            if is_packed[0]:
                return _PACKED_IN_FILE.format(place=place, like=f"fl.optim.pack({here})")
            return _PACKED_IN_LIKE.format(place=place, like=f"{here}.unpack()")
    return ""


def _is_module(fact: Fact) -> bool:
    return not (fact.aspect or fact.text == NONE or is_leaf(fact) or is_container(fact))


def _shown(names: Mapping[str, str]) -> str:
    pairs = [f"{target!r}: {source!r}" for target, source in names.items()]
    return f"{{{', '.join(pairs[:_SHOWN])}{', ...' * (len(pairs) > _SHOWN)}}}"


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
