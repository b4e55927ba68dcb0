"""Caches of fixed size: what attention makes of them is what it makes of the growing ones of mlx-lm."""

import mlx.core as mx
import pytest

import frostleaf as fl

HEADS, DIMS = 2, 4


def drawn(length, seed):
    return mx.random.normal((3, 2, HEADS, length, DIMS), key=mx.random.key(seed))


def attend(cache, queries, keys, values, **options):
    mask = cache.make_mask(keys.shape[2], **options)
    keys, values = cache.update_and_fetch(keys, values)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.5, mask=mask)


def listed(mask):
    return mask.tolist() if isinstance(mask, mx.array) else mask


def close(ours, theirs):
    return mx.allclose(ours, theirs, rtol=1e-4, atol=1e-5).item()


@pytest.fixture
def theirs():
    return pytest.importorskip("mlx_lm.models.cache")


PATTERNS = [[5, 1, 1, 1], [1, 1, 1, 1], [3, 4, 1, 2, 1], [9, 1, 5, 1, 1, 7]]


@pytest.mark.parametrize("lengths", [*PATTERNS, [2, *[1] * 10]], ids=str)
@pytest.mark.parametrize("window", [None, 3], ids=str)
@pytest.mark.parametrize("return_array", [False, True])
@pytest.mark.parametrize(
    ("name", "args"),
    [("KVCache", ()), ("RotatingKVCache", (4,)), ("RotatingKVCache", (5, 2)), ("RotatingKVCache", (4, 3))],
    ids=str,
)
def test_attention(theirs, name, args, lengths, window, return_array):
    options = {"window_size": window, "return_array": return_array}
    cache, other = getattr(fl.nn, name)(*(args or (sum(lengths),))), getattr(theirs, name)(*args)
    for seed, length in enumerate(lengths):
        x = drawn(length, seed)
        before = other.offset
        expected = attend(other, *x, **options)
        out, after = fl.stateful(lambda cache, x: attend(cache, *x, **options), cache, x)
        # With tokens that are kept, and one new one, mlx-lm turns its mask for a window by them too, to other tokens.
        if not (len(args) == 2 and window is not None and length == 1):
            assert close(out, expected)
        assert after.offset.item() == other.offset
        assert cache.offset.item() == before
        cache = after


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("window", [None, 3, 9], ids=str)
@pytest.mark.parametrize("return_array", [False, True])
@pytest.mark.parametrize("name", ["KVCache", "RotatingKVCache"])
def test_masks(theirs, name, length, window, return_array):
    cache, other = getattr(fl.nn, name)(8), getattr(theirs, name)(*[8] * (name != "KVCache"))

    def both():
        ours = cache.make_mask(length, window_size=window, return_array=return_array)
        return ours, other.make_mask(length, window_size=window, return_array=return_array)

    mask, expected = both()
    assert listed(mask) == listed(expected)
    _, keys, values = drawn(2, 0)
    other.update_and_fetch(keys, values)
    _, cache = fl.stateful(cache.update_and_fetch, keys, values)
    mask, expected = both()
    assert mask.shape[-2] == length
    if isinstance(expected, mx.array) and length > 1:
        shown = mask[0, 0] if name == "KVCache" else mx.concatenate([mask[0, 0, :, :2], mask[0, 0, :, 8:]], axis=1)
        assert shown[:, : expected.shape[1]].tolist() == expected.tolist()
    assert not mask[..., 2 + length : 8].any() if name == "KVCache" else not mask[..., 3:8].any()


def test_no_token_attends_to_what_is_kept_longer_than_its_window():
    cache = fl.nn.RotatingKVCache(4, keep=1)
    for position in range(7):
        keys = mx.full((1, 1, 1, 1), position)
        _, cache = fl.stateful(cache.update_and_fetch, keys, keys)
    assert sorted(cache.keys.flatten().tolist()) == [0, 4, 5, 6]
    mask = cache.make_mask(1, window_size=3)
    (keys, _), _ = fl.stateful(cache.update_and_fetch, mx.full((1, 1, 1, 1), 7), keys)
    assert sorted(keys.flatten()[i].item() for i, seen in enumerate(mask.flatten().tolist()) if seen) == [5, 6, 7]


@pytest.mark.parametrize("window", [None, 2, 3, 5])
@pytest.mark.parametrize("lengths", [[1] * 12, [4, *[1] * 8]], ids=str)
def test_tokens_that_are_kept_and_a_window_in_plain_attention(window, lengths):
    size, keep = 5, 2
    cache, all_of_it = fl.nn.RotatingKVCache(size, keep), drawn(sum(lengths), 0)
    queries, position = mx.arange(sum(lengths))[:, None], mx.arange(sum(lengths))
    seen = (position <= queries) & ((position < keep) | (queries - position < size - keep) | (queries < size))
    if window is not None:
        seen = seen & (queries - position < window)
    expected = mx.fast.scaled_dot_product_attention(*all_of_it, scale=0.5, mask=seen)
    start = 0
    for length in lengths:
        x = all_of_it[:, :, :, start : start + length]
        out, cache = fl.stateful(lambda cache, x: attend(cache, *x, window_size=window), cache, x)
        assert close(out, expected[:, :, start : start + length])
        start += length


class Attention(fl.Module):
    projection: fl.nn.Linear
    rope: fl.nn.RoPE

    def __init__(self):
        self.projection, self.rope = fl.nn.Linear(DIMS, 3 * DIMS), fl.nn.RoPE(DIMS)

    def __call__(self, x, cache):
        queries, keys, values = mx.split(self.projection(x)[:, None], 3, axis=-1)
        offset = cache.offset
        return attend(cache, self.rope(queries, offset=offset), self.rope(keys, offset=offset), values)[:, 0]


class Decay(fl.Module):
    def __call__(self, x, cache):
        states = []
        state = cache[0] if cache[0] is not None else mx.zeros(DIMS)
        for each in x[0]:
            state = 0.5 * state + each
            states.append(state)
        cache[0] = state
        return mx.stack(states)[None]


class Model(fl.Module):
    layers: tuple

    def make_cache(self):
        return [fl.nn.CacheList(fl.nn.ArraysCache(1), fl.nn.KVCache(16)), fl.nn.RotatingKVCache(3)]

    def __call__(self, x, cache):
        x = self.layers[0](x, cache[0][0])
        x = self.layers[1](x, cache[0][1])
        return self.layers[1](x, cache[1])


def step(model, x, cache):
    return fl.stateful(lambda cache: model(x, cache=cache), cache)


def test_a_native_model_is_traced_once_for_all_tokens():
    model = Model((Decay(), Attention()))
    x = mx.random.normal((1, 12, DIMS))
    jitted, caches = fl.jit(step), [fl.nn.make_cache(model, 16)]
    whole, _ = step(model, x, caches[0])
    outs = []
    for start, end in [(0, 5), *[(i, i + 1) for i in range(5, 12)]]:
        out, cache = jitted(model, x[:, start:end], caches[-1])
        outs.append(out)
        caches.append(cache)
    assert jitted.trace_count == 2
    assert close(mx.concatenate(outs, axis=1), whole)
    # Each is a value: going on from an earlier one gives what it gave before.
    assert close(jitted(model, x[:, 7:8], caches[3])[0], outs[3])
    assert [each[0][1].offset.item() for each in caches] == [0, 5, 6, 7, 8, 9, 10, 11, 12]


def test_what_is_written_is_read_in_the_same_call():
    def call(cache):
        _, keys, values = drawn(2, 0)
        fetched = cache[1].update_and_fetch(keys, values)
        cache[0][1] = keys
        cache[0].advance(3)
        return fetched, cache[1].keys_and_values(), cache[1].offset, cache[0][1], cache[0].lengths

    cache = fl.nn.CacheList(fl.nn.ArraysCache(2), fl.nn.KVCache(4))
    ((keys, _), (again, _), offset, first, lengths), after = fl.stateful(call, cache)
    assert keys is again
    assert first is after[0][1]
    assert (offset.item(), lengths, after[0][0]) == (2, None, None)
    assert after[1].keys[:, :, :2].tolist() == keys.tolist()
    assert cache.empty()
    assert not after[1].empty()
    assert after[1].nbytes == 2 * 2 * HEADS * 4 * DIMS * 4


@pytest.mark.parametrize("given", [{}, {"left_padding": [1, 0]}], ids=str)
@pytest.mark.parametrize("lengths", [None, [4, 2]], ids=str)
def test_arrays(theirs, given, lengths):
    cache, other = fl.nn.ArraysCache(2, **given), theirs.ArraysCache(2, **given)
    if lengths:
        _, cache = fl.stateful(lambda cache: cache.prepare(lengths=lengths), cache)
        other.prepare(lengths=lengths)
    for _ in range(2):
        masks = cache.make_mask(5), other.make_mask(5)
        assert listed(masks[0]) == listed(masks[1])
        assert (cache.empty(), cache.batch_size) == (other.empty(), other.batch_size)
        _, cache = fl.stateful(lambda cache: cache.advance(1), cache)
        other.advance(1)
    _, cache = fl.stateful(lambda cache: cache.finalize(), cache)
    assert cache.make_mask(5) is None


def test_trimming():
    _, keys, values = drawn(3, 0)
    for kind in (fl.nn.KVCache, fl.nn.RotatingKVCache):
        _, cache = fl.stateful(kind(4).update_and_fetch, keys, values)
        assert cache.is_trimmable()
        for asked, trimmed, left in [(2, 2, 1), (9, 3, 0), (-1, 0, 3), (mx.array(1), 1, 2)]:
            n, after = fl.stateful(cache.trim, asked)
            assert (n.item(), after.offset.item()) == (trimmed, left)
    _, cache = fl.stateful(cache.update_and_fetch, keys, values)
    assert not cache.is_trimmable()
    with pytest.raises(ValueError, match="can't be trimmed"):
        fl.stateful(cache.trim, 1)


def test_save_and_load(tmp_path):
    _, keys, values = drawn(3, 0)
    for kind in (fl.nn.KVCache, fl.nn.RotatingKVCache):
        _, cache = fl.stateful(lambda cache: cache[1].update_and_fetch(keys, values), [fl.nn.ArraysCache(1), kind(4)])
        fl.save(tmp_path / "cache", cache)
        assert fl.tree.equal(fl.load(tmp_path / "cache", like=cache), cache)


def test_half_precision_stays():
    _, keys, values = drawn(3, 0).astype(mx.float16)
    for kind in (fl.nn.KVCache, fl.nn.RotatingKVCache):
        _, cache = fl.stateful(kind(8).update_and_fetch, keys, values)
        update = fl.jit(lambda cache, *new: fl.stateful(cache.update_and_fetch, *new))
        (fetched, _), cache = update(cache, keys, values)
        assert fetched.dtype == cache.keys.dtype == mx.float16


def test_an_update_outside_of_stateful():
    _, keys, values = drawn(3, 0)
    for update in (
        lambda: fl.nn.KVCache(4).update_and_fetch(keys, values),
        lambda: fl.nn.ArraysCache(2).__setitem__(0, keys),
        lambda: fl.nn.KVCache(4).trim(1),
    ):
        with pytest.raises(RuntimeError, match=r"nobody collects it.*fl\.stateful\(lambda cache: model\(tokens, cache=cache\)"):
            update()
    cache = Model(()).make_cache()
    with pytest.raises(RuntimeError, match=r"beside the model.*fl\.stateful\(fn, model, other\)"):
        fl.stateful(Model((Decay(), Attention())), mx.zeros((1, 2, DIMS)), cache=cache)
    assert cache[0][1].keys_and_values() == cache[1].keys_and_values() == (None, None)


def test_an_assignment_says_what_to_write():
    for cache, name in [(fl.nn.KVCache(4), "keys"), (fl.nn.KVCache(4), "offset"), (fl.nn.ArraysCache(2), "lengths")]:
        with pytest.raises(fl.FrozenModuleError, match=rf"Inside fl\.stateful, \.put\({name}=\.\.\.\)"):
            setattr(cache, name, mx.array(1))
    _, after = fl.stateful(lambda cache: cache.put(offset=cache.offset + 2), fl.nn.KVCache(4))
    assert after.offset.item() == 2


@pytest.mark.parametrize("lengths", [[5], [3, 2], [4, 1]], ids=str)
def test_overrun(lengths):
    cache = fl.nn.KVCache(4)
    for length in lengths[:-1]:
        _, cache = fl.stateful(cache.update_and_fetch, *drawn(length, 0)[1:])
    with pytest.raises(
        ValueError, match=rf"KVCache\(4\) holds {sum(lengths[:-1])} tokens, and has no room for {lengths[-1]} more"
    ):
        fl.stateful(cache.update_and_fetch, *drawn(lengths[-1], 1)[1:])


def test_overrun_in_a_trace_is_seen_in_the_result():
    update = fl.jit(lambda cache, x: fl.stateful(lambda cache: attend(cache, *x), cache))
    cache = fl.nn.KVCache(3)
    for length, fits in [(2, True), (1, True), (1, False), (1, False)]:
        out, cache = update(cache, drawn(length, 0))
        assert mx.isnan(out).any().item() is not fits
    with pytest.raises(ValueError, match=r"KVCache\(3\) holds some tokens"):
        update(cache, drawn(4, 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.nn.KVCache(0), "KVCache takes a positive int as max_size, and was given 0"),
        (lambda: fl.nn.RotatingKVCache(4, 4), "RotatingKVCache takes keep < max_size, and was given keep=4 and max_size=4"),
        (lambda: fl.nn.RotatingKVCache(4, -1), "RotatingKVCache takes an int of 0 or more as keep, and was given -1"),
        (lambda: fl.nn.ArraysCache("2"), "ArraysCache takes a positive int as size, and was given '2'"),
    ],
)
def test_what_is_no_size(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_making(theirs):
    class Layers(fl.Module):
        layers: tuple = ()

    class Asking(fl.Module):
        caches: tuple = fl.static(default=())

        def make_cache(self):
            return [make() for make in self.caches]

    def made(*makers):
        return fl.nn.make_cache(Asking(makers), 8)

    assert [repr(each) for each in fl.nn.make_cache(Layers((fl.nn.ReLU(), fl.nn.ReLU())), 8)] == [repr(fl.nn.KVCache(8))] * 2
    kinds = made(
        theirs.KVCache,
        lambda: theirs.RotatingKVCache(4, keep=1),
        lambda: theirs.RotatingKVCache(8),
        lambda: theirs.ArraysCache(3),
        lambda: theirs.CacheList(theirs.ArraysCache(1), theirs.KVCache()),
        lambda: None,
        lambda: fl.nn.KVCache(5),
    )
    expected = [
        fl.nn.KVCache(8), fl.nn.RotatingKVCache(4, 1), fl.nn.KVCache(8), fl.nn.ArraysCache(3),
        fl.nn.CacheList(fl.nn.ArraysCache(1), fl.nn.KVCache(8)), None, fl.nn.KVCache(5),
    ]  # fmt: skip
    assert fl.tree.structure(kinds) == fl.tree.structure(expected)
    with pytest.raises(TypeError, match=r"Asking\.make_cache\(\) wants a ChunkedKVCache at \[1\], of which there is none"):
        made(theirs.KVCache, lambda: theirs.ChunkedKVCache(4))
    with pytest.raises(TypeError, match="has neither make_cache nor layers"):
        fl.nn.make_cache(fl.nn.Linear(2, 2), 8)
    with pytest.raises(TypeError, match="CacheList takes caches one by one, and was given a list"):
        fl.nn.CacheList([fl.nn.KVCache(2)])


CACHES = [("KVCache", ()), ("RotatingKVCache", (4,)), ("RotatingKVCache", (5, 2)), ("RotatingKVCache", (4, 3))]


def both_after(theirs, name, args, lengths):
    """Return a cache of ours and the one of mlx-lm, each after so many tokens."""
    cache, other = getattr(fl.nn, name)(*(args or (40,))), getattr(theirs, name)(*args)
    for seed, length in enumerate(lengths):
        _, keys, values = drawn(length, seed)
        other.update_and_fetch(keys, values)
        _, cache = fl.stateful(cache.update_and_fetch, keys, values)
    return cache, other


def check_they_go_on_alike(cache, other):
    """Require that what is computed from a cache of ours is what mlx-lm's gives, whatever comes next."""
    options = {"window_size": None, "return_array": False}
    for seed, length in enumerate([1, 1, 3, 1, 1]):
        x = drawn(length, 20 + seed)
        out, cache = fl.stateful(lambda cache, x: attend(cache, *x, **options), cache, x)
        assert close(out, attend(other, *x, **options))


@pytest.mark.parametrize("lengths", [[], *PATTERNS, [1] * 4, [1] * 5, [5, 2], [3, 3]], ids=str)
@pytest.mark.parametrize(("name", "args"), CACHES, ids=str)
def test_the_state_is_that_of_mlx_lm(theirs, tmp_path, name, args, lengths):
    path = f"{tmp_path}/cache.safetensors"
    cache, other = both_after(theirs, name, args, lengths)
    theirs.save_prompt_cache(path, [cache, fl.nn.CacheList(fl.nn.ArraysCache(2, [1]), cache)])
    first, second = theirs.load_prompt_cache(path)
    assert (type(first), type(second)) == (type(other), theirs.CacheList)
    assert second[0].cache == [None, None]
    assert second[0].left_padding.tolist() == [1]
    for each in (first, second[1]):
        assert each.offset == other.offset
        check_they_go_on_alike(cache, each)


@pytest.mark.parametrize("max_size", [40, 4])
@pytest.mark.parametrize("lengths", [[], *PATTERNS, [1] * 4, [1] * 5, [5, 2], [3, 3]], ids=str)
@pytest.mark.parametrize(("name", "args"), CACHES, ids=str)
def test_a_cache_with_what_one_of_mlx_lm_holds(theirs, name, args, lengths, max_size):
    _, other = both_after(theirs, name, args, lengths)
    before, keys = other.offset, other.keys
    model = fl.nn.Sequential()
    if max_size == 4 and (name == "KVCache" or args[0] >= max_size) and sum(lengths) > max_size:
        with pytest.raises(ValueError, match=rf"holds {sum(lengths)} tokens at \[0\], and a cache of max_size=4 has no room"):
            fl.nn.make_cache(model, max_size, [other])
        return
    (cache,) = fl.nn.make_cache(model, max_size, prompt_cache=[other])
    assert (other.offset, other.keys) == (before, keys)
    assert cache.offset.item() == before
    if max_size == 40:
        assert type(cache).__name__ == name
        check_they_go_on_alike(cache, other)


def test_a_cache_with_what_other_kinds_hold(theirs):
    other = theirs.ArraysCache(2, left_padding=[0, 2])
    other[1] = mx.ones((2, 3))
    caches = [theirs.CacheList(other, theirs.KVCache()), None, (theirs.RotatingKVCache(3),)]
    several, nothing, (rotating,) = fl.nn.make_cache(fl.nn.Sequential(), 9, caches)
    inner, growing = several.caches
    assert (inner[0], inner[1].tolist(), inner.left_padding.tolist()) == (None, [[1] * 3] * 2, [0, 2])
    assert (growing.max_size, growing.empty(), nothing, rotating.max_size) == (9, True, None, 3)
    other.advance(1)
    other[1][0] = 5
    assert (inner[1].tolist(), inner.left_padding.tolist()) == ([[1] * 3] * 2, [0, 2])


@pytest.mark.parametrize(("name", "args"), CACHES, ids=str)
def test_a_larger_cache_with_what_one_of_ours_holds(theirs, name, args):
    cache, other = both_after(theirs, name, args, [5, 1, 1])
    (larger,) = fl.nn.make_cache(fl.nn.Sequential(), 99, [cache])
    assert larger.max_size == (99 if name == "KVCache" else args[0])
    check_they_go_on_alike(larger, other)


def test_what_prompt_cache_can_not_be(theirs):
    with pytest.raises(TypeError, match="prompt_cache is the list of caches that a model was called with, and was given as"):
        fl.nn.make_cache(fl.nn.Sequential(), 9, theirs.KVCache())
    with pytest.raises(TypeError, match=r"prompt_cache has a QuantizedKVCache at \[1\], of which there is none of fixed size"):
        fl.nn.make_cache(fl.nn.Sequential(), 9, [None, theirs.QuantizedKVCache()])


def test_a_file_with_a_cache_and_one_that_is_empty(tmp_path):
    path, empty = f"{tmp_path}/cache.safetensors", fl.nn.KVCache(8)

    def call(cache):
        return cache.update_and_fetch(*drawn(2, 0)[1:])

    _, cache = fl.stateful(call, empty)
    fl.save(path, cache)
    with pytest.raises(fl.OtherStructureError, match=r"filled by a call, .* such as fl\.eval_shape\(fl\.stateful, lambda"):
        fl.load(path, like=empty)
    assert fl.tree.equal(fl.load(path, like=fl.eval_shape(fl.stateful, call, empty)[1]), cache)


def test_what_a_file_with_a_growing_cache_says(theirs, tmp_path):
    path, empty = f"{tmp_path}/cache.safetensors", fl.nn.GrowingCache(theirs.KVCache())
    _, cache = fl.stateful(lambda cache: cache.update_and_fetch(*drawn(2, 0)[1:]), empty)
    fl.save(path, cache)
    with pytest.raises(fl.OtherStructureError) as caught:
        fl.load(path, like=empty)
    _, *lines, last = str(caught.value).splitlines()
    assert lines == [
        "_arrays.keys: array f32[2,2,256,4] in the file, nothing in like",
        "_arrays.values: array f32[2,2,256,4] in the file, nothing in like",
        "_form (static): an object in the file, another one in like",
    ]
    assert "filled by a call" in last


def test_a_growing_cache_in_a_file_of_mlx_lm(theirs, tmp_path):
    path, cache = f"{tmp_path}/cache.safetensors", fl.nn.GrowingCache(theirs.RotatingKVCache(4))
    other = theirs.RotatingKVCache(4)
    for seed, length in enumerate([3, 1, 1]):
        other.update_and_fetch(*drawn(length, seed)[1:])
        _, cache = fl.stateful(lambda cache, x: cache.update_and_fetch(*x[1:]), cache, drawn(length, seed))
    theirs.save_prompt_cache(path, [cache.original.from_state(cache.state)])
    (loaded,) = theirs.load_prompt_cache(path)
    for each in (loaded, other):
        each.update_and_fetch(*drawn(1, 9)[1:])
    assert mx.array_equal(loaded.keys, other.keys)
    assert loaded.offset == other.offset == 6


def test_stateful_with_an_empty_cache_of_mlx_lm(theirs):
    with pytest.raises(TypeError, match=r"In its arguments is a KVCache\. .* fl\.nn\.make_cache\(model, max_size\) makes one"):
        fl.stateful(lambda cache: cache, [theirs.KVCache()])
