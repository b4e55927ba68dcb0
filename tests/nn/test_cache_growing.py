"""Caches that grow, as values."""

import copy
import pickle

import mlx.core as mx
import pytest

import frostleaf as fl

theirs = pytest.importorskip("mlx_lm.models.cache")

ORIGINALS = {
    "KVCache": theirs.KVCache,
    "ConcatenateKVCache": theirs.ConcatenateKVCache,
    "RotatingKVCache": lambda: theirs.RotatingKVCache(4, keep=1),
    "ChunkedKVCache": lambda: theirs.ChunkedKVCache(4),
    "QuantizedKVCache": lambda: theirs.QuantizedKVCache(32, 8),
}


def rows(count, start=0):
    return mx.broadcast_to(mx.arange(start, start + count, dtype=mx.float32)[None, None, :, None], (1, 2, count, 32))


def both(cache, keys):
    if hasattr(cache, "maybe_trim_front"):
        cache.maybe_trim_front()
    return cache.update_and_fetch(keys, -keys)


def grown(cache, counts=(3, 2, 1)):
    for start, count in enumerate(counts):
        _, cache = fl.stateful(both, cache, rows(count, start))
    return cache


def same(one, other):
    one, other = (fl.tree.leaves(each) for each in (one, other))
    return len(one) == len(other) and all(map(mx.array_equal, one, other))


@pytest.mark.parametrize("wrap", [lambda fn: fn, fl.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", ORIGINALS)
def test_it_does_what_the_original_does(name, wrap):
    original = ORIGINALS[name]()
    cache, step = fl.nn.GrowingCache(original), wrap(lambda cache, keys: fl.stateful(both, cache, keys))
    for start, count in enumerate((3, 4, 1, 1)):
        ours, cache = step(cache, rows(count, start))
        assert same(ours, both(original, rows(count, start)))
        assert (cache.offset, cache.original, cache.nbytes) == (original.offset, type(original), original.nbytes)
        assert same(cache.state, original.state)
        assert cache.empty() is original.empty() is False
        assert cache.is_trimmable() is original.is_trimmable()


@pytest.mark.parametrize("name", ORIGINALS)
def test_no_cache_changes(name):
    original = ORIGINALS[name]()
    both(original, rows(2))
    cache = fl.nn.GrowingCache(original)
    before = [leaf.tolist() for leaf in fl.tree.leaves(cache)]
    both(original, rows(1))
    fl.stateful(both, cache, rows(1, 5))
    assert (cache.offset, [leaf.tolist() for leaf in fl.tree.leaves(cache)]) == (2, before)


def test_methods_and_attributes():
    cache = grown(fl.nn.GrowingCache(theirs.KVCache()))
    trimmed, after = fl.stateful(cache.trim, 2)
    assert (trimmed, after.offset, cache.offset) == (2, 4, 6)
    _, after = fl.stateful(lambda cache: cache.put(offset=1), cache)
    assert (after.offset, after.keys is not None, cache.offset) == (1, True, 6)
    assert not hasattr(cache, "bits")
    _, arrays = fl.stateful(lambda cache: cache.__setitem__(1, mx.ones(3)), fl.nn.GrowingCache(theirs.ArraysCache(2)))
    assert (arrays[0], arrays[1].tolist()) == (None, [1, 1, 1])


@pytest.mark.parametrize(
    "change", [lambda cache: both(cache, rows(1)), lambda cache: cache.trim(1), lambda cache: cache.put(offset=0)]
)
def test_a_change_that_nobody_collects_is_refused(change):
    cache = grown(fl.nn.GrowingCache(theirs.KVCache()))
    with pytest.raises(RuntimeError, match="a GrowingCache was updated, and nobody collects it"):
        change(cache)
    assert cache.make_mask(2, return_array=False, window_size=None) == "causal"  # which changes nothing


def test_a_write_into_an_array_that_nobody_collects_is_refused():
    class Counting:
        def __init__(self):
            self.count = mx.zeros(2)

        def add(self):
            self.count[0] = 1

    cache = fl.nn.GrowingCache(Counting())
    with pytest.raises(RuntimeError, match="nobody collects it"):
        cache.add()
    _, after = fl.stateful(lambda cache: cache.add(), cache)
    assert (after.count.tolist(), cache.count.tolist()) == ([1, 0], [0, 0])


@pytest.mark.parametrize(
    "given", [3, "cache", None, mx.ones(2), theirs.KVCache, fl.nn.KVCache(3)], ids=lambda given: type(given).__name__
)
def test_what_is_no_cache_of_others(given):
    with pytest.raises(TypeError, match="GrowingCache takes a cache of mlx-lm or of a model's own class, and was given"):
        fl.nn.GrowingCache(given)


def test_it_is_a_tree(tmp_path):
    cache = grown(fl.nn.GrowingCache(theirs.ChunkedKVCache(4)))
    assert fl.tree.paths(cache) == ["_arrays.keys", "_arrays.values"]
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), fl.tree.map(lambda leaf: leaf + 0, cache)):
        assert fl.tree.equal(other, cache)
    fl.save(tmp_path / "cache", cache)
    assert fl.tree.equal(fl.load(tmp_path / "cache", cache), cache)
    _, other = fl.stateful(lambda cache: cache.put(offset=3), cache)
    assert not fl.tree.equal(other, cache)
    assert "ChunkedKVCache" in repr(cache)
    assert "offset=6" in repr(cache)


def test_loading_into_one_that_has_seen_less_says_what_to_give(tmp_path):
    fl.save(tmp_path / "cache", grown(fl.nn.GrowingCache(theirs.KVCache())))
    for like in (fl.nn.GrowingCache(theirs.KVCache()), grown(fl.nn.GrowingCache(theirs.KVCache()), (1,))):
        with pytest.raises(ValueError, match=r"fl\.eval_shape\(fl\.stateful, .* with as many tokens where the cache grows"):
            fl.load(tmp_path / "cache", like)


class Model(fl.Module):
    layers: tuple = (1, 2)


def test_make_cache():
    assert [each.original for each in fl.nn.make_cache(Model(), None)] == [theirs.KVCache] * 2
    given = [theirs.CacheList(theirs.ArraysCache(2), theirs.KVCache()), (theirs.QuantizedKVCache(), None)]
    listed, (quantized, nothing) = fl.nn.make_cache(Model(), None, given)
    assert [type(listed), listed[0].original, listed[1].original] == [fl.nn.CacheList, theirs.ArraysCache, theirs.KVCache]
    assert (quantized.original, nothing) == (theirs.QuantizedKVCache, None)
    (kept,) = fl.nn.make_cache(Model(), None, [quantized])
    assert kept is quantized


def test_make_cache_of_fixed_ones_that_shall_grow():
    with pytest.raises(TypeError, match=r"prompt_cache has a KVCache at \[0\], which does not grow"):
        fl.nn.make_cache(Model(), None, [fl.nn.KVCache(3)])
