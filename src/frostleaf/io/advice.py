"""What to write instead if a file's names are not those of a model: they stand elsewhere, or one has adapters or ties."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from types import FunctionType
from typing import Any

from ..core.words import Path, keystr, listed
from ..tree.selecting import Where
from .description import KEYS, NONE, Fact, array_kind, enclosing, is_container, is_object, leaves_in, shape_in
from .packed import layouts_in, modes_in, modules_apart
from .ties import ties_in

_ADAPTERS = ("lora_a", "lora_b")
_WEIGHT, _SCALES = ".weight", ".scales"
_PACKED = "frostleaf.optim.Packed"
_STATE, _FLATTENED = "frostleaf.optim.OptimizerState", "frostleaf.optim.FlattenedState"
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
    "\nThey are of a model that isn't quantized, and this one is: load into the model as it was before fl.quantize, and call "
    "that then"
)
_NEITHER = (
    "\nThey are of a quantized model with adapters, and this one has none and is not quantized: quantize it as that was, with "
    "fl.quantize, and make the adapters, fl.lora(model, where, rank=...), of the same layers and rank"
)
_NOT_YET_EITHER = (
    "\nThey are of a model without adapters that is not quantized, and this one is quantized and has some: load into a model "
    "with neither, and call fl.quantize and fl.lora then"
)
_ALONE = "\nThey are adapters of LoRA, for a model that has them: fl.lora(model) or fl.load_adapters(model, path)"
_PACKED_IN_FILE = "\nThe file has a packed model{place}: give like {like} there"
_PACKED_IN_LIKE = (
    "\nThe file has a model{place} that is not packed: give like {like} there, and call fl.optim.pack on what is loaded"
)
_PACKED_NAMES = re.compile(r"(?:.*\.)?vectors\.(?:b?float|complex)\d+")
_OF_PACKED = (
    "\nThey are of a packed model (fl.optim.pack), which fl.save wrote: load it as it was saved, as in "
    "fl.load(file, fl.optim.pack(model)), and take .unpack() of it"
)
_PACKED_WHOLE = (
    "The file has a packed model{place}, which is read whole: give like fl.optim.pack(model) there, with where={path!r}, and "
    "take what is wanted of the .unpack() of what is loaded"
)
_PACKED_ALL = (
    "The file is a packed model, which is read whole: give like fl.optim.pack(model), without where=, and take what is wanted "
    "of the .unpack() of what is loaded"
)
_FLATTENED_IN_FILE = (
    "\nThe file has the state of a flattened optimizer{place}: give like the state of fl.optim.flatten(opt) there, and go on "
    "with that optimizer, as what an array remembers lies elsewhere in it"
)
_FLATTENED_IN_LIKE = (
    "\nThe file has the state of an optimizer{place} that is not flattened: give like the state of opt rather than of "
    "fl.optim.flatten(opt) there, and go on with opt, as what an array remembers lies elsewhere in it"
)
_OTHER_MODULES = "\nThe packed model{place} is of other modules than like's: pack one that is as in the file"
_OTHER_MODES = "\nModules of the packed model{place} are in another mode: give like fl.optim.pack({here}) there"
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
_HOLDER = " What is there in the file is what like is itself: give like={like}, and take {taken} of what is loaded"
_NOT_MADE = (
    "\nlike has {kind} {name}{place}, and none of what it makes: give fl.eval_shape({name}) instead, with its arguments if it "
    "has any, as in fl.eval_shape({name}, 2, 3)"
)


def of_maker(values: Iterable[tuple[Path, Any]], file: Sequence[Fact]) -> str:
    """Return what to write if ``like`` has a class or function where the file has what one makes; an empty string otherwise.

    Args:
        values: The static values in ``like``, with their paths.
        file: All facts about the tree in the file.
    """
    holders = {above for leaf in leaves_in(file) for above in enclosing(leaf)}
    for path, value in values:
        if keystr(path) in holders and isinstance(value, type | FunctionType | partial):
            kind = "the class" if isinstance(value, type) else "the function"
            name = getattr(value, "__name__", "")
            place = f" at {keystr(path)!r:.80}" if path else ""
            return _NOT_MADE.format(kind=kind, name=name if name.isidentifier() else "make", place=place)
    return ""


def of_holder(file: Sequence[Fact], like: Sequence[Fact], where: Where | None) -> str:
    """Return what to write if ``like`` is what is selected in the file, rather than what holds it; an empty string otherwise.

    Args:
        file: All facts about the tree in the file.
        like: All facts about ``like``.
        where: The selection.
    """
    place = where.removesuffix(".**") if isinstance(where, str) else ""
    inside = {leaf.removeprefix(f"{place}.") for leaf in leaves_in(file) if leaf.startswith(f"{place}.")}
    if not place or not inside or inside != leaves_in(like).keys():
        return ""
    names = [*map(repr, place.split("."))]
    held = "".join(f"{{{name}: " for name in names) + "like" + "}" * len(names)
    return _HOLDER.format(like=held, taken="".join(f"[{name}]" for name in names))


def of_layers(given: Set[str], wanted: Set[str]) -> str:
    """Return what to do if of two models, whose names are given, one is packed, has adapters or is quantized; else nothing."""
    return _of_packed_names(given, wanted) or _of_adapters(given, wanted) or of_quantized(given, wanted)


def _of_packed_names(given: Iterable[str], wanted: Iterable[str]) -> str:
    are_packed = [any(_PACKED_NAMES.fullmatch(name) for name in names) for names in (given, wanted)]
    return _OF_PACKED if are_packed == [True, False] else ""


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
    strict: bool,
    file: Sequence[Fact],
    like: Sequence[Fact],
    where: Where | None,
) -> str:
    """Return what to write if a file has another structure; an empty string if that can't be told.

    Args:
        in_file: The facts about what is selected of the tree in the file.
        in_like: Those about what is selected of ``like``.
        strict: Whether the same has to be tied.
        file: All facts about the tree in the file.
        like: All facts about ``like``.
        where: The selection.
    """
    saved, wanted = leaves_in(in_file).keys(), leaves_in(in_like).keys()
    advice = _of_ties(file, like, {fact.path for fact in (*in_file, *in_like)}) if strict else ""
    advice = advice or _of_packed(in_file, in_like, like) or _of_layouts(in_file, in_like, like)
    advice = advice or _of_states(in_file, in_like)
    if not advice and (whole := of_packed_part(file, wanted)):
        return f"\n{whole}"
    return advice or of_layers(saved, wanted) or _of_place(file, leaves_in(file).keys(), wanted, where)


def _of_ties(file: Sequence[Fact], like: Sequence[Fact], selected: Set[str]) -> str:
    there, here = [
        {target: source for target, source in ties_in(facts).items() if target in selected} for facts in (file, like)
    ]
    kinds = {fact.path: shape_in(fact) for fact in like if not fact.aspect and fact.text != NONE}
    # Only what is of one shape, or of one class, can be one.
    missing = [(target, source) for target, source in there.items() if not _is_one(target, source, here) and target in kinds]
    missing = [(target, source) for target, source in missing if kinds[target] == kinds.get(source)]
    arrays = {fact.path for fact in like if array_kind(fact) is not None}
    pairs = [pair for pair in missing if pair[0] in arrays]
    if pairs:
        targets = {target for target, _ in pairs}
        calls = _calls([tie for tie in here.items() if tie[1] in targets], pairs, like)
        return _TIED_IN_FILE.format(
            advice=f"as in {listed(calls)}" if calls else f"of which all are in one module: {_shown(dict(pairs))}"
        )
    if missing:
        return _ONE_MODULE.format(target=missing[0][0], source=missing[0][1])
    if calls := _turned(there, here, arrays | {fact.path for fact in file if array_kind(fact) is not None}, like):
        return _TURNED.format(advice=listed(calls))
    untied = {fact.path for fact in file if not fact.aspect and fact.text != NONE} | there.keys()
    return _TIED_IN_LIKE if any(there.get(target) != source and target in untied for target, source in here.items()) else ""


def _is_one(place: str, other: str, ties: Mapping[str, str]) -> bool:
    """Return whether two places are tied, whichever is the source."""
    return ties.get(place, place) == ties.get(other, other)


def _turned(there: Mapping[str, str], here: Mapping[str, str], arrays: Set[str], like: Sequence[Fact]) -> list[str]:
    """Return how to give ``like`` the ties of the file, if they differ in nothing but which of the places is the source."""
    untied, tied = [
        [(target, source) for target, source in ties.items() if others.get(target) != source]
        for ties, others in ((here, there), (there, here))
    ]
    is_alike = all(_is_one(*pair, there) for pair in untied) and all(_is_one(*pair, here) for pair in tied)
    return _calls(untied, tied, like) if is_alike and all(arrays & {*pair} for pair in untied + tied) else []


def _calls(untied: Iterable[tuple[str, str]], tied: Iterable[tuple[str, str]], like: Sequence[Fact]) -> list[str]:
    """Return the code that takes some ties of ``like`` away, and ties others."""
    away = {where: f".untie({', '.join(map(repr, names))})" for where, names in _by_module(untied, like).items()}
    return [f"{where}{away.get(where, '')}.tie({_shown(names)})" for where, names in _by_module(tied, like).items()]


def _by_module(ties: Iterable[tuple[str, str]], like: Sequence[Fact]) -> dict[str, dict[str, str]]:
    """Return ties by the code for the module that is to have them, with names in there."""
    containers = containers_in(like)
    found: dict[str, dict[str, str]] = {}
    for target, source in ties:
        where, name = place_in(target, containers)
        above = target.removesuffix(name)
        if source.startswith(above):
            found.setdefault(where, {})[name] = source.removeprefix(above)
    return found


def _of_packed(in_file: Sequence[Fact], in_like: Sequence[Fact], like: Sequence[Fact]) -> str:
    there, wanted = [
        {fact.path: fact.text for fact in facts if is_object(fact) and fact.text != NONE} for facts in (in_file, in_like)
    ]
    for path in [path for path in there if path in wanted]:
        is_packed = [facts[path] == _PACKED for facts in (there, wanted)]
        if is_packed[0] != is_packed[1]:
            place, here = f" at {path!r}" if path else "", _taken(path, like)
            if is_packed[0]:
                return _PACKED_IN_FILE.format(place=place, like=f"fl.optim.pack({here})")
            return _PACKED_IN_LIKE.format(place=place, like=f"{here}.unpack()")
    return ""


def _of_layouts(in_file: Sequence[Fact], in_like: Sequence[Fact], like: Sequence[Fact]) -> str:
    there, wanted = layouts_in(in_file), layouts_in(in_like)
    for path in there:
        apart = path in wanted and there[path] != wanted[path] and modules_apart(there[path], wanted[path])
        if apart:
            holder = path.rpartition(".")[0]
            place = f" at {holder!r}" if holder else ""
            pairs = [(modes_in(parts), call) for parts, call in zip(apart, ("eval", "train"), strict=True)]
            calls = ""
            # First what is around the others, as a call sets all in there.
            for outer, call in sorted([pair for pair in pairs if pair[0]], key=lambda pair: min(map(len, pair[0]))):
                calls += f".{call}()" if outer == [""] else f".at({outer}).apply(lambda module: module.{call}())"
            if not calls or any(" mode " not in part for part in (*apart[0], *apart[1])):
                return _OTHER_MODULES.format(place=place)
            return _OTHER_MODES.format(place=place, here=f"{_taken(holder, like)}.unpack(){calls}")
    return ""


def _of_states(in_file: Sequence[Fact], in_like: Sequence[Fact]) -> str:
    there, wanted = [{fact.path: fact.text for fact in facts if is_object(fact)} for facts in (in_file, in_like)]
    for path in [path for path in there if path in wanted]:
        kinds = there[path], wanted[path]
        place = f" at {path!r}" if path else ""
        if kinds in ((_STATE, _FLATTENED), (_FLATTENED, _STATE)):
            return (_FLATTENED_IN_FILE if kinds[0] == _FLATTENED else _FLATTENED_IN_LIKE).format(place=place)
    return ""


def of_packed_part(in_file: Iterable[Fact], names: Iterable[str]) -> str:
    """Return what to write to read a part of a packed model, if all of some names are in one that a file has; else nothing."""
    for fact in in_file:
        if is_object(fact) and fact.text == _PACKED:
            above = f"{fact.path}." if fact.path else ""
            own = tuple([f"{above}{part}." for part in ("vectors", "large", "rest")])
            if all(name.startswith(above) and not f"{name}.".startswith(own) for name in names):
                place = f" at {fact.path!r}"
                return _PACKED_WHOLE.format(place=place, path=fact.path) if fact.path else _PACKED_ALL
    return ""


def _taken(path: str, like: Sequence[Fact]) -> str:
    outer, name = place_in(path, containers_in(like))
    return f"{outer}.at({name!r}).get()" if name else outer


def _shown(names: Mapping[str, str]) -> str:
    pairs = [f"{target!r}: {source!r}" for target, source in names.items()]
    return f"{{{', '.join(pairs[:_SHOWN])}{', ...' * (len(pairs) > _SHOWN)}}}"


def _of_place(file: Sequence[Fact], there: Set[str], names: Set[str], where: Where | None) -> str:
    if not names or not names.isdisjoint(there):
        return ""
    places = [prefix.removesuffix(".") for prefix in prefixes_of(there, names)]
    if places:
        like, taken = "model", ""
        for path, entry in _steps(places[0]):
            like, access = _held(file, path, entry, like)
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


def _held(file: Sequence[Fact], path: str, entry: str, inner: str) -> tuple[str, str]:
    """Return how to write a container as the file has it at a path, with something in it, and how to take that out again."""
    about = {fact.aspect: fact.text for fact in file if fact.path == path}
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


def containers_in(facts: Iterable[Fact]) -> set[str]:
    """Return the paths of the lists, tuples and dicts of a tree."""
    return {fact.path for fact in facts if is_container(fact)}


def place_in(path: str, containers: Set[str]) -> tuple[str, str]:
    """Return the code for the outermost module around a place of ``like``, and the name of the place in there.

    Args:
        path: The place.
        containers: The paths of those of ``like``.
    """
    where, above, names = "like", "", path.split(".") if path else []
    while names and above in containers:
        name = names.pop(0)
        where, above = f"{where}[{name if name.isdecimal() else repr(name)}]", f"{above}.{name}".removeprefix(".")
    return where, ".".join(names)
