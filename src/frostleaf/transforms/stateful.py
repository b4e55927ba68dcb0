"""State that a forward pass produces, such as batch-norm statistics, as a second result instead of a mutation."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar, overload

import mlx.core as mx

from .. import fields
from ..module import Module
from ..node import Path, edited, nearest
from ..tree.functions import flatten, unflatten
from ..tree.walk import rewrite
from .jit import disable_jit

M = TypeVar("M", bound=Module)
R = TypeVar("R")

NOT_A_MODEL = "fl.stateful takes a module or a bound method of one, and was given {kind}"
NOT_A_BUFFER = "{cls} has no buffer {name!r} to record{nearest}. Declare it with fl.buffer() in the class body."
STRANGER = (
    "a {cls} that is not part of the model recorded {names}, which would be lost. Inside fl.stateful call the submodules of "
    "the model itself, not edited copies of them."
)

# For each module that has recorded something in the innermost fl.stateful: the module as it was, and as it is now.
_records: ContextVar[dict[int, tuple[Module, Module]] | None] = ContextVar("records", default=None)


@overload
def stateful(model: M, /, *args: Any, **kwargs: Any) -> tuple[Any, M]: ...


@overload
def stateful(model: Callable[..., R], /, *args: Any, **kwargs: Any) -> tuple[R, Any]: ...


def stateful(model: M | Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[Any, M]:
    """Return ``model(*args, **kwargs)`` and the model with the buffers that the call recorded.

    The model itself is unchanged. The result shares every array that was not recorded. Inside ``jit`` and
    ``value_and_grad`` this is the same; return the new model from the function, as auxiliary data from a loss.

    Args:
        model: A module, or a bound method of one (``model.encode``), which is then what is called.
        *args, **kwargs: What it is called with.

    Raises:
        TypeError: If ``model`` is neither.
        RuntimeError: If a module that is not part of the model recorded a buffer.

    >>> import frostleaf as fl, mlx.core as mx
    >>> norm = fl.nn.BatchNorm(2)
    >>> out, after = fl.stateful(norm, mx.array([[0.0, 2.0], [2.0, 4.0]]))
    >>> after.running_mean, norm.running_mean, after.weight is norm.weight
    (array([0.1, 0.3], dtype=float32), array([0, 0], dtype=float32), True)
    """
    owner = model if isinstance(model, Module) else getattr(model, "__self__", None)
    if not isinstance(owner, Module):
        raise TypeError(NOT_A_MODEL.format(kind=type(model).__name__))
    # A module that stands at two places is two parts of the model, each with its own buffers, as it is after jit has
    # taken the tree apart. Putting the tree together anew gives each place an object of its own to recognise it by.
    leaves, structure = flatten(owner)
    called = unflatten(structure, leaves)
    records: dict[int, tuple[Module, Module]] = {}
    token = _records.set(records)
    try:
        with disable_jit():  # what layers record is a side effect, which a replayed trace would not have
            out = called(*args, **kwargs) if owner is model else model.__func__(called, *args, **kwargs)  # type: ignore[union-attr]
    finally:
        _records.reset(token)
    return out, _with_records(owner, called, records)


def record(module: Module, /, **buffers: mx.array) -> None:
    """Return nothing; inside :func:`stateful`, have it return the model with these buffers in place of the module's.

    For use in a layer's ``__call__``. Outside :func:`stateful` nothing is recorded.

    Args:
        module: The layer, ``self``.
        **buffers: New values of fields declared with :func:`frostleaf.buffer`.

    Raises:
        TypeError: If a name is not a buffer of the module.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Counter(fl.Module):
    ...     calls: mx.array = fl.buffer(factory=lambda: mx.array(0))
    ...     def __call__(self, x):
    ...         fl.record(self, calls=fl.latest(self).calls + 1)
    ...         return x
    >>> fl.stateful(Counter(), "x")[1].calls
    array(1, dtype=int32)
    """
    for name in buffers:
        if name not in module.__fields__ or fields.kind(module.__fields__[name]) != "buffer":
            names = [each for each, field in module.__fields__.items() if fields.kind(field) == "buffer"]
            shown = NOT_A_BUFFER.format(cls=type(module).__name__, name=name, nearest=nearest(name, names))
            raise TypeError(shown)
    records = _records.get()
    if records is not None:
        records[id(module)] = module, edited(latest(module), buffers)


def latest(module: M) -> M:
    """Return the module with what has been recorded for it so far in the enclosing :func:`stateful`; without one, the module.

    A layer that is called twice in one forward pass goes on from what its first call recorded.

    >>> import frostleaf as fl
    >>> layer = fl.nn.BatchNorm(2)
    >>> fl.latest(layer) is layer
    True
    """
    records = _records.get()
    return records[id(module)][1] if records and id(module) in records else module  # type: ignore[return-value]


def recording() -> bool:
    """Return whether a :func:`stateful` is running, so that what layers record will be used."""
    return _records.get() is not None


def _with_records(owner: M, called: M, records: dict[int, tuple[Module, Module]]) -> M:
    """Return ``owner`` with the buffers recorded by the modules that stand at the same places in ``called``."""
    recorded: dict[Path, Module] = {}

    def find(path: Path, value: Any) -> Any:
        if isinstance(value, Module) and id(value) in records:
            recorded[path] = records.pop(id(value))[1]
        return value

    rewrite(called, leave=find)
    for module, after in records.values():
        names = [name for name in module.__children__ if getattr(module, name) is not getattr(after, name)]
        raise RuntimeError(STRANGER.format(cls=type(module).__name__, names=", ".join(names)))

    def leave(path: Path, value: Any) -> Any:
        if path not in recorded:
            return value
        buffers = {
            name: getattr(recorded[path], name)
            for name in value.__children__
            if fields.kind(value.__fields__[name]) == "buffer"
        }
        return edited(value, buffers)

    return rewrite(owner, leave=leave)  # type: ignore[no-any-return]
