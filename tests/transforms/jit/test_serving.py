"""``fl.jit(shapeless=True)``: one trace serves all shapes for which it computes what the function does, and no others."""

import threading
import warnings

import mlx.core as mx
import mlx.nn
import pytest

import frostleaf as fl

LINEAR = fl.nn.Linear(3, 4, key=mx.random.key(0))


def array(*shape):
    return mx.arange(float(mx.zeros(shape).size)).reshape(shape)


def compared(function, calls, *before):
    """Return a jitted function and the reasons that it gave, once it has computed the same as the function in each call."""
    jitted = fl.jit(function, shapeless=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for args in calls:
            expected, result = function(*before, *args), jitted(*before, *args)
            assert fl.tree.structure(result) == fl.tree.structure(expected)
            assert fl.tree.allclose(result, expected, rtol=1e-4, atol=1e-4)
    return jitted, [str(each.message) for each in caught if each.category is fl.RetraceWarning]


def batches(*sizes, rest=(3,)):
    return [(array(size, *rest),) for size in sizes]


ONCE = {
    "linear": lambda m, x: m(x),
    "gradients": fl.value_and_grad(lambda m, x: (m(x) ** 2).mean()),
    "reshape": lambda m, x: x.reshape(-1, 1),
    "nested": lambda m, x: fl.jit(m)(x),
}


@pytest.mark.parametrize("function", ONCE.values(), ids=ONCE)
def test_one_trace_serves_what_does_not_depend_on_shapes(function):
    jitted, reasons = compared(function, batches(4, 8, 2, 6, 3), LINEAR)
    assert (jitted.trace_count, reasons) == (1, [])


EACH = {
    "a size in a reshape": (lambda x: x.reshape(x.shape[0], -1, 1), "Reshape"),
    "a shape to broadcast to": (lambda x: mx.broadcast_to(mx.array(2.0), x.shape).sum(), "Broadcast"),
    "a size as a number": (lambda x: (x, mx.array([x.shape[0]])), "numbers"),
    "a size returned": (lambda x: (x, x.shape[0]), "returns"),
    "a slice": (lambda x: x[1:], "Slice"),
    "a loop": (lambda x: mx.stack(list(x)), "Split"),
    "mx.addmm": (lambda x: mx.addmm(mx.array(1.0), x, mx.ones((3, 2))), "Broadcast"),
    "random numbers": (lambda x: x + 0 * mx.random.normal(x.shape), "RandomBits"),
    "a custom function": (fl.checkpoint(lambda x: x + x), "fl.checkpoint"),
    "a limit": (lambda x: x if x.shape[0] < 12 else -x, "operations"),
    "multiples": (lambda x: x if x.shape[0] % 4 else -x, "operations"),
}


@pytest.mark.parametrize(("function", "reason"), EACH.values(), ids=EACH)
def test_what_depends_on_shapes_is_traced_for_each_with_a_warning(function, reason):
    jitted, reasons = compared(function, batches(4, 8, 12, 6, 7, 5, 20, 4))
    assert len(reasons) == 1
    assert reason in reasons[0]
    assert "although shapeless=True" in reasons[0]
    assert jitted.trace_count > 5


def test_a_trace_is_looked_at_again_for_sizes_that_are_equal_or_one():
    calls = [(array(4, 3), array(4, 3)), (array(8, 3), array(8, 3)), (array(9, 3), array(1, 3)), (array(1, 3), array(7, 3))]
    jitted, _ = compared(lambda x, y: x - y, calls)
    with pytest.raises(ValueError, match="broadcast"):
        jitted(array(8, 3), array(4, 3))
    assert jitted(array(8, 3), array(8, 3)).tolist() == mx.zeros((8, 3)).tolist()


@pytest.mark.parametrize("size", [0, 1, 5])
def test_an_axis_of_length_one_is_reduced(size):
    """MLX ends the process there."""
    jitted, reasons = compared(lambda x: x.max(1), [(array(size, 1),), (array(4, 3),), (array(6, 1),), (array(size, 1),)])
    assert reasons == []
    assert jitted.options.shapeless


def test_modules_of_mlx_are_traced_for_each_shape():
    model = fl.from_mlx(mlx.nn.Linear(3, 4))
    assert len(compared(lambda m, x: m(x), batches(4, 8, 2), model)[1]) == 1


def test_inside_other_transformations_there_is_a_trace_for_each_shape():
    jitted = fl.jit(lambda m, x: m(x).sum(), shapeless=True)
    for (x,) in batches(4, 8, 3):
        assert fl.tree.allclose(fl.grad(jitted)(LINEAR, x), fl.grad(lambda m, x: m(x).sum())(LINEAR, x), atol=1e-4)
    assert jitted.options.shapeless
    for (x,) in batches(5, 9, 6):
        assert mx.allclose(jitted(LINEAR, x), LINEAR(x).sum(), atol=1e-2)
    assert jitted.trace_count == 4


def test_a_function_is_not_called_for_each_of_many_sizes():
    sizes = []
    jitted = fl.jit(lambda x: sizes.append(x.shape[0]) or x + x, shapeless=True)
    for size in range(2, 400):
        assert jitted(array(size)).shape == (size,)
    assert jitted.trace_count == 1
    assert len(sizes) < 16


def test_errors_of_the_function_are_raised_for_the_shapes_that_cause_them():
    def picky(x):
        if x.shape[0] == 8:
            raise KeyError("eight")
        return x + x

    jitted = fl.jit(picky, shapeless=True)
    for _ in range(2):
        jitted(array(4))
        with pytest.raises(KeyError):
            jitted(array(8))
    assert jitted(array(5)).tolist() == [0, 2, 4, 6, 8]


def test_threads_that_begin_with_other_shapes():
    jitted, results = fl.jit(lambda m, x: m(x), shapeless=True), {}

    def work(size):
        for times in (1, 2, 3):
            x = array(size * times, 3)
            results[size, times] = mx.allclose(jitted(LINEAR, x), LINEAR(x), atol=1e-3).item()

    fl.eval(LINEAR)
    threads = [threading.Thread(target=work, args=(size,)) for size in (2, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(results.values()) == [True] * 9
