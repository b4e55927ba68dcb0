"""Arrays that a trace can't see: read from outside the arguments, or held by values that are not trees."""

from __future__ import annotations

import dis
import io
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ...core.containers import arrays_in
from ...core.structure import Structure
from ...core.words import PACKAGE, describe, function_name, keystr, level_of_caller, with_article

_PROBE = "frostleaf_probe"


class CapturedArrayWarning(UserWarning):
    """Warned of if a jitted function reads arrays from outside its arguments: their values are compiled in and go stale.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> shift = mx.array(1)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = fl.jit(lambda x: x + shift)(mx.array(2))
    >>> caught[0].category.__name__
    'CapturedArrayWarning'
    """


CAPTURED = (
    "{fn} reads {variables} from outside its arguments. fl.jit compiles in the value at the first call as a constant, and does "
    "not see later values. Pass it as an argument."
)


def warn_of_captured(fn: Callable[..., Any], static: Iterable[tuple[str, Any]] = ()) -> None:
    """Warn if a function reads arrays, or trees of arrays, from its closure, its globals, its defaults or an object in these.

    The warning points to the line that called into this package. No array is evaluated.

    Args:
        fn: The function.
        static: The names and values of the static values in its arguments, whose attributes are searched too.
    """
    found = [f"{name} ({_described(value, len(held))})" for name, value in _outside(fn, static) if (held := _arrays(value))]
    if found:
        message = CAPTURED.format(fn=function_name(fn), variables=", ".join(dict.fromkeys(found)))
        warnings.warn(message, CapturedArrayWarning, stacklevel=level_of_caller())


HIDDEN = (
    "{fn} returned {kind}{where} that holds a computed array, which {transformation} can't find there: it looks only into "
    "modules, tuples, lists, dicts and registered classes. Return the array in one of these, or register the class with "
    "fl.register_pytree_node."
)
RUNS_LATER = (
    "{fn} returned {kind}{where}, whose body has not run yet, and after {transformation} the arrays in it have no values. "
    "Return what it makes, for example in a list."
)


def require_visible(transformation: str, fn: str, result: Structure, inputs: Sequence[mx.array]) -> None:
    """Require that the result of a traced function holds its arrays where they can be found.

    Args:
        transformation: The name of the transformation that traces the function.
        fn: The name of the function.
        result: The structure of its result.
        inputs: The arrays that it was given.

    Raises:
        TypeError: If a static value in the result holds an array that was computed from the inputs, or is a generator or a
            coroutine, which has yet to run.
    """
    for path, value in result.static_values():
        said = {
            "fn": fn, "kind": with_article(type(value).__name__), "where": f" ({keystr(path)} of the result)" if path else "",
            "transformation": transformation,
        }  # fmt: skip
        if isinstance(value, types.CoroutineType):
            value.close()  # otherwise Python warns that it was never awaited
        if isinstance(value, types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType):
            raise TypeError(RUNS_LATER.format(**said))
        for held in (value, *_inside(value)):
            if any(depends(array, inputs) for array in _arrays(held)):
                raise TypeError(HIDDEN.format(**said))


def depends(array: mx.array, inputs: Sequence[mx.array]) -> bool:
    """Return whether an array is computed from one of the inputs: whether an operation in its graph takes one."""
    names = {f"{_PROBE}_{position}": each for position, each in enumerate(inputs)}
    text = io.StringIO()
    mx.export_to_dot(text, mx.contiguous(array), **names)  # contiguous takes the array itself, in case it is an input
    return f'"{_PROBE}_' in "".join(line for line in text.getvalue().splitlines() if " -> " in line)


def _outside(fn: Any, static: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each outside variable, and of each attribute of one, that a function reads."""
    yield "self", fn  # a method has bound arguments, and a callable object may be a tree
    objects = [("self", getattr(fn, "__self__", fn)), *static]
    for function in _functions(fn):
        names = set(_names_read(function.__code__))
        variables = list(_variables(function, names))
        yield from variables
        for name, value in [*objects, *variables]:
            yield from _attributes(name, value, {each for kind, each in names if kind == "attribute"})


def _functions(fn: Any) -> Iterator[types.FunctionType]:
    """Yield the function that runs, and, if that wraps others, as a decorator or a gradient does, these in turn."""
    fn = getattr(fn, "__func__", fn)
    if not isinstance(fn, types.FunctionType) and not _is_ours(type(fn).__call__):
        fn = type(fn).__call__
    while isinstance(fn, types.FunctionType):
        yield fn
        fn = getattr(fn, "__wrapped__", None)


def _variables(fn: types.FunctionType, names: set[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of the variables that are read from closure and globals, and of the defaults."""
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        if ("closure", name) in names:
            try:
                yield name, cell.cell_contents
            except ValueError:  # not assigned yet
                continue
    yield from [(name, fn.__globals__.get(name)) for kind, name in sorted(names) if kind == "global"]
    count = fn.__code__.co_argcount
    with_default = fn.__code__.co_varnames[:count][count - len(fn.__defaults__ or ()) :]
    yield from zip(with_default, fn.__defaults__ or (), strict=True)
    yield from (fn.__kwdefaults__ or {}).items()


def _attributes(name: str, value: Any, read: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each attribute of an object that is read, by a function or by a method that it reads."""
    held = _held(value)
    if isinstance(value, type) or _arrays(value):  # its arrays have been found already
        return
    new = read
    while new:
        methods = [getattr(type(value), each, None) for each in new]
        codes = [method.__code__ for method in methods if isinstance(method, types.FunctionType)]
        new = {each for code in codes for kind, each in _names_read(code) if kind == "attribute"} - read
        read = read | new
    yield from [(f"{name}.{each}", held[each]) for each in sorted(read) if each in held]


def _inside(value: Any) -> Iterator[Any]:
    """Yield what a static value holds: the variables of a function, the attributes of an object."""
    if isinstance(value, types.FunctionType):
        yield from [each for _, each in _variables(value, set(_names_read(value.__code__)))]
    elif not isinstance(value, type | types.ModuleType):
        yield from _held(value).values()
        slots = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
        names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
        yield from [getattr(value, name, None) for name in names]


def _held(value: Any) -> Mapping[str, Any]:
    try:
        return dict(vars(value))
    except Exception:  # its class has no __dict__, or an unusual one
        return {}


def _names_read(code: types.CodeType) -> Iterator[tuple[str, str]]:
    """Yield each name that the code, or code nested in it, reads, preceded by "closure", "global" or "attribute"."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield "global", instruction.argval
        elif instruction.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"):
            yield "closure", instruction.argval
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            yield "attribute", instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_read(constant)


def _arrays(value: Any) -> Sequence[mx.array]:
    try:
        return () if value is mx.random.state else list(arrays_in(value))  # the random state is what jit threads through
    except Exception:  # from a user's registered class, or a list that holds itself
        return ()


def _described(value: Any, count: int) -> str:
    if isinstance(value, mx.array):
        return describe(value)
    return f"{with_article(type(value).__name__)} with {count} array{'s' * (count > 1)}"


def _is_ours(fn: Any) -> bool:
    return isinstance(fn, types.FunctionType) and fn.__code__.co_filename.startswith(PACKAGE)
