"""Wrapped functions as trees, with what they wrap inside."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from ..core.pickling import from_picklable, to_picklable
from ..core.registration import register_pytree_node
from ..core.words import function_name

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
W = TypeVar("W", bound="Wrapped[..., Any]")


class Wrapped(Generic[P, R]):
    """A function that calls another in its own way. In a tree, a module that it wraps is at ``__wrapped__``.

    A subclass calls what it wraps in ``__call__``. Everything else that it is made of is in ``options``, which is structure.
    """

    __wrapped__: Callable[P, R]
    options: Any
    verb: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_pytree_node(cls, lambda wrapped: ((wrapped.__wrapped__,), wrapped.options, ("__wrapped__",)), cls._restored)

    def __init__(self, fn: Callable[P, R], options: Any = ()) -> None:
        if not callable(fn):
            kind = type(fn).__name__
            raise TypeError(f"fl.{self.verb} takes a function, a method or a callable module, and was given {kind}")
        self._wrap(fn, options)

    def _wrap(self, fn: Any, options: Any) -> None:
        # Without its attributes, which may be those of a module.
        functools.update_wrapper(cast(Any, self), fn, updated=())
        self.options = options

    @classmethod
    def _restored(cls: type[W], options: Any, children: Any) -> W:
        wrapped = object.__new__(cls)
        (fn,) = children  # need not be a function, since a tree may be mapped to a tree of anything
        wrapped._wrap(fn, options)
        return wrapped

    @overload
    def __get__(self: W, instance: None, owner: type | None = None) -> W: ...

    @overload
    def __get__(self: Wrapped[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Callable[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(cast(Any, self), instance)

    def __copy__(self: W) -> W:
        return self

    def __deepcopy__(self: W, memo: dict[int, Any]) -> W:
        # Like a function, it is its own copy. But if a method is wrapped, the object that it is bound to is copied.
        fn = from_picklable(copy.deepcopy(to_picklable(self.__wrapped__), memo))
        return self if fn is self.__wrapped__ else type(self)._restored(self.options, (fn,))

    def __reduce__(self) -> Any:
        # By name, as functions are, if it can be found by name.
        if self._has_name():
            return _named, (self.__module__, self.__qualname__)  # type: ignore[attr-defined]
        return _restore, (type(self), to_picklable(self.__wrapped__), to_picklable(self.options))

    def _has_name(self) -> bool:
        """Return whether this is, or is a copy of, what stands under its name in its module, as what a decorator made does."""
        found = _named(self.__module__, getattr(self, "__qualname__", ""))
        same = isinstance(found, type(self)) and found.__wrapped__ is self.__wrapped__
        return same and found.options is self.options

    def __repr__(self) -> str:
        return f"{self.verb}({function_name(self.__wrapped__)})"


RUNS_LATER = (
    "{transformation} can't take {{fn}}, which is {{kind}}: a call returns before its body has run. Give it a plain function "
    "that does the computing."
)


def require_runs_when_called(fn: Callable[..., Any], message: str) -> None:
    """Require that a function has run when a call of it returns.

    Raises:
        TypeError: If it is a generator or coroutine function, with the message, in which ``fn`` and ``kind`` are filled in.
    """
    kinds = {
        "a coroutine function": inspect.iscoroutinefunction,
        "a generator function": inspect.isgeneratorfunction,
        "an asynchronous generator function": inspect.isasyncgenfunction,
    }
    for kind, is_kind in kinds.items():
        if is_kind(fn) or is_kind(type(fn).__call__):
            raise TypeError(message.format(fn=function_name(fn), kind=kind))


def _named(module: str, qualname: str) -> Any:
    """Return what stands under a name in a module that has been imported, or ``None``."""
    found: Any = importlib.import_module(module) if module in sys.modules else None
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _restore(cls: type[W], fn: Any, options: Any) -> W:
    return cls._restored(from_picklable(options), (from_picklable(fn),))
