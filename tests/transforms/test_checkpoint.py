"""checkpoint: the same values, gradients and random numbers, with the function run again for the gradient."""

import functools

import mlx.core as mx
import pytest

import frostleaf as fl

NOT_CALLABLE = "fl.checkpoint takes a function, a method or a callable module, and was given {kind}"

X = mx.array([[1.0, 2.0], [3.0, 4.0]])


class Block(fl.Module):
    linear: fl.nn.Linear
    dropout: fl.nn.Dropout

    def __init__(self):
        self.linear = fl.nn.Linear(2, 2)
        self.dropout = fl.nn.Dropout(0.5)

    def __call__(self, x, scale=1.0):
        return self.dropout(mx.tanh(self.linear(x))) * scale

    def inside(self, x):
        return fl.checkpoint(lambda x: self.dropout(mx.tanh(self.linear(x))))(x)


def plain(block, x):
    return block(x)


def seeded(function, *args):
    """Return a value and gradient and the next random number, from the same seed each time."""
    mx.random.seed(3)
    return fl.value_and_grad(function)(*args), mx.random.normal((2,))


WAYS = {
    "function": lambda block, x: fl.checkpoint(plain)(block, x),
    "module": lambda block, x: fl.checkpoint(block)(x),
    "bound method": lambda block, x: fl.checkpoint(block.__call__)(x),
    "partial": lambda block, x: fl.checkpoint(functools.partial(block, scale=1.0))(x),
    "closure": lambda block, x: fl.checkpoint(lambda x: block(x))(x),
    "function in a closure": lambda block, x: fl.checkpoint(lambda x: (lambda f: f(x))(lambda y: block(y)))(x),
    "default": lambda block, x: fl.checkpoint(lambda x, block=block: block(x))(x),
    "keyword default": lambda block, x: fl.checkpoint(lambda x, *, block=block: block(x))(x),
    "method": lambda block, x: block.inside(x),
    "nested": lambda block, x: fl.checkpoint(lambda block, x: fl.checkpoint(block)(x))(block, x),
    "jitted": lambda block, x: fl.checkpoint(fl.jit(plain))(block, x),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_values_gradients_and_random_numbers_are_those_without(way):
    block = Block()
    expected = seeded(lambda block: (plain(block, X) * X).sum(), block)
    ours = seeded(lambda block: (way(block, X) * X).sum(), block)
    assert fl.tree.allclose(ours, expected, atol=1e-6)
    assert fl.tree.equal(ours[1], expected[1])
    mx.random.seed(3)
    value = plain(block, X)
    mx.random.seed(3)
    assert fl.tree.allclose(way(block, X), value, atol=1e-6)


def test_the_function_runs_again_for_the_gradient_and_not_without_one():
    runs = 0

    def counted(x):
        nonlocal runs
        runs += 1
        return mx.sin(x) * 2

    checkpointed = fl.checkpoint(counted)
    assert mx.array_equal(checkpointed(X), counted(X))
    assert runs == 2
    fl.grad(lambda x: checkpointed(x).sum())(X)
    assert runs == 4


def test_any_tree_goes_in_and_comes_out():
    index, untouched = mx.array([1, 0]), mx.array([1.0])

    def function(tree, *, mode):
        x = tree["x"][tree["index"]]
        return {"y": (x * 2, mode), "order": mx.argsort(x), "index": tree["index"], "u": tree["untouched"], "none": None}

    tree = {"x": mx.array([3.0, 5.0]), "index": index, "untouched": untouched, "n": 3}
    out = fl.checkpoint(function)(tree, mode="fast")
    assert fl.tree.equal(out, function(tree, mode="fast"))
    assert out["index"] is index
    assert out["u"] is untouched

    def loss(tree):
        out = fl.checkpoint(function)(tree, mode="fast")
        return (out["y"][0] * mx.array([1.0, 10.0])).sum() + out["u"].sum()

    grads = fl.grad(loss)(tree)
    assert (grads["x"].tolist(), grads["untouched"].tolist()) == ([20.0, 2.0], [1.0])


def test_a_key_may_be_an_argument():
    def noisy(x, key):
        return x * mx.random.normal(x.shape, key=key)

    key = mx.random.key(5)
    assert fl.tree.equal(fl.grad(lambda x: fl.checkpoint(noisy)(x, key).sum())(X), fl.grad(lambda x: noisy(x, key).sum())(X))


def test_a_variable_without_arrays_stays_the_variable_it_was():
    log = []

    def function(x):
        log.append("ran")
        return x * 2 + offset

    checkpointed = fl.checkpoint(function)
    offset = mx.array(1.0)  # assigned after the function was made
    assert checkpointed(X).tolist() == (X * 2 + 1).tolist()
    assert log == ["ran"]


def test_inside_stateful_what_layers_record_is_kept():
    norm = fl.nn.BatchNorm(2)

    class Model(fl.Module):
        norm: fl.nn.BatchNorm

        def __call__(self, x):
            return fl.checkpoint(self.norm)(x)

    (out, after), (plain_out, plain_after) = fl.stateful(Model(norm), X), fl.stateful(norm, X)
    assert fl.tree.equal((out, after.norm), (plain_out, plain_after))


def test_an_error_leaves_the_random_state_whole():
    def fails(x):
        mx.random.normal((2,))
        raise KeyError("mine")

    before = mx.random.state[0]
    for call in (fl.checkpoint(fails), fl.grad(fl.checkpoint(fails)), fl.jit(fl.checkpoint(fails))):
        with pytest.raises(KeyError, match="mine"):
            call(X)
        assert fl.tree.equal(mx.random.state[0], before)


def test_what_can_not_be_called_is_refused():
    with pytest.raises(TypeError) as raised:
        fl.checkpoint(3)
    assert str(raised.value) == NOT_CALLABLE.format(kind="int")


def test_the_result_is_named_as_the_function_is():
    assert fl.checkpoint(plain).__name__ == "plain"
    assert not hasattr(fl.checkpoint(Block()), "linear")
