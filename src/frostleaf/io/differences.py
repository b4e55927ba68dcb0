"""Tell where the descriptions of two trees differ, in a few lines that a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ..core.words import nearest
from .description import ARRAY, KEYS, NONE, TRAINING, Fact, enclosing
from .told import unlike

_LINES = 6
_LONGEST = 80
_SUGGESTIONS = 5  # each takes as long as comparing one name with all others
_NOTHING = Fact("", "", "nothing")
T = TypeVar("T")
_Texts = Mapping[tuple[str, str], str]  # by path and aspect
_FILLED = (
    "what is private and another in like is filled by a call, as that of a cache: give like what the call makes, such as "
    "fl.eval_shape(fl.stateful, lambda cache: model(tokens, cache=cache), cache)[1], with as many tokens where the cache grows"
)
_OBJECT = "{path} (static): an object in the file, another one in {given}"
_MODE = ", as for what is in it: give {given} with what .{switch}() returns there"


def differences(file: Sequence[Fact], like: Sequence[Fact], given: str = "like") -> list[str]:
    """Return a line for each place where the structure in a file differs from that of another tree, and none for those below.

    Args:
        file: The facts about the tree in the file.
        like: Those about the other.
        given: What to call that. Default: ``"like"``.
    """
    in_file = {(fact.path, fact.aspect): fact.text for fact in file}
    in_like = {(fact.path, fact.aspect): fact.text for fact in like}
    found: dict[tuple[str, str], None] = {}
    for path, aspect in dict.fromkeys([*in_file, *in_like]):
        if in_file.get((path, aspect)) == in_like.get((path, aspect)) or (aspect and (path, "") in found):
            continue
        if not any((each, "") in found for each in enclosing(path)):
            found[path, aspect] = None
    # Missing keys are told by their paths, so the list of the dict's keys need not be.
    told = {each for path, aspect in found if aspect != KEYS for each in enclosing(path)}
    places = [(path, aspect) for path, aspect in found if aspect != KEYS or path not in told]
    # A mode that all of a module is in is told once.
    modes = {path: in_file.get((path, aspect), TRAINING) for path, aspect in places if aspect == "mode"}
    outer = outer_modes(modes)
    places = [(path, aspect) for path, aspect in places if aspect != "mode" or outer[path] is None]
    objects = [place for place in places if _is_private_object(*place, in_file.get(place), in_like.get(place))]
    rows = _rows([place for place in places if place not in objects], in_file, in_like)
    lines = [_line(row, in_file, in_like, given, count < _SUGGESTIONS) for count, row in enumerate(rows[:_LINES])]
    for number, row in enumerate(rows[:_LINES]):
        if row.aspect == "mode" and row.path in outer.values():
            lines[number] += _MODE.format(given=given, switch="train" if modes[row.path] == TRAINING else "eval")
    lines += [_OBJECT.format(path=path, given=given) for path, _ in objects[: _LINES - len(lines)]]  # they say least
    if not places:  # they differ in their order, or in what no path shows, such as the keys 1 and "1" of one dict
        pairs = zip(file, like, strict=False)
        one, other = next((pair for pair in pairs if pair[0] != pair[1]), (_NOTHING, _NOTHING))
        lines = [f"{one.path or '(root)'}: {one.text} in the file, where {given} has {other.path or '(root)'}: {other.text}"]
    if len(rows) + len(objects) > _LINES:
        lines.append(f"and {len(rows) + len(objects) - _LINES:,} more")
    filled = [path for path, aspect in places if _is_filled(in_file.get((path, aspect)), in_like.get((path, aspect)), aspect)]
    return [*lines, _FILLED] if any(name.startswith("_") for path in filled for name in path.split(".")) else lines


def outer_modes(modes: Mapping[str, T]) -> dict[str, str | None]:
    """Return for the path of each module in another mode the outermost around it that is in the same, or ``None``."""
    return {path: next((each for each in enclosing(path) if modes.get(each) == mode), None) for path, mode in modes.items()}


def _is_private_object(path: str, aspect: str, one: str | None, other: str | None) -> bool:
    """Return whether a place is a private attribute with an object in it whose text is too long to be read."""
    is_private = path.rpartition(".")[2].startswith("_")
    return bool(is_private and aspect == "static" and one and other and min(len(one), len(other)) > _LONGEST)


def _is_filled(one: str | None, other: str | None, aspect: str) -> bool:
    """Return whether there is an array in the file only, or an object that no line shows, such as one that counts tokens."""
    if aspect == "static" and one and other:
        return min(len(one), len(other)) > _LONGEST
    return other == NONE and one is not None and one.startswith(ARRAY)


class _Row(NamedTuple):
    """A difference: where it is, what each of the two trees has, and how many more places of that name differ so."""

    path: str
    aspect: str
    in_file: str
    in_like: str
    more: int = 0


def _rows(places: Iterable[tuple[str, str]], in_file: _Texts, in_like: _Texts) -> list[_Row]:
    rows: dict[tuple[str, ...], _Row] = {}
    for path, aspect in places:
        absent = TRAINING if aspect == "mode" else "nothing"
        texts = in_file.get((path, aspect), absent), in_like.get((path, aspect), absent)
        for name, one, other in unlike(*texts, _LONGEST) if aspect == "static" else [("", *texts)]:
            where = f"{path}.{name}" if name else path
            # Many layers may hold one configuration.
            key = (path.rpartition(".")[2], name, one, other) if aspect == "static" else (where, aspect)
            rows[key] = rows[key]._replace(more=rows[key].more + 1) if key in rows else _Row(where, aspect, one, other)
    return [*rows.values()]


def _line(row: _Row, in_file: _Texts, in_like: _Texts, given: str, suggest: bool) -> str:
    path, aspect, place = row.path, row.aspect, row[:2]
    ending = f", and so at {row.more:,} more" if row.more else ""
    if suggest and not aspect and not (place in in_file and place in in_like):
        known, others = (in_file, in_like) if place in in_file else (in_like, in_file)
        ending = nearest(path, [name for name, its in others if not its and (name, its) not in known])
    one, other = _excerpts(row.in_file, row.in_like)
    return f"{shown_place(path, aspect)}: {one} in the file, {other} in {given}{ending}"


def shown_place(path: str, aspect: str) -> str:
    """Return how a person reads what a fact is about."""
    return f"{path or '(root)'} ({aspect})" if aspect else path or "(root)"


def _excerpts(one: str, other: str) -> tuple[str, str]:
    """Return two texts, cut down around the place where they begin to differ if they are long."""
    pairs = zip(one, other, strict=False)
    same = next((at for at, (first, second) in enumerate(pairs) if first != second), min(len(one), len(other)))
    start = max(0, same - _LONGEST // 4) if max(len(one), len(other)) > _LONGEST else 0

    def excerpt(text: str) -> str:
        return f"{'...' * (start > 0)}{text[start : start + _LONGEST]}{'...' * (len(text) > start + _LONGEST)}"

    return excerpt(one), excerpt(other)
