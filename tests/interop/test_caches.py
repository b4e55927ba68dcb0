"""Models of mlx-lm with caches of fixed size: what they compute with their own, and one trace for all tokens."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop import architectures

import frostleaf as fl

pytestmark = pytest.mark.skipif(not architectures.names(), reason="mlx-lm is not installed")

# Dense, sliding windows, state spaces, hybrids, layers that share keys, latent attention with a sparse choice of keys.
EVERY_DAY = [
    "llama", "gemma3_text", "mamba", "mamba2", "recurrent_gemma", "qwen3_next", "lfm2", "falcon_h1", "gemma3n", "glm_moe_dsa",
]  # fmt: skip

# Why some need caches that grow: what their own code does.
GROWING = {
    "afm7": "works out positions from the number of keys",
    "deepseek_v41": "wants a LayerCache",
    "gpt_bigcode": "works out positions from the number of keys or tokens, in Python",
    "llama4": "wants a ChunkedKVCache",
}
# It needs the values of arrays: the experts of a token.
EAGER = ("dbrx",)
# Of each kind of cache, one that is used as it is, by its own code.
GROWN = ["afm7", "deepseek_v41", "gpt_bigcode", "llama4", "gemma3_text", "mamba", "falcon_h1"]


def build(name):
    mx.random.seed(0)
    return architectures.build(name).eval()


def step(model, tokens, cache):
    # The model is an argument as well, since some write to themselves.
    out, _, cache = fl.stateful(lambda model, cache: model(tokens, cache=cache), model, cache)
    return out, cache


# Beyond the window of 8 tokens: a first part, one that goes on, and single ones.
PARTS = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5], [8], [9], [7], [9], [3]]


def check_growing(name):
    from mlx_lm.models.cache import make_prompt_cache

    model = build(name)
    tree = fl.from_mlx(model)
    for run in (step, fl.jit(step)):
        theirs, caches = make_prompt_cache(model), [fl.nn.make_cache(tree, None)]
        for tokens in PARTS:
            x = mx.array([tokens])
            out, after = run(tree, x, caches[-1])
            caches.append(after)
            assert mx.array_equal(out, model(x, cache=theirs))
    # Each is as it was, whatever was computed from it.
    again, _ = step(tree, x, caches[-2])
    assert mx.array_equal(again, out)


@pytest.mark.parametrize("name", GROWN)
def test_caches_that_grow(name):
    check_growing(name)


def check(name):
    from mlx_lm.models.cache import make_prompt_cache

    try:
        model = build(name)
        mx.eval(model(mx.array([[1, 2]])))
    except RuntimeError as error:
        if "No Metal back-end" not in str(error):
            raise
        pytest.skip(f"MLX can't run it here: {error}")
    tree = fl.from_mlx(model)
    if name in GROWING:
        with pytest.raises(TypeError, match=f"{GROWING[name]}.*max_size=None makes one that grows"):
            fl.nn.make_cache(tree, 32)
        check_growing(name)
        return
    run = step if name in EAGER else fl.jit(step)
    theirs, cache = make_prompt_cache(model), fl.nn.make_cache(tree, 32)
    for tokens in PARTS:
        x = mx.array([tokens])
        out, cache = run(tree, x, cache)
        assert mx.allclose(out, model(x, cache=theirs), rtol=1e-3, atol=1e-4)
    assert name in EAGER or run.trace_count == 3


@pytest.mark.parametrize("name", EVERY_DAY)
def test_an_architecture(name):
    check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in architectures.names() if name not in EVERY_DAY])
def test_every_other_architecture(name):
    check(name)


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


MODELS = ["llama", "gemma3_text", "mamba", "gemma3n", *GROWING, "llama in 4 bits", "llama in native layers"]


@pytest.mark.parametrize("name", MODELS)
def test_generate(name):
    from mlx_lm.generate import generate_step

    model = build(name.split()[0])
    if "bits" in name:
        nn.quantize(model, 32, 4, class_predicate=lambda _, each: isinstance(each, nn.Linear) and each.weight.shape[1] == 32)
    expected = [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=12)]
    tree = fl.from_mlx(model)
    if "native" in name:
        tree = fl.convert(tree)
    assert [*fl.generate(tree, PROMPT, 12)] == expected


@pytest.mark.parametrize("options", [{"temp": 1.0}, {"temp": 2.0, "top_p": 0.9}, {"temp": 1.0, "top_k": 5}], ids=str)
def test_samplers(options):
    from mlx_lm.generate import generate_step
    from mlx_lm.sample_utils import make_sampler

    model, sampler = build("llama"), make_sampler(**options)
    mx.random.seed(7)
    expected = [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=12, sampler=sampler)]
    tree = fl.from_mlx(model)
    for _ in range(2):
        with fl.rng(mx.random.key(7)):
            assert [*fl.generate(tree, PROMPT, 12, sampler)] == expected


@pytest.mark.parametrize("options", [{"logit_bias": {3: 9.0}}, {"repetition_penalty": 1.5, "frequency_penalty": 0.7}], ids=str)
def test_processors(options):
    from mlx_lm.generate import generate_step
    from mlx_lm.sample_utils import make_logits_processors

    model, processors = build("llama"), make_logits_processors(**options)
    expected = [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=12, logits_processors=processors)]
    tree = fl.from_mlx(model)
    assert [*fl.generate(tree, PROMPT, 12, logits_processors=processors)] == expected
    assert [*fl.generate(tree, PROMPT, 12)] != expected


def test_generate_where_a_model_needs_values():
    from mlx_lm.generate import generate_step

    model = build("dbrx")
    expected = [token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=4)]
    tree = fl.from_mlx(model)
    with fl.disable_jit():
        assert [*fl.generate(tree, PROMPT, 4)] == expected
    with pytest.raises(ValueError, match=r"So it does in fl\.generate\(\.\.\., cache=fl\.nn\.make_cache\(model, None\)\)"):
        [*fl.generate(tree, PROMPT, 4)]
    assert [*fl.generate(tree, PROMPT, 4, cache=fl.nn.make_cache(tree, None))] == expected


def test_a_model_that_is_no_tree():
    with pytest.raises(TypeError, match=r"fl\.from_mlx\(model\), and was given Model"):
        fl.generate(build("llama"), PROMPT)


def test_habits():
    tree = fl.from_mlx(build("llama"))
    cache, x = fl.nn.make_cache(tree, 8), mx.array([[1, 2]])
    with pytest.raises(RuntimeError, match="a KVCache was updated, and nobody collects it"):
        tree(x, cache=cache)
    with pytest.raises(
        RuntimeError, match=r"a KVCache that was given beside the model .* Write fl\.stateful\(fn, model, other\)"
    ):
        fl.stateful(tree, x, cache=cache)
    out, _ = fl.stateful(lambda cache: tree(x, cache=cache), cache)
    assert mx.array_equal(out, tree(x))


def test_the_caches_of_mlx_lm_are_no_trees():
    from mlx_lm.models.cache import make_prompt_cache

    tree, x = fl.from_mlx(build("mamba2")), mx.array([[1, 2]])
    with pytest.raises(TypeError, match=r"given an ArraysCache in cache. .* fl\.nn\.make_cache\(model, max_size\) makes one"):
        fl.generate(tree, [1], cache=make_prompt_cache(tree))
    used = make_prompt_cache(tree)
    tree(x, cache=used)
    with pytest.raises(TypeError, match=r"given an ArraysCache in cache. .* and with prompt_cache=\.\.\. one with what these"):
        fl.generate(tree, [1], cache=used)
    for function in (fl.tree.leaves, fl.jit(lambda cache: tree(x, cache=cache))):
        with pytest.raises(TypeError, match=r"ArraysCache.* fl\.nn\.make_cache\(model, max_size\) makes one that is a tree"):
            function(used)


@pytest.mark.parametrize("filled", [False, True])
def test_a_cache_of_mlx_lm_from_outside_a_jitted_function(filled):
    from mlx_lm.models.cache import make_prompt_cache

    tree, x = fl.from_mlx(build("llama")), mx.array([[1, 2]])
    cache = make_prompt_cache(tree)
    if filled:
        tree(x, cache=cache)
    message = r"reads cache \(a \w+Cache\) from outside .* In cache is a \w+Cache\. .* fl\.nn\.make_cache\(model, max_size\)"
    with pytest.warns(fl.CapturedArrayWarning, match=message):
        fl.jit(lambda model, x: model(x, cache=cache))(tree, x)


@pytest.mark.parametrize("name", ["gemma3_text", "lfm2"])
def test_going_on_from_a_cache_of_mlx_lm_and_back(name, tmp_path):
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

    def answer(cache):
        return [token for token, _ in generate_step(mx.array(PROMPT[5:]), model, max_tokens=6, prompt_cache=cache)]

    model = build(name)
    tree, theirs, seen = fl.from_mlx(model), make_prompt_cache(model), mx.array([PROMPT * 2])
    model(seen, cache=theirs)
    cache = fl.nn.make_cache(tree, 64, prompt_cache=theirs)
    save_prompt_cache(f"{tmp_path}/cache.safetensors", cache)
    expected = answer(theirs)
    assert [*fl.generate(tree, PROMPT[5:], 6, cache=cache)] == expected
    assert answer(load_prompt_cache(f"{tmp_path}/cache.safetensors")) == expected


def test_a_model_that_writes_to_itself_is_an_argument():
    tree = fl.from_mlx(build("gemma3n"))
    with pytest.raises(RuntimeError, match="give a function each module that it calls as a positional argument"):
        fl.stateful(lambda cache: tree(mx.array([[1, 2]]), cache=cache), fl.nn.make_cache(tree, 8))


class Looking(nn.Module):
    """Original code that looks at its cache and assigns to it."""

    def __call__(self, x, cache):
        from mlx_lm.models import cache as classes

        seen = {"kind": isinstance(cache, classes.CacheList), "kinds": [type(each).__name__ for each in cache.caches]}
        seen["inside"] = isinstance(cache[0], classes.ArraysCache), isinstance(cache[1], classes.KVCache)
        seen["bits"] = hasattr(cache, "bits")
        cache[0][1] = x
        cache[1].update_and_fetch(x, x)
        cache[1].keys = cache[1].keys * 2
        return cache, seen, [cache[0][0] is None, cache[0][1] is x, cache[1].keys[0, 0, 0, 0]]


def test_what_the_original_code_is_given():
    tree = fl.from_mlx(Looking())
    cache = fl.nn.CacheList(fl.nn.ArraysCache(2), fl.nn.KVCache(2))
    x = mx.ones((1, 1, 1, 1))
    (given, seen, read), after = fl.stateful(lambda cache: tree(x, cache), cache)
    assert seen == {"kind": True, "kinds": ["ArraysCache", "KVCache"], "inside": (True, True), "bits": False}
    assert (read[0], read[1], read[2].item()) == (True, True, 2)
    assert isinstance(given, fl.nn.CacheList)
    assert after[1].keys.flatten().tolist() == [2, 0]
    assert after[0][1] is x
    with pytest.raises(TypeError, match="KVCache has no buffer '_kees' to record"):
        fl.stateful(lambda cache: cache.put(kees=1), cache[1])


class Native(fl.Module):
    """A native module that uses the functions of mlx-lm."""

    projection: fl.nn.Linear

    def __call__(self, x, cache=None):
        from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention

        mask = create_attention_mask(x, cache)
        queries, keys, values = mx.split(self.projection(x)[:, None], 3, axis=-1)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        return scaled_dot_product_attention(queries, keys, values, cache=cache, scale=1.0, mask=mask)[:, 0]


@pytest.mark.parametrize("cache", [fl.nn.KVCache(8), fl.nn.RotatingKVCache(7)], ids=repr)
def test_a_native_model_with_the_functions_of_mlx_lm(cache):
    model, x = Native(fl.nn.Linear(4, 12)), mx.random.normal((2, 6, 4))
    outs = []
    for start, end in [(0, 2), (2, 5), (5, 6)]:
        out, cache = fl.stateful(lambda cache, x: model(x, cache=cache), cache, x[:, start:end])
        outs.append(out)
    assert mx.allclose(mx.concatenate(outs, axis=1), model(x), atol=1e-5)
