"""The text that a description has for a static value, in fewer words, and where two of them differ."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[()\[\]{}]|, |[^'"()\[\]{},]+|.""", re.DOTALL)
_NAMED = re.compile(r"(\w+)=|('[^']*'|-?\w+): ")
_CLOSED_BY = {"(": ")", "[": "]", "{": "}"}

# Of these, the content of a kept value is described as its class, and what is in it.
_SCALARS = ("bool", "int", "float", "complex", "str", "bytes")
_BRACKETS = {"list": "[]", "tuple": "()", "set": "{}", "frozenset": "{}"}
_DEEPEST = 100
_MADE = "copyreg.__newobj__"  # of any other class, what pickle would make it of


class _Group(NamedTuple):
    """Items in brackets. An item is texts and groups that follow one another."""

    opened: str
    items: list[list[Any]]


class _Told(NamedTuple):
    """A value in few words, and what it is made of, by name, if that has names."""

    text: str
    fields: Mapping[str, _Told] | None = None


@functools.lru_cache(maxsize=64)
def unlike(one: str, other: str, longest: int) -> tuple[tuple[str, str, str], ...]:
    """Return where two texts of static values differ: the dotted name in there, and what each has, in fewer words.

    The name is empty, and the whole values are returned, if these have no more than so many characters, or no names.

    >>> unlike("nets.Config(size=2, act=nets.relu)", "nets.Config(size=3, act=nets.relu)", 10)
    (('size', '2', '3'),)
    >>> unlike("(builtins.list, ((builtins.int, 1), (builtins.float, '0.5')), ())", "(builtins.list, (), ())", 80)
    (('', '[1, 0.5]', '[]'),)
    """
    values = [_told(_parsed(text)) for text in (one, other)]
    if values[0].text == values[1].text:  # they differ in what the few words leave out
        return (("", one, other),)
    if max(len(value.text) for value in values) <= longest:
        return (("", values[0].text, values[1].text),)
    return (*_unlike("", *values),)


def _unlike(name: str, one: _Told, other: _Told) -> Iterator[tuple[str, str, str]]:
    if one.fields is None or other.fields is None or one.fields.keys().isdisjoint(other.fields):
        yield name, one.text, other.text
        return
    absent = _Told("nothing")
    for field in dict.fromkeys([*one.fields, *other.fields]):
        values = [fields.get(field, absent) for fields in (one.fields, other.fields)]
        if values[0] != values[1]:
            yield from _unlike(f"{name}.{field}" if name else field, *values)


def _parsed(text: str) -> list[Any]:
    """Return the item that a text is; the text itself if its brackets don't match, or are too deep."""
    groups = [_Group("", [[]])]
    for token in _TOKEN.findall(text):
        if len(groups) > _DEEPEST:
            return [text]
        if token in _CLOSED_BY:
            groups.append(_Group(token, [[]]))
            groups[-2].items[-1].append(groups[-1])
        elif token in _CLOSED_BY.values():
            if _CLOSED_BY.get(groups.pop().opened) != token:
                return [text]
        elif token == ", " and len(groups) > 1:
            groups[-1].items.append([])
        else:
            groups[-1].items[-1].append(token)
    return groups[0].items[0] if len(groups) == 1 else [text]


def _told(item: list[Any]) -> _Told:
    content = _told_content(item[0]) if len(item) == 1 and isinstance(item[0], _Group) else None
    if content is not None:
        return content
    named = [_named(each) for each in item[-1].items if each] if item and isinstance(item[-1], _Group) else []
    fields = dict(each for each in named if each is not None)
    return _Told(_joined(item), fields if named and None not in named else None)


def _joined(item: list[Any]) -> str:
    return "".join([_in_brackets(each) if isinstance(each, _Group) else each for each in item])


def _in_brackets(group: _Group) -> str:
    return f"{group.opened}{_listed(group)}{_CLOSED_BY[group.opened]}"


def _listed(group: _Group) -> str:
    return ", ".join([_told(each).text for each in group.items if each])


def _named(item: list[Any]) -> tuple[str, _Told] | None:
    """Return the name and the value of an item ``name=value`` or ``key: value``; ``None`` for another."""
    texts = [*itertools.takewhile(lambda each: isinstance(each, str), item)]
    text = "".join(texts)
    found = _NAMED.match(text)
    if found is None:
        return None
    rest = [text[found.end() :]] if text[found.end() :] else []
    return found[1] or found[2].strip("'"), _told([*rest, *item[len(texts) :]])


def _told_content(group: _Group) -> _Told | None:
    """Return what a group says if it is the content of a kept value; ``None`` if it is something else."""
    kind, *parts = [item[-1] if item else "" for item in group.items]
    if not isinstance(kind, str) or not parts:
        return None
    name = kind.removeprefix("builtins.")
    if kind == "builtins.NoneType":
        return _Told("None")
    if kind != name and name in _SCALARS and isinstance(parts[0], str):
        return _Told(parts[0].strip("'") if name in ("float", "complex") else _joined(group.items[1]))
    if not isinstance(parts[0], _Group):
        return None
    if kind != name and name in _BRACKETS:
        return _Told(f"{_BRACKETS[name][0]}{_listed(parts[0])}{_BRACKETS[name][1]}")
    if kind == "builtins.dict":
        items = _pairs(parts[0])
        return _Told(f"{{{', '.join([f'{key}: {value.text}' for key, value in items.items()])}}}", _by_name(items))
    made = [item[-1] if item else "" for item in parts[0].items]
    state = _told_content(made[2]) if made[0] == _MADE and len(made) > 2 and isinstance(made[2], _Group) else None
    fields = (state.fields or {}) if state else _by_name(_pairs(parts[0]))
    if "." not in kind or not fields:
        return None
    return _Told(f"{kind}({', '.join([f'{key}={value.text}' for key, value in fields.items()])})", fields)


def _pairs(group: _Group) -> dict[str, _Told]:
    """Return what is in a group of pairs, by what comes first in each; nothing if it is a group of something else."""
    pairs = [item[0].items for item in group.items if len(item) == 1 and isinstance(item[0], _Group)]
    if len(pairs) < sum(map(bool, group.items)) or any(len(pair) != 2 for pair in pairs):
        return {}
    return {_told(key).text: _told(value) for key, value in pairs}


def _by_name(fields: Mapping[str, _Told]) -> Mapping[str, _Told]:
    return {key.strip("'"): value for key, value in fields.items()}
