"""Exchanges of arrays between processes, in the order of the program.

MLX's messages carry no tag, and are sent in the order in which arrays happen to be computed. Here each exchange depends on the
one before it in its thread, so that the order of the program is the order of the exchanges, whatever a process evaluates.

What the next exchange is to depend on is the *token*, an array of one byte. It is computed together with the result of the
exchange before, and so keeps no array alive once that has been computed. Until then it keeps what that is computed from. An
exchange reuses the memory of its argument, as without the token; its result is an array whose memory MLX may reuse only after
a moment. So what is computed of it at once, as an average, stands before the token.

On the CPU, MLX makes room for what it will compute long before it does: for all large exchanges up to the one that a result
needs. Where one waits for all before it, those are :func:`stages`, which can be evaluated one after the other.
"""

from __future__ import annotations

import functools
import io
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple, cast

import mlx.core as mx

from .context import Leaving, Scope
from .group import Group, as_group, in_use
from .peers import noticing, require_peers, waiting

AnyGroup = Group | mx.distributed.Group | None
Stream = mx.Stream | mx.Device | None
Exchange = Callable[..., mx.array]

# What is sent in one go, as in mlx.nn.average_gradients.
BUCKET = 32 * 1024**2

# An exchange of so many bytes may be a stage.
_LARGE = 2 * 1024**2
# No more stages are noted, for those who evaluate in another way.
_MOST = 1024


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


class _Order(NamedTuple):
    """What has been exchanged so far.

    Attributes:
        token: What the next exchange depends on. ``None`` before the first.
        large: The tokens after large exchanges, since the last stage.
        stages: Those of which it is known that what came next waits for all of them.
        is_traced: Whether a function is being traced of which arrays are arguments that have no values.
        last: With which group something was exchanged last.
    """

    token: mx.array | None = None
    large: tuple[mx.array, ...] = ()
    stages: tuple[mx.array, ...] = ()
    is_traced: bool = False
    last: Group | None = None


class _Thread(threading.local):
    """What belongs to this thread, as arrays do that are not computed yet."""

    order = _Order()


_thread = _Thread()


def tokens() -> list[mx.array]:
    """Return this thread's token in a list, which is empty as long as no group of several processes is in use."""
    return [_token()] if in_use else []


def restore_tokens(kept: list[mx.array]) -> None:
    """Make what :func:`tokens` returned this thread's token again."""
    _thread.order = _thread.order._replace(token=kept[0] if kept else None)


def exchanged_since(before: list[mx.array]) -> Group | None:
    """Return with which group this thread has exchanged something last, if it has since :func:`tokens` returned ``before``."""
    return _thread.order.last if before and tokens()[0] is not before[0] else None


def _token() -> mx.array:
    order = _thread.order
    if order.token is None:
        order = _thread.order = order._replace(token=mx.array(0, mx.uint8))
    return cast(mx.array, order.token)


def stages() -> tuple[mx.array, ...]:
    """Return what this thread has noted as stages, in their order: arrays of one byte each."""
    return _thread.order.stages


def add_stages(others: Sequence[mx.array] = ()) -> None:
    """Note stages: what is exchanged next, and is needed first, waits for all large exchanges so far.

    Args:
        others: Stages of a compiled function, which come after these.
    """
    order = _thread.order
    if order.large or others:
        noted = (*order.stages, *order.large, *others)[-_MOST:]
        _thread.order = order._replace(large=(), stages=noted)


def forget_stages() -> None:
    """Forget what was noted, since it is evaluated."""
    _thread.order = _thread.order._replace(large=(), stages=())


class unchanged_tokens(Scope):  # noqa: N801
    """Leave this thread's order as it was before a ``with`` block, in which arrays without values are exchanged."""

    def _enter(self, leaving: Leaving) -> None:
        leaving().undo = functools.partial(_put_back, _thread.order)
        _thread.order = _Order(_thread.order.token, is_traced=True)


class unless_it_fails:  # noqa: N801
    """Leave this thread's order as it was before a ``with`` block that ends with an exception: it may have no values."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = _thread.order

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            _thread.order = self._before


def _put_back(order: _Order) -> None:
    _thread.order = order


def is_evaluated(*arrays: mx.array) -> bool:
    """Evaluate arrays, and return whether they have values: in a function that is being traced they have none.

    Raises:
        PeerLostError: If another process is lost.
        RuntimeError: If the last exchange was part of a function that ``mx.compile`` traced.
    """
    if _thread.order.is_traced:
        return False
    try:
        with noticing(), waiting():
            mx.eval(arrays)
    except ValueError as error:
        if _IN_A_TRACE not in str(error):
            raise
        return False
    except RuntimeError as error:
        if _NO_PRIMITIVE not in str(error):
            raise
        _thread.order = _Order()
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
    """Return the maximum over the arrays of all processes, element by element, constant for derivatives, with any nan."""
    reduce = functools.partial(mx.distributed.all_max, stream=stream)
    return _exchanged(mx.stop_gradient(x), group, functools.partial(_with_nan, reduce, -math.inf, 1))


def all_min(x: mx.array, group: AnyGroup = None, stream: Stream = None) -> mx.array:
    """Return the minimum over the arrays of all processes, element by element, constant for derivatives, with any nan."""
    reduce = functools.partial(mx.distributed.all_min, stream=stream)
    return _exchanged(mx.stop_gradient(x), group, functools.partial(_with_nan, reduce, math.inf, -1))


def _with_nan(reduce: Exchange, neutral: float, mark: int, x: mx.array, group: mx.distributed.Group) -> mx.array:
    """Return an extreme of arrays in which marks of nan are sent along: MLX may pass over a nan, or not, by where it stands."""
    if not mx.issubdtype(x.dtype, mx.floating):
        return reduce(x, group=group)
    is_nan = mx.isnan(x)
    sent = mx.stack([mx.where(is_nan, neutral, x), is_nan.astype(x.dtype) * mark])
    extreme, marks = reduce(sent, group=group)
    return mx.where(marks == mark, math.nan, extreme)


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


def require_exchanges(group: Group) -> None:
    """Require that arrays can be exchanged with a group where this is called.

    Raises:
        Exception: What :data:`refused` says, if they can't.
    """
    refuse = refused.get()
    if refuse is not None and group.size() > 1:
        raise refuse()


def _exchanged(x: mx.array, group: AnyGroup, exchange: Exchange) -> mx.array:
    """Return what ``exchange`` makes of an array, after this thread's exchanges so far and before those to come."""
    group = as_group(group)
    if group.size() == 1:
        return x
    require_exchanges(group)
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
    after, order = mx.stop_gradient(ordered[1]), _thread.order
    large = (*order.large, after)[-_MOST:] if x.nbytes >= _LARGE else order.large
    _thread.order = order._replace(token=after, large=large, last=group)
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
