"""Exchanges of arrays between processes, in the order of the program.

MLX's messages carry no tag, and are sent in the order in which arrays happen to be computed. Here each exchange depends on the
one before it in its thread, so that the order of the program is the order of the exchanges, whatever a process evaluates.

What the next exchange is to depend on is the *token*, an array of one byte. It is computed together with the result of the
exchange before, and so keeps no array alive once that has been computed. Until then it keeps what that is computed from. An
exchange reuses the memory of its argument, as without the token; its result is an array whose memory MLX may reuse only after
a moment. So what is computed of it at once, as an average, stands before the token.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import cast

import mlx.core as mx

from .context import Leaving, Scope
from .group import Group, as_group, in_use
from .peers import noticing, require_peers

AnyGroup = Group | mx.distributed.Group | None
Stream = mx.Stream | mx.Device | None
Exchange = Callable[..., mx.array]

# What is sent in one go, as in mlx.nn.average_gradients.
BUCKET = 32 * 1024**2


# For each call of ``vmap`` in which the function runs whose exchanges are made here, the outermost first: whether an array is
# another for each index.
mapped: ContextVar[tuple[Callable[[mx.array], bool], ...]] = ContextVar("mapped", default=())
# Whether ``jvp`` differentiates it.
in_jvp: ContextVar[bool] = ContextVar("in_jvp", default=False)
# Returns the error that is raised by what exchanges something, where nothing can be exchanged.
refused: ContextVar[Callable[[], Exception] | None] = ContextVar("refused", default=None)

# As MLX words them.
_IN_A_TRACE = "during function transformations"
_NO_PRIMITIVE = "Attempting to eval an array without a primitive"

COMPILED = (
    "arrays were exchanged with other processes inside a function that mx.compile compiled, which does not keep them in order "
    "with the others. Compile it with fl.jit"
)


NO_VALUES = (
    "{name} waits for other ranks, and was called in a function that is being traced, where nothing waits: call it outside of "
    "fl.jit and the like, before or after the call of the function"
)


class _Thread(threading.local):
    """What belongs to this thread, as arrays do that are not computed yet.

    Attributes:
        token: What its next exchange depends on. ``None`` before the first.
        is_traced: Whether it is tracing a function of which arrays are arguments that have no values.
    """

    token: mx.array | None = None
    is_traced: bool = False


_thread = _Thread()


def tokens() -> list[mx.array]:
    """Return this thread's token in a list, which is empty as long as no group of several processes is in use."""
    return [_token()] if in_use else []


def restore_tokens(kept: list[mx.array]) -> None:
    """Make what :func:`tokens` returned this thread's token again."""
    _thread.token = kept[0] if kept else None


def _token() -> mx.array:
    token = _thread.token
    if token is None:
        token = _thread.token = mx.array(0, mx.uint8)
    return token


class unchanged_tokens(Scope):  # noqa: N801
    """Leave this thread's token as it was before a ``with`` block, in which arrays without values are exchanged."""

    def _enter(self, leaving: Leaving) -> None:
        leaving().undo = functools.partial(_put_back, _thread.token, _thread.is_traced)
        _thread.is_traced = True


class unless_it_fails:  # noqa: N801
    """Leave this thread's token as it was before a ``with`` block that ends with an exception: it may have no value."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = _thread.token

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            _thread.token = self._before


def _put_back(token: mx.array | None, is_traced: bool) -> None:
    _thread.token, _thread.is_traced = token, is_traced


def is_evaluated(*arrays: mx.array) -> bool:
    """Evaluate arrays, and return whether they have values: in a function that is being traced they have none.

    Raises:
        PeerLostError: If another process is lost.
        RuntimeError: If the last exchange was part of a function that ``mx.compile`` traced.
    """
    if _thread.is_traced:
        return False
    try:
        with noticing():
            mx.eval(arrays)
    except ValueError as error:
        if _IN_A_TRACE not in str(error):
            raise
        return False
    except RuntimeError as error:
        if _NO_PRIMITIVE not in str(error):
            raise
        _thread.token = None
        raise RuntimeError(COMPILED) from error
    return True


def settle() -> None:
    """Evaluate what this thread has exchanged so far. MLX takes what has no values yet for a part of a function that it traces.

    So the function would exchange it again in each call.
    """
    is_evaluated(*tokens())


def has_exchange(arrays: Sequence[mx.array]) -> bool:
    """Return whether arrays, which have no values yet, are computed with a sum or the like of ``mx.distributed``.

    When MLX exports one, it takes it for a sum over axes, and reads memory that is not its own.
    """
    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    return "AllReduce" in text.getvalue()


def all_sum(x: mx.array, group: AnyGroup = None, stream: Stream = None) -> mx.array:
    """Return the sum of the arrays of all processes, of the same shape and dtype. Cotangents pass through, as in MLX."""
    return _exchanged(x, group, functools.partial(mx.distributed.all_sum, stream=stream))


def all_average(
    x: mx.array, group: AnyGroup = None, stream: Stream = None, take: Callable[[mx.array], mx.array] | None = None
) -> mx.array:
    """Return the average of the arrays of all processes, which have the same shape and dtype, as MLX computes it.

    Or what ``take`` makes of it, before the next exchange, so that the whole need not be kept until the last. Where there is
    one process, it is not called.
    """

    def exchange(x: mx.array, group: mx.distributed.Group) -> mx.array:
        total = mx.distributed.all_sum(x, group=group, stream=stream)
        return (total if take is None else take(total)) / group.size()

    return _exchanged(x, group, exchange)


def all_max(x: mx.array, group: AnyGroup = None, stream: Stream = None) -> mx.array:
    """Return the maximum over the arrays of all processes, element by element, a constant for derivatives."""
    return _exchanged(mx.stop_gradient(x), group, functools.partial(mx.distributed.all_max, stream=stream))


def all_min(x: mx.array, group: AnyGroup = None, stream: Stream = None) -> mx.array:
    """Return the minimum over the arrays of all processes, element by element, a constant for derivatives."""
    return _exchanged(mx.stop_gradient(x), group, functools.partial(mx.distributed.all_min, stream=stream))


def all_gather(x: mx.array, group: AnyGroup = None, stream: Stream = None) -> mx.array:
    """Return the arrays of all processes one after the other along the first axis, which a scalar gets.

    As in MLX the gradient is this process's part of the cotangent.
    """
    x = x if x.ndim else x[None]
    return _exchanged(x, group, functools.partial(mx.distributed.all_gather, stream=stream))


def sum_scatter(x: mx.array, group: AnyGroup = None, stream: Stream = None) -> mx.array:
    """Return this process's part, along the first axis, of the sum of the arrays of all processes.

    The length of that axis is a multiple of the number of processes. Only NCCL has this in MLX; here it is a sum and a slice.
    """
    group = as_group(group)
    length = x.shape[0] // group.size()
    part = slice(group.rank() * length, (group.rank() + 1) * length)

    def exchange(x: mx.array, group: mx.distributed.Group) -> mx.array:
        # A slice alone would keep the memory of the whole.
        return mx.contiguous(mx.distributed.all_sum(x, group=group, stream=stream)[part])

    return _exchanged(x, group, exchange)


def broadcast(x: mx.array, src: int, group: AnyGroup = None, stream: Stream = None) -> mx.array:
    """Return the array of process ``src``, bit for bit, a constant for derivatives. On all it has the same shape and dtype."""
    group = as_group(group)
    if group.size() == 1:
        return x
    # A sum of bytes with zeros is exact, and every backend has it.
    if group.rank() == src:
        sent = _bytes_of(x)
    elif mapped.get() and isinstance(x, mx.array):  # all have it mapped, or none
        sent = _bytes_of(x) & mx.array(0, mx.uint8)
    else:
        sent = mx.zeros(x.nbytes, mx.uint8)
    return all_sum(sent, group, stream).view(x.dtype).reshape(x.shape)


def buckets(arrays: Sequence[mx.array], nbytes: float) -> Iterator[list[int]]:
    """Yield the places of arrays that are sent together: of one dtype, until they have so many bytes."""
    by_dtype: dict[mx.Dtype, list[int]] = {}
    for place, array in enumerate(arrays):
        by_dtype.setdefault(array.dtype, []).append(place)
    for places in by_dtype.values():
        bucket: list[int] = []
        filled = 0
        for place in places:
            bucket.append(place)
            filled += arrays[place].nbytes
            if filled >= nbytes:
                yield bucket
                bucket, filled = [], 0
        if bucket:
            yield bucket


def _bytes_of(x: mx.array) -> mx.array:
    return mx.stop_gradient(x).reshape(-1).view(mx.uint8)


def _exchanged(x: mx.array, group: AnyGroup, exchange: Exchange) -> mx.array:
    """Return what ``exchange`` makes of an array, after this thread's exchanges so far and before those to come."""
    group = as_group(group)
    if group.size() == 1:
        return x
    refuse = refused.get()
    if refuse is not None:
        raise refuse()
    require_peers()
    return _at(len(mapped.get()), x, group, exchange)


def _at(depth: int, x: mx.array, group: Group, exchange: Exchange) -> mx.array:
    """As :func:`_exchanged`, inside so many calls of ``vmap``. MLX has no rules for what puts exchanges in order."""
    if depth and not mapped.get()[depth - 1](x):
        return _at(depth - 1, x, group, exchange)
    if depth:
        return cast(mx.array, _for_all(depth, group, exchange)(x))
    if in_jvp.get():
        return cast(mx.array, _along(group, exchange)(x))
    return _ordered(x, group, exchange)


def _ordered(x: mx.array, group: Group, exchange: Exchange) -> mx.array:
    token = _token()
    result = exchange(mx.depends(x, token), group=group.mlx)
    # The two are computed together. No derivative follows the token from one exchange to another.
    ordered: Sequence[mx.array] = mx.depends([result, token], token)
    _thread.token = mx.stop_gradient(ordered[1])
    return ordered[0]


def _for_all(depth: int, group: Group, exchange: Exchange) -> mx.custom_function:
    """Return the exchange for one index of a mapped axis, which MLX replaces by one exchange for all of them."""

    @mx.custom_function
    def for_one(x: mx.array) -> mx.array:
        return exchange(x, group=group.mlx)

    @for_one.vmap
    def for_all(x: mx.array, axis: int) -> tuple[mx.array, int]:
        out = _at(depth - 1, mx.moveaxis(x, axis, -1), group, exchange)
        return out, out.ndim - 1

    return for_one


def _along(group: Group, exchange: Exchange) -> mx.custom_function:
    """Return the exchange with that of its tangents, in which it is linear."""

    @mx.custom_function
    def value(x: mx.array) -> mx.array:
        return _ordered(mx.stop_gradient(x), group, exchange)

    @value.vjp
    def back(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return mx.vjp(functools.partial(exchange, group=group.mlx), [x], [cotangent])[1][0]

    @value.jvp
    def moved(x: mx.array, tangent: mx.array) -> mx.array:
        return _at(0, tangent, group, exchange)

    return value
