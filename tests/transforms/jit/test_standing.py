"""What the arrays that a jitted function is traced with stand for."""

import contextlib

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.jit.standing import _standing, given_for


def looked_up(seen):
    """Return a function that notes what its argument stands for."""

    def fn(x):
        seen.append(given_for(x))
        return x + 1

    return fn


def test_the_first_trace_knows_what_was_given():
    seen, x, y = [], mx.array(1.0), mx.array(2.0)
    step = fl.jit(looked_up(seen))
    step(x), step(y), step(mx.ones(3))
    assert seen[0] is x
    assert len(seen) == 2
    assert given_for(x) is x


def test_a_trace_inside_a_trace_knows_what_was_given_outside():
    seen, x = [], mx.array(1.0)
    inner = fl.jit(looked_up(seen))
    fl.jit(lambda x: inner(x) + inner(x))(x)
    assert seen[0] is x
    again = []
    fl.jit(lambda x: fl.jit(looked_up(again))(x * 2))(x)
    assert again[0] is not x


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_is_known_after_the_trace(fails):
    def fn(x):
        if fails:
            raise KeyError("fails")
        return x

    with contextlib.suppress(KeyError):
        fl.jit(fn)(mx.array(1.0))
    assert (_standing.calls, _standing.traces) == ([], [])


def test_a_call_in_plain_python_stands_for_nothing():
    seen, x = [], mx.array(1.0)
    with fl.disable_jit():
        fl.jit(looked_up(seen))(x)
    assert seen[0] is x
