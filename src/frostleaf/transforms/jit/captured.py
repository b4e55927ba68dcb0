"""Arrays that a trace can't see: read from outside the arguments, or held by values that are not trees."""

from __future__ import annotations

import functools
import inspect
import io
import os
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Set
from typing import Any, NamedTuple

import mlx.core as mx

from ...core.containers import arrays_in
from ...core.hidden import CACHE, cache_classes
from ...core.instance import Instance
from ...core.structure import Structure
from ...core.words import PACKAGE, describe, function_name, keystr, level_of_caller, listed, with_article
from ..wrapping import Wrapped
from .code import Use, escapes, names_assigned, names_read, uses
from .passing import MOST_NAMES

# Whose functions read nothing that could go stale: this package, and what is installed, MLX among it.
_INSTALLED = [sysconfig.get_paths()[each] for each in ("stdlib", "purelib", "platlib")]
_LIBRARIES = (PACKAGE, *[path + os.sep for path in (os.path.dirname(mx.__file__), *_INSTALLED)])
_DEEPEST = 4
_PROBE = "frostleaf_probe"
_MOST_HELPERS = 200
_MOST = 8
_UNSET = object()
_Member = types.MemberDescriptorType
_WITH_NAMES = (types.ModuleType, types.FunctionType, type)
_CALLED = (types.FunctionType, Wrapped)
# What is read of an array, and what a function is told of a model, that is part of the structure.
_OF_ARRAYS = {"shape", "dtype", "ndim", "size", "itemsize", "nbytes"}
_ASKING = {"type", "len", "isinstance"}


class CapturedArrayWarning(UserWarning):
    """Warned of if a jitted function reads arrays from outside its arguments: their values are compiled in and go stale.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> shift = mx.array(1)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = fl.jit(lambda x: x + shift)(mx.array(2))
    >>> caught[0].category.__name__
    'CapturedArrayWarning'

    An array that never changes may well be a constant. Then this keeps quiet:

    >>> warnings.filterwarnings("ignore", category=fl.CapturedArrayWarning)  # doctest: +SKIP
    """


CAPTURED = (
    "{fn} reads {variables} from outside its arguments. fl.jit compiles in the value at the first call as a constant, and does "
    "not see later values. Pass it as an argument; if it never changes, filter fl.CapturedArrayWarning."
)
LOST = " What {fn} assigns to {names} is lost: it does so only when traced, and arrays of a trace have no values. Return it."


def warn_of_captured(fn: Callable[..., Any], static: Iterable[tuple[str, Any]] = (), classes: Iterable[type] = ()) -> bool:
    """Warn if the function reads arrays, or trees of arrays, from its closure, its globals, its defaults or an object in these.

    So does a function that it reads from there, or from a Python module, and a method or property whose name it reads. The
    warning is shown at the line that called into this package. No array is evaluated.

    Args:
        fn: The function.
        static: The names and the values of what is static in its arguments, whose attributes are looked at as well.
        classes: Those of the modules in its arguments, whose methods are looked at as well.

    Returns:
        Whether there are any.
    """
    outside = [(each.name, each.value) for each in outside_of(fn, static, classes)]
    caches = {name: with_article(type(each[0]).__name__) for name, value in outside if (each := _caches(value))}
    found = {f"{name} ({_described(value, len(held))})": name for name, value in outside if (held := _arrays(value))}
    found |= {f"{name} ({kind})": name for name, kind in caches.items() if name not in found.values()}
    if found:
        variables = ", ".join([*found][:_MOST]) + ", ..." * (len(found) > _MOST)
        message = CAPTURED.format(fn=function_name(fn), variables=variables)
        assigned = set().union(*[names_assigned(each.__code__) for each in _functions(fn)])
        message += "".join([f" In {name} is {kind}. {CACHE}" for name, kind in caches.items()][:1])
        lost = [name for name in dict.fromkeys(found.values()) if name.rpartition(".")[2] in assigned]
        if lost:
            message += LOST.format(fn=function_name(fn), names=listed(lost))
        warnings.warn(message, CapturedArrayWarning, stacklevel=level_of_caller())
    return bool(found)


def captured_arrays(fn: Callable[..., Any], bound: Iterable[Any]) -> list[mx.array]:
    """Return the arrays that a function is bound to, or reads from where :func:`warn_of_captured` looks."""
    while isinstance(fn, Wrapped):
        fn = fn.__wrapped__
    return [array for value in (*bound, *[each.value for each in outside_of(fn, in_jitted=True)]) for array in _arrays(value)]


HIDDEN = (
    "{fn} returned {kind}{where} that holds a computed array, which {transformation} can't find there: it looks only into "
    "modules, tuples, lists, dicts and registered classes. Return the array in one of these, or register the class with "
    "fl.register_pytree_node."
)
RUNS_LATER = (
    "{fn} returned {kind}{where}, whose body has not run yet, and after {transformation} the arrays in it have no values. "
    "Return what it makes, for example in a list."
)
PASSES = (
    "{fn} returned {kind}{where}, an iterator or a view, which {transformation} can't return anew with each call. Return a "
    "list of what is in it."
)


def require_visible(transformation: str, fn: str, result: Structure, inputs: Sequence[mx.array]) -> None:
    """Require that the result of a traced function holds its arrays where they can be found.

    Args:
        transformation: The name of the transformation that traces the function.
        fn: The name of the function.
        result: The structure of its result.
        inputs: The arrays that it was given.

    Raises:
        TypeError: If a static value in the result holds an array that was computed from the inputs, has yet to run, or is an
            iterator.
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
        if isinstance(value, Iterator | MappingView):
            raise TypeError(PASSES.format(**said))
        for held in (value, *_inside(value)):
            if any(depends(array, inputs) for array in _arrays(held)):
                raise TypeError(HIDDEN.format(**said))


def depends(array: mx.array, inputs: Sequence[mx.array]) -> bool:
    """Return whether an array is computed from one of the inputs: whether something in its graph has one for its input."""
    probed = mx.contiguous(array)  # of which the array itself is an input
    for start in range(0, len(inputs), MOST_NAMES):
        names = {f"{_PROBE}_{position}": each for position, each in enumerate(inputs[start : start + MOST_NAMES])}
        text = io.StringIO()
        mx.export_to_dot(text, probed, **names)
        if f'"{_PROBE}_' in "".join(line for line in text.getvalue().splitlines() if " -> " in line):
            return True
    return False


def is_from_outside(value: Any, fn: Any, static: Iterable[tuple[str, Any]]) -> bool:
    """Return whether a value is one that the function was given, or can read from outside."""
    static = list(static)
    return any(each is value for each in (*[given for _, given in static], *[read.value for read in outside_of(fn, static)]))


def names_read_by(fn: Any, classes: Iterable[type], of_variables: bool = False, called: bool = True) -> set[str]:
    """Return the names of the attributes that a function reads, if only in a method of one of the classes, whose name it reads.

    With ``of_variables`` only those that are read of something with a name that is not global, such as an argument. No name
    tells whether the function calls an instance: it may, unless none is ``called``.
    """
    own = list(_functions(fn))
    functions = [*own, *_methods(classes, set({"__call__"} if called else ()).union(*map(_attribute_names, own)))]
    return set().union(*map(_names_of_variables if of_variables else _attribute_names, functions))


def attributes_used(fn: Any, owner: Any) -> set[str] | None:
    """Return the names of the attributes of an object that its method ``fn``, or one that this calls, may read or assign to.

    ``None`` if it may be any: the object is given away, or its class makes attributes as they are read.
    """
    cls = type(owner)
    if hasattr(cls, "__getattr__") or any("__getattribute__" in vars(each) for each in cls.__mro__[:-1]):
        return None
    functions = list(_functions(fn))
    functions += _methods([cls], set().union(*map(_attribute_names, functions)))
    names = set().union(*[_attribute_names(each) | names_assigned(each.__code__) for each in functions])
    if not all(map(_keeps_self, functions)) or any(_runs_unknown_code(held) for held in _members(cls, names)):
        return None
    return names


def is_method_of(fn: Any, value: Any) -> bool:
    """Return whether a function is a method of the class of a value, itself or wrapped, as in a jitted one."""
    held = inspect.getattr_static(type(value), getattr(fn, "__name__", ""), None)
    while isinstance(held, Wrapped):
        held = held.__wrapped__
    return held is fn


def _keeps_self(method: types.FunctionType) -> bool:
    """Return whether a method does nothing with ``self`` but read and assign its attributes, by names that are in its code."""
    code = method.__code__
    return code.co_argcount > 0 and not escapes(code, code.co_varnames[0]) and ("global", "super") not in names_read(code)


def _runs_unknown_code(held: Any) -> bool:
    """Return whether what stands in a class is given the object that it is read of, and may read any attribute of that."""
    if isinstance(held, (types.FunctionType, property, staticmethod, classmethod, _Member)):
        return False
    return hasattr(type(held), "__get__") and not (isinstance(held, Wrapped) and held.verb == "jit")  # which looks itself


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes that an object has itself, slots included."""
    slots = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    members = {name: vars(type(value)).get(name, getattr(type(value), name, None)) for name in names}
    held = {name: getattr(value, name, _UNSET) for name, each in members.items() if isinstance(each, _Member)}
    return {**_held(value), **{name: each for name, each in held.items() if each is not _UNSET}}


class Outside(NamedTuple):
    """What a function reads that is not its own.

    Attributes:
        path: The name of a variable, or this and those of attributes, with dots between them.
        value: What it is now.
        fn: The function whose variable it is, which may be one that the function calls; ``None`` if it is none's.
        in_helper: Whether it is such a one.
    """

    path: str
    value: Any
    fn: Any = None
    in_helper: bool = False

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"{self.path} in {self.fn.__name__}" if self.in_helper and self.fn else self.path


def outside_of(
    fn: Any, static: Iterable[tuple[str, Any]] = (), classes: Iterable[type] = (), in_jitted: bool = False
) -> Iterator[Outside]:
    """Yield each variable, and attribute of one, that a function reads and that is not its own.

    Args:
        fn: The function.
        static: The names and the values of what is static in its arguments.
        classes: Those of the modules in its arguments.
        in_jitted: Whether what a jitted function in it reads counts, which sees to that itself.
    """
    yield Outside("self", fn)  # arguments are bound to a method, and an object that can be called may be a tree
    static = list(static)
    objects = [("self", getattr(fn, "__self__", fn)), *static]
    own = list(_functions(fn))
    seen = {each.__code__ for each in own}
    helpers = [helper for _, value in static for helper in _helpers(value, in_jitted)]
    for function in own:
        yield from _read(function, False, objects, helpers, in_jitted)
    read = set().union(*map(_attribute_names, own))
    helpers += _methods([each for each in classes if not _is_ours(each.__call__)], {*read, "__call__"})
    yield from _of_classes([*classes, *[value for _, value in objects if isinstance(value, type)]], [*own, *helpers])
    for helper in helpers:  # which get more on the way
        if helper.__code__ not in seen and not _is_ours(helper) and len(seen) < _MOST_HELPERS:
            seen.add(helper.__code__)
            yield from _read(helper, True, (), helpers, in_jitted)


def _of_classes(classes: Sequence[type], functions: Iterable[types.FunctionType]) -> Iterator[Outside]:
    """Yield what functions may read of their arguments, or of ``self``, that stands in a class, unless it is also a field."""
    held = {
        f"{cls.__name__}.{name}": value
        for cls in classes
        for base in cls.__mro__[-2::-1]  # all but object
        if not _is_library(base)
        for name, value in vars(base).items()
        if not (name.startswith("__") or hasattr(type(value), "__get__")) and _arrays(value)
        if inspect.getattr_static(cls, name) is value  # and not that of a base
    }
    if held:
        read = set().union(*map(_names_of_variables, functions))
        read = read.difference(*[cls.__frostleaf__.fields for cls in classes if issubclass(cls, Instance)])
        yield from [Outside(name, value) for name, value in held.items() if name.rpartition(".")[2] in read]


def _read(
    fn: types.FunctionType,
    in_helper: bool,
    objects: Iterable[tuple[str, Any]],
    helpers: list[types.FunctionType],
    in_jitted: bool,
) -> Iterator[Outside]:
    """As :func:`outside_of`, for one function; those that it may call are added to ``helpers``."""
    names = names_read(fn.__code__)
    read = _attribute_names(fn)
    variables = list(_variables(fn, names))
    for name, value in variables:  # which get more on the way
        if isinstance(value, _WITH_NAMES) and not _is_library(value) and name.count(".") < _DEEPEST:
            members = sorted(each[1] for kind, each in names if kind == "member" and each[0] == name.rpartition(".")[2])
            variables += [(f"{name}.{each}", held) for each in members if (held := _named(value, each)) is not None]
    yield from [Outside(name, value, fn, in_helper) for name, value in variables if not _tells_structure(value, name, [fn])]
    for _, value in variables:
        helpers += _helpers(value, in_jitted)
    for of, name, value in [*[(None, *each) for each in objects], *[(fn, *each) for each in variables]]:
        if not isinstance(value, type | types.ModuleType | types.FunctionType) and not _arrays(value):
            methods = _methods((type(value),), read)
            helpers += methods
            inside = read.union(*map(_attribute_names, methods))
            attributes = [(f"{name}.{each}", held) for each, held in attributes_of(value).items() if each in inside]
            found = [(each, held) for each, held in attributes if not _tells_structure(held, each, [fn, *methods])]
            yield from [Outside(each, held, of, in_helper) for each, held in found]
            helpers += [helper for _, held in attributes for helper in _helpers(held, in_jitted)]


def _tells_structure(value: Any, name: str, functions: Iterable[types.FunctionType]) -> bool:
    """Return whether functions read only what is part of the structure of an array or a module, such as a shape or a mode."""
    *of, last = name.split(".")
    found = [use for each in functions for use in uses(each.__code__) if use.name == last and use.is_attribute == bool(of)]
    return bool(found and _arrays(value)) and all(_is_structure(value, use) for use in found)


def _is_structure(value: Any, use: Use) -> bool:
    """Return whether what one place reads of a value holds no array, or is the shape or the like of one."""
    for name in use.onward:
        if isinstance(value, mx.array):
            return name in _OF_ARRAYS
        if not isinstance(value, Instance) or name not in (*type(value).__frostleaf__.fields, "training"):
            return False
        value = getattr(value, name)
    return use.given_to in _ASKING or not _arrays(value)


def _named(value: Any, name: str) -> Any:
    """Return what has a name in a Python module, a class or a function; ``None`` if nothing has, or it is made when read."""
    held = inspect.getattr_static(value, name, None) if isinstance(value, type) else vars(value).get(name)
    held = held.__func__ if isinstance(held, staticmethod) else held
    return None if isinstance(value, type) and hasattr(type(held), "__get__") and not isinstance(held, _CALLED) else held


def _functions(fn: Any) -> Iterator[types.FunctionType]:
    """Yield the function that runs, and, if that wraps others, as a decorator or a gradient does, these in turn."""
    fn = getattr(fn, "__func__", fn)
    if not isinstance(fn, types.FunctionType) and not _is_ours(type(fn).__call__):
        fn = type(fn).__call__
    while isinstance(fn, types.FunctionType):
        yield fn
        fn = getattr(fn, "__wrapped__", None)


def _helpers(value: Any, in_jitted: bool) -> Iterator[types.FunctionType]:
    """Yield the functions that run when a value is called, those in a jitted one if they count."""
    while isinstance(value, functools.partial) or (isinstance(value, Wrapped) and (in_jitted or value.verb != "jit")):
        value = value.func if isinstance(value, functools.partial) else value.__wrapped__
    if isinstance(value, types.FunctionType | types.MethodType) and not isinstance(getattr(value, "__self__", None), type):
        yield from _functions(value)


def _methods(classes: Iterable[type], read: set[str]) -> list[types.FunctionType]:
    """Return the methods and properties of classes whose names are read, if only by one that is read itself."""
    classes = list(classes)
    found: dict[types.FunctionType, None] = {}
    new = read
    while new:
        members = [member for cls in classes for member in _members(cls, new)]
        functions = [each.fget if isinstance(each, property) else each for each in members]
        added = [each for each in functions if isinstance(each, types.FunctionType) and each not in found]
        found.update(dict.fromkeys(added))
        new = set().union(*map(_attribute_names, added)) - read
        read = read | new
    return list(found)


def _members(cls: type, names: Set[str]) -> list[Any]:
    """Return what stands under some names in a class, without calling a descriptor."""
    metaclass: type = type(cls)
    found: dict[str, Any] = {}
    for each in (*metaclass.__mro__[::-1], *cls.__mro__[::-1]):
        held = vars(each)
        found.update({name: held[name] for name in held.keys() & names})
    return [found[name] for name in sorted(found)]


def _attribute_names(fn: types.FunctionType) -> set[str]:
    return {name for kind, name in names_read(fn.__code__) if kind == "attribute"}


def _names_of_variables(fn: types.FunctionType) -> set[str]:
    names = names_read(fn.__code__)
    members = [name for kind, name in names if kind == "member"]
    return {name for of, name in members if of and ("global", of) not in names}


def _variables(fn: types.FunctionType, names: frozenset[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
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


def _inside(value: Any) -> Iterator[Any]:
    """Yield what a static value holds: the variables of a function, the attributes of an object."""
    if isinstance(value, types.FunctionType):
        yield from [each for _, each in _variables(value, names_read(value.__code__))]
    elif not isinstance(value, type | types.ModuleType):
        yield from attributes_of(value).values()


def _held(value: Any) -> Mapping[str, Any]:
    try:
        return dict(vars(value))
    except Exception:  # its class has no __dict__, or an unusual one
        return {}


def _arrays(value: Any) -> Sequence[mx.array]:
    try:
        return () if value is mx.random.state else list(arrays_in(value))  # the random state is what jit threads through
    except Exception:  # from a user's registered class, or a list that holds itself
        return ()


def _caches(value: Any) -> list[Any]:
    """Return the caches of mlx-lm that a value is, or is a list of."""
    return [each for each in (value, *(value if isinstance(value, list | tuple) else ())) if cache_classes(each)]


def _described(value: Any, count: int) -> str:
    if isinstance(value, mx.array):
        return describe(value)
    return f"{with_article(type(value).__name__)} with {count} array{'s' * (count > 1)}"


def _is_ours(fn: Any) -> bool:
    """Return whether a function is one of this package or of another that is installed."""
    return isinstance(fn, types.FunctionType) and fn.__code__.co_filename.startswith(_LIBRARIES)


def is_of_library(cls: type) -> bool:
    """Return whether a class was written in a library, and not only made by a function of one."""
    return _is_library(cls) and vars(sys.modules[cls.__module__]).get(cls.__name__) is cls


def _is_library(value: Any) -> bool:
    """Return whether a Python module, or that of a class or function, belongs to this package or another that is installed."""
    module = value if isinstance(value, types.ModuleType) else sys.modules.get(getattr(value, "__module__", ""))
    if getattr(module, "__name__", "").partition(".")[0] in sys.stdlib_module_names:  # some have no file
        return True
    return (getattr(module, "__file__", None) or "").startswith(_LIBRARIES)
