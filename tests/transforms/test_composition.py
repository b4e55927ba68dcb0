"""Transformations of transformations."""

import functools

import mlx.core as mx
import pytest

import frostleaf as fl

X = mx.array([[0.5, -1.0], [1.5, 2.0], [-0.25, 0.75]])


def loss(model, x):
    return (mx.tanh(model(x)) ** 2).sum()


def linear() -> fl.nn.Linear:
    return fl.nn.Linear(2, 3, key=mx.random.key(0))


def stacked(function):
    """Return the results of the function for each row, stacked."""
    return fl.tree.stack([function(x) for x in X])


def close(left, right):
    assert fl.tree.allclose(left, right, rtol=1e-4, atol=1e-5), fl.tree.diff(left, right)


def grad_norm(model, x):
    return sum((leaf**2).sum() for leaf in fl.tree.leaves(fl.grad(loss)(model, x)))


def flat_grad_norm(weight, bias, x):
    def flat_loss(weight, bias):
        return (mx.tanh(x @ weight.T + bias) ** 2).sum()

    return sum((leaf**2).sum() for leaf in mx.grad(flat_loss, argnums=(0, 1))(weight, bias))


def test_grad_of_grad():
    model = linear()
    weight, bias = mx.grad(flat_grad_norm, argnums=(0, 1))(model.weight, model.bias, X)
    close(fl.grad(grad_norm)(model, X), model.replace(weight=weight, bias=bias))
    cubes = [fl.grad(lambda x: (x**5).sum())]
    for _ in range(3):
        cubes.append(fl.grad(lambda x, inner=cubes[-1]: inner(x).sum()))
    assert fl.tree.allclose(cubes[-1](X), 120 * X)


def test_a_surrounding_grad_sees_aux():
    def inner(x):
        return fl.value_and_grad(lambda y: (y.sum(), {"cube": y**3, "n": 3}), has_aux=True)(x)[0][1]["cube"].sum()

    assert fl.tree.allclose(fl.grad(inner)(X), 3 * X**2)
    assert fl.tree.allclose(fl.jvp(inner, (X,), (X,))[1], (3 * X**3).sum())


def test_vmap_of_grad_and_grad_of_vmap():
    model = linear()
    close(fl.vmap(fl.grad(loss), (None, 0))(model, X), stacked(lambda x: fl.grad(loss)(model, x)))
    close(fl.grad(lambda model: fl.vmap(loss, (None, 0))(model, X).sum())(model), fl.grad(loss)(model, X))
    ensemble = fl.vmap(lambda key: fl.nn.Linear(2, 3, key=key))(mx.random.split(mx.random.key(0), 3))
    members = [fl.grad(loss)(member, X) for member in fl.tree.unstack(ensemble)]
    close(fl.vmap(fl.grad(loss), (0, None))(ensemble, X), fl.tree.stack(members))
    close(fl.grad(lambda ensemble: fl.vmap(loss, (0, None))(ensemble, X).sum())(ensemble), fl.tree.stack(members))


def test_vmap_of_vmap():
    close(fl.vmap(fl.vmap(lambda x, y: x * y, (0, None)), (None, 0))(X[0], X[:, 0]), mx.outer(X[:, 0], X[0]))
    close(fl.vmap(fl.vmap(mx.sin), 1, 0)(X), mx.sin(X.T))
    close(fl.vmap(fl.vmap(mx.sin), 1, 1)(X), mx.sin(X))


def test_jit_of_vmap_of_grad():
    model = linear()
    per_example = fl.jit(fl.vmap(fl.value_and_grad(loss), (None, 0)))
    for _ in range(2):
        close(per_example(model, X), stacked(lambda x: fl.value_and_grad(loss)(model, x)))
    assert per_example.trace_count == 1


def test_derivatives_of_checkpoint():
    model, checkpointed = linear(), fl.checkpoint(loss)
    close(fl.grad(checkpointed)(model, X), fl.grad(loss)(model, X))
    close(fl.grad(lambda m: sum((leaf**2).sum() for leaf in fl.tree.leaves(fl.grad(checkpointed)(m, X))))(model),
          fl.grad(grad_norm)(model, X))  # fmt: skip
    direction = fl.tree.map(mx.ones_like, model)
    close(fl.jvp(checkpointed, (model, X), (direction, X)), fl.jvp(loss, (model, X), (direction, X)))
    close(fl.vjp(checkpointed, (model, X), mx.array(2.0)), fl.vjp(loss, (model, X), mx.array(2.0)))


def test_checkpoint_and_vmap():
    model, checkpointed = linear(), fl.checkpoint(loss)
    expected = stacked(lambda x: fl.grad(loss)(model, x))
    close(fl.vmap(fl.grad(checkpointed), (None, 0))(model, X), expected)
    close(fl.grad(lambda m: fl.vmap(checkpointed, (None, 0))(m, X).sum())(model), fl.grad(loss)(model, X))
    close(fl.grad(lambda m: fl.checkpoint(fl.vmap(loss, (None, 0)))(m, X).sum())(model), fl.grad(loss)(model, X))


def test_checkpoint_in_jit_draws_on_from_call_to_call():
    def noisy(model, x):
        return (model(x) * mx.random.bernoulli(0.5, (3, 3))).sum()

    model = linear()
    plain, compiled = fl.value_and_grad(noisy), fl.jit(fl.value_and_grad(fl.checkpoint(noisy)))
    mx.random.seed(1)
    expected = [plain(model, X) for _ in range(3)]
    mx.random.seed(1)
    for each in expected:
        close(compiled(model, X), each)
    assert compiled.trace_count == 1


def test_jvp_of_grad_is_a_product_with_the_hessian():
    model = linear()
    direction = fl.tree.map(mx.ones_like, model)

    def slope(model):
        grads = fl.grad(loss)(model, X)
        return sum(leaf.sum() for leaf in fl.tree.leaves(grads))

    grads, product = fl.jvp(lambda model: fl.grad(loss)(model, X), (model,), (direction,))
    close(grads, fl.grad(loss)(model, X))
    close(product, fl.grad(slope)(model))


def test_jit_inside_jit_inside_vmap():
    inner = fl.jit(lambda tree: {"y": mx.sin(tree["x"]) * tree["n"]})
    outer = fl.jit(lambda x: inner({"x": x, "n": 2})["y"] + 1)
    close(fl.vmap(outer)(X), mx.sin(X) * 2 + 1)
    close(outer(X[0]), mx.sin(X[0]) * 2 + 1)
    close(fl.grad(lambda x: fl.vmap(outer)(x).sum())(X), 2 * mx.cos(X))


def test_an_error_deep_inside_comes_through_and_leaves_the_random_state_whole():
    def fails(x):
        mx.random.normal((2,))
        raise KeyError("mine")

    deep = fl.jit(fl.vmap(fl.grad(fl.checkpoint(lambda x: fl.vjp(fails, (x,), x)[0]))))
    before = mx.random.state[0]
    with pytest.raises(KeyError, match="mine"):
        deep(X)
    assert fl.tree.equal(mx.random.state[0], before)
    assert mx.random.normal((2,)).shape == (2,)


def generates(x):
    yield x


async def awaits(x):
    return x


@pytest.mark.parametrize("transform", [fl.checkpoint, fl.grad, fl.value_and_grad, lambda fn: fl.eval_shape(fn, mx.ones(2))])
@pytest.mark.parametrize(
    ("fn", "kind"),
    [(generates, "generates, which is a generator"), (awaits, "awaits, which is a coroutine"),
     (functools.partial(generates, 1), "generates, which is a generator")],
)  # fmt: skip
def test_functions_that_run_later_are_refused(transform, fn, kind):
    with pytest.raises(TypeError, match=rf"^fl\.\w+ can't take {kind} function: .*Give it a plain function"):
        transform(fn)
