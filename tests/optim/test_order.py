"""What looks at the values of gradients comes after the average over the ranks, or is refused with the right order."""

import functools

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf import optim
from frostleaf.distributed import average_gradients

SGD, CLIP = optim.SGD(0.1), optim.clip_by_global_norm(1.0)
AVERAGES = {
    "in a chain": lambda opt: optim.chain(average_gradients, opt),
    "of a group": lambda opt: optim.chain(functools.partial(average_gradients, group=fl.distributed.init()), opt),
    "while sharding": lambda opt: optim.shard(opt, average=True, elementwise=True),
}
RIGHT = {"in a chain": "chain(average_gradients, {})", "while sharding": "shard({}, average=True)"}
LOOK = {
    "the norm": (lambda opt: optim.chain(CLIP, opt), "chain(clip_by_global_norm(1.0), ...)"),
    "values": (lambda opt: optim.chain(optim.clip_by_value(2.0), opt), "chain(clip_by_value(2.0), ...)"),
}
AROUND = {
    "": lambda opt: opt,
    "ema": lambda opt: optim.ema(opt, 0.5),
    "accumulate": lambda opt: optim.accumulate(opt, 2),
    "masked": lambda opt: optim.masked(opt, "**"),
    "chain": lambda opt: optim.chain(lambda grads: grads, opt),
    "multi": lambda opt: optim.multi({"**": opt}),
}


@pytest.mark.parametrize("between", AROUND)
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("look", LOOK)
def test_what_looks_at_gradients_before_they_are_averaged_is_refused(look, average, between):
    make, shown = LOOK[look]
    inner = AROUND[between](AVERAGES[average](SGD))
    with pytest.raises(ValueError, match="each rank's own gradients") as raised:
        make(inner)
    assert RIGHT.get(average, RIGHT["in a chain"]).format(shown) in str(raised.value)


@pytest.mark.parametrize("between", AROUND)
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("look", LOOK)
def test_the_right_order_is_taken(look, average, between):
    opt = AVERAGES[average](LOOK[look][0](AROUND[between](SGD)))
    model = start = {"w": mx.array([3.0, 4.0])}
    state = opt.init(model)
    for _ in range(2):
        model, state = opt.update(model, start, state)
    assert model["w"][0].item() < 3.0


def test_in_one_chain_the_average_comes_first():
    assert optim.chain(average_gradients, CLIP, SGD).transforms[1] is CLIP
    with pytest.raises(ValueError, match=r"chain\(average_gradients, chain\(clip_by_global_norm\(1.0\), \.\.\.\)\)"):
        optim.chain(CLIP, average_gradients, SGD)


@pytest.mark.parametrize("wrap", [lambda opt: optim.accumulate(opt, 4), lambda opt: optim.ema(opt, 0.5), AROUND["masked"]])
@pytest.mark.parametrize("average", AVERAGES)
def test_what_does_not_look_at_values_may_be_outside(wrap, average):
    wrap(AVERAGES[average](SGD))
    optim.chain(lambda grads: fl.tree.map(lambda grad: grad / 8, grads), AVERAGES[average](SGD))


@pytest.mark.parametrize("average", AVERAGES)
def test_a_part_of_a_model_whose_gradients_are_not_averaged_is_refused(average):
    for optimizers in ([AVERAGES[average](SGD), SGD], [SGD, AVERAGES[average](SGD)]):
        with pytest.raises(ValueError, match=r"chain\(average_gradients, multi\(\.\.\.\)\)"):
            optim.multi(dict(zip(["**.weight", "**"], optimizers, strict=True)))
    both = optim.multi({"**.weight": AVERAGES[average](SGD), "**": AVERAGES["in a chain"](optim.Adam(0.1))})
    model = fl.nn.Sequential(fl.nn.Linear(2, 2))
    assert not fl.tree.equal(both.update(model, model, both.init(model))[0], model)


def test_what_is_advised_instead_of_sharding_averages_too():
    for opt, right in {
        optim.Muon(0.1): r"chain\(average_gradients, fl\.optim\.multi\(\{where: Muon, '\*\*': fl\.optim\.shard\(other\)\}\)\)",
        optim.chain(fl.tree.leaves, SGD): r"chain\(average_gradients, chain\(leaves, shard\(opt\)\)\)",
    }.items():
        with pytest.raises(ValueError, match=right):
            optim.shard(opt, average=True)


def test_sharding_is_asked_for_an_average_where_there_are_ranks():
    """On one rank nothing is asked; for several see ``sharding.py``."""
    assert optim.shard(SGD).average is None
    model = {"w": mx.ones(2)}
    assert optim.shard(SGD).update(model, model, optim.shard(SGD).init(model))[0]["w"][0].item() < 1.0
