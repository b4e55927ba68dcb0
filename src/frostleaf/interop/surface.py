"""What the class of a wrapped module has of the original class: its methods, properties and attributes."""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol

from mlx.nn.layers.base import Module as MLXModule

from ..edits.keys import REFUSED
from ..transforms.jit.code import names_assigned, names_renewed
from .calls import call, edited, generate, read, run, wait_for
from .layout import STATIC, Field, Layout, LayoutType, Method, Wrapped, declared
from .left import warn_if_code_reads_left
from .twins import has_other_names, replaced, shown_fields

# What Python or MLX needs of a module that can change, and a tree has its own of.
_OWN = {
    "__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__", "__class_getitem__", "__delattr__",
    "__delitem__", "__dict__", "__dir__", "__doc__", "__eq__", "__firstlineno__", "__getattribute__", "__getstate__",
    "__hash__", "__init__", "__init_subclass__", "__module__", "__new__", "__orig_bases__", "__parameters__", "__qualname__",
    "__reduce__", "__reduce_ex__", "__repr__", "__setattr__", "__setitem__", "__setstate__", "__slots__",
    "__static_attributes__", "__weakref__", "_extra_repr",
}  # fmt: skip
_FORWARDED = {
    "__call__", "__contains__", "__ge__", "__getattr__", "__getitem__", "__gt__", "__iter__", "__le__", "__len__", "__lt__",
    "leaf_modules", "parameters", "save_weights", "trainable_parameters", *REFUSED,
}  # fmt: skip
# Methods that change a module of MLX, and return the changed copy of a tree.
_EDITS = {"_set_training_mode", "eval", "freeze", "load_weights", "set_dtype", "train", "unfreeze", "update"}


class Original:
    """The attributes of a wrapped module under the names that the original class gives them."""

    def __init__(self, node: Wrapped) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        if inspect.isroutine(inspect.getattr_static(self._node.__mlx__, name, None)):
            return functools.partial(_called, self._node, name)
        return read(self._node, name)

    def __repr__(self) -> str:
        return f"<what {self._node.__mlx__.__module__}.{self._node.__mlx__.__qualname__} has>"


def _called(node: Wrapped, name: str, /, *args: Any, **kwargs: Any) -> Any:
    return call(node, name, args, kwargs)


def class_for(layout: Layout) -> Any:
    """Return the class of the wrapped modules that have a layout, which is one in all threads."""
    try:
        return _classes[layout]
    except KeyError:
        with _defining:
            if layout not in _classes:
                _classes[layout] = _define(layout)
            return _classes[layout]


_classes: dict[Layout, Any] = {}
_defining = threading.RLock()


def _define(layout: Layout) -> Any:
    surface = _surface(layout.kind)
    fields = declared(layout)
    members: dict[str, Any] = {"__layout__": layout, "__module__": surface.__module__, "__qualname__": surface.__qualname__}
    for name, place in layout.places:
        if hasattr(Wrapped, name):
            members[name] = Method(name)
        elif place == STATIC or hasattr(surface, name) or name in _changed_in_calls(layout.kind):
            members[name] = Field(name)
    return LayoutType(surface.__name__, (surface,), members, declared=fields)


@functools.cache
def _surface(kind: type) -> Any:
    """Return the class that all wrapped modules of a class share."""
    members: dict[str, Any] = {
        "__mlx__": kind,
        "__class_for__": staticmethod(class_for),
        "__doc__": kind.__doc__,
        "mlx": property(Original),
        "_has_learned": classmethod(_learn),
    }
    members |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    for base in reversed([*_own_bases(kind)]):
        for name, value in vars(base).items():
            if name in _EDITS and inspect.isfunction(value):
                members[name] = _edit(name, value)
            elif name in _FORWARDED or (name not in _OWN and not hasattr(Wrapped, name)):
                members[name] = _member(kind, name, value)
    if has_other_names(kind):
        members |= {"_shown_fields": shown_fields, "replace": replaced, "__replace__": replaced}
    if "train" in members:
        members.setdefault("eval", _edit("eval", MLXModule.eval))
    if "parameters" in members:  # by which MLX saves and loads
        members.setdefault("save_weights", _method("save_weights", MLXModule.save_weights))
        members.setdefault("load_weights", _edit("load_weights", MLXModule.load_weights))
    if "__getattr__" in members:
        members["__getattr__"] = _missing
    return LayoutType(kind.__name__, (Wrapped,), members, declared={})


def _own_bases(kind: type) -> Iterator[type]:
    """Yield the classes whose members are not those of every module of MLX."""
    yield from [base for base in kind.__mro__ if base not in MLXModule.__mro__ and base not in (Generic, Protocol)]


@functools.cache
def _changed_in_calls(kind: type) -> set[str]:
    """Return the names of attributes to which the code of a class assigns, or into which, but for that of layers of MLX."""
    bases = [base for base in _own_bases(kind) if not base.__module__.startswith("mlx.nn.")]
    functions = [value for base in bases for name, value in vars(base).items() if name != "__init__"]
    codes = [each.__code__ for each in functions if isinstance(each, types.FunctionType)]
    written = {name for code in codes for how, name in names_renewed(code) if how == "written"}
    return written.union(*map(names_assigned, codes))


def _learn(cls: Any, name: str) -> bool:
    """Give the class of wrapped modules what its class in MLX has been given since. Return whether there is such a thing."""
    base = next((base for base in _own_bases(cls.__mlx__) if name in vars(base)), None)
    if base is None or name in _OWN or name in _FORWARDED or hasattr(cls, name):
        return False
    setattr(_surface(cls.__mlx__), name, _member(cls.__mlx__, name, vars(base)[name]))
    return True


def _member(kind: type, name: str, value: Any) -> Any:
    if isinstance(value, types.FunctionType):
        return _method(name, value)
    if isinstance(value, classmethod | staticmethod):
        return staticmethod(getattr(kind, name))
    if isinstance(value, property | functools.cached_property):
        return _property(name, value)
    return value


def _property(name: str, value: Any) -> property:
    getter = value.fget if isinstance(value, property) else value.func

    def get(node: Any) -> Any:
        warn_if_code_reads_left(node, getter)
        return read(node, name)

    return property(get, doc=value.__doc__)


def _method(name: str, function: Callable[..., Any]) -> Any:
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generated(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            yield from generate(self, name, args, kwargs)

        return generated

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            return await wait_for(self, name, args, kwargs)

        return awaited

    @functools.wraps(function)
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return call(self, name, args, kwargs)

    return method


def _edit(name: str, function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def edit(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return edited(self, lambda live: getattr(live, name)(*args, **kwargs))

    return edit


def _missing(node: Any, name: str) -> Any:
    try:
        return Wrapped.__getattr__(node, name)  # type: ignore[attr-defined]
    except AttributeError:
        if name.startswith(("_frostleaf", "__")):
            raise
        return run(node, name, lambda live: getattr(live, name))
