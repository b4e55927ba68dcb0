"""What keeps a file from being read into a tree, and what to write instead."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..core.words import listed
from ..tree.selecting import matches_glob
from .advice import containers_in, place_in
from .alignment import aligned, is_moved
from .description import Fact, array_kind, enclosing, is_container, is_leaf, is_value, leaves_in
from .differences import differences
from .meanings import without_meaning
from .packed import PACKED_ADVICE, otherwise_packed, readable

_LONGEST = 1000
_CANDIDATES = 10
_SETTINGS = 4
_LITERAL = re.compile(r"-?[\d.][\w.+-]*|True|False|None|'[^'\\]{0,40}'")

_OTHER_STRUCTURE = "the tree in the file doesn't have the structure of like:\n{differences}"
_FREEZE_LATER = (
    "\nThey differ in what is frozen: load into a model in which the same is frozen as in the file's, and freeze or unfreeze "
    "the one that is loaded"
)
_NOTHING_COMMON = "nothing in the file has the name of anything in like:\n{differences}"
_OTHER_KINDS = (
    "strict=False reads what has the same name, and some of that is of another kind:\n{differences}\nGive like what the file "
    "has there{advice}"
)
_MOVED = (
    "\nWhat is of the same class name may have moved to another module: strict=False reads by the names of arrays and numbers, "
    "whatever the classes are"
)
_OTHER_DTYPES = "\nOnly dtypes differ: give like the dtypes that the file has, and cast what is loaded, as with .astype(...)"
_SAME_ARRAYS = (
    "\nThe arrays and numbers have the same names and kinds: strict=False reads them, keeps all else as like has it, and "
    "reports where that differs"
)
_SET_FIRST = ". To have what the file has, build like with it, or put it there first, as in {set}"
_HELD_BY_ALL = (
    ". To have what the file has, build like with it: many modules hold what differs in {path!r}. If what is read doesn't "
    "compute with that, as with the number of layers, strict=False is right"
)
_SWITCH = "\nFor the mode of the file give {switched} there{more}"
_OTHER_MEANING = "\nThe numbers beside {paths} mean something else in the file, as that is another there: {advice}"
_REST = "strict=False keeps those of like, and reads the rest"
_NO_REST = "go on from those of like, or give like as it is in the file"
_COMMON = "\nstrict=False reads what both have under one name, and reports what else there is"
_RENAMED = (
    "\nfl.load(path, like, rename=lambda name: name.replace({old!r}, {new!r}), strict=False) reads what has another name now"
)
_GROWS = (
    "\nFor numbers that grow in count, give like {kind} of {length} of them at {path!r}, or keep them in metadata= of fl.save, "
    "which fl.load_metadata returns. A string holds any number of them, in a Checkpointer too: save json.dumps(...) "
    "of them there, and give like ''. strict=False reads what both have under one name, and reports what else there is"
)


def complaint(
    in_file: Sequence[Fact],
    in_like: Sequence[Fact],
    strict: bool,
    file: Sequence[Fact],
    like: Sequence[Fact],
    origins: Mapping[str, str],
    foreign: Mapping[str, str],
) -> tuple[str, str]:
    """Return what keeps a file from being read, and what to write instead; empty strings if nothing does.

    Args:
        in_file: The facts about what is selected of the tree in the file.
        in_like: Those about what is selected of ``like``.
        strict: Whether all of these must say the same.
        file: All facts about the tree in the file, under the names that it has there.
        like: All facts about ``like``.
        origins: The names in the file by those in ``like``, where these are others.
        foreign: The modules whose arrays mean something else in the file, and for each the static value that tells so.
    """
    common = leaves_in(in_file).keys() & leaves_in(in_like).keys()
    told, packed = ("", []) if file == like else otherwise_packed(file, like, common, origins)
    reason, remedy = _complaint(in_file, in_like, strict, like, packed)
    if reason and foreign:
        deciding = [[fact for fact in facts if fact.path in foreign.values()] for facts in (in_file, in_like)]
        rest = without_meaning([*leaves_in(in_like).values()], foreign)
        advice = _OTHER_MEANING.format(paths=listed(map(repr, foreign.values())), advice=_REST if rest else _NO_REST)
        return reason if rest else _told(_OTHER_STRUCTURE, *deciding), advice
    if not packed:
        return reason, remedy
    if reason and not strict:  # which says what to leave out
        return reason, PACKED_ADVICE
    return reason or told, PACKED_ADVICE + _leave_out(packed, leaves_in(in_file), leaves_in(in_like), like)


def _complaint(
    in_file: Sequence[Fact], in_like: Sequence[Fact], strict: bool, like: Sequence[Fact], packed: Sequence[str]
) -> tuple[str, str]:
    if strict:
        if in_file == in_like or sorted(there := aligned(in_file, in_like)) == sorted(in_like):
            return "", ""
        return _told(_OTHER_STRUCTURE, *readable(there, in_like)), _remedy(there, in_like, like)
    saved, wanted = leaves_in(in_file), leaves_in(in_like)
    common = [path for path in wanted if path in saved]
    other = [path for path in common if saved[path] != wanted[path]]
    if other:
        one, two = [saved[path] for path in other], [wanted[path] for path in other]
        remedy = _remedy(one, two, like)
        left_out = "" if remedy == _OTHER_DTYPES else _leave_out([*dict.fromkeys([*other, *packed])], saved, wanted, like)
        return _told(_OTHER_KINDS, one, two, advice=left_out), remedy
    if common:
        return "", ""
    return _told(_NOTHING_COMMON, [*saved.values()], [*wanted.values()]), _renaming(saved, wanted)


def _leave_out(names: Sequence[str], saved: Mapping[str, Fact], wanted: Mapping[str, Fact], like: Sequence[Fact]) -> str:
    """Return what selects all that both have but some names; an empty string if that is nothing, or takes too long to say."""
    left_out = {*names}
    left = [fact for path, fact in wanted.items() if path in saved and path not in left_out]
    function = f"lambda path, array: path not in [{', '.join(map(repr, names))}]"
    if leaves_in(like).keys() <= wanted.keys():
        # A function is asked about arrays alone.
        parts = [function] * any(not is_value(fact) for fact in left) + [repr(fact.path) for fact in left if is_value(fact)]
    else:  # of what is selected
        parts = [repr(fact.path) for fact in left]
    where = f"[{', '.join(parts)}]" if len(parts) > 1 else "".join(parts)
    return f", or leave it out by where={where}" if 0 < len(where) <= _LONGEST else ""


_Pairs = Mapping[tuple[str, str], tuple[Fact | None, Fact | None]]  # what differs, by path and aspect


def _remedy(in_file: Sequence[Fact], in_like: Sequence[Fact], like: Sequence[Fact]) -> str:
    there, wanted = [{fact[:2]: fact for fact in facts} for facts in (in_file, in_like)]
    keys = [key for key in dict.fromkeys([*there, *wanted]) if there.get(key) != wanted.get(key)]
    pairs = {key: (there.get(key), wanted.get(key)) for key in keys}
    aspects = {aspect for _, aspect in keys}
    if not pairs:  # they differ in their order, or where two have one name
        return ""
    if aspects == {"frozen"}:
        return _FREEZE_LATER
    if any(one and other and is_moved(one.text, other.text) for one, other in pairs.values()):
        return _MOVED
    kinds = [[fact and array_kind(fact) for fact in pair] for pair in pairs.values()]
    if all(one and other and one.partition("[")[2] == other.partition("[")[2] for one, other in kinds):
        return _OTHER_DTYPES
    saved, read = leaves_in(in_file), leaves_in(in_like)
    if len(saved) + len(read) < sum(map(is_leaf, [*in_file, *in_like])):  # two have one name
        return ""
    if saved.keys().isdisjoint(read):
        return _renaming(saved, read)
    if any(saved[path] != read[path] for path in saved.keys() & read.keys()):
        return ""
    if saved.keys() != read.keys():
        return _renaming(saved, read) or _lengthening(pairs) or _COMMON
    return _switching(pairs, like) if aspects <= {"mode", "frozen"} else _SAME_ARRAYS + _setting(pairs, like)


def _renaming(saved: Mapping[str, Fact], read: Mapping[str, Fact]) -> str:
    """Return what to say where all that is in the file is in ``like``, if one name on the way there is another."""
    name = min(saved.keys() - read.keys(), default="")
    for other in sorted(read.keys() - saved.keys())[:_CANDIDATES]:
        pairs = [pair for pair in zip(name.split("."), other.split("."), strict=False) if pair[0] != pair[1]]
        if len(pairs) != 1:
            continue
        old, new = (f"{each}." for each in pairs[0])
        if {path.replace(old, new): fact.text for path, fact in saved.items()} == {
            path: fact.text for path, fact in read.items()
        }:
            return _RENAMED.format(old=old, new=new)
    return ""


def _lengthening(pairs: _Pairs) -> str:
    """Return what to say of a list of numbers that is longer or shorter in the file; an empty string if there is none."""
    numbers = {path.rpartition(".")[0] for (path, _), pair in pairs.items() if any(fact and is_value(fact) for fact in pair)}
    for (path, _), (one, other) in pairs.items():
        if path in numbers and one and other and is_container(one) and is_container(other):
            kind, _, length = one.text.partition(" of ")
            if length and other.text.startswith(kind):
                return _GROWS.format(kind=f"a {kind}", length=length, path=path)
    return ""


def _switching(pairs: _Pairs, like: Sequence[Fact]) -> str:
    """Return how to put modules of ``like`` into the mode that they have in the file; an empty string if none has another."""
    modes = {path: pairs[path, aspect][0] is not None for path, aspect in pairs if aspect == "mode"}
    outer = [path for path in modes if modes.keys().isdisjoint(enclosing(path))]
    if not outer:
        return ""
    # What is said of a mode is that it is evaluation.
    call = "eval()" if modes[outer[0]] else "train()"
    where, selector, count = _selecting([path for path in outer if modes[path] == modes[outer[0]]], like)
    switched = f"{where}.at({selector}).apply(lambda module: module.{call})" if selector else f"{where}.{call}"
    more = len(outer) - count
    return _SWITCH.format(switched=switched, more=f", and so at {more:,} more" * (more > 0))


def _setting(pairs: _Pairs, like: Sequence[Fact]) -> str:
    """Return how to put static values of the file into ``like``; an empty string if nothing differs that can be put there."""
    containers, held = containers_in(like), Counter([fact.text for fact in like if fact.aspect == "static"])
    groups: dict[tuple[str, ...], list[str]] = {}  # the places that differ in the same way
    for (path, aspect), (one, other) in pairs.items():
        if aspect != "static" or one is None or other is None:
            continue
        if "(" in other.text and held[other.text] > 1:
            if groups:
                break
            return _HELD_BY_ALL.format(path=path)
        groups.setdefault((place_in(path, containers)[0], path.rpartition(".")[2], one.text, other.text), []).append(path)
    if not groups:
        return ""
    first = next(iter(groups))[0]
    calls = ""
    for (where, _, text, _), paths in [*groups.items()][:_SETTINGS]:
        if where == first:
            calls += f".at({_selecting(paths, like)[1]}).set({text if _LITERAL.fullmatch(text) else '...'})"
    return _SET_FIRST.format(set=first + calls)


def _selecting(paths: Sequence[str], like: Sequence[Fact]) -> tuple[str, str, int]:
    """Return the code for a module of ``like``, the code that selects those of some places that are in there, and their count.

    That is a glob where one fits these places alone, or a list; the first place if that takes too long to say. It is an empty
    text if the first place is the module itself.
    """
    where, name = place_in(paths[0], containers_in(like))
    if not name:
        return where, "", 1
    above = paths[0].removesuffix(name)
    names = [path.removeprefix(above) for path in paths if path.startswith(above)]
    if len(names) > 1:
        there = {fact.path.removeprefix(above) for fact in like if fact.path.startswith(above)}
        fitting = (glob for glob in _globs(names) if {*filter(_matches(glob), there)} == {*names})
        selector = repr(next(fitting, names))
        if len(selector) <= _LONGEST:
            return where, selector, len(names)
    return where, repr(name), 1


def _globs(names: Sequence[str]) -> Iterator[str]:
    """Yield globs that fit some names: with a star for each part in which they differ, and for all before the last part."""
    parts = [name.split(".") for name in names]
    if len({*map(len, parts)}) == 1:
        yield ".".join([each[0] if len({*each}) == 1 else "*" for each in zip(*parts, strict=True)])
    if len({each[-1] for each in parts}) == 1:
        yield f"**.{parts[0][-1]}"


def _matches(glob: str) -> Callable[[str], bool]:
    matches = matches_glob(glob)
    return lambda name: matches(tuple(name.split(".")))


def _told(message: str, in_file: Sequence[Fact], in_like: Sequence[Fact], **others: str) -> str:
    return message.format(differences="\n".join(differences(in_file, in_like)), **others)
