"""What a tree has besides its arrays, in words that are the same on all ranks of a job if it is."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterator
from typing import Any

from ..core.instance import Metadata
from ..core.structure import Static, Structure, specs_in
from ..core.words import keystr
from ..transforms.agreement import Said
from ..transforms.group import Group
from .description import TRAINING, Fallback, Writer


def said_of_structure(structure: Structure) -> Said:
    """Say of a tree what its modules are and what static values there are, by path: functions by their name and their code.

    What has no words is told of by its class. Of a group only the size is, since ranks may be in different ones.
    """
    return structure.remember(_said_of)


def said_of_value(value: Any) -> str:
    """Say what an argument is, as :func:`said_of_structure` says of a static value."""
    return _Writer().static("", value)


def _said_of(structure: Structure) -> Said:
    writer = _Writer()
    said = {}
    for path, spec in specs_in(structure):
        name = keystr(path)
        if isinstance(spec, Static):
            said[name or "the value"] = writer.static(name, spec.value)
        elif isinstance(spec, tuple) and isinstance(spec[1], Metadata):
            said[f"{name or 'the module'} (mode)"] = TRAINING
            for path_of, aspect, text in writer.facts_of(name, spec, _by_class):
                of = f" ({aspect})" if aspect not in ("", "static") else ""
                said[(path_of or "the module") + of] = text
    return said


def _by_class(value: Any, _: Any) -> str:
    return type(value).__name__


class _Writer(Writer):
    def canonical(self, value: Any, fallback: Fallback, around: tuple[int, ...] = ()) -> str:
        if isinstance(value, Group):
            return f"a group of {value.size()}"
        text = super().canonical(value, fallback, around)
        if isinstance(value, types.FunctionType):
            return f"{text} with code {hashlib.blake2b(repr(_code(value.__code__)).encode(), digest_size=4).hexdigest()}"
        return text


def _code(code: types.CodeType) -> tuple[Any, ...]:
    """Return what code does, without where it is: the same in each process."""
    return code.co_code, code.co_names, code.co_varnames, [*_constants(code.co_consts)]


def _constants(constants: Any) -> Iterator[Any]:
    for each in constants:
        if isinstance(each, types.CodeType):
            yield _code(each)
        elif isinstance(each, frozenset):  # in an order that each process has for itself
            yield sorted(map(repr, each))
        else:
            yield each
