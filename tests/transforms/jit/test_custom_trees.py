"""A class that is not a module, a key-value cache, in every transformation."""

import mlx.core as mx

import frostleaf as fl


class KVCache:
    """The keys and values of the tokens so far, in buffers of a fixed length, and how many there are."""

    def __init__(self, keys, values, offset, capacity):
        self.keys, self.values, self.offset, self.capacity = keys, values, offset, capacity

    @classmethod
    def empty(cls, capacity, width):
        return cls(mx.zeros((capacity, width)), mx.zeros((capacity, width)), mx.array(0), capacity)

    def updated(self, key, value):
        here = mx.arange(self.capacity)[:, None] == self.offset
        return KVCache(mx.where(here, key, self.keys), mx.where(here, value, self.values), self.offset + 1, self.capacity)


fl.register_pytree_node(
    KVCache,
    lambda cache: ([cache.keys, cache.values, cache.offset], cache.capacity, ["keys", "values", "offset"]),
    lambda capacity, children: KVCache(*children, capacity),
)


class Attention(fl.Module):
    query: fl.nn.Linear
    key: fl.nn.Linear
    value: fl.nn.Linear

    def __init__(self, width):
        self.query, self.key, self.value = (fl.nn.Linear(width, width, bias=False) for _ in range(3))

    def __call__(self, x, cache):
        cache = cache.updated(self.key(x), self.value(x))
        scores = cache.keys @ self.query(x)
        weights = mx.softmax(mx.where(mx.arange(cache.capacity) < cache.offset, scores, -mx.inf))
        return weights @ cache.values, cache


def decode(model, x, cache):
    return model(x, cache)


def generate(step, model, cache, steps=4):
    x, caches = mx.ones(3), []
    for _ in range(steps):
        x, cache = step(model, x, cache)
        caches.append(cache)
    return x, caches


def test_a_decode_step_takes_and_returns_a_cache_and_is_traced_once():
    model, empty = Attention(3), KVCache.empty(8, 3)
    begun = fl.tree.leaves(empty)
    step = fl.jit(decode)
    ours, expected = generate(step, model, empty), generate(decode, model, empty)
    assert step.trace_count == 1
    assert all(type(cache) is KVCache for cache in ours[1])
    assert [cache.offset.item() for cache in ours[1]] == [1, 2, 3, 4]
    assert fl.tree.allclose(ours, expected, atol=1e-5)
    assert all(after is before for after, before in zip(fl.tree.leaves(empty), begun, strict=True))
    assert not empty.keys.any().item()
    step(model, mx.ones(3), KVCache.empty(9, 3))
    assert step.trace_count == 2


def test_a_cache_goes_through_the_other_transformations():
    model, cache = Attention(3), KVCache.empty(4, 3)
    xs = mx.arange(6.0).reshape(2, 3)
    assert fl.tree.paths(cache) == ["keys", "values", "offset"]

    many = fl.tree.stack([cache, cache])
    out, after = fl.vmap(decode, (None, 0, 0))(model, xs, many)
    each = [decode(model, x, cache) for x in xs]
    assert fl.tree.allclose((out, after), fl.tree.stack(each), atol=1e-5)

    def loss(cache, x):
        out, after = decode(model, x, cache)
        return (out**2).sum(), after

    (_, after), grads = fl.value_and_grad(loss, has_aux=True)(each[0][1], xs[1])
    assert after.offset.item() == 2
    assert isinstance(grads, KVCache)
    assert grads.offset is None
    same = fl.grad(fl.checkpoint(lambda cache, x: loss(cache, x)[0]))(each[0][1], xs[1])
    assert fl.tree.allclose(same, grads, atol=1e-6)

    shapes = fl.eval_shape(decode, model, xs[0], cache)[1]
    assert (shapes.keys, shapes.offset) == (fl.ShapeDtypeStruct((4, 3)), fl.ShapeDtypeStruct((), mx.int32))
