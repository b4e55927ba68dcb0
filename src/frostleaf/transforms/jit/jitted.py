"""Compiled functions of trees."""

from __future__ import annotations

import functools
import inspect
import itertools
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

import attrs
import mlx.core as mx

from ...core.pickling import from_picklable, to_picklable
from ...core.refused import ForeignArrayError
from ...core.structure import Signature, flat_of
from ...core.words import describe, keystr
from ..binding import unbind
from ..context import Scope, context, override
from ..wrapping import Wrapped, require_runs_when_called
from .arguments import (
    objects_in_fields,
    owner_of,
    require_no_arrays,
    require_no_iterator,
    unhashable,
    warn_of_mutable,
    warn_of_shapes,
)
from .captured import warn_of_captured
from .compiled import outliving
from .explanation import History
from .program import Program
from .retraces import Retraces
from .serving import NeedsShapes, NeedsTheseShapes
from .settings import Settings, settings_of
from .standing import first_call

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
J = TypeVar("J", bound="Jitted[..., Any]")

_NONE_YET: tuple[list[Any] | None, Program | None] = None, None

# Options of mx.compile and jax.jit.
_STATE = "Models, states and caches are arguments and results: model, state = step(model, state, x)"
_STATIC = "What is no array is static by itself"
_DONATED = "MLX reuses the memory of arrays that nobody holds"
_OF_OTHERS = {
    "inputs": _STATE, "outputs": _STATE, "static_argnums": _STATIC, "static_argnames": _STATIC, "donate_argnums": _DONATED,
    "donate_argnames": _DONATED, "donate": _DONATED,
}  # fmt: skip

_tick = itertools.count().__next__
_lock = threading.RLock()  # reentrant, since dropping an object may call a jitted function


@overload
def jit(fn: Callable[P, R], *, shapeless: bool = False, max_traces: int | None = 128) -> Jitted[P, R]: ...


@overload
def jit(
    fn: None = None, *, shapeless: bool = False, max_traces: int | None = 128
) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...


def jit(
    fn: Callable[..., Any] | None = None, *, shapeless: bool = False, max_traces: int | None = 128, **of_others: Any
) -> Any:
    """Compile a function of trees.

    Arguments and results may be any trees. The function runs in Python, and is traced, whenever structure, shapes, dtypes or
    static values are new; otherwise MLX replays the trace. It should be pure: side effects happen only when it is traced, and
    what it reads from outside its arguments is constant, but for optimizers, layers without arrays and policies: for another
    one under the same name it is traced again. Of arrays the first call warns with a :class:`CapturedArrayWarning`. Where they
    never change, ``warnings.filterwarnings("ignore", category=fl.CapturedArrayWarning)`` keeps it quiet. Random numbers are an
    exception: ``mx.random`` goes on from call to call as it does without ``jit``. An array that the function returns unchanged
    is the caller's own object, as it is without ``jit``.

    Functions and plain objects are told apart by identity, and so kept in no trace once they are dropped, also where they
    stood in partials, dataclasses or static fields. An object that can change gives a :class:`MutableArgumentWarning`; a
    number, shape or static value that is another in each of many calls, so that no trace is used again, a
    :class:`RetraceWarning`, unless ``max_traces=None`` says that it is meant to be.

    A module, or a bound method of one, is an argument like the others: the trace serves every module of its structure. Used
    as a decorator in a class body it makes a compiled method.

    Args:
        fn: A function, method or module, or a partial application of one.
        shapeless: Whether one trace serves all shapes of arrays with as many dimensions, where it computes what the function
            does. That is found by looking at what the function does for other shapes, without computing it: a first call
            costs two to three traces, and so do the first ones with other sizes in certain axes. Then sizes between those
            that were looked at cost nothing: a function must not know a single one of them from its neighbours
            (``if len(x) == 7``), limits and multiples are found. What MLX can't do for all shapes (slices, random numbers, a
            size from ``x.shape`` in a reshape) is traced for each shape, with a :class:`RetraceWarning` that says what it was.
            Of the layers these are the recurrent ones, pooling with overlaps, RoPE, upsampling, dropout in training mode, and
            gradients of convolutions and embeddings. Default: ``False``.
        max_traces: How many traces are kept, one for each structure with its shapes and dtypes (with ``shapeless``, one for
            each structure); a new one takes the place of the one used least recently. ``None`` keeps all. A trace holds no
            activations, but that of a large training step takes a megabyte or two: the default has room for the shapes of
            padded or bucketed batches, and bounds the memory that batches of any length take. Default: ``128``.

    Raises:
        ValueError: If ``max_traces`` is not a positive integer.
        TypeError: If ``fn`` can't be called, ``shapeless`` is no bool or there is another option; on a call, if an argument is
            neither an array nor hashable, or is an object that holds arrays, or if the result has an iterator or a mutable
            object in it.
        RuntimeError: On a call, if MLX has to compile for a Linux CPU and there is no C++ compiler.

    >>> import frostleaf as fl, mlx.core as mx
    >>> @fl.jit
    ... def scale(tree, by):
    ...     return fl.tree.map(lambda leaf: leaf * by, tree)
    >>> scale({"a": mx.ones(2)}, 3), scale({"a": mx.zeros(2)}, 3), scale.trace_count
    ({'a': array([3, 3], dtype=float32)}, {'a': array([0, 0], dtype=float32)}, 1)
    """
    if of_others:
        name = next(iter(of_others))
        advice = f". {_OF_OTHERS[name]}." if name in _OF_OTHERS else "; its options are shapeless and max_traces."
        raise TypeError(f"fl.jit takes no {name}{advice}")
    if not isinstance(shapeless, bool):
        raise TypeError(f"shapeless is True or False, and was given as {describe(shapeless)}")
    if max_traces is not None and (type(max_traces) is not int or max_traces < 1):
        given = describe(max_traces)
        raise ValueError(f"max_traces is the number of traces to keep, 1 or more, or None to keep all, and was {given}")
    if fn is None:
        return functools.partial(jit, shapeless=shapeless, max_traces=max_traces)
    return Jitted(fn, shapeless, max_traces)


def disable_jit() -> Scope:
    """Run jitted functions as plain Python inside a ``with`` block, those that have been traced before included.

    Then a debugger stops in them, and ``print`` shows numbers. It applies to the thread or ``asyncio`` task that enters it.

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
    return override(plain=True)


@attrs.define(eq=False, repr=False, weakref_slot=True)
class Traces:
    """The traces of a function. All copies of a jitted function share them.

    Attributes:
        fn: The function, without the arguments bound to it.
        shapeless, max_traces: As given to :func:`jit`.
        programs: The programs, by the signature of the arguments.
        latest: The signature of the latest call, and its program.
        history: What the function was traced for.
        settings: What the function reads from outside that each call looks at; ``None`` if it has not been looked through yet.
        warned: The classes of mutable arguments that have been warned of.
        names: Those of its parameters that can be given by position.
        retraces: Its traces that were hardly of use.
        any_order: Whether the order of keyword arguments makes no difference.
    """

    # What is compared is what a file says of it.
    fn: Any = attrs.field(eq=False)
    shapeless: bool
    max_traces: int | None
    programs: dict[Any, Program] = attrs.field(factory=dict, eq=False)
    latest: tuple[list[Any] | None, Program | None] = attrs.field(default=_NONE_YET, eq=False)
    history: History = attrs.field(default=attrs.Factory(lambda self: History(self.max_traces), True), eq=False)
    settings: Settings | None = attrs.field(default=None, eq=False)
    warned: set[type] = attrs.field(factory=set, eq=False)
    retraces: Retraces = attrs.field(factory=Retraces, eq=False)
    names: tuple[str, ...] = attrs.field(init=False, eq=False)
    any_order: bool = attrs.field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        parameters = _parameters(self.fn)
        by_position = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        self.names = tuple([each.name for each in by_position])
        # A function with **kwargs could see the order of its keywords.
        self.any_order = bool(parameters) and all(each.kind is not each.VAR_KEYWORD for each in parameters)

    def drop_gone(self) -> list[Any]:
        """Take out the programs for values that are gone, which nobody can give again, and return them."""
        gone = [key for key, program in self.programs.items() if program.is_for_nobody()]
        latest, self.latest = self.latest, _NONE_YET
        return [latest, *[self.programs.pop(key) for key in gone]]


class Jitted(Wrapped[P, R]):
    """A compiled function. :func:`jit` makes it.

    >>> import frostleaf as fl
    >>> fl.jit(fl.nn.relu)
    jit(relu)
    """

    verb = "jit"

    def __init__(self, fn: Callable[P, R], shapeless: bool, max_traces: int | None) -> None:
        super().__init__(fn, Traces(None, shapeless, max_traces))
        require_runs_when_called(self._fn, RUNS_LATER)

    def _wrap(self, fn: Any, options: Traces) -> None:
        self._fn, self._bound_args, self._bound_kwargs = unbind(fn)
        self._is_bound = bool(self._bound_args or self._bound_kwargs)
        if options.fn is not self._fn:  # it is new, or the function has been replaced
            options = Traces(self._fn, options.shapeless, options.max_traces)
        super()._wrap(fn, options)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        here = context.get()
        if here.plain:
            return self._fn(*self._bound_args, *args, **{**self._bound_kwargs, **kwargs})  # type: ignore[no-any-return]
        traces = self.options
        names: Any = ()
        values: tuple[Any, ...] = args
        settings = traces.settings
        if kwargs or self._is_bound:
            named = {**self._bound_kwargs, **kwargs}
            names = tuple(sorted(named) if traces.any_order else named)
            values = (*self._bound_args, *args, *[named[name] for name in names])
        given: list[mx.array] = []
        key: list[Any] = [here, names]
        try:
            for value in values:
                if type(value) is mx.array:
                    given.append(value)
                    key.append((value.shape, value.dtype))
                else:
                    flat = flat_of(value, hidden=True)
                    given += flat.leaves
                    key.append(flat.signature or flat.signed())
            if settings:
                for setting in settings.values():
                    flat = setting.now()
                    given += flat.leaves
                    key.append(flat.signature or flat.signed())
            # Most calls are like the one before, and comparing is faster than hashing.
            latest, program = traces.latest
            is_new = program is None or key != latest
            if is_new:
                with _lock:  # otherwise a program dropped meanwhile could become the latest again
                    program = traces.programs.get(tuple(key))
                    if program is None and traces.shapeless:
                        program = traces.programs.get(_without_shapes(key))
                    elif program is not None:
                        traces.latest = program.latest(key), program
                    if program is not None:
                        program.used = _tick()
        except TypeError:
            refused = unhashable(self._fn, self._static(values, names))
            if refused is None:
                raise
            raise refused from None
        try:
            if program is None:
                return self._first_call(key, values, names, given, traces.shapeless)  # type: ignore[no-any-return]
            if is_new and program.is_shapeless:
                self._require_serves(program, given, key)
            return program(given, key)  # type: ignore[no-any-return]
        except NeedsShapes as error:
            if not isinstance(error, NeedsTheseShapes):
                warn_of_shapes(self._fn, str(error), error.advice)
                traces.retraces.end()
                traces.shapeless = False
        return self._first_call(key, values, names, given, shapeless=False)  # type: ignore[no-any-return]

    def _first_call(
        self, key: list[Any], values: Sequence[Any], names: tuple[str, ...], given: list[mx.array], shapeless: bool
    ) -> Any:
        """Return the result for arguments that there is no program for, which there is afterwards, unless the call raises."""
        _require_compiler()
        traces = self.options
        static = list(self._static(values, names))
        require_no_iterator(self._fn, static)
        classes = _classes(values)
        held = [*static, *self._objects_in_fields(values, names, classes)]
        require_no_arrays(self._fn, held)
        is_first = traces.settings is None
        if is_first:
            traces.settings = settings_of(self._fn, held, classes)
        count = 2 + len(values)
        if traces.settings and len(key) == count:  # the call knew of none
            key = [*key, *[each.now().signed() for each in traces.settings.values()]]
        settings = [part.structure for part in key[count:]]
        looks = is_first or any(each.num_leaves for each in settings)  # of which there were none before
        # Passing the object as an argument is the mend for arrays, too.
        if looks and not warn_of_captured(self._fn, held, classes):
            warn_of_mutable(self._fn, owner_of(self._fn), classes, traces.warned)
        warn_of_mutable(self._fn, held, classes, traces.warned)
        # One that keeps all traces is meant to have many, and a trace that calls it for each of many layers is made once.
        is_watched = traces.max_traces is not None and not outliving.tracing
        if is_watched:
            traces.retraces.add_numbers(self._fn, static, given, traces.history)
        if traces.latest is not _NONE_YET:  # as the call before left it if it was traced
            traces.retraces.clear()
        structures = (*[flat_of(value, hidden=True).structure for value in values], *settings)
        labels = names if not settings else (*names, *traces.settings)  # settings are as if given by name
        arguments = [self._argument(position, len(structures), labels) for position in range(len(structures))]
        bare = _without_shapes(key) if shapeless else key
        program = Program(self._fn, structures, bare, labels, arguments, shapeless, traces.history)
        program.used = _tick()
        kept = tuple(program.key)
        with _lock:
            dropped = traces.drop_gone()
            program = traces.programs.setdefault(kept, program)  # another thread may have been faster
        del dropped  # outside the lock
        try:
            with first_call([] if self.trace_count else given):
                program.require_serves(given, key)
                result = program(given, key)
        finally:
            self._settle(kept, program)
        if is_watched:
            traces.retraces.add(self._fn, traces.history.latest, self._argument)
        return result

    def _require_serves(self, program: Program, given: list[mx.array], key: list[Any]) -> None:
        """Check that a program made for arrays of other shapes serves these, and have the next call find it at once if so."""
        program.require_serves(given, key)
        traces = self.options
        with _lock:
            if traces.programs.get(tuple(program.key)) is program:
                traces.latest = program.latest(key), program

    def _settle(self, key: Any, program: Program) -> None:
        """Drop the least recently used program if there are too many, or the new one if it could not be traced."""
        traces = self.options
        dropped: list[Any] = []  # holds the last references until the lock is released
        with _lock:
            dropped.append(traces.latest)
            traces.latest = _NONE_YET  # so that its next use is noted
            if not program.traced:
                dropped.append(traces.programs.pop(key, None))
            elif traces.max_traces is not None and len(traces.programs) > traces.max_traces:
                dropped.append(traces.programs.pop(min(traces.programs, key=lambda key: traces.programs[key].used)))

    if TYPE_CHECKING:  # a bound method has the attributes of its function

        @overload
        def __get__(self: J, instance: None, owner: type | None = None) -> J: ...

        @overload
        def __get__(self: Jitted[Concatenate[Any, Q], R], instance: object, owner: type | None = None) -> Jitted[Q, R]: ...

        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...

    @property
    def trace_count(self) -> int:
        """How often the function has been traced so far, dropped traces included."""
        return self._history.count

    @property
    def _history(self) -> History:
        return self.options.history  # type: ignore[no-any-return]

    def explain(self) -> str:
        """Say which argument, path, shape, dtype or static value was new when the function was last traced.

        It names the difference from the most similar of the earlier calls, which are remembered without their arrays.

        >>> import frostleaf as fl, mlx.core as mx
        >>> @fl.jit
        ... def total(batch):
        ...     return batch["images"].sum()
        >>> for size in (64, 64, 31):
        ...     _ = total({"images": mx.ones((size, 8))})
        >>> total.explain()
        'total was traced again (trace 2) for batch.images: shape f32[64,8] -> f32[31,8].'
        """
        return self._history.explain(self._name, self._argument)

    def clear(self) -> None:
        """Drop all traces, with the constants and static values that they hold. Later calls trace again.

        >>> import frostleaf as fl, mlx.core as mx
        >>> double = fl.jit(lambda x: x + x)
        >>> _ = double(mx.array(1)), double.clear(), double(mx.array(1))
        >>> double.trace_count
        2
        """
        with _lock:
            traces = self.options
            dropped = traces.programs, traces.latest
            traces.programs, traces.latest = {}, _NONE_YET
        traces.retraces.clear()
        self._history.clear()
        del dropped

    @property
    def _name(self) -> str:
        return getattr(self._fn, "__name__", "the function")

    def __deepcopy__(self, memo: dict[int, Any]) -> Jitted[P, R]:
        fn = super().__deepcopy__(memo).__wrapped__
        return self if fn is self.__wrapped__ else Jitted(fn, self.options.shapeless, self.options.max_traces)

    def __reduce__(self) -> Any:
        if self._has_name():
            return super().__reduce__()
        return _restore, (to_picklable(self.__wrapped__), self.options.shapeless, self.options.max_traces)

    def _static(self, values: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yield the name and the value of each static value in the arguments."""
        for position, argument in enumerate(values):
            name = self._argument(position, len(values), names)
            try:
                found = list(flat_of(argument, hidden=True).structure.static_values())
            except ForeignArrayError as error:
                found = [(error.path, error.value)]
            yield from [(keystr((name, *path)), value) for path, value in found]

    def _objects_in_fields(
        self, values: Sequence[Any], names: Sequence[str], classes: Sequence[type]
    ) -> Iterator[tuple[str, Any]]:
        for position, argument in enumerate(values):
            found = objects_in_fields(self._fn, flat_of(argument, hidden=True).structure, classes)
            yield from [(keystr((self._argument(position, len(values), names), *path)), value) for path, value in found]

    def _argument(self, position: int, count: int, names: Sequence[str]) -> str:
        """Return the name of one of ``count`` arguments. The last ones were given by the keywords ``names``."""
        if position >= count - len(names):
            return names[position - count]
        known = self.options.names
        return known[position] if position < len(known) else f"argument {position}"


RUNS_LATER = (
    "fl.jit can't compile {fn}, which is {kind}: a call returns before its body has run, so there is nothing to trace. Compile "
    "a plain function that it calls."
)


def _without_shapes(key: Sequence[Any]) -> tuple[Any, ...]:
    """Return what tells the program for a call from others if one serves all shapes and dtypes, of the key with these."""
    return (*key[:2], *[part.structure if isinstance(part, Signature) else mx.array for part in key[2:]])


def _parameters(fn: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # functions of MLX have no signature
        return []


def _classes(values: Sequence[Any]) -> list[type]:
    """Return the classes of the modules in the arguments."""
    return list(dict.fromkeys([each for value in values for each in flat_of(value, hidden=True).structure.module_classes()]))


def _restore(fn: Any, shapeless: bool, max_traces: int | None) -> Jitted[..., Any]:
    return Jitted(from_picklable(fn), shapeless, max_traces)


NO_COMPILER = (
    "fl.jit needs a C++ compiler: on Linux, MLX builds its fused CPU kernels with g++ when they first run, and no g++ was "
    "found. Install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or run this in fl.disable_jit()."
)


def _require_compiler() -> None:
    on_cpu = sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)
    if on_cpu and shutil.which("g++") is None and _mlx_compiles():
        raise RuntimeError(NO_COMPILER)


def _mlx_compiles() -> bool:
    """Return whether MLX compiles at all: :func:`mlx.core.disable_compile` and an environment variable turn it off."""
    calls: list[mx.array] = []
    probe = mx.compile(lambda x: calls.append(x) or x)  # type: ignore[func-returns-value]
    probe(mx.array(0))
    probe(mx.array(0))
    return len(calls) == 1
