"""What is said where a traced function needs the value of an array, or an array outlives its trace."""

import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.transforms.without_values import LEAKED, MASKED, NEEDED, PLAIN

X = mx.arange(3.0)


def decides(x):
    return x if x.sum() > 0 else -x


def asserts(x):
    assert mx.all(x > 0)
    return x


def counts(x):
    return sum(range(x.sum().astype(mx.int32)))


NEED = {
    "if": decides,
    "assert": asserts,
    "range": counts,
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "print": lambda x: len(f"{x}"),
    "numpy": np.array,
    "tolist": lambda x: x.tolist(),
    "eval": fl.eval,
    "an index": lambda x: [1, 2][x.sum().astype(mx.int32)],
    "memoryview": memoryview,
}
TRACE = {
    "fl.jit": lambda f: fl.jit(f)(X),
    "fl.vmap": lambda f: fl.vmap(f)(X[:, None]),
    "fl.eval_shape": lambda f: fl.eval_shape(f, X),
}


@pytest.mark.parametrize("trace", TRACE)
@pytest.mark.parametrize("need", NEED)
def test_needing_a_value_says_what_to_write(trace, need):
    def fn(x):
        return NEED[need](x)

    with pytest.raises((ValueError, RuntimeError)) as raised:
        TRACE[trace](fn)
    theirs, ours = str(raised.value).split("\n\n")
    assert theirs.startswith("[eval] Attempting to eval an array during function transformations")
    assert ours == NEEDED.format(fn="fn", transformation=trace) + PLAIN * (trace == "fl.jit")
    assert type(raised.value) is (RuntimeError if need == "memoryview" else ValueError)


def test_the_inner_one_of_nested_transformations_is_named():
    def inner(x):
        return x.item()

    def gradient(x):
        return fl.grad(lambda x: decides(x).sum())(x)

    for outer, name, transformation in (
        (lambda x: fl.vmap(inner)(x), "inner", "fl.vmap"),
        (gradient, "gradient", "fl.jit"),
        (lambda x: fl.jit(inner)(x[0]), "inner", "fl.jit"),
    ):
        with pytest.raises(ValueError, match="Attempting") as raised:
            fl.jit(outer)(X)
        assert str(raised.value).split("\n\n")[1].startswith(NEEDED.format(fn=name, transformation=transformation))


@pytest.mark.parametrize("trace", TRACE.values(), ids=TRACE)
def test_a_mask_says_what_to_write(trace):
    def fn(x):
        return x[x > 0]

    with pytest.raises(ValueError, match="not yet supported") as raised:
        trace(fn)
    assert str(raised.value).split("\n\n")[1] == MASKED.format(fn="fn")


@pytest.mark.parametrize("error", [ValueError("a\nb"), RuntimeError("a"), KeyError("[eval]"), StopIteration(3)])
def test_other_errors_are_as_they_were(error):
    args = error.args

    def fn(x):
        raise error

    with pytest.raises(type(error)) as raised:
        fl.jit(fn)(X)
    assert raised.value is error
    assert error.args == args


@pytest.mark.parametrize("trace", [fl.jit, fl.vmap])
@pytest.mark.parametrize("evaluate", [fl.eval, fl.async_eval])
def test_an_array_that_outlives_its_trace_says_what_to_write(trace, evaluate):
    leaked = []
    trace(lambda x: (leaked.append(x + 1), x)[1])(X)
    with pytest.raises(RuntimeError, match="without a primitive") as raised:
        evaluate({"a": leaked})
    assert str(raised.value).endswith(f"\n\n{LEAKED}")
