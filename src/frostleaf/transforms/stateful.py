"""Returning the state that a forward pass produces, such as batch-norm statistics, instead of mutating the model."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar, overload

import mlx.core as mx

from ..core.construction import evolve
from ..core.containers import static_key
from ..core.definition import Node
from ..core.hidden import CACHE, cache_classes
from ..core.instance import Metadata, field_values, metadata_of
from ..core.levels import entries_of, tree_level
from ..core.shapes import LEAF
from ..core.sharing import shared, with_values
from ..core.structure import Structure, child_specs, flat_of, specs_in
from ..core.words import Path, level_of_caller, nearest, with_article
from ..tree.walk import at_path, field_level, nodes_in
from .context import override, setting
from .wrapping import RUNS_LATER, require_runs_when_called

M = TypeVar("M", bound=Node)
R = TypeVar("R")

# Each module that has recorded something in the innermost fl.stateful, by id: as it was, and as it is now.
records: ContextVar[dict[int, tuple[Node, Node]] | None] = ContextVar("records", default=None)

# Of a buffer, by the id of its module and its name, the modules and names of those that are tied to it.
_Tied = Mapping[tuple[int, str], list[tuple[Node, str]]]
_tied: ContextVar[_Tied] = ContextVar("tied", default=MappingProxyType({}))


class UncollectedStateWarning(UserWarning):
    """A layer in training mode recorded new buffers, such as batch-norm statistics, and nobody collected them.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = fl.nn.BatchNorm(2)(mx.ones((3, 2)))
    >>> caught[0].category.__name__
    'UncollectedStateWarning'
    """


@overload
def stateful(model: M, /, *args: Any, **kwargs: Any) -> tuple[Any, M]: ...


@overload
def stateful(model: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[Any, ...]: ...


def stateful(model: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call a model, and return the result and a copy of the model with the buffers that the call recorded.

    The copy shares every array that was not recorded. It works the same inside ``jit`` and ``value_and_grad``: return the new
    model from the function, as auxiliary data if it is a loss.

    Args:
        model: A module, a bound method of one (``model.encode``), what a transformation made of these
            (``fl.checkpoint(model)``), or a function of modules.
        *args, **kwargs: The arguments of the call.

    Returns:
        The result and the new module, in the same wrapper if it was in one. For a function, the result and then each of the
        positional arguments that has a module in it, with what was recorded:
        ``loss, encoder, decoder = fl.stateful(loss_fn, encoder, decoder, x)``.

    Raises:
        TypeError: If there is no module, or if the function is a generator or coroutine function.
        RuntimeError: If a module that is in none of these recorded a buffer.

    >>> import frostleaf as fl, mlx.core as mx
    >>> norm = fl.nn.BatchNorm(2)
    >>> out, after = fl.stateful(norm, mx.array([[0.0, 2.0], [2.0, 4.0]]))
    >>> after.running_mean, norm.running_mean, after.weight is norm.weight
    (array([0.1, 0.3], dtype=float32), array([0, 0], dtype=float32), True)
    >>> loss, after = fl.stateful(lambda norm, x: norm(x).sum(), norm, mx.ones((3, 2)))
    """
    bound, call, owners = True, type(model).__call__, [model, *args]
    if isinstance(getattr(model, "__self__", None), Node):
        call, owners = model.__func__, [model.__self__, *args]
    elif not isinstance(model, Node) and (any(map(_has_modules, args)) or not _has_modules(model)):
        bound, call, owners = False, model, [*args]
    has_modules = [*map(_has_modules, owners)]
    if not callable(model) or not any(has_modules):
        static = flat_of(args).structure.static_values()  # raises where they hide modules
        cache = next((value for _, value in static if cache_classes(value)), None)
        advice = "" if cache is None else f". In its arguments is {with_article(type(cache).__name__)}. {CACHE}"
        advice = PARTIAL if isinstance(model, functools.partial) else advice
        raise TypeError(NO_MODULE.format(given=type(model).__name__, advice=advice))
    require_runs_when_called(call if bound else model, RUNS_LATER_HERE)
    recorders = [
        flat_of(owner).structure.remember(_recorders) if has else {} for owner, has in zip(owners, has_modules, strict=True)
    ]
    # A module at two places is two parts of the model, each with its own buffers, as it is once jit has taken the tree apart.
    # Putting what may record together anew gives each place an object of its own, to recognise it by.
    called = [_apart(*each) for each in zip(owners, recorders, strict=True)]
    here: dict[int, tuple[Node, Node]] = {}
    tied = _tied_in([*zip(owners, called, has_modules, strict=True)])
    # What layers record is a side effect, which a replayed trace would not have.
    with setting(records, here), setting(_tied, tied), override(plain=True):
        out = call(*called, **kwargs)
    results = [*zip(owners, called, recorders, has_modules, strict=True)][: 1 if bound else None]
    after = [_with_records(owner, apart, inside, here) for owner, apart, inside, has in results if has]
    for module, recorded_module in here.values():
        names = ", ".join(_changed(module, recorded_module)) or "changes to itself"
        message = BESIDE if any(each is module for each in nodes_in((called, kwargs))) else STRANGER
        raise RuntimeError(message.format(cls=type(module).__name__, names=names))
    return (out, *after)


NO_MODULE = "fl.stateful takes a module, a bound method of one or a function of one, and was given {given}{advice}"
PARTIAL = ". Give it what the partial function is of, and the arguments after that"


RUNS_LATER_HERE = (
    f"{RUNS_LATER.format(transformation='fl.stateful')} For what yields, write fl.stateful(lambda model: list(model.steps(x)), "
    "model)"
)


def _has_modules(tree: Any) -> bool:
    return isinstance(tree, Node) or (not isinstance(tree, LEAF) and any(isinstance(each, Node) for each in nodes_in(tree)))


# Of a part of a structure, the recorders at each of its entries, and this if it is a module that may record itself.
_ITSELF = object()
_Recorders = Mapping[Any, Any]


def _recorders(structure: Structure) -> _Recorders:
    """Return where the modules are that have buffers: nested dicts of entries, without those that lead to none."""
    return _recorders_in(structure.spec)


def _recorders_in(spec: Any) -> _Recorders:
    if isinstance(spec, Structure):
        return spec.remember(_recorders)
    if not isinstance(spec, tuple):
        return {}
    kind, metadata, specs = spec
    below = zip(entries_of(kind, metadata), child_specs(specs), strict=True)
    inside: dict[Any, Any] = {entry: found for entry, child in below if (found := _recorders_in(child))}
    if type(metadata) is Metadata:
        for name, value in metadata.static.items():
            if found := flat_of(value, hidden=True).structure.remember(_recorders):
                inside[name] = found
        if kind.__frostleaf__.buffers or hasattr(kind, "__mlx__") or getattr(kind, "records_inside", False):
            inside[_ITSELF] = {}
    return inside


def _apart(tree: Any, inside: _Recorders) -> Any:
    """Put the modules together anew that may record, and what they are in; but those in static fields, where there is one."""
    level = tree_level(tree) if inside else None
    if level is None:
        return tree
    pairs = zip(level.entries, level.children, strict=True)
    return level.make([_apart(child, inside[entry]) if entry in inside else child for entry, child in pairs])


def _tied_buffers(structure: Structure) -> tuple[tuple[tuple[Path, str], ...], ...]:
    """Return the places of each buffer that stands at several by ties: the path of its module, and its name."""
    buffers = {
        (*path, name)
        for path, spec in specs_in(structure.spec)
        if type(spec) is tuple and type(spec[1]) is Metadata
        for name in spec[0].__frostleaf__.buffers
    }
    groups: dict[Path, list[Path]] = {}
    for path, spec in specs_in(structure.spec):
        for target, source in spec[1].ties if type(spec) is tuple and type(spec[1]) is Metadata else ():
            if {(*path, *target), (*path, *source)} <= buffers:
                groups.setdefault((*path, *source), [(*path, *source)]).append((*path, *target))
    return tuple([tuple([(place[:-1], place[-1]) for place in places]) for places in groups.values()])


def _tied_in(owners: Iterable[tuple[Any, Any, bool]]) -> _Tied:
    """Return the tied buffers of what is called, given as it was, as it is called, and whether it has modules."""
    found: dict[tuple[int, str], list[tuple[Node, str]]] = {}
    for owner, called, has in owners:
        for group in flat_of(owner).structure.remember(_tied_buffers) if has else ():
            places = [(at_path(called, path), name) for path, name in group]
            for module, name in places:
                found[id(module), name] = [(other, its) for other, its in places if other is not module]
    return found


UNCOLLECTED = (
    "a {cls} in training mode recorded {names}, and nobody collects it, so that evaluation mode will not know of it. Call the "
    "model through fl.stateful and go on with the model that it returns, or put the model in evaluation mode: model.eval()"
)


class _Warned:
    """What has been warned of, so that a loop is told once also where each warning is shown.

    As in Python's own registry, other filters begin anew.
    """

    def __init__(self) -> None:
        self._filters: Any = None
        self._seen: set[Any] = set()

    def is_first(self, what: Any) -> bool:
        """Return whether something is new under these filters, and note it."""
        if self._filters is not warnings.filters:
            self._filters, self._seen = warnings.filters, set()
        known = len(self._seen)
        self._seen.add(what)
        return len(self._seen) > known


_warned = _Warned()


def record(module: Node, /, **buffers: mx.array) -> None:
    """Record new buffers of a module, with which the enclosing :func:`stateful` returns the model.

    For use in a layer's ``__call__``. Outside :func:`stateful` it does nothing but warn, if the module is in training mode.
    :func:`recorded` returns what was recorded.

    Args:
        module: The layer, ``self``.
        **buffers: New values of fields declared with :func:`frostleaf.buffer`.

    Raises:
        TypeError: If a name is not a buffer of the module.

    Warns:
        UncollectedStateWarning: If the module is in training mode and there is no :func:`stateful` around the call; once for a
            class in each line that calls it.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Counter(fl.Module):
    ...     calls: mx.array = fl.buffer(factory=lambda: mx.array(0))
    ...     def __call__(self, x):
    ...         fl.record(self, calls=fl.recorded(self).calls + 1)
    ...         return x
    >>> fl.stateful(Counter(), "x")[1].calls
    array(1, dtype=int32)
    """
    known = module.__frostleaf__.buffers
    for name in buffers:
        if name not in known:
            cls, near = type(module).__name__, nearest(name, known)
            raise TypeError(f"{cls} has no buffer {name!r} to record{near}. Declare it with fl.buffer() in the class body.")
    here = records.get()
    if here is not None:
        here[id(module)] = module, evolve(recorded(module), buffers)
        tied = _tied.get()
        for name, value in buffers.items() if tied else ():
            for other, its in tied.get((id(module), name), ()):
                here[id(other)] = other, evolve(recorded(other), {its: value})
    elif metadata_of(module).training:
        warn_uncollected(UNCOLLECTED.format(cls=type(module).__name__, names=", ".join(buffers)))


def warn_uncollected(message: str) -> None:
    """Warn that nobody collects what a call changed, once for a message in each line that calls frostleaf."""
    level = level_of_caller()
    caller = sys._getframe(level - 1)
    if _warned.is_first((message, caller.f_code.co_filename, caller.f_lineno)):
        warnings.warn(message, UncollectedStateWarning, stacklevel=level)


def record_edit(module: Node, after: Node) -> bool:
    """Record that a module has become another in a call; return whether there is a :func:`stateful` to record it."""
    here = records.get()
    if here is not None:
        here[id(module)] = here[id(module)][0] if id(module) in here else module, after
    return here is not None


def recorded(module: M) -> M:
    """Return a module with the buffers recorded so far in the enclosing :func:`stateful`, or as it is if there are none.

    With this, a layer that is called twice in one forward pass goes on from what its first call recorded.

    >>> import frostleaf as fl
    >>> layer = fl.nn.BatchNorm(2)
    >>> fl.recorded(layer) is layer
    True
    """
    here = records.get()
    return here[id(module)][1] if here and id(module) in here else module  # type: ignore[return-value]


def recording() -> bool:
    """Return whether :func:`stateful` is running, so that what layers record will be used."""
    return records.get() is not None


STRANGER = (
    "a {cls} that is not in the model recorded {names}, which would be lost. Inside fl.stateful call the submodules of "
    "the model itself, not edited copies of them; give a function each module that it calls as a positional argument."
)

BESIDE = (
    "a {cls} that was given beside the model recorded {names}, which would be lost: a call of a model gives back only the "
    "model, that of a function only positional arguments. Write fl.stateful(fn, model, other); fn takes both."
)


def _with_records(owner: M, called: M, inside: _Recorders, recorded: dict[int, tuple[Node, Node]]) -> M:
    """Return ``owner`` with the buffers recorded by the modules at the same places in ``called``."""
    new: dict[Path, Any] = {}
    if recorded:
        _take_out(called, inside, (), recorded, new)
    after = with_values(owner, new) if new else owner
    # A module that became one with other fields brings parts of what was called.
    return shared(owner, after) if any(isinstance(value, Node) for value in new.values()) else after


def _take_out(tree: Any, inside: _Recorders, path: Path, recorded: dict[int, tuple[Node, Node]], new: dict[Path, Any]) -> None:
    """Move what the modules in a tree have recorded to ``new``, by path."""
    if _ITSELF in inside and id(tree) in recorded:
        module, after = recorded.pop(id(tree))
        new.update(differences(module, after, path))
    level = field_level(tree)
    for entry, child in zip(level.entries, level.children, strict=True) if level else ():
        if entry in inside:
            _take_out(child, inside[entry], (*path, entry), recorded, new)


def differences(before: Any, after: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the paths and the new values of what differs between two trees, each as deep inside as may be."""
    if before is after:
        return
    inside: Any = None
    if type(before) is type(after) and isinstance(before, Node):
        own, other = metadata_of(before), metadata_of(after)
        if (own.training, own.frozen, own.ties, own.shards) == (other.training, other.frozen, other.ties, other.shards):
            inside = field_values(before), field_values(after)
    elif type(before) is type(after) is tuple and len(before) == len(after):
        inside = dict(enumerate(before)), dict(enumerate(after))
    elif type(before) is type(after) is MappingProxyType and [*before] == [*after]:
        inside = dict(before), dict(after)
    if inside is None:
        if not _is_same(before, after):
            yield path, after
        return
    for name, value in inside[1].items():
        yield from differences(inside[0][name], value, (*path, name))


def _is_same(before: Any, after: Any) -> bool:
    return not isinstance(before, (*LEAF, Node)) and static_key(before) == static_key(after)


def _changed(module: Node, after: Node) -> list[str]:
    return [name for name in module.__frostleaf__.buffers if getattr(module, name) is not getattr(after, name)]
