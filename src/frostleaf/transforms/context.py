"""What the result of a function may depend on besides its arguments, and blocks in which it is something else."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import attrs
import mlx.core as mx


class Context(NamedTuple):
    """The settings in force where a jitted function is called.

    Attributes:
        plain: Whether it runs as plain Python.
        dtype: The default dtype of new layers.
        shapeless: Whether what runs is traced once for all shapes.
    """

    plain: bool = False
    dtype: mx.Dtype = mx.float32
    shapeless: bool = False


# One variable for all settings, since every call of a jitted function looks it up.
context: ContextVar[Context] = ContextVar("context", default=Context())  # noqa: B039

R = TypeVar("R")


def is_shapeless() -> bool:
    """Return whether what runs now is traced once for all shapes: arrays of others will come, and it must suit them too."""
    return context.get().shapeless


# What is to be done once the derivatives that are being computed are there.
_waiting: ContextVar[list[Callable[[], None]] | None] = ContextVar("waiting", default=None)


def differentiating(compute: Callable[[], R]) -> R:
    """Compute derivatives, for which MLX may run parts of a function again after it has returned."""
    if _waiting.get() is not None:
        return compute()
    waiting: list[Callable[[], None]] = []
    token = _waiting.set(waiting)
    try:
        return compute()
    finally:
        _waiting.reset(token)
        for act in waiting:
            act()


def put_off(act: Callable[[], None]) -> bool:
    """Have something done once no part of what runs now is run again; return ``False`` if that is now."""
    waiting = _waiting.get()
    if waiting is not None:
        waiting.append(act)
    return waiting is not None


# What leaving a block does. It may be done twice, and returns an error to be raised.
Undo = Callable[[], Exception | None]


class _Leaving:
    """What is yet to be undone of a block: when the block is left, or else when nobody refers to this any more.

    An interrupt may come before the first instruction of an ``__exit__``, which then does nothing. So what a ``with`` statement
    is given to call refers to this and is dropped with the call, and no frame of a traceback refers to it.
    """

    undo: Undo | None = None  # of the class, so that it is there at whatever instruction an interrupt comes

    def __del__(self) -> None:
        if self.undo is not None:
            self.undo()


# A weak reference, since a frame that is interrupted keeps its variables for as long as there is a traceback.
Leaving = Callable[[], Any]


def _leave(leaving: Leaving, kind: type | None = None, *rest: object) -> None:
    if leaving() is None:  # collected in a cycle, together with a generator that had not left the block, and undone by that
        return
    undo = leaving().undo
    error = undo()
    leaving().undo = None
    if error is not None and kind is None:
        raise error


class _Exit:
    """The ``__exit__`` of a scope, which a ``with`` statement looks up before it enters."""

    def __get__(self, scope: Any, owner: type | None = None) -> Any:
        if scope is None:
            return self
        leaving = scope._held.pop() if scope._held else _Leaving()
        scope._prepared = weakref.ref(leaving)
        leave: Any = functools.partial(_leave, scope._prepared)
        leave.leaving = leaving
        return leave

    def __call__(self, scope: Any, *exception: Any) -> None:
        scope.__exit__(*exception)


class Scope(ContextDecorator):
    """A block, in a ``with`` statement or a decorated function, that leaves all as it was, whenever it is interrupted.

    A subclass changes something in :meth:`_enter`, having said in ``leaving().undo`` how that is undone.
    """

    __exit__: Any = _Exit()
    _prepared: Any = None

    def __init__(self) -> None:
        self._held: list[_Leaving] = []  # for blocks that are entered in another way than by a ``with`` statement

    def __enter__(self) -> None:
        if self._prepared is None or self._prepared() is None:
            self._held.append(_Leaving())
            self._prepared = weakref.ref(self._held[-1])
        leaving, self._prepared = self._prepared, None
        self._enter(leaving)

    def _enter(self, leaving: Leaving) -> None:
        raise NotImplementedError

    def _recreate_cm(self) -> Scope:
        again = copy.copy(self)
        again._held = []
        return again


@attrs.frozen(eq=False)
class _Block:
    """A block that has been entered.

    Attributes:
        variable: What it changes.
        base: The value of that outside all blocks that change it.
        changed: Returns the value inside the block, given the one around it and what the block was given.
        given: That. The block has no reference to its scope, which may be what keeps it entered.
    """

    variable: ContextVar[Any]
    base: Any
    changed: Callable[[Any, Any], Any]
    given: Any


# Those that this thread or task is in. Generators may leave them in any order.
_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("blocks", default=())


class setting(Scope):  # noqa: N801
    """Set a variable inside a ``with`` block, for this thread or ``asyncio`` task."""

    def __init__(self, variable: ContextVar[Any], value: Any) -> None:
        super().__init__()
        self._variable = variable
        self._value = value

    def _enter(self, leaving: Leaving) -> None:
        variable, blocks = self._variable, _blocks.get()
        base = next((each.base for each in blocks if each.variable is variable), variable.get())
        block = _Block(variable, base, self._changed, self._value)
        leaving().undo = functools.partial(_leave_block, block)
        _blocks.set((*blocks, block))
        variable.set(self._changed(variable.get(), self._value))

    @staticmethod
    def _changed(before: Any, given: Any) -> Any:
        return given


class override(setting):  # noqa: N801
    """Change the context inside a ``with`` block, for this thread or ``asyncio`` task."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(context, changes)

    @staticmethod
    def _changed(before: Any, given: Any) -> Any:
        return before._replace(**given)


class appended(Scope):  # noqa: N801
    """Have an object in a list inside a ``with`` block."""

    def __init__(self, items: list[Any], item: Any) -> None:
        super().__init__()
        self._items = items
        self._item = item

    def _enter(self, leaving: Leaving) -> None:
        leaving().undo = functools.partial(_remove, self._items, self._item)
        self._items.append(self._item)


def _leave_block(block: _Block) -> None:
    blocks = _blocks.get()
    if block not in blocks:  # it was not entered, or in another thread or task
        return
    blocks = tuple([each for each in blocks if each is not block])
    value = block.base
    for each in blocks:
        value = each.changed(value, each.given) if each.variable is block.variable else value
    block.variable.set(value)
    _blocks.set(blocks)


def _remove(items: list[Any], item: Any) -> None:
    items[:] = [each for each in items if each is not item]
