"""Other names for arrays that are packed end to end, where a file's names are not those of a model."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence

from .description import Fact, is_leaf
from .packed import layouts_in
from .renaming import Rename, renaming

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'" r'|"(?:[^"\\]|\\.)*"')
# What says of which arrays a packed model is: its modules, then the names, then where each is.
_OF_MODEL = re.compile(r"(.*_Layout\(structure=\(.*; )(.*?)(\), places=.*)", re.DOTALL)
# The state of an optimizer says it of each array: the name, the vector, the shape.
_NAME_IN_STATE = re.compile(rf"(?:{_QUOTED.pattern})(?=, '\w+', \()")
_SLOTS = "slots."


def with_new_names(facts: Sequence[Fact], rename: Rename | None) -> Sequence[Fact]:
    """Return facts about a tree in a file with the new names of what is packed: those that it would get if it were not.

    These are ``layer.weight`` in a packed model, and ``slots.layer.weight.m`` in the state of a flattened optimizer. Where one
    is left out, or does not stay in there, it gets none.
    """
    layouts = layouts_in(facts)
    if rename is None or not layouts:
        return facts
    leaves, new_name = [fact.path for fact in facts if is_leaf(fact)], renaming(rename)
    return [_with_new_names(fact, leaves, new_name) if layouts.get(fact.path) is fact else fact for fact in facts]


def _with_new_names(fact: Fact, leaves: Sequence[str], new_name: Callable[[str], str | None]) -> Fact:
    holder = fact.path.rpartition(".")[0]
    above = f"{holder}." if holder else ""
    inside = [leaf.removeprefix(above) for leaf in leaves if leaf.startswith(above)]
    news = [(name, new_name(above + name)) for name in inside]
    place = next((new.removesuffix(name) for name, new in news if new is not None and new.endswith(name)), None)
    if place is None:  # all of it is left out
        return fact
    of_model = _OF_MODEL.fullmatch(fact.text)
    keys = sorted({name.rpartition(".")[2] for name in inside if name.startswith(_SLOTS)})
    start, ends = ("", [""]) if of_model else (_SLOTS, [f".{key}" for key in keys] or [""])

    def renamed(found: re.Match[str]) -> str:
        name = ast.literal_eval(found[0])
        olds = {end: f"{above}{start}{name}{end}" for end in ends}
        news = {end: new_name(old) for end, old in olds.items()}
        # What has no other name goes with what holds it.
        inner = {name if news[end] == olds[end] else _between(place + start, news[end], end) for end in ends}
        return ascii(inner.pop() if len(inner) == 1 else None)

    if of_model is None:
        return fact._replace(text=_NAME_IN_STATE.sub(renamed, fact.text))
    modules, names, places = of_model.groups()
    return fact._replace(text=modules + _QUOTED.sub(renamed, names) + places)


def _between(start: str, name: str | None, end: str) -> str | None:
    if name is None or not name.startswith(start) or not name.endswith(end):
        return None
    return name.removeprefix(start).removesuffix(end)
