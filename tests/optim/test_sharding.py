"""Optimizers of whose state each of several ranks keeps a part: results, states and files are those without sharding."""

from pathlib import Path

import mlx.core as mx
import pytest
import ranks
from optim.stacks import NEUTRAL, stack, trained

import frostleaf as fl
from frostleaf import optim

SCRIPT = Path(__file__).with_name("sharding.py")
MEMORY = Path(__file__).with_name("sharding_memory.py")


def test_two_ranks():
    ranks.require(SCRIPT, 2)


@pytest.mark.long
@pytest.mark.parametrize("count", [3, 4])
def test_more_ranks(count):
    ranks.require(SCRIPT, count, timeout=120)


def test_a_step_peaks_lower_than_without_sharding():
    ranks.require(MEMORY, 2, "in_a_jitted_step", timeout=120)


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 3])
def test_steps_of_other_models_peak_lower(count):
    ranks.require(MEMORY, count, timeout=300)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("name", [name for name in NEUTRAL if name != "shard"])
def test_one_process_divides_nothing(name, average):
    model, plain = fl.nn.Linear(3, 2, key=mx.random.key(0)), stack((name,), optim.AdamW(0.1))
    opt = optim.shard(plain, average=average)
    (ours, state), (theirs, whole) = trained(opt, model), trained(plain, model)
    assert fl.tree.equal(ours, theirs)
    assert fl.tree.equal(state.inner, whole)
    assert fl.tree.equal(opt.gather(state), whole)
    assert fl.tree.equal(opt.scatter(whole), state)


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_what_is_around_a_sharded_optimizer_says_how_its_state_is_made_whole(name):
    model, sharded = fl.nn.Linear(3, 2, key=mx.random.key(0)), optim.shard(optim.AdamW(0.1))
    for around in (
        lambda opt: optim.chain(optim.clip_by_value(1.0), opt),
        lambda opt: optim.ema(opt, 0.5),
        optim.skip_nonfinite,
    ):
        with pytest.raises(AttributeError, match=r"sharded\.gather\(state\).*state\.replace\(inner=sharded\.gather"):
            getattr(around(sharded), name)
    state = optim.chain(optim.clip_by_value(1.0), sharded).init(model)
    assert fl.tree.equal(sharded.scatter(sharded.gather(state)), state)
    state = optim.ema(sharded, 0.5).init(model)
    whole = state.replace(inner=sharded.gather(state.inner))
    assert fl.tree.equal(whole.inner, sharded.optimizer.init(model))


def test_a_packed_model_on_one_process():
    model = optim.pack(fl.nn.Linear(3, 2, key=mx.random.key(0)))
    plain = optim.flatten(optim.AdamW(0.1))
    assert fl.tree.equal(trained(optim.shard(plain), model)[0], trained(plain, model)[0])


@pytest.mark.parametrize(
    ("opt", "message"),
    [
        (optim.Muon(0.1), r"Muon.* Each rank would give its part .* fl\.optim\.multi\({where: Muon.*shard\(other\)}\)"),
        (optim.Adafactor(), "Adafactor"),
        (optim.accumulate(optim.Muon(0.1), 2), "Accumulate.*can't be sharded.*Muon"),
        (optim.multi({"bias": optim.SGD(0.1), "**": optim.Muon(0.1)}), "can't be sharded.*Muon"),
        (optim.chain(fl.distributed.average_gradients, optim.SGD(0.1)), r"Write chain\(average_gradients, shard\(opt\)\)"),
        (optim.chain(optim.clip_by_value(1.0), optim.Muon(0.1)), "Muon"),
        (optim.ema(optim.shard(optim.SGD(0.1)), 0.9), "is sharded already"),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, optim.Optimizer) else "",
)
def test_what_is_not_elementwise_is_refused(opt, message):
    with pytest.raises(ValueError, match=message):
        optim.shard(opt)


def test_what_is_no_optimizer_or_no_group_is_refused():
    with pytest.raises(TypeError, match="shard takes an optimizer"):
        optim.shard(mx.array(1.0))
    with pytest.raises(TypeError, match="a group is one from"):
        optim.shard(optim.SGD(0.1), 2)


def test_a_state_of_another_optimizer_is_refused():
    model = fl.nn.Linear(3, 2)
    opt = optim.shard(optim.SGD(0.1))
    with pytest.raises(TypeError, match=r"state of Adam.*rule is SGD"):
        opt.update(model, model, optim.shard(optim.Adam(0.1)).init(model))
    with pytest.raises(TypeError, match=r"opt\.scatter\(state\)"):
        opt.update(model, model, optim.SGD(0.1).init(model))


def test_a_state_of_another_model_is_refused():
    opt = optim.shard(optim.Adam(0.1))
    with pytest.raises(ValueError, match="'bias' is not trainable"):
        opt.update({"weight": mx.ones(2)}, {"weight": mx.ones(2)}, opt.init(fl.nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="'bias' is not trainable"):
        opt.scatter(optim.Adam(0.1).init(fl.nn.Linear(3, 2)), {"weight": mx.ones(2)})
