"""``fl.generate`` with native models; those of mlx-lm are in ``tests/interop/test_caches.py``."""

import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.nn import generation

VOCABULARY, DIMS = 11, 8


class Attention(fl.Module):
    projection: fl.nn.Linear
    rope: fl.nn.RoPE

    def __init__(self):
        self.projection, self.rope = fl.nn.Linear(DIMS, 3 * DIMS, bias=False), fl.nn.RoPE(DIMS)

    def __call__(self, x, cache):
        queries, keys, values = mx.split(self.projection(x)[:, None], 3, axis=-1)
        queries, keys = self.rope(queries, offset=cache.offset), self.rope(keys, offset=cache.offset)
        mask = cache.make_mask(x.shape[1])
        keys, values = cache.update_and_fetch(keys, values)
        return x + mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0, mask=mask)[:, 0]


class Model(fl.Module):
    embedding: fl.nn.Embedding
    layers: tuple
    head: fl.nn.Linear

    def __init__(self):
        self.embedding, self.layers = fl.nn.Embedding(VOCABULARY, DIMS), [Attention(), Attention()]
        self.head = fl.nn.Linear(DIMS, VOCABULARY, bias=False)

    def __call__(self, tokens, cache):
        x = self.embedding(tokens)
        for layer, each in zip(self.layers, cache, strict=True):
            x = layer(x, each)
        return self.head(x) * 3


class Next(fl.Module):
    """After each token comes the next one."""

    layers: tuple = ()

    def __call__(self, tokens, cache=None):
        return (mx.arange(20) == (tokens + 1)[..., None]).astype(mx.float32)


class Tokenizer:
    def encode(self, text):
        return [*map(len, text.split())]


@pytest.fixture
def model():
    mx.random.seed(3)
    return Model()


PROMPT = [1, 2, 3, 4, 5]


def greedy(model, tokens, count):
    """Return the most probable tokens, each computed from all before it."""
    tokens = [*tokens]
    for _ in range(count):
        (logits, _) = fl.stateful(lambda cache: model(mx.array([tokens]), cache=cache), fl.nn.make_cache(model, 64))
        tokens.append(logits[0, -1].argmax().item())
    return tokens[-count:]


def sampler(logprobs):
    return mx.random.categorical(logprobs)


@pytest.mark.parametrize("prompt", [PROMPT, [7], mx.array(PROMPT), tuple(PROMPT)], ids=str)
def test_greedy(model, prompt):
    expected = greedy(model, mx.array(prompt).tolist(), 8)
    out = fl.generate(model, prompt, max_tokens=8)
    assert iter(out) is out
    assert [*out] == expected
    assert len(set(expected)) > 1
    assert all(type(each) is int for each in expected)


@pytest.mark.parametrize(
    "prompt", [range(5, 8), [*map(np.int64, PROMPT)], [*map(mx.array, PROMPT)], (np.uint8(5), mx.array(6), 7)], ids=str
)
def test_integers_of_any_class_are_tokens(model, prompt):
    expected = greedy(model, [int(each) for each in prompt], 4)
    assert [*fl.generate(model, prompt, 4)] == expected
    ends = [np.int32(expected[2])], [mx.array(expected[2])], np.int64(expected[2])
    first = expected.index(expected[2])
    assert all([*fl.generate(model, prompt, 4, stop=each)] == expected[:first] for each in ends)


@pytest.mark.parametrize("prompt", [[np.float32(5)], [mx.array(5.0)], [True], [mx.array(True)], [None]], ids=str)
def test_nothing_else_is_a_token(model, prompt):
    with pytest.raises(TypeError, match="a prompt of token ids"):
        fl.generate(model, prompt)


@pytest.mark.parametrize("kind", [fl.nn.KVCache, fl.nn.RotatingKVCache])
def test_a_cache_that_has_lost_its_keys_is_refused(model, kind):
    cache = [kind(8).replace(_offset=mx.array(3)) for _ in fl.nn.make_cache(model, 8)]
    with pytest.raises(ValueError, match="has seen 3 tokens and has no keys, as one that was loaded"):
        fl.generate(model, PROMPT, 2, cache=cache)


@pytest.mark.parametrize("own", [lambda p: p.argmax(), lambda p: p.argmax().item(), lambda p: mx.argmax(p, axis=-1)])
def test_a_sampler_of_ones_own(model, own):
    assert [*fl.generate(model, PROMPT, 6, own)] == greedy(model, PROMPT, 6)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_a_prompt_in_parts(model, size):
    assert [*fl.generate(model, PROMPT, 6, prefill_step_size=size)] == greedy(model, PROMPT, 6)


def test_one_trace_for_all_tokens_and_answers(model):
    model = model.replace(layers=model.layers[:1])  # of which there is no trace yet
    before = generation._step.trace_count
    for count in (1, 9, 30):
        [*fl.generate(model, [*PROMPT, count], count)]
        [*fl.generate(model, mx.array(PROMPT, mx.uint32), count, sampler)]
    assert generation._step.trace_count == before + 1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_how_many(model, count):
    calls = []

    def counted(logprobs):
        assert logprobs.shape == (1, VOCABULARY)
        assert mx.allclose(mx.exp(logprobs).sum(), mx.array(1.0))
        calls.append(1)
        return logprobs.argmax(axis=-1)

    assert len([*fl.generate(model, PROMPT, count, counted)]) == count == len(calls)


def test_stop(model):
    whole = [*fl.generate(model, PROMPT, 8)]
    at = next(index for index, token in enumerate(whole) if token not in whole[:index] and index)
    assert [*fl.generate(model, PROMPT, 8, stop=[whole[at]])] == whole[:at]
    assert [*fl.generate(model, PROMPT, 8, stop=whole[at])] == whole[:at]
    assert [*fl.generate(model, PROMPT, 8, stop=mx.array([VOCABULARY, whole[at]]))] == whole[:at]


def test_random_tokens_depend_on_the_key_alone(model):
    def drawn(key):
        with fl.rng(mx.random.key(key)):
            return [*fl.generate(model, PROMPT, 12, sampler)]

    first = drawn(1)
    mx.random.normal((3,))
    assert drawn(1) == first
    assert drawn(2) != first


def test_a_cache_with_a_beginning_stays_as_it_is(model):
    _, cache = fl.stateful(lambda cache: model(mx.array([PROMPT]), cache=cache), fl.nn.make_cache(model, 16))
    for more in ([6], [7, 8]):
        assert [*fl.generate(model, more, 5, cache=cache)] == greedy(model, [*PROMPT, *more], 5)
    assert cache[0].offset.item() == len(PROMPT)
    assert len([*fl.generate(model, [6], 10, cache=cache)]) == 10
    assert len([*fl.generate(model, [6], 11, cache=cache)]) == 11  # the last is not looked at
    with pytest.raises(ValueError, match="room for 11 more tokens, and a prompt of 1 with max_tokens=12 needs 12"):
        fl.generate(model, [6], 12, cache=cache)


def test_a_full_cache_holds_all_but_the_last_token(model):
    count = 11
    whole = [*fl.generate(model, PROMPT, count)]
    assert [*fl.generate(model, PROMPT, count, cache=fl.nn.make_cache(model, len(PROMPT) + count - 1))] == whole
    assert [*fl.generate(model, PROMPT, 0, cache=fl.nn.make_cache(model, len(PROMPT) - 1))] == []


@pytest.mark.parametrize(
    "stop", [3, mx.array(3), {3}, frozenset([3]), range(3, 4), {3: "end"}, mx.array([3]), [mx.array(3)]], ids=repr
)
def test_what_stop_may_be(stop):
    assert [*fl.generate(Next(), [1], 5, stop=stop)] == [2]


@pytest.mark.parametrize("count", [1, 3])
def test_processors_see_all_tokens(count):
    seen = []

    def skip_one(tokens, logits):
        seen.append(tokens.tolist())
        return mx.roll(logits, 1, axis=-1)

    out = [*fl.generate(Next(), [1, 2], 3, logits_processors=[skip_one] * count)]
    assert out == [3 + count, 4 + 2 * count, 5 + 3 * count]
    assert seen == [each for size in range(3) for each in [[1, 2, *out[:size]]] * count]


def test_a_sampler_sees_what_processors_return():
    def sampler(logprobs):
        assert mx.allclose(mx.exp(logprobs).sum(), mx.array(1.0))
        return logprobs.argmax(axis=-1)

    assert [*fl.generate(Next(), [1], 1, sampler, logits_processors=[lambda _, logits: logits * 3 + 2])] == [2]


@pytest.mark.parametrize(
    "own", [lambda p: p, lambda p: None, lambda p: mx.array(0.5), lambda p: mx.array([1, 2]), lambda p: p > 0]
)
def test_a_sampler_that_returns_no_token(own):
    with pytest.raises(ValueError, match=r"a sampler returns a token, \[1\], for log-probabilities f32\[1,20\], and returned"):
        [*fl.generate(Next(), [1], 3, own)]


@pytest.mark.parametrize("own", [lambda tokens, logits: None, lambda tokens, logits: logits[0], lambda tokens, logits: tokens])
def test_a_processor_that_returns_no_logits(own):
    with pytest.raises(
        ValueError, match=r"in logits_processors returns logits f32\[1,20\] for \(tokens, logits\), and returned"
    ):
        [*fl.generate(Next(), [1], 3, logits_processors=[own])]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"prompt": []}, ValueError, "a prompt of token ids"),
        ({"prompt": mx.array([[1, 2]])}, ValueError, r"array \[L\] with L > 0, and was given i32\[1,2\]"),
        ({"prompt": [0.5]}, TypeError, "a prompt of token ids"),
        ({"prompt": "Hello"}, TypeError, "and was given 'Hello'"),
        ({"model": lambda tokens, cache: tokens}, TypeError, r"fl\.from_mlx\(model\), and was given"),
        ({"max_tokens": -1}, ValueError, "max_tokens >= 0 .* was given max_tokens=-1"),
        ({"max_tokens": 1.5}, ValueError, r"was given max_tokens=1\.5"),
        ({"sampler": 0.7}, TypeError, r"sampler is a function of log-probabilities, and was given as 0\.7"),
        ({"prefill_step_size": 0}, ValueError, "prefill_step_size=0"),
        ({"prompt": "Hello"}, TypeError, r"Give it tokenizer\.encode\(text\)"),
        ({"prompt": Tokenizer()}, TypeError, r"was given Tokenizer\(...\)\. Give it tokenizer\.encode\(text\)"),
        ({"prompt": [[1, 2]]}, ValueError, r"Give it one prompt after the other, such as prompt\[0\]"),
        ({"stop": None}, TypeError, r"ints such as tokenizer\.eos_token_ids, and was given None"),
        ({"stop": "</s>"}, TypeError, "as stop, ints .* was given '</s>'"),
        ({"stop": [0.5]}, TypeError, "as stop, ints"),
        ({"logits_processors": lambda tokens, logits: logits}, TypeError, r"a list of functions \(tokens, logits\)"),
        ({"logits_processors": [1]}, TypeError, "each of logits_processors is a function of tokens and logits"),
        (
            {"prompt_cache": []},
            TypeError,
            r"takes no prompt_cache: give cache=fl\.nn\.make_cache\(model, max_size, prompt_ca",
        ),
        ({"max_kv_size": 8}, TypeError, r"takes no max_kv_size: give cache=\[fl\.nn\.RotatingKVCache\(max_kv_size, keep=4\)"),
        ({"temp": 0.7}, TypeError, r"takes no temp: give sampler=mlx_lm\.sample_utils\.make_sampler"),
        ({"verbose": True}, TypeError, r"takes no verbose\. Its arguments are model, prompt, max_tokens, sampler, stop"),
    ],
)
def test_errors_come_at_once(model, arguments, kind, message):
    with pytest.raises(kind, match=message):
        fl.generate(**{"model": model, "prompt": PROMPT, **arguments})
