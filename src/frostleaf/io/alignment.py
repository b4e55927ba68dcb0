"""Which facts about a tree in a file say the same as those about another: dicts have no order, and a script no name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .description import KEYS, Fact

# A text in quotes, or a dotted name.
_TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\W\d][\w.<>]*""")
_SCRIPT = "__main__"


def aligned(in_file: Sequence[Fact], in_like: Sequence[Fact]) -> list[Fact]:
    """Return the facts about a tree in a file, with the texts of those that say the same about ``like``.

    Two texts say the same if they have the keys of a dict in another order, or if what is a class or function of ``__main__``
    in one has the same name in a module in the other.
    """
    wanted = {(fact.path, fact.aspect): fact for fact in in_like}
    pairs = [(fact, wanted.get((fact.path, fact.aspect), fact)) for fact in in_file]
    return [like if _say_the_same(fact, like) else fact for fact, like in pairs]


def are_in_one_order(in_file: Sequence[Fact], in_like: Sequence[Fact]) -> bool:
    """Return whether the places of two trees are in one order, also where paths don't tell them apart: the keys 1 and "1"."""
    if in_file is in_like:
        return True
    orders = [[(*fact[:2], fact.text * (fact.aspect == KEYS)) for fact in facts] for facts in (in_file, in_like)]
    return orders[0] == orders[1]


def _say_the_same(one: Fact, other: Fact) -> bool:
    if one.text == other.text:
        return True
    if one.aspect == KEYS:
        return sorted(one.text.split(", ")) == sorted(other.text.split(", "))
    pairs = [*zip(_TOKEN.findall(one.text), _TOKEN.findall(other.text), strict=False)]
    return _TOKEN.sub("\0", one.text) == _TOKEN.sub("\0", other.text) and all(
        here == there or _is_of_script(here, there) or _is_of_script(there, here) for here, there in pairs
    )


def _is_of_script(name: str, other: str) -> bool:
    return name.startswith(f"{_SCRIPT}.") and other.endswith(name.removeprefix(_SCRIPT)) and other[0] not in "'\""


def is_class(text: str) -> bool:
    """Return whether a text is the name of a class in a module."""
    return _TOKEN.fullmatch(text) is not None and text[0] not in "'\"" and "." in text


def is_moved(one: str, other: str) -> bool:
    """Return whether two texts are the names of classes that only their modules tell apart."""
    return one != other and is_class(one) and is_class(other) and one.rpartition(".")[2] == other.rpartition(".")[2]
