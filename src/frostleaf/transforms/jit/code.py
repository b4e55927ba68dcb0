"""What code reads and assigns to, as its instructions tell without running."""

from __future__ import annotations

import dis
import re
import types
import weakref
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_CLOSURE = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_BETWEEN = ("PUSH_NULL", "PRECALL")
ANY = "*"
# What newer versions of Python call otherwise, and what they make of a subscript by a slice and of a call into the interpreter.
_OTHER_NAMES = {"BINARY_SLICE": "BINARY_SUBSCR", "STORE_SLICE": "STORE_SUBSCR", "CALL_INTRINSIC_1": "INTRINSIC"}
_NO_STEP = ("EXTENDED_ARG", "NOT_TAKEN")
_TWO_ARGUMENTS = 2  # this bit says that super() is called with them


class Use(NamedTuple):
    """One place where code reads a variable or an attribute.

    Attributes:
        name: Its name.
        is_attribute: Whether it is an attribute.
        onward: The attributes that are read of it there, each of the one before, or the one that is assigned to.
        given_to: The global function that the last of these is the first argument of, or an empty string.
    """

    name: str
    is_attribute: bool
    onward: tuple[str, ...]
    given_to: str


def names_read(code: types.CodeType) -> frozenset[tuple[str, Any]]:
    """Return what the code, or code nested in it, reads: "closure", "global" or "attribute", and the name.

    For an attribute of something that has a name, "member" and both names as well; "assigned" and the name for what it assigns
    to, and "use" and the :class:`Use` for each place where it reads.
    """
    names = _names_of_code.get(code)
    if names is None:
        names = _names_of_code[code] = frozenset(_names_in(code))
    return names


def names_assigned(code: types.CodeType) -> set[str]:
    """Return the names from outside, and those of attributes, to which the code, or code nested in it, assigns."""
    return {name for kind, name in names_read(code) if kind == "assigned"}


def uses(code: types.CodeType) -> Iterator[Use]:
    """Yield each place where the code, or code nested in it, reads a variable or an attribute."""
    yield from [use for kind, use in names_read(code) if kind == "use"]


def names_renewed(code: types.CodeType) -> frozenset[tuple[str, str]]:
    """Return the names of attributes to which the code, or code nested in it, may give a next value: how, and the name.

    "computed" is what a statement assigns to an attribute that it computes with, as in ``self.n = self.n + 1``, and "counted"
    if no other in the same function begins it anew; "written" is what one may assign into, as in ``self.rows[0] = row``.
    What is counted may be in an item, as in ``self.counts[key] += 1``, or have a name that is computed, as in ``setattr(self,
    name, getattr(self, name) + 1)``: then the name is :data:`ANY`.
    """
    names = _renewed_of_code.get(code)
    if names is None:
        names = _renewed_of_code[code] = frozenset(_renewed_in(code))
    return names


def is_used(code: types.CodeType, name: str) -> bool:
    """Return whether the code reads a variable."""
    return any(use.name == name and not use.is_attribute for use in uses(code))


def escapes(code: types.CodeType, name: str) -> bool:
    """Return whether the code may do something else with a variable than read attributes of it or assign to them."""
    return any(use.name == name and not use.is_attribute and not use.onward for use in uses(code))


class _Step(NamedTuple):
    opname: str
    argval: Any
    argrepr: str


def _blocks_of(code: types.CodeType) -> list[list[_Step]]:
    """Return the instructions of code, and those of each comprehension in it, as Python 3.11 has them in any version.

    Newer ones join two for local variables, and ``super()`` with what is read of it, and run a comprehension in the code around
    it: they put aside what its variables were, and restore it after its loop.
    """
    own: list[_Step] = []
    blocks, steps = [own], own
    cells = {*code.co_cellvars, *code.co_freevars}
    aside: set[str] = set()
    loops = 0  # of a comprehension, that have begun and not ended
    for each in dis.get_instructions(code):
        name = _OTHER_NAMES.get(each.opname, each.opname)
        if name == "LOAD_FAST_AND_CLEAR":
            if steps is own:
                own.append(_Step("CALL", None, ""))
                blocks.append(steps := [])
            if not loops:  # and not of a comprehension inside
                aside.add(each.argval)
        elif name == "LOAD_SUPER_ATTR":
            if not (each.arg or 0) & _TWO_ARGUMENTS:
                del steps[-2:]  # the class and the instance
            steps += [_Step("CALL", None, ""), _Step("LOAD_ATTR", each.argval, each.argrepr)]
        elif name not in _NO_STEP and not (name == "POP_TOP" and steps and steps[-1].opname.startswith("POP_JUMP")):
            if steps is not own:
                loops += (name == "FOR_ITER") - (name == "END_FOR")
            joined = isinstance(each.argval, tuple) and re.findall("(?:LOAD|STORE)_FAST", name)
            for opname, argval in zip(joined, each.argval, strict=True) if joined else [(name, each.argval)]:
                step = _Step("LOAD_CLOSURE" if opname == "LOAD_FAST" and argval in cells else opname, argval, each.argrepr)
                if loops or opname != "STORE_FAST":
                    steps.append(step)
                elif argval in aside:
                    steps.append(step)
                    aside.remove(argval)
                    steps = steps if aside else own
                else:  # of what the comprehension is assigned to, which may come first
                    own.append(step)
    return blocks


# Code never changes, and most of what a new function reads is in code that an earlier one has read: in methods of layers.
_names_of_code: weakref.WeakKeyDictionary[types.CodeType, frozenset[tuple[str, Any]]] = weakref.WeakKeyDictionary()
_renewed_of_code: weakref.WeakKeyDictionary[types.CodeType, frozenset[tuple[str, str]]] = weakref.WeakKeyDictionary()


def _names_in(code: types.CodeType) -> Iterator[tuple[str, Any]]:
    before, before_that = "", ""
    blocks = _blocks_of(code)
    for instruction in chain(*blocks):
        if instruction.opname in _GLOBAL:
            yield "global", instruction.argval
        elif instruction.opname in _CLOSURE:
            yield "closure", instruction.argval
        elif instruction.opname in _ATTRIBUTE or (
            instruction.opname == "LOAD_CONST" and before_that == "getattr" and isinstance(instruction.argval, str)
        ):
            yield "attribute", instruction.argval
            yield "member", (before, instruction.argval)
        elif instruction.opname in ("STORE_GLOBAL", "STORE_ATTR") or (
            instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars
        ):
            yield "assigned", instruction.argval
        before, before_that = instruction.argval if isinstance(instruction.argval, str) else "", before
    for steps in blocks:
        yield from [("use", use) for use in _uses_in([each for each in steps if each.opname not in _BETWEEN])]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_read(constant)


def _uses_in(instructions: Sequence[_Step]) -> Iterator[Use]:
    start = 0  # of the latest variable, and the attributes read of it
    for at, each in enumerate(instructions):
        is_attribute = each.opname in _ATTRIBUTE
        if not is_attribute:
            start = at
        if not is_attribute and "LOAD_FAST" not in each.opname and each.opname not in (*_GLOBAL, *_CLOSURE):
            continue
        end = at + 1
        while instructions[end].opname in _ATTRIBUTE:
            end += 1
        onward = tuple([step.argval for step in instructions[at + 1 : end]])
        if instructions[end].opname == "STORE_ATTR":
            onward = (*onward, instructions[end].argval)
        asked = instructions[start - 1]
        is_given = start > 0 and asked.opname in _GLOBAL and not instructions[end].opname.startswith(("BUILD", "GET_ITER"))
        yield Use(each.argval, is_attribute, onward, asked.argval if is_given else "")


def _renewed_in(code: types.CodeType) -> Iterator[tuple[str, str]]:
    read: list[str] = []
    said: set[Any] = set()  # the constants and the global names of a statement
    computed: set[str] = set()
    counted: set[str] = set()
    begun: set[str] = set()
    is_computed = is_in_place = False
    for each in chain(*_blocks_of(code)):
        name = each.opname
        if name in _ATTRIBUTE:
            read.append(each.argval)
        elif name == "LOAD_CONST" or name in _GLOBAL:
            said.add(each.argrepr.removeprefix("NULL + ").removesuffix(" + NULL").strip("'"))
        elif name.startswith(("BINARY_", "INPLACE_")) and name != "BINARY_SUBSCR" and each.argrepr != "[]":
            is_computed = True
            is_in_place = is_in_place or name.startswith("INPLACE_") or each.argrepr.endswith("=")
        elif name.startswith("CALL"):  # max(self.n, n) is no next value
            if is_computed and "setattr" in said:
                counted |= {ANY} if "getattr" in said else said.intersection(read)
            is_computed = False
        elif name.startswith(("STORE_", "POP_TOP", "RETURN")):
            if name == "STORE_ATTR":
                (computed if is_computed and each.argval in read else begun).add(each.argval)
            if is_in_place or name == "STORE_SUBSCR":
                yield from [("written", attribute) for attribute in read]
            if name == "STORE_SUBSCR":
                again = {attribute for attribute in read if is_in_place or read.count(attribute) > 1}
                (counted if is_computed else begun).update(again if is_computed else read)
            read, said, is_computed, is_in_place = [], set(), False, False
    yield from [("computed", attribute) for attribute in computed]
    yield from [("counted", attribute) for attribute in (computed | counted) - begun]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_renewed(constant)
