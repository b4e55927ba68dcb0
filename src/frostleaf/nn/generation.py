"""Generating tokens with a language model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import mlx.core as mx

from ..core.arguments import require_callable
from ..core.definition import Node
from ..core.hidden import CACHE, cache_classes
from ..core.structure import flat_of
from ..core.words import describe, with_article
from ..transforms.evaluation import async_eval
from ..transforms.evaluation import eval as evaluate
from ..transforms.jit import jit
from ..transforms.stateful import stateful
from .cache import Cache, KVCache
from .cache_lists import CacheList
from .cache_making import make_cache

Sampler = Callable[[mx.array], mx.array]

NO_MODEL = "fl.generate takes a model, native or from fl.from_mlx(model), and was given {given}"
NO_PROMPT = "fl.generate takes a prompt of token ids, a list of ints or an integer array [L] with L > 0, and was given {given}"
NO_ROOM = (
    "fl.generate was given a cache with room for {room} more tokens, and a prompt of {prompt} with max_tokens={max_tokens} "
    "needs {needed}: make a larger one, or let fl.generate make it"
)

# Caches have a multiple of this size, so that answers of other lengths share a trace.
_STEP = 256


def generate(
    model: Any,
    prompt: Sequence[int] | mx.array,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    *,
    stop: int | Collection[int] = (),
    cache: Any = None,
    prefill_step_size: int = 2048,
) -> Iterator[int]:
    """Generate tokens after a prompt, one by one, as ``mlx_lm.generate.generate_step`` does.

    Each step is one call of a jitted function with the model and its cache as arguments, traced once for all tokens; while a
    token is looked at, the next is computed. With ``fl.rng(key)`` around the loop the tokens depend on the key alone.

    Args:
        model: A language model, native or from :func:`frostleaf.from_mlx`: ``model(tokens, cache=cache)`` returns logits
            ``[1, L, V]`` for tokens ``[1, L]``.
        prompt: The token ids, at least one.
        max_tokens: How many tokens to generate at most. Default: 256.
        sampler: Returns a token, ``[1]``, for log-probabilities, ``[1, V]``, such as ``mlx_lm.sample_utils.make_sampler(0.7)``.
            It runs outside of the jitted step. Default: the most probable token.
        stop: A token that ends the answer, and is not in it, or several, such as ``tokenizer.eos_token_ids``. Default: none.
        cache: What the model has seen before the prompt, from :func:`frostleaf.nn.make_cache` and calls of the model. It stays
            as it is. Default: an empty cache that is large enough.
        prefill_step_size: How many tokens of the prompt the model is given at once. Default: 2048.

    Yields:
        The tokens, as ints.

    Raises:
        TypeError: If the model is no module, the prompt holds something other than ints, the sampler can't be called, or the
            cache is one of mlx-lm.
        ValueError: If the prompt is empty, ``max_tokens`` is not an int of 0 or more, or the cache has no room.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Next(fl.Module):
    ...     layers: tuple = ()
    ...     def __call__(self, tokens, cache=None):
    ...         return mx.arange(10) == (tokens + 1)[..., None]
    >>> list(fl.generate(Next(), [3, 4], max_tokens=3)), list(fl.generate(Next(), [3, 4], stop=[7]))
    ([5, 6, 7], [5, 6])
    """
    if not isinstance(model, Node):
        raise TypeError(NO_MODEL.format(given=describe(model)))
    tokens = _tokens(prompt)
    if not (_is_count(max_tokens, 0) and _is_count(prefill_step_size, 1)):
        given = f"max_tokens={describe(max_tokens)} and prefill_step_size={describe(prefill_step_size)}"
        raise ValueError(f"fl.generate takes ints, max_tokens >= 0 and prefill_step_size > 0, and was given {given}")
    if sampler is not None:
        require_callable("sampler", sampler, "log-probabilities")
    if cache is None:
        cache = make_cache(model, -(-(tokens.size + max_tokens) // _STEP) * _STEP)
    else:
        _require_room(cache, tokens.size, max_tokens)
    ends = frozenset([stop] if isinstance(stop, int) else map(int, stop))
    return _generated(model, tokens, max_tokens, sampler, ends, cache, prefill_step_size)


def _require_room(cache: Any, prompt: int, max_tokens: int) -> None:
    for _, value in flat_of(cache).structure.static_values():
        if cache_classes(value):
            raise TypeError(f"fl.generate was given {with_article(type(value).__name__)} in cache. {CACHE}")
    caches = [each for each in _caches_in(cache) if isinstance(each, KVCache)]
    room = min([each.max_size - int(each.offset.item()) for each in caches], default=None)  # type: ignore[arg-type]
    if room is not None and room < prompt + max_tokens:
        needed = prompt + max_tokens
        raise ValueError(NO_ROOM.format(room=room, prompt=prompt, max_tokens=max_tokens, needed=needed))


def _caches_in(tree: Any) -> Iterator[Cache]:
    """Yield the caches in a list, a tuple, a dict or a :class:`CacheList`, without those that hold others."""
    if isinstance(tree, CacheList):
        tree = tree.caches
    if isinstance(tree, Cache):
        yield tree
    elif isinstance(tree, list | tuple | dict):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _caches_in(each)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _tokens(prompt: Any) -> mx.array:
    try:
        tokens = prompt if isinstance(prompt, mx.array) else mx.array(prompt)
    except (TypeError, ValueError):
        raise TypeError(NO_PROMPT.format(given=describe(prompt))) from None
    if tokens.size and not mx.issubdtype(tokens.dtype, mx.integer):
        raise TypeError(NO_PROMPT.format(given=describe(prompt)))
    if tokens.ndim != 1 or tokens.size == 0:
        raise ValueError(NO_PROMPT.format(given=describe(prompt)))
    return tokens.astype(mx.int32)


def _generated(
    model: Node, prompt: mx.array, max_tokens: int, sampler: Sampler | None, stop: frozenset[int], cache: Any, step_size: int
) -> Iterator[int]:
    # Each prompt has a length of its own, for which a trace would not pay.
    for start in range(0, prompt.size - 1, step_size):
        _, cache = _called(model, prompt[start : min(start + step_size, prompt.size - 1)], cache)
        evaluate(cache)
    token = prompt[-1:]
    for count in range(max_tokens + 1):
        now = token
        if count < max_tokens:
            logprobs, cache = _step(model, now, cache)
            sampled = mx.argmax(logprobs, axis=-1) if sampler is None else mx.array(sampler(logprobs)).reshape(1)
            token = sampled.astype(mx.int32)  # as the prompt: another dtype would be another trace
            async_eval(token, cache)
        if count > 0:
            number = int(now.item())  # type: ignore[arg-type]
            if number in stop:
                return
            yield number


def _called(model: Any, tokens: mx.array, cache: Any) -> tuple[Any, Any]:
    """Return what a model makes of tokens, and the new cache. What else it changes in a call is not kept."""
    out, (_, after) = stateful(lambda both: both[0](tokens[None], cache=both[1]), (model, cache))
    return out, after


@jit
def _step(model: Any, tokens: mx.array, cache: Any) -> tuple[mx.array, Any]:
    """Return the log-probabilities, ``[1, V]``, of the token after these, and the new cache."""
    logits, cache = _called(model, tokens, cache)
    logits = logits[:, -1]
    return logits - mx.logsumexp(logits, keepdims=True), cache
