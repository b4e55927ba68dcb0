"""What makes a class a frozen tree: the attrs definition, the optree registration, and the end of construction.

This file is the one place where classes are changed as they are made. See the README's architecture section.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import linecache
import threading
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import attrs
import mlx.core as mx
import mlx.nn
import optree

from . import fields
from .containers import arrays_in, freeze_containers, packed, static_key, unpacked
from .namespace import NAMESPACE

N = TypeVar("N", bound="Node")
# The names, keys and indices that lead to a part of a tree.
Path = tuple[Any, ...]
# The places in a module that are tied: the path of each, and the path of the array that stands there too.
Ties = tuple[tuple[Path, Path], ...]

# In the __dict__ of an instance that is open to assignment. No field has this name, which is not an identifier.
OPEN = "<open>"

_building = threading.RLock()

FROZEN = "can't {verb} {cls}.{name}: a finished module never changes. {advice} returns a new module that shares the rest."
UNDECLARED = "{cls} has no field {name!r}{nearest}. Declare it in the class body, for example as `{name}: mx.array`."
UNSET = (
    "{cls}.__init__ returned without setting {names}. Set each declared field on self, or give it a default in the class body."
)
ARRAY_IN_STATIC = (
    "{cls}.{name} is a static field and was given an array ({array}). Static values are structure, compared and hashed; "
    "an array belongs in a bare annotation (a parameter) or in fl.buffer()."
)
UNHASHABLE = (
    "{cls}.{name} is a static field and was given {value!r}, a {kind} that can't be hashed ({error}). Give the class "
    "__eq__ and __hash__, or keep what it says in numbers, strings and tuples."
)
FOREIGN_ARRAY = "{cls}.{name} was given a {kind}; the leaves of a module are mx.array. Pass mx.array(...) of it."
HIDES = "{cls} declares a field {name!r}, which hides {owner}.{name} of every module. Choose another name."
HIDDEN = (
    "{cls} declares a field {name!r}, and a base class has a property of that name, which would be read in its place. "
    "Choose another name, or leave the declaration to the base class."
)
UNKNOWN_CONTAINER = "{cls}.{name} was given a {kind}, which frostleaf can't look into. {advice}"
BUILDING = (
    "this {cls} is still being built: until its __init__ has returned it is not a tree, and can't be cast, frozen or "
    "flattened. Do that to the finished module (what may never be trained is declared with fl.buffer())."
)
TWICE = "__init__ was called on a finished {cls}, which can't change. Build a new one."


class FrozenModuleError(attrs.exceptions.FrozenInstanceError):
    """The ``FrozenInstanceError`` of attrs, with a message that says which class and field, and what to call instead."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.args = (message,)
        self.msg = message


class Metadata:
    """A module's own part of its structure: its static values, its mode, the names of its frozen fields, and its ties.

    Equal when interchangeable (:func:`~frostleaf.containers.static_key`).
    """

    __slots__ = ("_hash", "_key", "frozen", "static", "ties", "training")

    def __init__(self, static: Mapping[str, Any], training: bool, frozen: frozenset[str], ties: Ties = ()) -> None:
        self.static = static
        self.training = training
        self.frozen = frozen
        self.ties = ties
        self._key = (training, frozen, ties, tuple(static_key(value) for value in static.values()))
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Metadata)
            and self._hash == other._hash
            and self._key == other._key
            and self.static.keys() == other.static.keys()
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        shown = dict(self.static)
        if not self.training:
            shown["training"] = False
        if self.frozen:
            shown["frozen"] = sorted(self.frozen)
        if self.ties:
            shown["ties"] = self.ties
        return f"Metadata({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __reduce__(self) -> Any:
        # The hash is made anew: that of a string is another in each process.
        static = {name: packed(value) for name, value in self.static.items()}
        return _metadata, (static, self.training, self.frozen, self.ties)


class Node:
    """The base of :class:`Module`: a class whose instances are frozen trees."""

    # Beside its fields, which are in its __dict__, an instance that is finished and built has its metadata, or what
    # opened() returns. If it was taken apart, or was not built yet, it has its leaves and its structure (a
    # tree.structure.Flat). A tied array is in the __dict__ at all its places, and in what opened() returns at one.
    __slots__ = ("_frostleaf_flat", "_frostleaf_parts")

    __fields__: ClassVar[Mapping[str, attrs.Attribute[Any]]] = {}
    # Names of the fields whose values are children in the tree, and of those that are structure.
    __children__: ClassVar[tuple[str, ...]] = ()
    __static__: ClassVar[tuple[str, ...]] = ()
    # Names of the fields that are frozen in a new instance.
    __frozen__: ClassVar[tuple[str, ...]] = ()
    # Makes a finished instance of metadata and children as they are: nothing is converted or checked.
    __assemble__: ClassVar[Callable[[Metadata, Iterable[Any]], Any]]
    # Whether an instance may be built when it is first looked into, which is when __getattr__ is called.
    __can_wait__: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _define(cls)

    if not TYPE_CHECKING:  # a checker that saw these would take every name for an attribute

        def __setattr__(self, name: str, value: Any) -> None:
            cls = type(self)
            if OPEN not in self.__dict__:
                raise FrozenModuleError(_frozen("set", cls, name))
            self.__dict__[name] = _checked(self, _field(cls, name), value)

        def __delattr__(self, name: str) -> None:
            raise FrozenModuleError(_frozen("delete", type(self), name))

        def __getattr__(self, name: str) -> Any:
            # Reached only by a name that is not there. The node may not have been built yet, or its __init__ is still running
            # and the field has a default.
            if name == "_frostleaf_parts" or flat_kept(self) is not None:
                opened(self)
            field = type(self).__fields__.get(name)
            if OPEN in self.__dict__ and field and not isinstance(field.default, attrs.Factory | type(attrs.NOTHING)):
                return field.default
            try:
                return object.__getattribute__(self, name)
            except AttributeError:
                inherited = getattr(super(), "__getattr__", None)
                if inherited is None:
                    raise
                return inherited(name)

    def _set_training_mode(self: N, mode: bool) -> N:
        """Return the node in a mode; what it holds is in it already. A layer that keeps its arrays otherwise in each mode
        overrides this, as in MLX, and returns what it makes of ``super()._set_training_mode(mode)``.
        """
        return edited(self, training=mode)

    def __dir__(self) -> Any:
        if flat_kept(self) is not None:
            opened(self)  # a node that waits to be built has no fields yet, and completion is to show them
        return super().__dir__()

    def __copy__(self: N) -> N:
        metadata_of(self)  # a node that is being built is still open to change
        return self

    def __deepcopy__(self: N, memo: dict[int, Any]) -> N:
        def copied(part: Any) -> Any:
            return copy.deepcopy(part, memo) if isinstance(part, mx.array | Node) else part

        metadata, children, _ = opened(self)
        new = [optree.tree_map(copied, child, is_leaf=_is_node, namespace=NAMESPACE) for child in children]
        return type(self).__assemble__(metadata, new)  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        metadata = metadata_of(self)
        values = {name: packed(value) for name, value in field_values(self).items()}
        return _restore, (type(self), values, metadata.training, metadata.frozen, metadata.ties)


def metadata_of(node: Node) -> Metadata:
    """Return the node's static values, mode and frozen names.

    Raises:
        TypeError: If the node's ``__init__`` is still running.
    """
    return opened(node)[0]


_get_parts: Any = Node.__dict__["_frostleaf_parts"].__get__
_set_parts: Any = Node.__dict__["_frostleaf_parts"].__set__
_get_flat: Any = Node.__dict__["_frostleaf_flat"].__get__
keep_flat: Any = Node.__dict__["_frostleaf_flat"].__set__


def flat_kept(node: Node) -> Any:
    """Return the leaves and the structure that are kept with the node, or ``None``."""
    try:
        return _get_flat(node)
    except AttributeError:
        return None


def is_built(node: Node) -> bool:
    """Return whether the node has its fields: it is finished, and not waiting to be looked into."""
    try:
        _get_parts(node)
    except AttributeError:
        return False
    return True


def is_finished(node: Node) -> bool:
    """Return whether the node's ``__init__`` has returned, so that it can't change any more."""
    return is_built(node) or flat_kept(node) is not None


def opened(node: Node) -> tuple[Metadata, tuple[Any, ...], bool]:
    """Return the node's metadata, what stands in its parameter and buffer fields, in order, and whether that is arrays only.

    The node is built if it was not.

    Raises:
        TypeError: If the node's ``__init__`` is still running.
    """
    if not is_built(node):
        flat = flat_kept(node)
        if flat is None:
            raise TypeError(BUILDING.format(cls=type(node).__name__))
        with _building:
            if not is_built(node):
                built = type(node).__assemble__(*flat.opened())
                node.__dict__.update(built.__dict__)
                _set_parts(node, opened(built))
    parts = _get_parts(node)
    if type(parts) is not tuple:
        _keep_parts(node, parts)
        parts = _get_parts(node)
    return parts  # type: ignore[no-any-return]


def _keep_parts(node: Node, metadata: Metadata) -> None:
    children = tuple([node.__dict__[name] for name in type(node).__children__])
    if metadata.ties:
        children = ties_.taken_out(type(node), children, metadata.ties)
    arrays_only = all(type(child) is mx.array for child in children)
    _set_parts(node, (metadata, children, arrays_only))


def children_of(node: Node) -> dict[str, Any]:
    """Return what stands in the node's parameter and buffer fields, by name; an array that is tied at one of its places."""
    return dict(zip(type(node).__children__, opened(node)[1], strict=True))


def field_values(node: Node) -> dict[str, Any]:
    """Return the node's fields by name, in the order of their declaration.

    Raises:
        TypeError: If the node's ``__init__`` is still running.
    """
    opened(node)
    values = node.__dict__
    return {name: values[name] for name in type(node).__fields__}


def edited(
    node: N,
    changes: Mapping[str, Any] = MappingProxyType({}),
    *,
    training: bool | None = None,
    frozen: frozenset[str] | None = None,
    ties: Ties | None = None,
    convert: bool = True,
) -> N:
    """Return the node with some fields, its mode, its frozen names or its ties changed; the node itself if nothing is.

    The converters and validators of the fields that change are run, unless ``convert`` is false.

    Raises:
        TypeError: If a name isn't a field, or a value can't be held by its field.
        ValueError: If a tied place is gone or tied twice, or the places of a tie were given different arrays.
    """
    cls = type(node)
    metadata = metadata_of(node)
    old = field_values(node)
    # A child with its tied places taken out, as the tree has it, is no change.
    in_tree = children_of(node) if metadata.ties else old
    changed: dict[str, Any] = {}
    for name, value in changes.items():
        field = _field(cls, name)
        if not _same(cls, name, value, old[name]) and value is not in_tree.get(name):
            value = ties_.refilled(name, value, metadata.ties, old) if metadata.ties else value
            value = _checked(node, field, value) if convert else value
            if not _same(cls, name, value, old[name]):
                changed[name] = value
    training = metadata.training if training is None else training
    frozen = metadata.frozen if frozen is None else frozen
    ties = metadata.ties if ties is None else ties
    if not changed and training == metadata.training and frozen == metadata.frozen and ties == metadata.ties:
        return node
    new = _blank(cls, {**old, **changed})
    if ties != metadata.ties:
        ties_.fill(new, ties)
    _close(new, changed, training, frozen, ties, old)
    return new


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; the nearest is 'x'"`` for use in a message, or nothing if no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; the nearest is {close[0]!r}" if close else ""


def _define(cls: type[Node]) -> None:
    init = _handwritten_init(cls)
    handwritten = init is not None
    # A hand-written constructor takes what it likes, so the order of the fields' defaults is free: kw_only says so to attrs.
    attrs.define(
        cls, frozen=True, slots=False, eq=False, repr=False, init=not handwritten, kw_only=handwritten, auto_attribs=True
    )
    # attrs has put its own messages here; Node has better ones.
    del cls.__setattr__, cls.__delattr__
    init = init or cls.__init__
    if not hasattr(init, "handwritten"):
        init = _closing(init, handwritten)
    if cls.__init__ is not init:
        cls.__init__ = init  # type: ignore[method-assign]

    cls.__fields__ = attrs.fields_dict(cls)  # type: ignore[arg-type]
    root = next(base for base in reversed(cls.__mro__) if issubclass(base, Node) and base is not Node)
    for name in cls.__fields__:
        if hasattr(root, name):
            raise TypeError(HIDES.format(cls=cls.__name__, name=name, owner=root.__name__))
        if inspect.isdatadescriptor(inspect.getattr_static(cls, name, None)):
            raise TypeError(HIDDEN.format(cls=cls.__name__, name=name))
    cls.__static__ = tuple(name for name, field in cls.__fields__.items() if fields.kind(field) == "static")
    cls.__children__ = tuple(name for name in cls.__fields__ if name not in cls.__static__)
    cls.__frozen__ = tuple(name for name, field in cls.__fields__.items() if fields.frozen(field))
    cls.__assemble__ = _assembler(cls)
    cls.__can_wait__ = (
        cls.__getattr__ is Node.__getattr__  # type: ignore[attr-defined]
        and cls.__getattribute__ is object.__getattribute__
        and not any(hasattr(cls, name) for name in cls.__fields__)
    )
    optree.register_pytree_node(
        cast(Any, cls),
        lambda node: (opened(cast(Any, node))[1], metadata_of(cast(Any, node)), cls.__children__),
        cast(Any, cls.__assemble__),
        path_entry_type=optree.GetAttrEntry,
        namespace=NAMESPACE,
    )


def _handwritten_init(cls: type) -> Callable[..., None] | None:
    """Return the ``__init__`` that somebody wrote for ``cls`` or a base, if there is one: no generated one hides it."""
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if init is None or base is object or getattr(base, "_is_protocol", False):
            continue
        if getattr(init, "handwritten", True):
            return init  # type: ignore[no-any-return]
    return None


def _assembler(cls: type[Node]) -> Callable[[Metadata, Iterable[Any]], Any]:
    # Written out for each class, which halves the time it takes to put a tree together; a loop over the names does the same.
    targets = ", ".join(f"values[{name!r}]" for name in cls.__children__)
    sources = [f"    values[{name!r}] = static[{name!r}]" for name in cls.__static__]
    lines = [
        "def assemble(metadata, children):",
        "    node = new(cls)",
        "    values = node.__dict__",
        f"    ({targets},) = children" if targets else "    () = children",
        *(["    static = metadata.static", *sources] if sources else []),
        "    set_parts(node, metadata)",
        "    if metadata.ties:",
        "        fill(node, metadata.ties)",
        "    return node",
    ]
    source = "\n".join(lines)
    file = f"<assemble {cls.__module__}.{cls.__qualname__}>"
    scope: dict[str, Any] = {"new": object.__new__, "cls": cls, "set_parts": _set_parts, "fill": ties_.fill}
    exec(compile(source, file, "exec"), scope)
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # so that a debugger can step through it
    return staticmethod(scope["assemble"])


def _closing(init: Callable[..., None], handwritten: bool) -> Callable[..., None]:
    """Return ``init`` so that the node is open to assignment while it runs and finished when the outermost one returns."""

    @functools.wraps(init)
    def __init__(self: Node, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if is_finished(self):
            raise TypeError(TWICE.format(cls=type(self).__name__))
        if OPEN in self.__dict__:
            init(self, *args, **kwargs)
            return
        self.__dict__[OPEN] = True
        try:
            init(self, *args, **kwargs)
            _fill_defaults(self)
        finally:
            del self.__dict__[OPEN]
        frozen = frozenset(name for name in type(self).__frozen__ if self.__dict__[name] is not None)
        _close(self, type(self).__fields__, training=True, frozen=frozen)

    __init__.handwritten = handwritten  # type: ignore[attr-defined]
    return __init__


def _fill_defaults(node: Node) -> None:
    unset = []
    for name, attribute in type(node).__fields__.items():
        if name in node.__dict__:
            continue
        default: Any = attribute.default
        if default is attrs.NOTHING:
            unset.append(name)
            continue
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory(node) if default.takes_self else default.factory()
        node.__dict__[name] = _checked(node, attribute, default)
    if unset:
        raise TypeError(UNSET.format(cls=type(node).__name__, names=", ".join(map(repr, unset))))


def _close(
    node: Node,
    changed: Iterable[str],
    training: bool,
    frozen: frozenset[str],
    ties: Ties = (),
    old: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Make what the changed fields hold immutable, check that they may hold it, and give the node its metadata.

    Where the node has ties, ``old`` is what its fields held before the change.
    """
    cls = type(node)
    values = node.__dict__
    for name in changed:
        values[name] = freeze_containers(values[name])
        if name in cls.__static__:
            _check_static(cls, name, values[name])
        else:
            _check_child(cls, name, values[name])
    if ties:
        ties_.follow(node, ties, old)
    metadata = Metadata({name: values[name] for name in cls.__static__}, training, frozen, ties)
    _keep_parts(node, metadata)


def _check_static(cls: type[Node], name: str, value: Any) -> None:
    for array in arrays_in(value):
        shown = f"{array.dtype}{list(array.shape)}".removeprefix("mlx.core.")
        raise TypeError(ARRAY_IN_STATIC.format(cls=cls.__name__, name=name, array=shown))
    try:
        hash(static_key(value))
    except TypeError as error:
        shown = UNHASHABLE.format(cls=cls.__name__, name=name, value=value, kind=type(value).__name__, error=error)
        raise TypeError(shown) from None


def _check_child(cls: type[Node], name: str, value: Any) -> None:
    # A node has checked its own fields.
    for leaf in optree.tree_leaves(value, _is_node, namespace=NAMESPACE):
        if not isinstance(leaf, mx.array) and hasattr(leaf, "__array__") and type(leaf).__hash__ is None:
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            raise TypeError(FOREIGN_ARRAY.format(cls=cls.__name__, name=name, kind=kind))
        if isinstance(leaf, Mapping | list):
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            if isinstance(leaf, mlx.nn.Module):  # type: ignore[attr-defined]
                advice = "Use the layer of that name in fl.nn."
            else:
                advice = "Give a plain dict or list of it, or register its class with fl.register_pytree_node."
            raise TypeError(UNKNOWN_CONTAINER.format(cls=cls.__name__, name=name, kind=kind, advice=advice))


def _field(cls: type[Node], name: str) -> attrs.Attribute[Any]:
    try:
        return cls.__fields__[name]
    except KeyError:
        shown = UNDECLARED.format(cls=cls.__name__, name=name, nearest=nearest(name, cls.__fields__))
        raise TypeError(shown) from None


def _checked(node: Node, attribute: attrs.Attribute[Any], value: Any) -> Any:
    """Return ``value`` as the field's converter makes it, if its validators accept it."""
    value = attrs.setters.convert(node, attribute, value)
    return attrs.setters.validate(node, attribute, value)


def _same(cls: type[Node], name: str, value: Any, old: Any) -> bool:
    """Return whether a field would be the same with ``value`` in it: the same object, or an equal static value."""
    return value is old or (name in cls.__static__ and static_key(value) == static_key(old))


def _is_node(value: Any) -> bool:
    return isinstance(value, Node)


def _blank(cls: type[N], values: Mapping[str, Any]) -> N:
    node = object.__new__(cls)
    node.__dict__.update(values)
    return node


def _frozen(verb: str, cls: type[Node], name: str) -> str:
    advice = f".replace({name}=...)" if name in cls.__fields__ else ".train(mode)" if name == "training" else ".replace(...)"
    return FROZEN.format(verb=verb, cls=cls.__name__, name=name, advice=advice)


def _metadata(static: dict[str, Any], training: bool, frozen: frozenset[str], ties: Ties) -> Metadata:
    return Metadata({name: freeze_containers(unpacked(value)) for name, value in static.items()}, training, frozen, ties)


def _restore(cls: type[N], values: dict[str, Any], training: bool, frozen: frozenset[str], ties: Ties) -> N:
    node = _blank(cls, {name: unpacked(value) for name, value in values.items()})
    _close(node, values, training, frozen, ties)
    return node


from . import ties as ties_  # noqa: E402  which needs Node
