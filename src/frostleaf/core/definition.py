"""The definition: what happens when a class of frozen trees is defined, and while an instance is built."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs
import mlx.core as mx
import optree

from . import fields, ties
from .construction import checked, close, evolve, require_arrays, restore, restored_copy
from .hidden import find_hidden, is_foreign_array
from .instance import (
    OPEN,
    Assemble,
    Definition,
    Instance,
    Metadata,
    field_values,
    is_new,
    level_of,
    metadata_of,
    set_level,
)
from .pickling import to_picklable
from .registration import NAMESPACE
from .shapes import LEAF
from .words import describe, nearest

N = TypeVar("N", bound="Node")


class FrozenModuleError(attrs.exceptions.FrozenInstanceError):
    """Raised if a finished module is changed: attrs' ``FrozenInstanceError``, with a message that says what to call instead.

    >>> import frostleaf as fl
    >>> fl.nn.Linear(2, 2).bias = None
    Traceback (most recent call last):
    ...
    frostleaf.core.definition.FrozenModuleError: can't set Linear.bias: a finished module never changes. .replace(bias=...)
    returns a new module that shares the rest.
    """

    def __init__(self, message: str) -> None:
        AttributeError.__init__(self, message)  # before attrs 26 a class attribute hides args from str()
        self.args = (message,)
        self.msg = message


UNDECLARED = "{cls} has no field {name!r}{near}. Declare it in the class body, for example as `{name}: {type}`."
IN_A_CALL = " A call of it gives it another value with fl.record(self, {name}=...), which fl.stateful collects."
IN_PLACE = " (An array that += was tried on has changed already: write .at({name!r}).apply(lambda array: array + ...).)"


class _NoDataclass:
    """Stand where :func:`dataclasses.replace` looks for the fields of a dataclass; for all others there is nothing here."""

    def __get__(self, instance: object, owner: type) -> Any:
        caller = sys._getframe(1).f_back
        if caller is not None and caller.f_code is _DATACLASSES_REPLACE:
            raise TypeError(NO_REPLACE.format(cls=owner.__name__))
        raise AttributeError(f"{owner.__name__} is no dataclass")


_DATACLASSES_REPLACE = dataclasses.replace.__code__
NO_REPLACE = (
    "dataclasses.replace takes dataclasses, and {cls} is a module. Write .replace(...), which keeps mode, frozen names and "
    "ties."
)


class Node(Instance):
    """The base of :class:`Module`: a class whose instances are frozen trees."""

    __slots__ = ()

    if not TYPE_CHECKING:
        __dataclass_fields__ = _NoDataclass()

    def __init_subclass__(cls, *, init: bool = True, declared: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if declared is None:
            _define(cls, init)
        else:  # its fields are given, whatever their names, and its instances are made from other objects
            _describe(cls, declared, cls.__getattr__ is Instance.__getattr__)  # type: ignore[attr-defined]

    if not TYPE_CHECKING:  # a checker that saw these would take every name for an attribute

        def __setattr__(self, name: str, value: Any) -> None:
            values, fields = self.__dict__, self.__frostleaf__.fields
            if OPEN in values and name in self.__frostleaf__.unchecked:
                values[name] = value
                return
            if OPEN not in values:
                changed = IN_PLACE.format(name=name) if name in fields and value is values.get(name) else ""
                raise FrozenModuleError(_frozen("set", type(self), name) + changed)
            if name not in fields:
                cls = type(self).__name__
                raise TypeError(UNDECLARED.format(cls=cls, name=name, near=nearest(name, fields), type=_type_of(value)))
            values[name] = checked(self, fields[name], value)

        def __delattr__(self, name: str) -> None:
            raise FrozenModuleError(_frozen("delete", type(self), name))

    @classmethod
    def _instead_of_setting(cls, name: str) -> str:
        """Return in words why an attribute can't be set, and what to write."""
        if not hasattr(cls, "replace"):
            return "it never changes. Make another one."
        advice = ".train(mode)" if name == "training" else ".replace(...)"
        field = cls.__frostleaf__.fields.get(name)
        advice = f".replace({name}=...)" if field else advice
        record = IN_A_CALL.format(name=name) if field and fields.is_state(field) else ""
        return f"a finished module never changes. {advice} returns a new module that shares the rest.{record}"

    def _set_training_mode(self: N, mode: bool) -> N:
        """Put the node in a mode, in a copy; everything inside is in that mode already.

        A layer that stores its arrays differently in each mode overrides this, as in MLX, and returns an edit of
        ``super()._set_training_mode(mode)``.
        """
        return evolve(self, training=mode)

    def __reduce__(self) -> Any:
        metadata = metadata_of(self)
        values = {name: to_picklable(value) for name, value in field_values(self).items()}
        return restore, (type(self), values, metadata.training, metadata.frozen, metadata.ties, metadata.shards)


def _frozen(verb: str, cls: type[Node], name: str) -> str:
    return f"can't {verb} {cls.__name__}.{name}: {cls._instead_of_setting(name)}"


HIDDEN = (
    "{cls} declares a field {name!r}, and a base class has a property of that name, which would be read instead. "
    "Choose another name, or leave the declaration to the base class."
)


def _type_of(value: Any) -> str:
    """Return an annotation for a field that is to hold a value."""
    if isinstance(value, mx.array):
        return "mx.array"
    if isinstance(value, list | tuple | dict):
        return type(value).__name__
    if isinstance(value, Instance):
        cls = type(value)
        return f"fl.nn.{cls.__name__}" if cls.__module__.startswith("frostleaf.nn") else cls.__name__
    return f"{type(value).__name__} = fl.static()"


SAME_ARGUMENT = (
    "the constructor of {cls} has a {error}: a field's name without its underscore is its argument, beside self. Rename the "
    "field, or write fl.parameter(alias=...)."
)
OWN_SETATTR = (
    "{cls} defines {name}, and a module can't: its attributes are set while __init__ runs, and never again. Give the field a "
    "converter or a validator, or edit a copy with .replace(...)."
)


def _define(cls: type[Node], init: bool) -> None:
    for name in ("__setattr__", "__delattr__"):
        if name in vars(cls):
            raise TypeError(OWN_SETATTR.format(cls=cls.__name__, name=name))
    for name, value in [*vars(cls).items()]:
        if isinstance(value, dataclasses.Field):
            setattr(cls, name, _attrs_field(value))
    if "__init_subclass__" in vars(cls):
        cls.__init_subclass__ = classmethod(_defining(cls.__init_subclass__.__func__))  # type: ignore[attr-defined, assignment]
    own = _handwritten_init(cls)
    handwritten = own is not None
    inherits_replace = "__replace__" not in cls.__dict__
    # A hand-written constructor takes any arguments, so fields with defaults may come first: kw_only tells attrs so.
    options: Any = {"frozen": True, "slots": False, "eq": False, "repr": False, "auto_attribs": True}
    try:
        attrs.define(cls, init=init and not handwritten, kw_only=handwritten, **options)
    except SyntaxError as error:
        raise TypeError(SAME_ARGUMENT.format(cls=cls.__name__, error=error.msg)) from None
    # attrs has put its own here; Node's and Module's are better.
    del cls.__setattr__, cls.__delattr__
    if inherits_replace and "__replace__" in cls.__dict__:
        del cls.__replace__  # type: ignore[attr-defined]
    constructor: Any = own or cls.__init__
    if not hasattr(constructor, "handwritten"):
        constructor = _closing(constructor, handwritten)
    if cls.__init__ is not constructor:
        cls.__init__ = constructor  # type: ignore[method-assign]

    declared = attrs.fields_dict(cls)  # type: ignore[arg-type]
    root = next(base for base in reversed(cls.__mro__) if issubclass(base, Node) and base is not Node)
    for name in declared:
        if hasattr(root, name):
            raise TypeError(
                f"{cls.__name__} declares a field {name!r}, which hides {root.__name__}.{name} of every module. Choose another "
                "name."
            )
        if inspect.isdatadescriptor(next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)):
            raise TypeError(HIDDEN.format(cls=cls.__name__, name=name))
    seen = {base for parent in cls.__bases__ if issubclass(parent, Node) for base in parent.__mro__}
    for base in cls.__mro__:
        if base not in seen:
            _require_annotations(cls, base)
    _describe(
        cls,
        declared,
        cls.__getattr__ is Instance.__getattr__  # type: ignore[attr-defined]
        and cls.__getattribute__ is object.__getattribute__
        and not any(hasattr(cls, name) for name in declared)
        and not _reads_dict(cls, root),
    )


def _describe(cls: type[Node], declared: Mapping[str, attrs.Attribute[Any]], deferrable: bool) -> None:
    """Give a class its definition, and optree the class."""
    static = tuple(name for name, field in declared.items() if fields.kind(field) == "static")
    children = tuple(name for name in declared if name not in static)
    cls.__frostleaf__ = definition = Definition(
        fields=declared,
        children=children,
        # itemgetter runs in C, and pick runs for every module of a tree; for fewer than two names itemgetter returns no tuple.
        pick=itemgetter(*children) if len(children) > 1 else lambda values: tuple([values[name] for name in children]),
        static=static,
        arrays=tuple(name for name in children if fields.is_array(declared[name])),
        unchecked=frozenset([name for name, field in declared.items() if not (field.converter or field.validator)]),
        frozen=tuple(name for name, field in declared.items() if fields.frozen(field)),
        parameters=frozenset(name for name in children if fields.is_parameter(declared[name])),
        persistent=frozenset(name for name in children if fields.persistent(declared[name])),
        converts=any(declared[name].converter or declared[name].validator for name in children),
        assembler=functools.partial(_assembler, cls, children, static),
        deferrable=deferrable,
    )
    optree.register_pytree_node(
        cast(Any, cls),
        lambda node: (level_of(cast(Any, node))[1], metadata_of(cast(Any, node)), children),
        lambda metadata, values: definition.assemble(cast(Metadata, metadata), values),
        path_entry_type=optree.GetAttrEntry,
        namespace=NAMESPACE,
    )


def _reads_dict(cls: type, root: type) -> bool:
    """Return whether a method of a class reads a ``__dict__``, which is empty in a module that is put together late."""
    members = {name: each for base in cls.__mro__[::-1] if base not in root.__mro__ for name, each in vars(base).items()}
    # attrs makes some that do; a constructor reads that of an instance that is not late.
    codes = [getattr(getattr(each, "fget", each), "__code__", None) for name, each in members.items() if name != "__init__"]
    own = [code for code in codes if code and not code.co_filename.startswith("<attrs")]
    return any(not {"vars", "__dict__"}.isdisjoint(code.co_names) for code in own)


NO_ANNOTATION = (
    "{cls}.{name} is {value} in the class body{of_base}, without an annotation: all instances would share it, and it would not "
    "be trained, cast or saved. Annotate it and set it in __init__, or annotate it as a ClassVar if it never changes."
)


def _require_annotations(cls: type, base: type) -> None:
    """Raise a ``TypeError`` if a class or a base has an array or a module in its body that is no field and no ``ClassVar``."""
    for name, value in [*vars(base).items()]:
        if name.startswith("__"):
            continue
        is_held = isinstance(value, (*LEAF, Instance, list, tuple, dict)) or is_foreign_array(value)
        if is_held and find_hidden(value) and name not in inspect.get_annotations(base):
            of_base = "" if base is cls else f" of its base {base.__name__}"
            raise TypeError(NO_ANNOTATION.format(cls=cls.__name__, name=name, value=describe(value), of_base=of_base))


def _attrs_field(field: dataclasses.Field[Any]) -> Any:
    default: Any = attrs.NOTHING if field.default is dataclasses.MISSING else field.default
    if field.default_factory is not dataclasses.MISSING:
        default = attrs.Factory(field.default_factory)
    return attrs.field(default=default, init=field.init, kw_only=field.kw_only is True, metadata=dict(field.metadata))


def _defining(hook: Callable[..., None]) -> Callable[..., None]:
    """Return ``hook``, an ``__init_subclass__``, so that subclasses are defined also if it does not call ``super()``'s."""

    @functools.wraps(hook)
    def __init_subclass__(cls: type[Node], **options: Any) -> None:  # noqa: N807
        hook(cls, **options)
        if "__frostleaf__" not in vars(cls):
            _define(cls, options.get("init", True))

    return __init_subclass__


def _handwritten_init(cls: type) -> Callable[..., None] | None:
    """Return the hand-written ``__init__`` of ``cls`` or a base, if there is one: a generated one does not hide it."""
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if init is None or base is object or getattr(base, "_is_protocol", False):
            continue
        if getattr(init, "handwritten", True):
            return init  # type: ignore[no-any-return]
    return None


def _assembler(cls: type[Node], children: Iterable[str], static: Iterable[str]) -> Assemble:
    # A loop over the names would do the same; written out for each class it takes half the time to put a tree together.
    targets = ", ".join(f"values[{name!r}]" for name in children)
    sources = [f"    values[{name!r}] = static[{name!r}]" for name in static]
    lines = [
        "def assemble(metadata, children):",
        "    node = new(cls)",
        "    values = node.__dict__",
        f"    ({targets},) = children" if targets else "    () = children",
        *(["    static = metadata.static", *sources] if sources else []),
        "    set_level(node, metadata)",
        "    if metadata.ties:",
        "        set_level(node, (metadata, tuple(children)))",
        "        fill(node, metadata.ties)",
        "    return node",
    ]
    source = "\n".join(lines)
    file = f"<assemble {cls.__module__}.{cls.__qualname__}>"
    scope: dict[str, Any] = {"new": object.__new__, "cls": cls, "set_level": set_level, "fill": ties.fill}
    exec(compile(source, file, "exec"), scope)
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # so that a debugger can step through it
    return scope["assemble"]  # type: ignore[no-any-return]


# It calls the constructor, to which mode, frozen names and ties can't be given.
_ATTRS_EVOLVE = attrs.evolve.__code__
NO_EVOLVE = (
    "attrs.evolve would make a new {cls} in training mode, with nothing frozen or tied. Write .replace(...), which keeps these."
)


DECORATED = (
    "{cls} is decorated with @dataclass, which replaces how modules are printed, compared and hashed. Take the decorator away: "
    "a class of fl.Module gets its constructor without one."
)


def _closing(init: Callable[..., None], handwritten: bool) -> Callable[..., None]:
    """Wrap ``init`` so that the node is open to assignment while it runs, and finished when the outermost one returns."""

    @functools.wraps(init)
    def __init__(self: Node, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        cls, values = type(self), self.__dict__
        if OPEN in values:
            init(self, *args, **kwargs)
            return
        if "__dataclass_fields__" in vars(cls):
            raise TypeError(DECORATED.format(cls=cls.__name__))
        definition = cls.__frostleaf__
        if not is_new(self):
            raise TypeError(f"__init__ was called on a finished {cls.__name__}, which can't change. Build a new one.")
        if sys._getframe(1).f_code is _ATTRS_EVOLVE:
            raise TypeError(NO_EVOLVE.format(cls=cls.__name__))
        edits: list[Callable[[Any], Any]] = []
        values[OPEN] = edits
        try:
            init(self, *args, **kwargs)
            if not handwritten and hasattr(cls, "__post_init__"):
                cast(Any, self).__post_init__()
            if not definition.fields.keys() <= values.keys():
                _fill_defaults(self)
        finally:
            del values[OPEN]
        require_arrays(self)
        frozen = frozenset([name for name in definition.frozen if values[name] is not None] if definition.frozen else ())
        close(self, definition.fields, training=True, frozen=frozen)
        if edits:
            edited = restored_copy(self)
            for edit in edits:
                edited = edit(edited)
            level = level_of(edited)  # which puts it together
            values.update(edited.__dict__)
            set_level(self, level)
        if hasattr(cls, "__check_init__"):
            for base in cls.__mro__:
                if "__check_init__" in vars(base):
                    base.__check_init__(self)  # type: ignore[attr-defined]

    __init__.handwritten = handwritten  # type: ignore[attr-defined]
    return __init__


def _fill_defaults(node: Node) -> None:
    values, unset = node.__dict__, []
    for name, attribute in node.__frostleaf__.fields.items():
        if name in values:
            continue
        default: Any = attribute.default
        if default is attrs.NOTHING:
            unset.append(repr(name))
            continue
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory(node) if default.takes_self else default.factory()
        values[name] = checked(node, attribute, default)
    if unset:
        raise TypeError(
            f"{type(node).__name__}.__init__ returned without setting {', '.join(unset)}. Set each declared field on self, or "
            "give it a default in the class body."
        )
