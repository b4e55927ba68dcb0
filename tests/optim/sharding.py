"""Checks of optimizers whose state is divided, run by each of several ranks."""

import pickle
import re
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.optimizers
import ranks
from optim.stacks import ACTIVE, DEEP, FEW, SINGLES, gradients_of, stack

import frostleaf as fl
from frostleaf import optim

GROUP = fl.distributed.init()
RANK, SIZE = GROUP.rank(), GROUP.size()
RULES = {
    "SGD": lambda: optim.SGD(0.1),
    "SGD with momentum": lambda: optim.SGD(0.1, momentum=0.9, weight_decay=0.01, nesterov=True, dampening=0),
    "RMSprop": lambda: optim.RMSprop(0.01),
    "Adagrad": lambda: optim.Adagrad(0.01),
    "AdaDelta": lambda: optim.AdaDelta(0.01),
    "Adam": lambda: optim.Adam(optim.cosine_decay(0.01, 10), bias_correction=True),
    "AdamW": lambda: optim.AdamW(0.01),
    "Adamax": lambda: optim.Adamax(0.01),
    "Lion": lambda: optim.Lion(0.01),
}
# With a rest on two ranks and on three, of fewer numbers than ranks, without any, and of several dtypes.
SHAPES = {
    "matrix": ((5, 7), mx.float32), "even": ((6, 4), mx.float32), "vector": ((3,), mx.float32), "two": ((2,), mx.float32),
    "one": ((1, 1), mx.float32), "scalar": ((), mx.float32), "empty": ((0, 3), mx.float32), "half": ((33,), mx.float16),
    "brain": ((4, 5), mx.bfloat16), "long": ((1031,), mx.float32),
}  # fmt: skip


def tree():
    keys = mx.random.split(mx.random.key(1), len(SHAPES))
    arrays = zip(SHAPES.items(), keys, strict=True)
    return {name: mx.random.normal(shape, key=key).astype(dtype) for (name, (shape, dtype)), key in arrays}


def net():
    return fl.nn.Sequential(
        fl.nn.Linear(3, 5, key=mx.random.key(0)),
        fl.nn.relu,
        fl.nn.LayerNorm(5),
        fl.nn.Linear(5, 2, key=mx.random.key(1)).freeze(keys="weight"),
    )


def steps(opt, model, count=3, state=None, update=None):
    """Return the model and the state after some steps with gradients that are the same on all ranks."""
    state = opt.init(model) if state is None else state
    for step in range(count):
        tree = model.unpack() if isinstance(model, optim.Packed) else model
        model, state = (update or opt.update)(model, gradients_of(tree, step), state)
    fl.eval(model, state)
    return model, state


def require_equal(ours, theirs):
    assert fl.tree.equal(ours, theirs), fl.tree.diff(ours, theirs)


def require_like_plain(sharded, plain, model, outside=lambda opt: opt):
    """Require that a sharded optimizer does what it does without sharding, and that its state is a part."""
    opt, expected = outside(sharded), outside(plain)
    (ours, state), (theirs, whole) = steps(opt, model), steps(expected, model)
    require_equal(ours, theirs)
    return state, whole


def check_rules_are_bit_equal_and_their_states_interchange():
    for name, rule in RULES.items():
        opt = optim.shard(rule(), average=False)
        state, whole = require_like_plain(opt, rule(), tree())
        require_equal(opt.gather(state), whole)
        require_equal(opt.scatter(whole), state)
        (ours, _), (theirs, _) = steps(opt, tree(), state=opt.scatter(whole)), steps(rule(), tree(), state=whole)
        require_equal(ours, theirs)
        for path, leaf in zip(fl.tree.paths(state.inner.slots), fl.tree.leaves(state.inner.slots), strict=True):
            size = fl.tree.leaves(whole.at(f"slots.{path}").get())[0].size
            assert leaf.size == (size if size < SIZE else -(-size // SIZE)), (name, path)


def check_compiled_steps_are_bit_equal():
    def model():
        return {"a": mx.random.normal((5, 7), key=mx.random.key(5)), "b": mx.ones((6,))}

    for name in ["AdamW", *["SGD with momentum", "Adam", "Lion"] * (SIZE > 2)]:  # MLX compiles each for a second or more
        plain, opt = (
            optim.chain(fl.distributed.average_gradients, each) for each in (RULES[name](), optim.shard(RULES[name]()))
        )
        compiled = fl.jit(opt.update)
        ours, state = steps(opt, model(), update=compiled)
        assert compiled.trace_count == 1
        theirs, whole = steps(plain, model(), update=fl.jit(plain.update))
        require_equal(ours, theirs)
        require_equal(opt.optimizer.gather(state), whole)


def check_the_state_has_the_bytes_of_a_part():
    model = {"a": mx.ones((60, 64)), "b": mx.ones((600,))}
    for opt in (optim.AdamW(0.1), optim.ema(optim.accumulate(optim.AdamW(0.1), 2), 0.9)):
        (_, state), (_, whole) = steps(optim.shard(opt, average=False), model), steps(opt, model)
        ours, theirs = (sum(leaf.nbytes for leaf in fl.tree.leaves(each) if leaf.ndim) for each in (state, whole))
        assert ours == theirs // SIZE


def check_wrappers_outside_and_inside():
    for names in [*SINGLES, *FEW, *DEEP]:
        if "shard" in names:
            continue

        def outside(opt, names=names):
            return stack(names, opt, ACTIVE)

        require_like_plain(optim.shard(optim.AdamW(0.1), average=False), optim.AdamW(0.1), net(), outside)
        whole_opt = outside(optim.AdamW(0.1))
        opt = optim.shard(whole_opt, average=False)
        (ours, state), (theirs, whole) = steps(opt, net()), steps(whole_opt, net())
        if "clip_by_global_norm" in names:
            assert fl.tree.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        else:
            require_equal(ours, theirs)
            require_equal(opt.gather(state), whole)


def check_the_average_is_that_of_the_plain_optimizer():
    plain = optim.ema(optim.Adam(0.1), 0.5)
    opt = optim.shard(plain, average=False)
    (ours, state), (theirs, whole) = steps(opt, net()), steps(plain, net())
    require_equal(opt.optimizer.averaged(ours, opt.gather(state)), plain.averaged(theirs, whole))


def check_steps_with_gradients_that_are_not_finite_are_skipped_on_all_ranks():
    opt = optim.shard(optim.skip_nonfinite(optim.AdamW(0.1)), average=False)
    model = {"w": mx.ones((7,)), "b": mx.array(1.0)}
    grads = {"w": mx.array([float("nan"), *[1.0] * 6]), "b": mx.array(1.0)}
    new, state = opt.update(model, grads, opt.init(model))
    require_equal(new, model)
    assert state.inner.skipped.item() == 1
    averaging = optim.shard(optim.skip_nonfinite(optim.AdamW(0.1)), average=True)
    own = grads if RANK == SIZE - 1 else model  # not finite on one rank alone
    new, state = averaging.update(model, own, averaging.init(model))
    require_equal(new, model)
    assert state.inner.skipped.item() == 1


def divided(opt):
    return optim.shard(opt, average=False)


def check_a_rule_for_matrices_beside_a_sharded_one():
    def optimizer(shard):
        return optim.multi({"**.weight": optim.Muon(0.02), "**": shard(optim.AdamW(0.1))})

    (ours, _), (theirs, _) = steps(optimizer(divided), net()), steps(optimizer(lambda opt: opt), net())
    require_equal(ours, theirs)


def check_packed_models():
    plain = optim.flatten(optim.AdamW(0.1), max_size=12)
    opt = optim.shard(plain, average=False)
    packed = optim.pack(net(), max_size=12)
    (ours, state), (theirs, whole) = steps(opt, packed), steps(plain, packed)
    require_equal(ours, theirs)
    require_equal(opt.gather(state), whole)
    require_equal(opt.adapt(state, packed), state)
    assert "fl.optim.pack(model)" in ranks.error_of(lambda: opt.init(net()), ValueError)
    outer = optim.chain(optim.clip_by_global_norm(0.1), optim.shard(optim.ema(plain, 0.5), average=False))
    (ours, _), (theirs, _) = (steps(outer, packed), steps(optim.chain(outer.transforms[0], optim.ema(plain, 0.5)), packed))
    require_equal(ours, theirs)


def check_gradients_of_another_dtype():
    model = {"a": mx.ones((5, 3), mx.bfloat16), "b": mx.ones((4,))}
    grads = {"a": mx.full((5, 3), 0.3), "b": mx.full((4,), 0.2)}
    plain = optim.AdamW(0.1)
    opt = optim.shard(plain, average=False)
    ours, state = opt.update(model, grads, opt.init(model))
    theirs, whole = plain.update(model, grads, plain.init(model))
    require_equal(ours, theirs)
    require_equal(opt.gather(state), whole)


def check_shards_stay_as_they_are():
    whole = fl.nn.Sequential(fl.nn.Linear(4, 12, key=mx.random.key(0)), fl.nn.relu, fl.nn.Linear(12, 5, key=mx.random.key(1)))
    model = whole.at("layers.0").apply(fl.distributed.fully_shard)
    sharded = [path for path in fl.tree.paths(model) if path.startswith("layers.0")]
    opt = optim.chain(optim.clip_by_global_norm(0.5), optim.shard(optim.ema(optim.AdamW(0.1), 0.5), average=False))
    plain = optim.chain(optim.clip_by_global_norm(0.5), optim.ema(optim.AdamW(0.1), 0.5))
    (ours, state), (theirs, plain_state) = steps(opt, model), steps(plain, model)
    require_equal(ours, theirs)
    for path in sharded:
        assert state.inner.average[path].shape == plain_state.average[path].shape
    inner = opt.optimizer
    require_equal(inner.gather(state), plain_state)
    require_equal(inner.scatter(plain_state, model), state)
    require_equal(inner.adapt(state, model), state)
    assert "layers.0" in ranks.error_of(lambda: opt.update(model, gradients_of(model), inner.scatter(plain_state)), ValueError)


def check_ranks_that_look_at_different_results():
    opt = optim.chain(fl.distributed.average_gradients, optim.shard(optim.AdamW(0.1)))
    model, state = net(), opt.init(net())
    for step in range(3):
        model, state = opt.update(model, gradients_of(model, 10 * step + RANK), state)
        if RANK == 0:  # in another order, and one by one
            for leaf in reversed(fl.tree.leaves(model)):
                mx.eval(leaf)
    theirs, plain = net(), optim.chain(fl.distributed.average_gradients, optim.AdamW(0.1))
    plain_state = plain.init(theirs)
    for step in range(3):
        theirs, plain_state = plain.update(theirs, gradients_of(theirs, 10 * step + RANK), plain_state)
    require_equal(model, theirs)
    fl.distributed.require_same(model)


def check_averages_part_by_part():
    average = fl.distributed.average_gradients
    for inner in (optim.AdamW(0.1), optim.accumulate(optim.ema(optim.SGD(0.1, momentum=0.9), 0.5), 2)):
        opt, plain = optim.shard(inner, average=True), optim.chain(average, inner)
        for model in (net(), tree()):
            ours, theirs, state, whole = model, model, opt.init(model), plain.init(model)
            for step in range(3):
                grads = gradients_of(model, 10 * step + RANK)
                ours, state = opt.update(ours, grads, state)
                theirs, whole = plain.update(theirs, grads, whole)
            require_equal(ours, theirs)
            require_equal(opt.gather(state), whole)
    model = net().at("layers.0").apply(lambda layer: fl.distributed.shard_linear(fl.nn.Linear(3, 12), "all-to-sharded"))
    grads = gradients_of(model, RANK)
    opt, plain = optim.shard(optim.AdamW(0.1), average=True), optim.chain(average, optim.AdamW(0.1))
    require_equal(opt.update(model, grads, opt.init(model))[0], plain.update(model, grads, plain.init(model))[0])
    packed, grads = optim.pack(net(), 12), gradients_of(net(), RANK)
    flat = optim.flatten(optim.AdamW(0.1), max_size=12)
    opt, plain = optim.shard(flat, average=True), optim.chain(average, flat)
    require_equal(opt.update(packed, grads, opt.init(packed))[0], plain.update(packed, grads, plain.init(packed))[0])


def check_what_averages_is_to_be_said():
    model, average = net(), fl.distributed.average_gradients
    asked = r"shard\(.*average=True.*chain\(fl\.distributed\.average_gradients, shard\(opt\)\).*average=False"
    for wrap in (
        lambda opt: opt,
        lambda opt: optim.ema(opt, 0.5),
        lambda opt: optim.chain(optim.clip_by_global_norm(1.0), opt),
        lambda opt: optim.multi({"**.weight": optim.Muon(0.1), "**": opt}),
    ):
        opt, other = wrap(optim.shard(optim.AdamW(0.1))), wrap(optim.shard(optim.AdamW(0.1), average=False))
        state = other.init(model)
        calls = [lambda: opt.init(model), lambda: opt.update(model, model, state)]  # noqa: B023
        for call in (*calls, lambda: fl.jit(opt.update)(model, model, state)):  # noqa: B023
            ranks.everywhere(call, asked)
        averaged = optim.chain(average, opt)
        grads = average(model)  # three thirds round
        require_equal(averaged.update(model, model, averaged.init(model))[0], other.update(model, grads, state)[0])


def check_adapting():
    opt, model = optim.shard(optim.AdamW(0.1), average=False), net()
    _, state = steps(opt, model)
    require_equal(opt.adapt(state, model), state)
    thawed = opt.adapt(state, model.unfreeze())
    require_equal(opt.gather(thawed), opt.optimizer.adapt(opt.gather(state), model.unfreeze()))
    # Parts of (2, 3) and of (3, 2) have one shape.
    before, after = {"w": mx.ones((2, 3))}, {"w": mx.ones((3, 2))}
    _, state = steps(opt, before)
    assert "f32[3,2]" in ranks.error_of(lambda: opt.update(after, after, state), ValueError)
    assert not opt.gather(opt.adapt(state, after)).slots["w"]["m"].any().item()


def check_hyperparameters():
    opt, model = optim.shard(optim.AdamW(0.1), average=False), tree()
    state = opt.with_learning_rate(opt.init(model), 0.5)
    assert opt.learning_rate(state).item() == 0.5
    require_equal(steps(opt, model, state=state)[0], steps(optim.AdamW(0.5), model)[0])


def check_checkpoints():
    opt, model = optim.shard(optim.accumulate(optim.AdamW(0.1), 2), average=False), tree()
    model, state = steps(opt, model)
    whole = opt.gather(state)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        fl.save(file, whole)
        restored = opt.scatter(fl.load(file, fl.eval_shape(opt.optimizer.init, model)))
    require_equal(restored, state)
    require_equal(pickle.loads(pickle.dumps(state)), state)
    require_equal(steps(pickle.loads(pickle.dumps(opt)), model, state=restored), steps(opt, model, state=state))
    assert fl.tree.structure(fl.eval_shape(opt.init, model)) == fl.tree.structure(state)


class Sign(mlx.optimizers.Optimizer):
    """A rule that updates every number by itself."""

    def __init__(self, learning_rate):
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)

    def init_single(self, parameter, state):
        state["count"] = mx.zeros_like(parameter)

    def apply_single(self, gradient, parameter, state):
        state["count"] = state["count"] + 1
        return parameter - self.learning_rate.astype(gradient.dtype) * mx.sign(gradient)


class Rows(Sign):
    """A rule that remembers something of each row."""

    def init_single(self, parameter, state):
        state["count"] = mx.zeros(parameter.shape[:1])


def check_rules_of_the_user():
    opt = optim.wrap(Sign)(0.1)
    assert "elementwise=True" in ranks.error_of(lambda: optim.shard(opt), ValueError)
    require_like_plain(optim.shard(opt, elementwise=True, average=False), opt, tree())
    rows = optim.shard(optim.wrap(Rows)(0.1), elementwise=True, average=False)
    assert "f32[5]" in ranks.error_of(lambda: rows.init({"w": mx.ones((5, 7))}), ValueError)


def check_states_of_others_are_refused():
    opt, model = optim.shard(optim.AdamW(0.1), average=False), tree()
    state = opt.init(model)
    for division in (attrs_evolve(state.division, ranks=SIZE + 1), attrs_evolve(state.division, rank=(RANK + 1) % SIZE)):
        other = state.replace(division=division)
        for call in (lambda: opt.update(model, model, other), lambda: opt.gather(other), lambda: opt.adapt(other, model)):  # noqa: B023
            said = ranks.error_of(call, ValueError)
            assert re.search(
                rf"rank \d of \d, and this is rank {RANK} of {SIZE}.*opt.gather\(state\).*opt.scatter\(whole\)", said
            )
    assert "opt.scatter(state)" in ranks.error_of(lambda: opt.update(model, model, optim.AdamW(0.1).init(model)), TypeError)
    assert "opt.gather" in ranks.error_of(lambda: opt.scatter(state), TypeError)
    require_equal(steps(opt, model)[0], steps(optim.AdamW(0.1), model)[0])  # all ranks go on


def attrs_evolve(division, **changes):
    return optim.Division(**{"rank": division.rank, "ranks": division.ranks, "shapes": division.shapes, **changes})


if __name__ == "__main__":
    ranks.run(globals())
