"""Generating tokens with a language model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from operator import index
from typing import Any

import mlx.core as mx

from ..core.arguments import require_callable
from ..core.definition import Node
from ..core.hidden import CACHE, cache_classes
from ..core.words import describe, with_article
from ..transforms.evaluation import async_eval
from ..transforms.evaluation import eval as evaluate
from ..transforms.jit import jit
from ..transforms.stateful import stateful
from ..transforms.without_values import PLAIN
from .cache import KVCache, RotatingKVCache
from .cache_growing import GrowingCache
from .cache_lists import CacheList
from .cache_making import made_for

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]

NO_MODEL = "fl.generate takes a model, native or from fl.from_mlx(model), and was given {given}"
NO_PROMPT = (
    "fl.generate takes a prompt of token ids, a list of ints or an integer array [L] with L > 0, and was given {given}{advice}"
)
_TEXT = ". Give it tokenizer.encode(text), and tokenizer.decode the answer"
_BATCH = ". Give it one prompt after the other, such as prompt[0]"
NO_STOP = "fl.generate takes a token or several as stop, ints such as tokenizer.eos_token_ids, and was given {given}"
NO_TOKEN = "a sampler returns a token, [1], for log-probabilities {logprobs}, and returned {given}"
NO_LOGITS = "a function in logits_processors returns logits {logits} for (tokens, logits), and returned {given}"
NO_PROCESSORS = "fl.generate takes a list of functions (tokens, logits) as logits_processors, and was given {given}"
NO_ROOM = (
    "fl.generate was given a cache with room for {room} more tokens, and a prompt of {prompt} with max_tokens={max_tokens} "
    "needs {needed}: make a larger one, or let fl.generate make it"
)

WITHOUT_KEYS = (
    "fl.generate was given a {cls} that has seen {offset} tokens and has no keys, as one that was loaded from a file into an "
    "empty cache with strict=False. Load into a cache with as many keys: one with which the model was called once"
)

GROWING = " So it does in fl.generate(..., cache=fl.nn.make_cache(model, None)), with a cache that grows."

# Names that mlx-lm and transformers have for arguments.
_SAMPLER = "give sampler=mlx_lm.sample_utils.make_sampler(...), or a function of your own"
_STOP = "give it as stop"
_PROCESSORS = "give logits_processors=mlx_lm.sample_utils.make_logits_processors(...), or functions of your own"
_QUANTIZED = "caches of fixed size are not quantized"
_OF_OTHERS = {
    "prompt_cache": "give cache=fl.nn.make_cache(model, max_size, prompt_cache=...)",
    "max_kv_size": "give cache=[fl.nn.RotatingKVCache(max_kv_size, keep=4) for _ in model.layers]",
    "temp": _SAMPLER, "temperature": _SAMPLER, "top_p": _SAMPLER, "top_k": _SAMPLER, "min_p": _SAMPLER,
    "do_sample": _SAMPLER, "repetition_penalty": _PROCESSORS, "logit_bias": _PROCESSORS, "kv_bits": _QUANTIZED,
    "kv_group_size": _QUANTIZED, "quantized_kv_start": _QUANTIZED, "max_new_tokens": "give it as max_tokens",
    "eos_token_id": _STOP, "eos_token_ids": _STOP, "tokenizer": "give tokenizer.encode(text) as prompt",
}  # fmt: skip
_ARGUMENTS = "model, prompt, max_tokens, sampler, stop, cache, logits_processors and prefill_step_size"

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
    logits_processors: Sequence[Processor] | None = None,
    prefill_step_size: int = 2048,
    **of_others: Any,
) -> Iterator[int]:
    """Generate tokens after a prompt, one by one, as ``mlx_lm.generate.generate_step`` does.

    Each step is one call of a jitted function with the model and its cache as arguments, traced once for all tokens, or of the
    function itself where the cache grows (:class:`frostleaf.nn.GrowingCache`); while a token is looked at, the next is
    computed. With ``fl.rng(key)`` around the loop the tokens depend on the key alone.

    Args:
        model: A language model, native or from :func:`frostleaf.from_mlx`: ``model(tokens, cache=cache)`` returns logits
            ``[1, L, V]`` for tokens ``[1, L]``.
        prompt: The token ids, at least one: integers, those of NumPy and arrays of one too, a range, or an integer array.
        max_tokens: How many tokens to generate at most. Default: 256.
        sampler: Returns a token, ``[1]``, for log-probabilities, ``[1, V]``, such as ``mlx_lm.sample_utils.make_sampler(0.7)``.
            It runs outside of the jitted step, and may keep what it sees. Default: the most probable token.
        stop: A token that ends the answer, and is not in it, or several, such as ``tokenizer.eos_token_ids``. Default: none.
        cache: What the model has seen before the prompt, from :func:`frostleaf.nn.make_cache` and calls of the model. It stays
            as it is. Default: an empty cache that is large enough.
        logits_processors: Each returns logits, ``[1, V]``, for all tokens so far, ``[N]``, and logits, as those of
            ``mlx_lm.sample_utils.make_logits_processors``. They run before the sampler and where it does. Default: none.
        prefill_step_size: How many tokens of the prompt the model is given at once. Default: 2048.

    Yields:
        The tokens, as ints.

    Raises:
        TypeError: If the model is no module, the prompt or ``stop`` holds something other than ints, the sampler or a processor
            can't be called, or the cache is one of mlx-lm; for an argument that there is not, with what to write for those of
            mlx-lm and transformers.
        ValueError: If the prompt is empty or a batch, ``max_tokens`` is not an int of 0 or more, or the cache has no room; if
            the sampler returns no token, or a processor no logits.

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
    if of_others:
        name = next(iter(of_others))
        advice = f": {_OF_OTHERS[name]}" if name in _OF_OTHERS else ""
        raise TypeError(f"fl.generate takes no {name}{advice}. Its arguments are {_ARGUMENTS}")
    tokens = _tokens(prompt)
    if not (_is_count(max_tokens, 0) and _is_count(prefill_step_size, 1)):
        given = f"max_tokens={describe(max_tokens)} and prefill_step_size={describe(prefill_step_size)}"
        raise ValueError(f"fl.generate takes ints, max_tokens >= 0 and prefill_step_size > 0, and was given {given}")
    if sampler is not None:
        require_callable("sampler", sampler, "log-probabilities")
    processors = _processors(logits_processors)
    ends = _ends(stop)
    if cache is None:
        cache = made_for(model, -(-(tokens.size + max_tokens) // _STEP) * _STEP)
    else:
        _require_room(cache, tokens.size, max_tokens)
    return _generated(model, tokens, max_tokens, sampler, processors, ends, cache, prefill_step_size)


def _require_room(cache: Any, prompt: int, max_tokens: int) -> None:
    caches = [*_caches_in(cache)]
    for each in caches:
        if cache_classes(each):
            raise TypeError(f"fl.generate was given {with_article(type(each).__name__)} in cache. {CACHE}")
    for each in caches:
        if isinstance(each, KVCache | RotatingKVCache) and each.keys is None and each.offset.item() != 0:
            raise ValueError(WITHOUT_KEYS.format(cls=type(each).__name__, offset=each.offset.item()))
    rooms = [each.max_size - int(each.offset.item()) for each in caches if isinstance(each, KVCache)]  # type: ignore[arg-type]
    room, needed = min(rooms, default=None), prompt + max_tokens - 1  # the last token is not looked at
    if room is not None and room < needed:
        raise ValueError(NO_ROOM.format(room=room, prompt=prompt, max_tokens=max_tokens, needed=needed))


def _caches_in(tree: Any) -> Iterator[Any]:
    """Yield the caches in a list, a tuple, a dict or a :class:`CacheList`, without those that hold others."""
    if isinstance(tree, CacheList):
        tree = tree.caches
    if isinstance(tree, list | tuple | dict):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _caches_in(each)
    else:
        yield tree


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _tokens(prompt: Any) -> mx.array:
    advice = _TEXT if isinstance(prompt, str) or hasattr(prompt, "encode") else ""
    tokens = _integers(prompt)
    if tokens is None:
        raise TypeError(NO_PROMPT.format(given=describe(prompt), advice=advice))
    if tokens.ndim != 1 or tokens.size == 0:
        raise ValueError(NO_PROMPT.format(given=describe(prompt), advice=_BATCH if tokens.ndim == 2 else ""))
    return tokens


def _ends(stop: Any) -> frozenset[int]:
    ends = _integers([*stop] if isinstance(stop, Collection) and not isinstance(stop, mx.array) else stop)
    if ends is None:
        raise TypeError(NO_STOP.format(given=describe(stop)))
    return frozenset(ends.reshape(-1).tolist())  # type: ignore[arg-type]


def _integers(value: Any) -> mx.array | None:
    """Return integers as an array of int32; ``None`` for anything else."""
    try:
        if isinstance(value, list | tuple | range):
            value = [*map(_index, value)]
        array = value if isinstance(value, mx.array) else mx.array(value)
    except (TypeError, ValueError):
        return None
    return array.astype(mx.int32) if array.size == 0 or mx.issubdtype(array.dtype, mx.integer) else None


def _index(value: Any) -> Any:
    """Return the number that an integer of any class is, one of NumPy's or an array of one, or else the value."""
    if isinstance(value, mx.array):
        return value.item() if value.ndim == 0 else value
    return index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def _processors(given: Any) -> tuple[Processor, ...]:
    if not isinstance(given, list | tuple | None):
        raise TypeError(NO_PROCESSORS.format(given=describe(given)))
    for each in given or ():
        require_callable("each of logits_processors", each, "tokens and logits")
    return tuple(given or ())


def _generated(
    model: Node, prompt: mx.array, max_tokens: int, sampler: Sampler | None, processors: tuple[Processor, ...],
    stop: frozenset[int], cache: Any, step_size: int,
) -> Iterator[int]:  # fmt: skip
    # Each prompt has a length of its own, for which a trace would not pay.
    for start in range(0, prompt.size - 1, step_size):
        _, cache = _called(model, prompt[start : min(start + step_size, prompt.size - 1)], cache)
        evaluate(cache)
    # Where it grows, a trace would not be used again.
    step = _next if any(isinstance(each, GrowingCache) for each in _caches_in(cache)) else _step
    seen, token = prompt, prompt[-1:]
    for count in range(max_tokens + 1):
        now = token
        if count < max_tokens:
            logits, cache = _stepped(step, model, now, cache)
            for processor in processors:
                logits = _processed(processor, seen, logits)
            token = _sampled(sampler, logits - mx.logsumexp(logits, keepdims=True))
            if processors:
                seen = mx.concatenate([seen, token])
            async_eval(token, cache)
        if count > 0:
            number = int(now.item())  # type: ignore[arg-type]
            if number in stop:
                return
            yield number


def _stepped(step: Callable[..., Any], model: Node, token: mx.array, cache: Any) -> Any:
    try:
        return step(model, token, cache)
    except ValueError as error:
        if str(error).endswith(PLAIN):
            error.args = (f"{error}{GROWING}",)
        raise


def _processed(processor: Processor, tokens: mx.array, logits: mx.array) -> mx.array:
    new = processor(tokens, logits)
    if not isinstance(new, mx.array) or new.shape != logits.shape:
        raise ValueError(NO_LOGITS.format(logits=describe(logits), given=describe(new)))
    return new


def _sampled(sampler: Sampler | None, logprobs: mx.array) -> mx.array:
    """Return the next token as the prompt is, ``[1]``, int32: another dtype would be another trace."""
    given = mx.argmax(logprobs, axis=-1) if sampler is None else sampler(logprobs)
    token = _integers(given)
    if token is None or token.size != 1:
        raise ValueError(NO_TOKEN.format(logprobs=describe(logprobs), given=describe(given)))
    return token.reshape(1)


def _called(model: Any, tokens: mx.array, cache: Any) -> tuple[Any, Any]:
    """Return what a model makes of tokens, and the new cache. What else it changes in a call is not kept."""
    out, (_, after) = stateful(lambda both: both[0](tokens[None], cache=both[1]), (model, cache))
    return out, after


def _next(model: Any, tokens: mx.array, cache: Any) -> tuple[mx.array, Any]:
    """Return the logits, ``[1, V]``, of the token after these, and the new cache."""
    logits, cache = _called(model, tokens, cache)
    return logits[:, -1], cache


_step = jit(_next)
