"""Compiled functions of trees."""

from __future__ import annotations

import copy
import functools
import inspect
import shutil
import sys
import types
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

import attrs
import mlx.core as mx

from ..containers import static_key
from ..module import Module
from ..tree.structure import Structure, dotted, flatten, unflatten
from .compiled import Compiled
from .passing import Inputs, Origins, together
from .stateful import recording

P = ParamSpec("P")
R = TypeVar("R")

NOT_CALLABLE = "fl.jit takes a function, a method or a module that can be called, and was given {kind}"
UNHASHABLE = (
    "{name} of {fn} is {given}, which can be neither a leaf (only mx.array is) nor part of the structure, since it can't be "
    "hashed. {advice}"
)
NO_COMPILER = (
    "fl.jit needs a C++ compiler: on Linux, MLX builds its fused CPU kernels with g++ when they first run, and no g++ was "
    "found. Install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or do without fl.jit."
)


@overload
def jit(fn: Callable[P, R], *, shapeless: bool = False) -> Jitted[P, R]: ...


@overload
def jit(fn: None = None, *, shapeless: bool = False) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...


def jit(fn: Callable[..., Any] | None = None, *, shapeless: bool = False) -> Any:
    """Return a compiled version of ``fn`` that computes the same.

    Arguments and results may be any trees. The function runs in Python, and is traced, whenever structure, shapes, dtypes or
    static values are new; otherwise MLX replays what was traced. It should be pure: what it does besides computing its result
    happens only when it is traced, and arrays that it reads from outside its arguments are constants. Random numbers are an
    exception: ``mx.random`` goes on from call to call as it does without ``jit``. An array that the function returns as it was
    given is the caller's own object, as it is without ``jit``.

    A module, or a bound method of one, is an argument like the others: the trace serves every module of its structure. Used
    as a decorator in a class body it makes a compiled method.

    Args:
        fn: A function, method or module, or a partial application of one.
        shapeless: Whether one trace serves all shapes, as in :func:`mlx.core.compile`; the function must then not depend on
            them. Default: ``False``.

    Raises:
        TypeError: If ``fn`` can't be called; on a call, if an argument is neither an array nor hashable.
        RuntimeError: On a call, if MLX has to compile for a Linux CPU and there is no C++ compiler.

    >>> import frostleaf as fl, mlx.core as mx
    >>> @fl.jit
    ... def scale(tree, by):
    ...     return fl.tree.map(lambda leaf: leaf * by, tree)
    >>> scale({"a": mx.ones(2)}, 3), scale({"a": mx.zeros(2)}, 3), scale.trace_count
    ({'a': array([3, 3], dtype=float32)}, {'a': array([0, 0], dtype=float32)}, 1)
    """
    if fn is None:
        return functools.partial(jit, shapeless=shapeless)
    return Jitted(fn, shapeless)


class Jitted(Generic[P, R]):
    """A compiled function, as made by :func:`jit`."""

    def __init__(self, fn: Callable[P, R], shapeless: bool = False) -> None:
        if not callable(fn):
            raise TypeError(NOT_CALLABLE.format(kind=type(fn).__name__))
        functools.update_wrapper(self, fn, updated=())
        self._fn, self._bound_args, self._bound_kwargs = _unbound(fn)
        self._shapeless = shapeless
        self._compiled: dict[Structure, Compiled] = {}

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if recording():
            # What layers record for fl.stateful is a side effect, which a replayed trace would not have.
            return self._fn(*self._bound_args, *args, **self._bound_kwargs, **kwargs)  # type: ignore[no-any-return]
        leaves, structure = flatten(((*self._bound_args, *args), {**self._bound_kwargs, **kwargs}))
        try:
            compiled = self._compiled.get(structure)
        except TypeError:
            self._reject_unhashable(structure)
            raise
        if compiled is None:
            _require_compiler()
            compiled = self._compiled[structure] = self._compile(structure)
        computed, result = compiled(leaves)
        return unflatten(result.structure, together(computed, result.origins, leaves), result.static)  # type: ignore[no-any-return]

    @property
    def trace_count(self) -> int:
        """How often the function has been traced so far."""
        return sum(compiled.trace_count for compiled in self._compiled.values())

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"jit({getattr(self, '__wrapped__', self._fn)!r})"

    def _compile(self, structure: Structure) -> Compiled:
        fn = self._fn  # and not self, which must not be kept alive by what it compiled

        def on_leaves(leaves: list[mx.array]) -> tuple[list[mx.array], _Result]:
            inputs = Inputs(leaves)
            args, kwargs = unflatten(structure, leaves)
            outputs, out_structure = flatten(fn(*args, **kwargs))
            computed, origins = inputs.separate(outputs)
            mutable = not all(_is_hashable(value) for _, value in out_structure.static_values())
            return computed, _Result(out_structure, origins, copy.deepcopy if mutable else None)

        return Compiled(on_leaves, self._shapeless)

    def _reject_unhashable(self, structure: Structure) -> None:
        for path, value in structure.static_values():
            if not _is_hashable(static_key(value)):
                is_array = hasattr(value, "__array__")
                advice = "Pass mx.array(...) of it." if is_array else "Give its class __eq__ and __hash__."
                given = f"a {type(value).__module__}.{type(value).__qualname__}"
                fn = getattr(self._fn, "__name__", "the function")
                raise TypeError(UNHASHABLE.format(name=self._argument(path), fn=fn, given=given, advice=advice)) from None

    def _argument(self, path: tuple[Any, ...]) -> str:
        """Return the name of what stands at a path of ``(args, kwargs)``."""
        kind, which, *inside = path
        if kind == 1:
            return dotted((which, *inside))
        try:
            parameters = list(inspect.signature(self._fn).parameters.values())
        except ValueError:  # functions of MLX have no signature
            parameters = []
        names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        return dotted((names[which] if which < len(names) else f"argument {which}", *inside))


@attrs.frozen
class _Result:
    """What one trace found out about its result.

    Attributes:
        structure: The result's.
        origins: Which of its leaves are arguments passed through.
        static: What makes the static values of each call: copies, if one of them could be changed by a caller.
    """

    structure: Structure
    origins: Origins | None
    static: Callable[[Any], Any] | None


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
