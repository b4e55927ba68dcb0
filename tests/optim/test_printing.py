"""Optimizers as text, and the names that ``fl.optim`` offers."""

import functools
import inspect
import pkgutil

import mlx.core as mx
import mlx.optimizers
import pytest
from optim.stacks import ACTIVE, DEEP, SINGLES, stack

import frostleaf as fl
from frostleaf import optim

SGD = optim.SGD(0.5)
SGD_TEXT = "SGD(learning_rate=0.5, momentum=0.0, weight_decay=0.0, dampening=0.0, nesterov=False)"


class Own(mlx.optimizers.SGD):
    def __init__(self, learning_rate, *args, factor=1.0, **kwargs):
        super().__init__(learning_rate, *args, **kwargs)


class Mine(optim.Rule):
    def __init__(self, learning_rate):
        super().__init__(mlx.optimizers.Adam, learning_rate, eps=1e-6)


class Schedule:
    def __call__(self, step):
        return step * 1.0

    def halved(self, step):
        return step * 0.5


def rising(step):
    return step * 1.0


def rising_to(rate):
    def schedule(step):
        return mx.minimum(step, rate)

    def constant(step):
        return mx.array(0.5)

    return schedule, constant, lambda step: step * rate


TEXTS = {
    "AdamW": (
        optim.AdamW(1e-3),
        "AdamW(learning_rate=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, bias_correction=False)",
    ),
    "a wrapped rule": (optim.wrap(mlx.optimizers.Lion)(1e-4), "Rule(Lion, learning_rate=0.0001)"),
    "a wrapped rule by position and name": (
        optim.wrap(mlx.optimizers.Lion)(1e-4, [0.5, 0.9], weight_decay=0.1),
        "Rule(Lion, learning_rate=0.0001, betas=(0.5, 0.9), weight_decay=0.1)",
    ),
    "a rule without arguments": (optim.wrap(mlx.optimizers.Adafactor)(), "Rule(Adafactor)"),
    "a rule that passes arguments on": (
        optim.wrap(Own)(mx.array(0.5), 0.25, 0.125, factor=2.0, nesterov=False),
        "Rule(Own, learning_rate=0.5, *(0.25, 0.125), factor=2.0, nesterov=False)",
    ),
    "a subclass": (Mine(0.5), "Mine(learning_rate=0.5, eps=1e-06)"),
    "accumulate": (optim.accumulate(optim.wrap(Own)(0.5), 4), "Accumulate(optimizer=Rule(Own, learning_rate=0.5), n=4)"),
    "ema": (optim.ema(optim.wrap(Own)(0.5), 0.9), "EMA(optimizer=Rule(Own, learning_rate=0.5), decay=0.9)"),
    "masked": (
        optim.masked(optim.wrap(Own)(0.5), fl.nn.Linear), "Masked(optimizer=Rule(Own, learning_rate=0.5), where=Linear)"
    ),
    "multi": (
        optim.multi({lambda path, array: True: optim.wrap(Own)(0.5), "**": optim.wrap(Own)(0.25)}),
        "MultiOptimizer(\n  optimizers=(Rule(Own, learning_rate=0.5), Rule(Own, learning_rate=0.25)),\n"
        "  filters=(<lambda>, '**'),\n)",
    ),
    "skip_nonfinite": (optim.skip_nonfinite(SGD), f"SkipNonfinite(\n  optimizer={SGD_TEXT},\n)"),
    "flatten": (optim.flatten(SGD), f"Flattened(\n  optimizer={SGD_TEXT},\n  max_size=4096,\n)"),
    "chain": (
        optim.chain(optim.clip_by_global_norm(1.0), mx.sign, Schedule().halved, functools.partial(rising, step=2), SGD),
        f"Chain(\n  transforms=(ClipByGlobalNorm(max_norm=1.0), sign, Schedule.halved, partial(rising, step=2)),\n"
        f"  optimizer={SGD_TEXT},\n)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("opt", "shown"), TEXTS.values(), ids=TEXTS)
def test_an_optimizer_prints_its_arguments_by_name(opt, shown):
    assert repr(opt) == shown


SCHEDULES = {
    "cosine_decay(...)": optim.cosine_decay(0.1, 10),
    "exponential_decay(...)": optim.exponential_decay(0.1, 0.9),
    "join_schedules(...)": optim.join_schedules([optim.linear_schedule(0.1, 0.2, 3), optim.step_decay(0.1, 0.9, 2)], [3]),
    "linear_schedule(...)": optim.linear_schedule(0.1, 0.2, 3),
    "step_decay(...)": optim.step_decay(0.1, 0.9, 2),
    "rising": rising,
    "rising_to(...)": rising_to(0.5)[0],
    "constant": rising_to(0.5)[1],
    "<lambda>": rising_to(0.5)[2],
    "Schedule(...)": Schedule(),
    "Schedule.halved": Schedule().halved,
    "partial(rising)": functools.partial(rising),
}


@pytest.mark.parametrize(("shown", "schedule"), SCHEDULES.items(), ids=SCHEDULES)
def test_a_schedule_prints_by_name(shown, schedule):
    assert repr(optim.wrap(mlx.optimizers.SGD)(schedule)) == f"Rule(SGD, learning_rate={shown})"
    assert "learning_rate=" + shown in repr(optim.AdamW(schedule))


@pytest.mark.parametrize("names", [*SINGLES, *DEEP], ids=" of ".join)
def test_nothing_prints_an_address(names):
    opt = stack(names, optim.SGD(optim.cosine_decay(0.1, 10)), ACTIVE)
    assert " at 0x" not in repr(opt) + repr(opt.init(fl.nn.Linear(2, 2)))
    assert " at 0x" not in repr(optim.wrap(mlx.optimizers.SGD))


def test_arguments_by_position_and_by_name_make_one_optimizer():
    wrapped = optim.wrap(mlx.optimizers.SGD)
    assert dict(wrapped(0.5, 0.9).arguments) == {"learning_rate": 0.5, "momentum": 0.9}
    assert fl.tree.structure(wrapped(0.5, 0.9)) == fl.tree.structure(wrapped(momentum=0.9, learning_rate=0.5))


def test_the_public_names_are_all_that_is_listed():
    assert dir(optim) == sorted(optim.__all__)
    assert all(hasattr(optim, name) for name in optim.__all__)
    functions = {name for name in optim.__all__ if inspect.isfunction(getattr(optim, name))}
    assert not functions & {module.name for module in pkgutil.iter_modules(optim.__path__)}


@pytest.mark.parametrize("name", optim.__all__)
def test_what_public_functions_return_is_public(name):
    function = getattr(optim, name)
    returned = getattr(function, "__annotations__", {}).get("return", "")
    ours = function.__module__.startswith("frostleaf.")
    if ours and returned.isidentifier() and returned[:1].isupper() and len(returned) > 1:  # and no type variable
        assert returned in optim.__all__
