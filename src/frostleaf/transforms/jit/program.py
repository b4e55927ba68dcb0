"""One trace of a jitted function, and the trees that go into it and come out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import mlx.core as mx

from ...core.containers import is_hashable
from ...core.definition import Node
from ...core.structure import Structure, cuts_of, defer, flat_of, unflatten
from ...core.words import function_name, keystr
from ..collectives import add_stages, restore_tokens, stages, tokens
from ..context import appended, context, override
from ..group import in_use
from ..peers import require_peers
from ..random import require_own_state, restore_state, saved_state
from ..without_values import explained
from .arguments import require_no_arrays, require_unchanging
from .captured import require_visible
from .changes import Arguments
from .compiled import Dropped, Shell, changed, dropped
from .explanation import History, Traced, remembered
from .passing import Inputs, Origins, put_back
from .retraces import Threads
from .serving import NeedsShapes, Serving, reason
from .standing import standing_for_given
from .weak import Given, Lent, restored, structure_of, weakened, with_structure


class Program:
    """A function compiled for arguments of certain structures, and unless shapeless of certain shapes and dtypes.

    Args:
        fn: The function.
        structures: Those of the arguments, and of the settings that come after them.
        key: What tells its calls from others: what holds where it is called, the names of arguments, and their signatures.
        labels: The names of those arguments that are given by name, then those of the settings.
        arguments: The names of all arguments and settings.
        shapeless: Whether it serves all shapes.
        history: What its function was traced for.

    Attributes:
        key: The same with the weak forms of the structures.
        used: When it was last called; later is more.
        traced: Whether it has been traced.
    """

    __slots__ = (
        "_compiled", "_history", "_name", "_references", "_serving", "_shell", "_structures", "_threads", "_weak_parts",
        "key", "traced", "used",
    )  # fmt: skip

    def __init__(
        self,
        fn: Callable[..., Any],
        structures: tuple[Structure, ...],
        key: Sequence[Any],
        labels: tuple[str, ...],
        arguments: Sequence[str],
        shapeless: bool,
        history: History,
    ) -> None:
        names = key[1]
        lent = Lent()
        structures = tuple([weakened(structure, lent.argument) for structure in structures])

        def call(values: list[Any]) -> Any:
            positional = len(values) - len(labels)
            with explained("fl.jit", fn), override(shapeless=shapeless or context.get().shapeless):
                return fn(*values[:positional], **dict(zip(names, values[positional:], strict=False)))

        def present_structures() -> Sequence[Structure]:
            return _calls.structures[-1] if lent.references else structures

        def on_other_leaves(leaves: list[mx.array]) -> tuple[list[mx.array], Structure]:
            rest = iter(leaves)
            out = flat_of(call([unflatten(structure, rest) for structure in present_structures()]), hidden=True)
            return out.leaves, weakened(out.structure, lent.result)

        def on_leaves(leaves: list[mx.array]) -> tuple[list[mx.array], _Result]:
            begun = [saved_state(), *tokens()]
            arrays = tuple([(leaf.ndim if shapeless else leaf.shape, leaf.dtype) for leaf in leaves])
            inputs, rest = Inputs(leaves), iter(leaves)
            present = present_structures()
            values = [unflatten(structure, rest) for structure in present]
            before = Arguments(values, arguments, inputs)
            with standing_for_given(leaves):
                result = call(values)
            out = flat_of(result, hidden=True)
            require_visible("fl.jit", function_name(fn), out.structure, [*leaves, *begun])
            given = [
                (keystr((name, *path)), value)
                for name, structure in zip(arguments, present, strict=True)
                for path, value in structure.static_values()
            ]
            require_no_arrays(fn, given)  # which it may have put there
            require_unchanging(fn, out.structure, given)
            before.warn_of_changes(fn, result, out.leaves, inputs.assigned(leaves))
            static = None
            if all(is_hashable(value) for _, value in out.structure.static_values()):
                spec = out.structure if isinstance(result, Node) else out.structure.spec
                spec = defer(spec, iter(out.leaves), shapeless)
            else:
                spec, static = out.structure.spec, _own
            kept = weakened(spec, lent.result)
            exchanged = len(changed([*stages(), *tokens()], begun))
            computed, origins = inputs.separate(out.leaves)
            traced = Traced(labels, tuple(map(remembered, present)), arrays, context.get().dtype)
            return computed, _Result(kept, kept is not spec, cuts_of(spec), origins, exchanged, static, traced)

        Shell.forget_retired()
        self._serving = Serving(on_other_leaves) if shapeless else None
        self._shell = Shell(on_leaves)
        self._compiled = mx.compile(self._shell, shapeless=shapeless)
        self._history = history
        self._name = function_name(fn)
        self._threads = Threads()
        self._structures = structures
        self._references = lent.references
        self.key = [*key[:2], *map(with_structure, key[2:], structures)]
        self._weak_parts = [at for at, part in enumerate(self.key) if part is not key[at]]
        self.used = 0
        self.traced = False

    def __call__(self, given: list[mx.array], key: Sequence[Any]) -> Any:
        """Return the result for the arrays of a call, and its key, which has the structures of its arguments."""
        state = saved_state()
        carried = [state, *tokens()] if in_use else state
        weak = self._weak_parts
        if weak:
            present = self._present(key)
            _calls.structures.append(present)
        try:
            outputs, result, drawn = self._compute(given, carried)
        except ValueError as error:
            why = reason(error) if self._serving is not None else None
            if why is None:
                raise
            raise NeedsShapes(why) from error
        finally:
            if weak:
                _calls.structures.pop()
        if drawn:
            _hand_on(drawn, result.exchanged)
        traced = result.traced
        if traced is not None:
            self._note(traced, result)
        put_back(outputs, result.origins, given)
        spec = restored(result.spec, Given(present)) if result.is_weak else result.spec
        # A slice is faster than as many steps of an iterator.
        leaves = map(outputs.__getitem__, result.cuts) if result.cuts else iter(outputs)
        out = unflatten(spec, leaves, result.static)
        if traced is not None:
            del result
            self._shell.prune()  # inside other transformations, MLX has already forgotten the trace
        return out

    def _compute(self, given: list[mx.array], carried: mx.array | list[mx.array]) -> Any:
        try:
            return self._compiled(given, carried)
        except ValueError as error:
            if "uncaptured inputs" not in str(error):  # as MLX words it
                raise
            # The function also reads one of its arguments from outside, and MLX can't tell the constant from the argument.
            also = [mx.contiguous(each) for each in carried] if isinstance(carried, list) else mx.contiguous(carried)
            return self._compiled([mx.contiguous(array) for array in given], also)

    @property
    def is_shapeless(self) -> bool:
        """Whether it serves all shapes."""
        return self._serving is not None

    def require_serves(self, given: list[mx.array], key: Sequence[Any]) -> None:
        """Check that it computes what the function does with the arrays of a call, whatever their shapes.

        Raises:
            NeedsShapes: If it doesn't.
            Exception: What the function raises.
        """
        if self._serving is not None:
            with appended(_calls.structures, self._present(key)):
                self._serving.require(given)

    def _note(self, traced: Traced | Literal["noted"], result: _Result) -> None:
        """Note a trace, and that it is used again when it is for the first time."""
        if traced == "noted":
            result.traced = None
            self._history.reused += 1
            self._threads.clear()
            return
        result.traced = "noted"
        self._history.add(traced, in_new_program=not self.traced)
        self.traced = True
        self._threads.add(self._name)

    def latest(self, key: list[Any]) -> list[Any]:
        """Return the key of one of its calls with no more than weak references to values that may go.

        The next call is likely to have the very same structures, which need not be looked into to find them equal.
        """
        weak = list(key)
        for at in self._weak_parts:  # without shapes in the key, those of the call are added
            weak[at] = self.key[at] if self._serving is None else with_structure(key[at], structure_of(self.key[at]))
        return weak

    def _present(self, key: Sequence[Any]) -> list[Structure]:
        """Return the structures of the arguments of a call, which hold what this does not."""
        present = list(self._structures)
        for at in self._weak_parts:
            present[at - len(key)] = structure_of(key[at])
        return present

    def is_for_nobody(self) -> bool:
        """Return whether a value that it was made for is gone."""
        return any(each.value is None for each in self._references)

    def __del__(self, dropped: Dropped = dropped) -> None:
        if not hasattr(self, "_compiled"):  # it was interrupted before it could trace anything
            return
        self._shell.retire()
        dropped.add(self._compiled, self._shell)
        del self._compiled
        dropped.clear()


class _Calls(threading.local):
    """The structures of the arguments of the calls in this thread that may be traced, while MLX computes them."""

    def __init__(self) -> None:
        self.structures: list[list[Structure]] = []


_calls = _Calls()


@attrs.define
class _Result:
    """What one trace found out about its result.

    Attributes:
        spec: The spec of the result, as in :class:`~frostleaf.core.structure.Structure`.
        is_weak: Whether it has weak forms in it, of what the arguments have.
        cuts: What cuts its leaves for :func:`unflatten`; empty if nothing has to.
        origins: Which of its leaves are arguments passed through.
        exchanged: How many stages there are, and one more, if arrays are exchanged with other processes.
        static: Makes the static values of each call: copies, where a caller could change them. ``None`` if no caller could.
        traced: What the function was traced for, then that this has been noted, until the trace is used again.
    """

    spec: Any
    is_weak: bool
    cuts: list[int | slice]
    origins: Origins
    exchanged: int
    static: Callable[[Any], Any] | None
    traced: Traced | Literal["noted"] | None


def _hand_on(drawn: list[mx.array], exchanged: int) -> None:
    """Go on from the random state and the token that a call leaves behind, of those that it changes."""
    if exchanged:
        require_peers()
        if exchanged > 1:
            add_stages(drawn[-exchanged:-1])
        restore_tokens([drawn[-1]])
        del drawn[-exchanged:]
    if drawn:
        require_own_state()
        restore_state(drawn[0])


def _own(value: Any) -> Any:
    return value if is_hashable(value) else copy.deepcopy(value)
