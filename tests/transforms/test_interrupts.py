"""KeyboardInterrupt at any instruction of a public function: contexts, the random state and what is traced are as they were."""

import random
import sys

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.core.words import PACKAGE
from frostleaf.transforms.context import Context, _Leaving, context
from frostleaf.transforms.jit.compiled import dropped, outliving
from frostleaf.transforms.jit.program import Program
from frostleaf.transforms.random import _innermost, _thread
from frostleaf.transforms.stateful import records
from frostleaf.transforms.vmap import mapping

KEY, X = mx.random.key(3), mx.ones((3, 2))
LAYER, NORM = fl.nn.Linear(2, 2), fl.nn.BatchNorm(2)
SLOW = fl.nn.Dropout(0.5)


def noisy(layer, x):
    return SLOW(layer(x))


def total(layer, x):
    return layer(x).sum()


jitted = fl.jit(noisy)


def in_rng():
    with fl.rng(KEY), fl.rng(mx.random.key(4)):
        return SLOW(X)


def without_jit():
    with fl.disable_jit(), fl.default_dtype(mx.float16):
        return fl.jit(total)(LAYER, X)


def replaced():
    one = fl.jit(lambda x, n: fl.checkpoint(lambda x: x * n)(x), max_traces=1)
    one(X, 1)
    return one(X, 2)


CALLS = {
    "rng": in_rng,
    "disable_jit": without_jit,
    "jit": lambda: jitted(LAYER, X),
    "a new trace": lambda: fl.jit(noisy)(LAYER, X),
    "a trace that makes room": replaced,
    "stateful": lambda: fl.stateful(NORM, X),
    "vmap": lambda: fl.vmap(noisy, (None, 0))(LAYER, X),
    "checkpoint": lambda: fl.grad(fl.checkpoint(total))(LAYER, X),
    "eval_shape": lambda: fl.eval_shape(lambda: fl.nn.Linear(2, 2)),
    "jit of everything": lambda: fl.jit(lambda n, x: fl.stateful(n, fl.vmap(fl.checkpoint(lambda x: x + 1))(x)))(NORM, X),
}


class Interrupting:
    """Count the instructions of this package while it is entered, and raise KeyboardInterrupt at one of them."""

    def __init__(self, at=0):
        self.count = 0
        self._at = at

    def __enter__(self):
        sys._getframe().f_trace_opcodes = (
            True  # without one such frame beforehand, settrace of Python 3.12 tells of no instruction
        )
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _call(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame, event, arg):
        if event == "opcode":
            self.count += 1
            if self.count == self._at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._step


def left_behind():
    return {
        "context": context.get() == Context(),
        "records": records.get() is None,
        "mapping": not mapping(),
        "tracing": not outliving.tracing,
        "dropping": not dropped.busy,
        "blocks": not _thread.entered and _innermost.get() is None,
    }


def state():
    return mx.random.state[0].tolist()


def interrupted(call, at):
    """Interrupt a call, and return whether it was; check that it left nothing behind."""
    mx.random.seed(1)
    states = [state()]
    try:
        with Interrupting(at):
            call()
    except KeyboardInterrupt:  # while the traceback, and with it each frame, is there
        assert all(left_behind().values()), (at, left_behind())
        after = state()
    else:
        return False
    mx.random.seed(1)
    call()
    assert after in [*states, state()], at
    assert all(left_behind().values()), (at, left_behind())
    assert not dropped.waiting
    return True


@pytest.mark.parametrize("kind", [_Leaving, Program])
def test_what_was_interrupted_before_it_was_made_goes_without_an_error(kind, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    kind.__new__(kind)
    assert not reported


@pytest.mark.filterwarnings("ignore::frostleaf.CapturedArrayWarning")
@pytest.mark.parametrize("times", [30, pytest.param(500, marks=pytest.mark.long)])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_interrupt_at_any_instruction_leaves_nothing_behind(call, times, monkeypatch):
    # What goes as a frame ends may be interrupted as well, which Python can only report.
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
    call()
    with Interrupting() as counting:
        call()
    drawn = random.Random(0)
    hit = [interrupted(call, drawn.randint(1, counting.count)) for _ in range(times)]
    assert sum(hit) > times // 2
    assert {*reported} <= {KeyboardInterrupt}
