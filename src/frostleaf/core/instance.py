"""The instance: what every frozen tree keeps besides its fields."""

from __future__ import annotations

import copy
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import attrs
import mlx.core as mx
import optree

from .containers import freeze_containers, static_key
from .dropped import asked_by_mlx
from .fields import kind
from .pickling import from_picklable, to_picklable
from .registration import NAMESPACE
from .words import Path, describe, keystr

I = TypeVar("I", bound="Instance")  # noqa: E741
# A module's ties: the path of each tied place, and the path of its source.
Ties = tuple[tuple[Path, Path], ...]
# The path of each of its arrays that is a part of a larger one, and a value that says how that is divided.
Shards = tuple[tuple[Path, Any], ...]

# A key in the __dict__ of an instance that is open to assignment. It is not an identifier, so no field has this name.
OPEN = "<open>"
# And one that waits to be put together has this key.
_LATE = "<late>"

_building = threading.RLock()


class Metadata:
    """A module's own part of its structure: its static values, its mode, the names of its frozen fields, its ties, its shards.

    Two are equal if they are interchangeable, by :func:`~frostleaf.core.containers.static_key`.
    """

    __slots__ = ("_has_modules", "_hash", "_static_key", "frozen", "shards", "static", "ties", "training")

    def __init__(
        self, static: Mapping[str, Any], training: bool, frozen: frozenset[str], ties: Ties = (), shards: Shards = ()
    ) -> None:
        self.static = static
        self.training = training
        self.frozen = frozen
        self.ties = ties
        self.shards = shards
        self._static_key: Any = None
        self._hash: int | None = None
        self._has_modules: bool | None = None

    @property
    def static_key(self) -> tuple[Any, ...]:
        """What tells the static values from others, in the order of their fields."""
        if self._static_key is None:
            self._static_key = tuple([static_key(value) for value in self.static.values()])
        return self._static_key  # type: ignore[no-any-return]

    def evolve(self, training: bool, frozen: frozenset[str]) -> Metadata:
        """Return metadata with another mode or other frozen names, and itself if they are its own."""
        if training == self.training and frozen == self.frozen:
            return self
        new = Metadata(self.static, training, frozen, self.ties, self.shards)
        new._static_key, new._has_modules = self._static_key, self._has_modules
        return new

    def with_modules(self, change: Callable[[Any], Any]) -> Metadata:
        """Return metadata with ``change(value)`` for each static value that is or holds a module; itself if none differs."""
        if self._has_modules is None:
            self._has_modules = any(type(value) not in _NO_MODULES and _holds_modules(value) for value in self.static.values())
        if not self._has_modules:
            return self
        static = {name: change(value) if _holds_modules(value) else value for name, value in self.static.items()}
        if all(static[name] is value for name, value in self.static.items()):
            return self
        return Metadata(static, self.training, self.frozen, self.ties, self.shards)

    def freezes(self, path: Path) -> bool:
        """Return whether what stands at a path in the module is frozen: its name is, or that of what holds it."""
        return bool(self.frozen) and any(name in self.frozen for name in names_above(path))

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Metadata)
            and hash(self) == hash(other)
            and self._key() == other._key()
            and self.static.keys() == other.static.keys()
        )

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self._key())
        return self._hash

    def _key(self) -> Any:
        return self.training, self.frozen, self.ties, self.shards, self.static_key

    def __repr__(self) -> str:
        shown = dict(self.static)
        if not self.training:
            shown["training"] = False
        if self.frozen:
            shown["frozen"] = sorted(self.frozen)
        if self.ties:
            shown["ties"] = self.ties
        if self.shards:
            shown["shards"] = self.shards
        return f"Metadata({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __reduce__(self) -> Any:
        # The hash is computed again, since a string's hash differs from process to process.
        static = {name: to_picklable(value) for name, value in self.static.items()}
        return _metadata, (static, self.training, self.frozen, self.ties, self.shards)


_NO_MODULES = {int, float, bool, str, type(None), types.FunctionType, types.BuiltinFunctionType}


def _holds_modules(value: Any) -> bool:
    leaves = optree.tree_leaves(value, is_instance, namespace=NAMESPACE)
    inside = [each for leaf in leaves if (parts := parts_of(leaf)) for each in parts]
    return any(map(is_instance, leaves)) or any(map(_holds_modules, inside))


def parts_of(value: Any) -> tuple[Any, ...] | None:
    """Return what a static value holds that optree has no nodes for, a partial function or a set; ``None`` for others."""
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    return tuple(value) if isinstance(value, frozenset) else None


Assemble = Callable[[Metadata, Iterable[Any]], Any]


@attrs.frozen(slots=False, eq=False)
class Definition:
    """What frostleaf knows about a class of frozen trees.

    Attributes:
        fields: All fields by name, in order.
        children: The names of the fields whose values are children in the tree.
        pick: Returns the values of ``children``, as a tuple, from a dict of fields.
        static: The names of the fields whose values are structure.
        arrays: The names of the fields that are declared to hold one array or ``None``.
        unchecked: The names of the fields that have neither a converter nor a validator.
        frozen: The names of the fields that start out frozen.
        parameters: The names of the fields whose arrays are parameters.
        persistent: The names of the fields whose arrays are saved with the parameters.
        converts: Whether a value given for one of the children is converted or validated.
        assembler: Makes ``assemble``.
        deferrable: Whether an instance may be put together late, when ``__getattr__`` runs because its fields are missing.
    """

    fields: Mapping[str, attrs.Attribute[Any]]
    children: tuple[str, ...]
    pick: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    static: tuple[str, ...]
    arrays: tuple[str, ...]
    unchecked: frozenset[str]
    frozen: tuple[str, ...]
    parameters: frozenset[str]
    persistent: frozenset[str]
    converts: bool
    assembler: Callable[[], Assemble]
    deferrable: bool

    @functools.cached_property
    def assemble(self) -> Assemble:
        """Makes a finished instance from metadata and children as they are: nothing is converted or checked."""
        return self.assembler()  # at first use: few of the classes that a program imports are ever put together

    @functools.cached_property
    def buffers(self) -> tuple[str, ...]:
        """The names of the fields that are buffers."""
        return tuple([name for name, field in self.fields.items() if kind(field) == "buffer"])

    @functools.cached_property
    def bare(self) -> Metadata:
        """The metadata of an instance of a class without static fields, in training mode, with nothing frozen or tied."""
        return Metadata({}, True, frozenset())


_CAST = "write model = model.astype(mx.float16), or another dtype. MLX's arrays are in memory that CPU and GPU share"
# Methods of MLX's and PyTorch's modules that go by another name here.
_INSTEAD_OF_READING = {
    **dict.fromkeys(("to", "half", "float", "double", "bfloat16", "cuda", "cpu"), _CAST),
    "state_dict": "write model.parameters() for the arrays, model.save_weights(path) or fl.save(path, model) for a file",
    "load_state_dict": "write model = model.load_weights(path), or fl.load(path, like=model) for a file of fl.save",
    "named_parameters": "write model.parameters(), a nested dict, or fl.tree.paths(model) beside fl.tree.leaves(model)",
    "register_buffer": "declare a field of its class: name: mx.array = fl.buffer()",
    "zero_grad": "gradients are values, so there are none to set to zero: loss, grads = fl.value_and_grad(loss_fn)(model, x)",
    "apply_to_modules": "write model = model.map_modules(fn), where fn(path, module) returns another module or None; adapters "
    "come from fl.lora(model, where)",
}


class Instance:
    """The state of a frozen tree: its fields, in its ``__dict__``, and two slots.

    ``_frostleaf_level`` holds its metadata once it is finished and put together, with its children once something has asked for
    them. A tied array is in the ``__dict__`` at all its places, and among the children at one. ``_frostleaf_flat`` holds its
    leaves and structure once it has been flattened, or from the start if it was made from them.
    """

    __slots__ = ("_frostleaf_flat", "_frostleaf_level")

    __frostleaf__: ClassVar[Definition]
    # Of a class that keeps a model in another form, without its layers and names: what to write for the model.
    __frostleaf_unseen__: ClassVar[str | None] = None

    if not TYPE_CHECKING:  # a checker that saw this would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            # Called for missing names only. The instance may not have been put together yet, or its __init__ is still running
            # and the field has a default.
            if name == "_frostleaf_level" or flat_kept(self) is not None:
                level_of(self)
            field = type(self).__frostleaf__.fields.get(name)
            if OPEN in self.__dict__ and field and not isinstance(field.default, attrs.Factory | type(attrs.NOTHING)):
                return field.default
            try:
                return object.__getattribute__(self, name)
            except AttributeError:
                if type(self)._has_learned(name):
                    return getattr(self, name)
                inherited = getattr(super(), "__getattr__", None)
                if inherited is None:
                    cls, of_arrays = type(self), hasattr(mx.array, name) and not hasattr(type(self), name)
                    message = asked_by_mlx(cls, name, sys._getframe(1)) if of_arrays else None
                    advice = None if hasattr(cls, name) else cls._instead_of_reading(name)
                    message = message or (advice and f"{cls.__name__} has no attribute {name!r}: {advice}")
                    if message is None:
                        raise
                    raise AttributeError(message, name=name, obj=self) from None
                return inherited(name)

    @classmethod
    def _has_learned(cls, name: str) -> bool:
        """Return whether the class has an attribute now that was missing when it was read."""
        return False

    @classmethod
    def _instead_of_reading(cls, name: str) -> str | None:
        """Return what to write for an attribute that there is not; ``None`` if nothing is known of that name."""
        return _INSTEAD_OF_READING.get(name)

    def __dir__(self) -> Any:
        if flat_kept(self) is not None:
            level_of(self)  # puts it together, so that completion shows the fields
        return super().__dir__()

    def __copy__(self: I) -> I:
        level_of(self)  # raises if it is still open to change
        return self

    def _static_key(self) -> Any:
        """Return what tells a module in a static field, which holds no arrays, from others that are interchangeable with it."""
        metadata, children = level_of(self)
        return metadata, tuple([static_key(child) for child in children])

    def __deepcopy__(self: I, memo: dict[int, Any]) -> I:
        def copied(value: Any) -> Any:
            return copy.deepcopy(value, memo) if isinstance(value, mx.array | Instance) else value

        metadata, children = level_of(self)
        new = [optree.tree_map(copied, child, is_leaf=is_instance, namespace=NAMESPACE) for child in children]
        return self.__frostleaf__.assemble(metadata, new)  # type: ignore[no-any-return]


_get_level: Any = Instance.__dict__["_frostleaf_level"].__get__
set_level: Any = Instance.__dict__["_frostleaf_level"].__set__
_get_flat: Any = Instance.__dict__["_frostleaf_flat"].__get__
keep_flat: Any = Instance.__dict__["_frostleaf_flat"].__set__


def is_instance(value: Any) -> bool:
    """Return whether a value is a frozen tree."""
    return isinstance(value, Instance)


def flat_kept(node: Instance) -> Any:
    """Return the leaves and the structure that are kept with the instance, or ``None``."""
    try:
        return _get_flat(node)
    except AttributeError:
        return None


def is_built(node: Instance) -> bool:
    """Return whether the instance has its fields: it is finished, and not waiting to be put together."""
    try:
        _get_level(node)
    except AttributeError:
        return False
    return True


def is_finished(node: Instance) -> bool:
    """Return whether the instance is finished: its ``__init__`` has returned, and it never changes again."""
    return is_built(node) or flat_kept(node) is not None


def is_new(node: Instance) -> bool:
    """Return the opposite of :func:`is_finished`, faster: what is finished has something in its ``__dict__``, or no fields."""
    if node.__dict__ or not node.__frostleaf__.fields:
        return not is_finished(node)
    return True


def keep_late(node: Instance, flat: Any) -> None:
    """Keep the leaves and the structure with a new instance, which is put together when something reads a field."""
    node.__dict__[_LATE] = True
    keep_flat(node, flat)


def level_of(node: Instance) -> tuple[Metadata, tuple[Any, ...]]:
    """Return the instance's metadata and its children: the values of its parameter and buffer fields, in order.

    Raises:
        TypeError: If its ``__init__`` is still running.
    """
    try:
        level = _get_level(node)
    except AttributeError:
        level = _put_together(node)
    if type(level) is not tuple:
        level = level, node.__frostleaf__.pick(node.__dict__)
        set_level(node, level)
    return level  # type: ignore[no-any-return]


# For a method of self that is called in __init__.
STILL_BUILDING = (
    "this {cls} is still being built: until its __init__ has returned it is not a tree, and can't be cast, frozen or "
    "flattened. Do that with the finished module, and declare what is never trained with fl.buffer()."
)


def _put_together(node: Instance) -> Any:
    flat = flat_kept(node)
    if flat is None:
        raise TypeError(STILL_BUILDING.format(cls=type(node).__name__))
    with _building:
        if not is_built(node):  # another thread may have been faster
            built = flat.built = flat.built or node.__frostleaf__.assemble(*flat.level())  # the same after an interrupt
            node.__dict__.update(built.__dict__)
            node.__dict__.pop(_LATE, None)
            set_level(node, _get_level(built))
            flat.built = None
        return _get_level(node)


def metadata_of(node: Instance) -> Metadata:
    """Return the instance's static values, mode, frozen names, ties and shards.

    Raises:
        TypeError: If its ``__init__`` is still running.
    """
    return level_of(node)[0]


def children_of(node: Instance) -> dict[str, Any]:
    """Return the instance's children by name: its parameter and buffer fields, with ``None`` at tied places."""
    return dict(zip(node.__frostleaf__.children, level_of(node)[1], strict=True))


def children_in_fields(node: Instance) -> tuple[Any, ...]:
    """Return what is in the instance's parameter and buffer fields, in order; an array that is tied at all its places."""
    level_of(node)
    return node.__frostleaf__.pick(node.__dict__)


def field_values(node: Instance) -> dict[str, Any]:
    """Return the instance's fields by name, in the order in which they are declared.

    Raises:
        TypeError: If its ``__init__`` is still running.
    """
    level_of(node)
    values = node.__dict__
    return {name: values[name] for name in node.__frostleaf__.fields}


def names_above(path: Path) -> Iterator[str]:
    """Yield the dotted name of a path, and of each shorter one that leads to it: a dot in a key is no step."""
    return (keystr(path[:length]) for length in range(len(path), 0, -1))


@describe.register
def _(value: Instance, depth: int = 2) -> str:
    return f"{type(value).__name__}(...)"


def _metadata(static: dict[str, Any], training: bool, frozen: frozenset[str], ties: Ties, shards: Shards = ()) -> Metadata:
    static = {name: freeze_containers(from_picklable(each)) for name, each in static.items()}
    return Metadata(static, training, frozen, ties, shards)
