"""Compiled functions of trees."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import shutil
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar, overload

import attrs
import mlx.core as mx

from ..containers import static_key
from ..module import Module
from ..node import Node
from ..tree.functions import dotted
from ..tree.structure import Structure, flat_of, put, waiting
from .captured import warn_of_captured
from .compiled import Compiled
from .explanation import History, Traced
from .passing import Inputs, Origins, together
from .stateful import recording

P = ParamSpec("P")
R = TypeVar("R")

BAD_MAX_TRACES = "max_traces is the number of traces to keep, 1 or more, or None to keep all, and was {given!r}"
NOT_CALLABLE = "fl.jit takes a function, a method or a module that can be called, and was given {kind}"
UNHASHABLE = (
    "{name} of {fn} is {given}, which can be neither a leaf (only mx.array is) nor part of the structure, since it can't be "
    "hashed. {advice}"
)
NO_COMPILER = (
    "fl.jit needs a C++ compiler: on Linux, MLX builds its fused CPU kernels with g++ when they first run, and no g++ was "
    "found. Install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or run this in fl.disable_jit()."
)


_disabled: ContextVar[bool] = ContextVar("disabled", default=False)
_tick = itertools.count().__next__
_lock = threading.RLock()  # reentrant, since what is dropped inside may call a jitted function


@overload
def jit(fn: Callable[P, R], *, shapeless: bool = False, max_traces: int | None = 128) -> Jitted[P, R]: ...


@overload
def jit(
    fn: None = None, *, shapeless: bool = False, max_traces: int | None = 128
) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...


def jit(fn: Callable[..., Any] | None = None, *, shapeless: bool = False, max_traces: int | None = 128) -> Any:
    """Return a compiled version of ``fn`` that computes the same.

    Arguments and results may be any trees. The function runs in Python, and is traced, whenever structure, shapes, dtypes or
    static values are new; otherwise MLX replays what was traced. It should be pure: what it does besides computing its result
    happens only when it is traced, and arrays that it reads from outside its arguments are constants, for which the first call
    gives a :class:`CapturedArrayWarning`. Random numbers are an exception: ``mx.random`` goes on from call to call as it does
    without ``jit``. An array that the function returns as it was given is the caller's own object, as it is without ``jit``.

    A module, or a bound method of one, is an argument like the others: the trace serves every module of its structure. Used
    as a decorator in a class body it makes a compiled method.

    Args:
        fn: A function, method or module, or a partial application of one.
        shapeless: Whether one trace serves all shapes, as in :func:`mlx.core.compile`; the function must then not depend on
            them. Default: ``False``.
        max_traces: How many traces are kept, one for each structure with its shapes and dtypes (with ``shapeless``, one for
            each structure); a new one takes the place of the one used least recently. ``None`` keeps all. A trace holds no
            activations, but that of a large training step takes a megabyte or two: the default has room for the shapes of
            padded or bucketed batches, and bounds the memory that batches of any length take. Default: ``128``.

    Raises:
        ValueError: If ``max_traces`` is not a positive integer.
        TypeError: If ``fn`` can't be called; on a call, if an argument is neither an array nor hashable.
        RuntimeError: On a call, if MLX has to compile for a Linux CPU and there is no C++ compiler.

    >>> import frostleaf as fl, mlx.core as mx
    >>> @fl.jit
    ... def scale(tree, by):
    ...     return fl.tree.map(lambda leaf: leaf * by, tree)
    >>> scale({"a": mx.ones(2)}, 3), scale({"a": mx.zeros(2)}, 3), scale.trace_count
    ({'a': array([3, 3], dtype=float32)}, {'a': array([0, 0], dtype=float32)}, 1)
    """
    if max_traces is not None and (type(max_traces) is not int or max_traces < 1):
        raise ValueError(BAD_MAX_TRACES.format(given=max_traces))
    if fn is None:
        return functools.partial(jit, shapeless=shapeless, max_traces=max_traces)
    return Jitted(fn, shapeless, max_traces)


@contextmanager
def disable_jit() -> Iterator[None]:
    """Return a context in which jitted functions run as plain Python, those that have been traced before included.

    Then a debugger stops in them, and ``print`` shows numbers. It holds for the thread or ``asyncio`` task that entered it.

    >>> import frostleaf as fl, mlx.core as mx
    >>> @fl.jit
    ... def double(x):
    ...     print("called with", x)
    ...     return x + x
    >>> with fl.disable_jit():
    ...     double(mx.array(1)), double(mx.array(2))
    called with array(1, dtype=int32)
    called with array(2, dtype=int32)
    (array(2, dtype=int32), array(4, dtype=int32))
    """
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


class Jitted(Generic[P, R]):
    """A compiled function, as made by :func:`jit`."""

    def __init__(self, fn: Callable[P, R], shapeless: bool, max_traces: int | None) -> None:
        if not callable(fn):
            raise TypeError(NOT_CALLABLE.format(kind=type(fn).__name__))
        functools.update_wrapper(self, fn, updated=())
        self._fn, self._bound_args, self._bound_kwargs = _unbound(fn)
        self._shapeless = shapeless
        self._max_traces = max_traces
        self._programs: dict[Any, _Program] = {}
        self._history = History(max_traces)
        self._looked_outside = False

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if _disabled.get() or recording():
            # What layers record for fl.stateful is a side effect, which a replayed trace would not have.
            return self._fn(*self._bound_args, *args, **self._bound_kwargs, **kwargs)  # type: ignore[no-any-return]
        leaves: list[mx.array] = []
        names: Any = (*self._bound_kwargs, *kwargs)
        values = (*self._bound_args, *args, *self._bound_kwargs.values(), *kwargs.values())
        try:
            key = names, *[self._entry(value, leaves) for value in values]
            program = self._programs.get(key)
        except TypeError:
            self._reject_unhashable(values, names)
            raise
        if program is None:
            return self._first_call(key, values, names, leaves)  # type: ignore[no-any-return]
        program.used = _tick()
        return program(leaves)  # type: ignore[no-any-return]

    def _first_call(self, key: Any, values: Sequence[Any], names: tuple[str, ...], leaves: list[mx.array]) -> Any:
        """Return the result for arguments that there is no program for, which there is afterwards, unless the call raises."""
        _require_compiler()
        if not self._looked_outside:
            self._looked_outside = True
            warn_of_captured(self._fn)
        structures = tuple([flat_of(value).structure for value in values])
        program = _Program(self._fn, structures, names, self._shapeless, self._history)
        dropped = None  # what it holds is let go of outside the lock
        with _lock:
            program = self._programs.setdefault(key, program)  # another thread may have been faster
            if self._max_traces is not None and len(self._programs) > self._max_traces:
                dropped = self._programs.pop(min(self._programs, key=lambda key: self._programs[key].used))
        del dropped
        try:
            return program(leaves)
        finally:
            if not program.traced:
                with _lock:
                    self._programs.pop(key, None)

    def _entry(self, value: Any, leaves: list[mx.array]) -> Any:
        """Append the arrays in an argument to ``leaves``, and return what a trace depends on: its structure, shapes, dtypes."""
        if type(value) is mx.array:
            leaves.append(value)
            return mx.array if self._shapeless else (value.shape, value.dtype)
        flat = flat_of(value)
        leaves += flat.leaves
        return flat.structure if self._shapeless else flat.signature or flat.signed()

    @property
    def trace_count(self) -> int:
        """How often the function has been traced so far, traces that were dropped included."""
        return self._history.count

    def explain(self) -> str:
        """Return a sentence that says which argument, path, shape, dtype or static value was new when it was last traced.

        What is named is the difference to the most similar of the earlier calls, which are remembered without their arrays.

        >>> import frostleaf as fl, mlx.core as mx
        >>> @fl.jit
        ... def total(batch):
        ...     return batch["images"].sum()
        >>> for size in (64, 64, 31):
        ...     _ = total({"images": mx.ones((size, 8))})
        >>> total.explain()
        'total was traced again (trace 2) because batch.images has shape (31, 8) where it had (64, 8) before.'
        """
        return self._history.explain(self._name, self._argument)

    def clear(self) -> None:
        """Drop all traces, with the constants and static values that they hold. Later calls trace anew.

        >>> import frostleaf as fl, mlx.core as mx
        >>> double = fl.jit(lambda x: x + x)
        >>> _ = double(mx.array(1)), double.clear(), double(mx.array(1))
        >>> double.trace_count
        2
        """
        with _lock:
            dropped, self._programs = self._programs, {}
        self._history.clear()
        del dropped

    @property
    def _name(self) -> str:
        return getattr(self._fn, "__name__", "the function")

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"jit({getattr(self, '__wrapped__', self._fn)!r})"

    def _reject_unhashable(self, values: Sequence[Any], names: Sequence[str]) -> None:
        for position, argument in enumerate(values):
            for path, value in flat_of(argument).structure.static_values():
                if not _is_hashable(static_key(value)):
                    is_array = hasattr(value, "__array__")
                    advice = "Pass mx.array(...) of it." if is_array else "Give its class __eq__ and __hash__."
                    given = f"a {type(value).__module__}.{type(value).__qualname__}"
                    name = dotted((self._argument(position, len(values), names), *path))
                    raise TypeError(UNHASHABLE.format(name=name, fn=self._name, given=given, advice=advice)) from None

    def _argument(self, position: int, count: int, names: Sequence[str]) -> str:
        """Return the name of an argument, of which there are ``count``, the last of them under ``names``."""
        if position >= count - len(names):
            return names[position - count]
        try:
            parameters = list(inspect.signature(self._fn).parameters.values())
        except ValueError:  # functions of MLX have no signature
            parameters = []
        known = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        return known[position] if position < len(known) else f"argument {position}"


class _Program:
    """A function compiled for arguments of certain structures; of certain shapes and dtypes as well, unless shapeless.

    Attributes:
        used: When it was last called; later is more.
        traced: Whether it has been traced.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        structures: tuple[Structure, ...],
        names: tuple[str, ...],
        shapeless: bool,
        history: History,
    ) -> None:
        def on_leaves(leaves: list[mx.array]) -> tuple[list[mx.array], _Result]:
            arrays = tuple([(leaf.ndim if shapeless else leaf.shape, leaf.dtype) for leaf in leaves])
            inputs, rest = Inputs(leaves), iter(leaves)
            values = [put(structure, rest) for structure in structures]
            positional = len(values) - len(names)
            result = fn(*values[:positional], **dict(zip(names, values[positional:], strict=True)))
            out = flat_of(result)
            computed, origins = inputs.separate(out.leaves)
            static = None
            if all(_is_hashable(value) for _, value in out.structure.static_values()):
                shape = out.structure if isinstance(result, Node) else out.structure.shape
                shape = waiting(shape, iter(out.leaves), shapeless)
            else:
                shape, static = out.structure, copy.deepcopy
            return computed, _Result(shape, origins, static, Traced(names, structures, arrays))

        self._compiled = Compiled(on_leaves, shapeless)
        self._history = history
        self.used = _tick()
        self.traced = False

    def __call__(self, leaves: list[mx.array]) -> Any:
        computed, result = self._compiled(leaves)
        if result.traced is not None:
            self._history.add(result.traced, in_new_program=not self.traced)
            self.traced, result.traced = True, None
        return put(result.shape, iter(together(computed, result.origins, leaves)), result.static)


@attrs.define
class _Result:
    """What one trace found out about its result.

    Attributes:
        shape: The result's, in the terms of :class:`~frostleaf.tree.structure.Structure`.
        origins: Which of its leaves are arguments passed through.
        static: What makes the static values of each call: copies, if one of them could be changed by a caller.
        traced: What the function was traced for, until that has been noted.
    """

    shape: Any
    origins: Origins | None
    static: Callable[[Any], Any] | None
    traced: Traced | None


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _unbound(fn: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return a function and the arguments already bound to it, the module that a method is bound to included."""
    if isinstance(fn, functools.partial):
        inner, args, kwargs = _unbound(fn.func)
        return inner, (*args, *fn.args), {**kwargs, **fn.keywords}
    if isinstance(fn, Module):
        return type(fn).__call__, (fn,), {}
    if isinstance(fn, types.MethodType) and isinstance(fn.__self__, Module):
        return fn.__func__, (fn.__self__,), {}
    return fn, (), {}


def _require_compiler() -> None:
    on_cpu = sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)
    if on_cpu and shutil.which("g++") is None and _mlx_compiles():
        raise RuntimeError(NO_COMPILER)


def _mlx_compiles() -> bool:
    """Return whether MLX compiles at all, which :func:`mlx.core.disable_compile` and an environment variable turn off."""
    calls: list[mx.array] = []
    probe = mx.compile(lambda x: calls.append(x) or x)  # type: ignore[func-returns-value]
    probe(mx.array(0))
    probe(mx.array(0))
    return len(calls) == 1
