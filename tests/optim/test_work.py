"""What an eager update does once for a structure, and not in each step."""

import gc
import pickle
import re
import weakref

import mlx.core as mx
import mlx.optimizers
import pytest
from optim.stacks import ACTIVE, gradients_of, named, trained

import frostleaf as fl
from frostleaf import optim
from frostleaf.core import structure
from frostleaf.core.instance import is_built
from frostleaf.optim import contents


class Net(fl.Module):
    first: fl.nn.Linear
    second: fl.nn.Linear

    def __init__(self):
        self.first, self.second = fl.nn.Linear(2, 3), fl.nn.Linear(3, 1)


class Counting(mlx.optimizers.Adam):
    """Adam that counts its slots."""

    made = 0

    def init_single(self, parameter, state):
        type(self).made += 1
        super().init_single(parameter, state)


def tree(kind):
    model = Net()
    return model if kind == "module" else named(model) if kind == "dict" else model.at("first").freeze()


@pytest.mark.parametrize("name", [None, *ACTIVE])
@pytest.mark.parametrize("kind", ["module", "dict", "frozen"])
def test_slots_are_initialised_by_init_alone(name, kind):
    opt, model = optim.wrap(Counting)(0.1), tree(kind)
    opt = ACTIVE[name](opt) if name else opt
    state = opt.init(model)
    made = Counting.made
    trained(opt, model, 10, state)
    assert Counting.made == made


def test_the_slots_of_a_restored_state_are_initialised_once(tmp_path):
    model = Net()
    fl.save(str(tmp_path / "state"), optim.wrap(Counting)(0.1).init(model))
    opt = optim.wrap(Counting)(0.1)
    state = fl.load(str(tmp_path / "state"), like=optim.wrap(Counting)(0.1).init(model))
    made = Counting.made
    trained(opt, model, 10, state)
    assert Counting.made - made <= len(fl.tree.leaves(model))


@pytest.mark.parametrize("name", [None, *ACTIVE])
def test_names_are_worked_out_once(name, monkeypatch):
    found = []
    work_out = structure._leaf_names
    monkeypatch.setattr(structure, "_leaf_names", lambda given: found.append(given) or work_out(given))
    opt = ACTIVE[name](optim.Adam(0.1)) if name else optim.Adam(0.1)
    model, grads = Net(), gradients_of(Net())
    state = opt.init(model)
    for _ in range(10):
        model, state = opt.update(model, grads, state)
    assert sum(given is structure.flat_of(model).structure for given in found) == 1
    assert len(found) <= 2  # that of the gradients as well


def test_nothing_is_put_together_that_nobody_looks_at():
    opt, model = optim.AdamW(0.1), Net()
    state = opt.init(model)
    for _ in range(3):
        grads = fl.grad(lambda model: model.second(model.first(mx.ones((1, 2)))).sum())(model)
        model, state = opt.update(model, grads, state)
        assert not is_built(grads)
        assert not is_built(model)
        assert not is_built(state)
    assert model.first.weight.shape == (3, 2)
    assert list(state.slots) == fl.tree.paths(model)


def test_what_is_frozen_stays_the_same_object():
    opt, model = optim.AdamW(0.1), Net().at("first").freeze()
    after, _ = trained(opt, model, 3)
    assert after.first is model.first
    assert after.second is not model.second


@pytest.mark.parametrize("frozen", [False, True])
def test_only_the_trained_arrays_are_taken_from_gradients(frozen):
    model = Net().at("first").freeze() if frozen else Net()
    grads = fl.grad(lambda model: model.second(model.first(mx.ones((1, 2)))).sum())(model)
    assert fl.tree.paths(grads) == [path for path in fl.tree.paths(model) if not frozen or path.startswith("second")]
    assert (grads.first.weight is None) == frozen
    assert type(grads) is Net
    assert fl.tree.structure(grads) == fl.tree.structure(fl.tree.map(lambda each: each, grads))


class Marking(mlx.optimizers.SGD):
    """SGD with a walk of its own through the gradients."""

    def apply_gradients(self, gradients, parameters):
        halved = mlx.utils.tree_map(lambda gradient: gradient / 2, gradients)
        return super().apply_gradients(halved, parameters)


def test_a_rule_may_have_its_own_walk_through_the_gradients():
    model, grads = {"w": mx.array(1.0)}, {"w": mx.array(2.0)}
    opt = optim.wrap(Marking)(0.25)
    after, _ = opt.update(model, grads, opt.init(model))
    assert after["w"].item() == 0.75


class Growing(mlx.optimizers.SGD):
    def apply_single(self, gradient, parameter, state):
        state["v"] = mx.concatenate([state["v"], gradient])
        return parameter - gradient


class Casting(mlx.optimizers.SGD):
    def apply_single(self, gradient, parameter, state):
        state["v"] = gradient.astype(mx.float16)
        return parameter - gradient


class Adding(mlx.optimizers.SGD):
    def apply_single(self, gradient, parameter, state):
        state["z"] = gradient
        return parameter - gradient


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Growing, "v of 'w' is f32[2] and the state has f32[4]"),
        (Casting, "v of 'w' is f32[2] and the state has f16[2]"),
        (Adding, "'w' remembers v and the state has v, z"),
    ],
)
def test_a_rule_that_makes_other_slots_is_refused_in_the_next_update(rule, message):
    opt, model = optim.wrap(rule)(0.1), {"w": mx.ones(2)}
    model, state = opt.update(model, model, opt.init(model))
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.update(model, model, state)


def test_a_state_for_other_shapes_is_refused_after_many_that_fit():
    opt, model, other = optim.Adam(0.1), {"w": mx.ones(2)}, {"w": mx.ones(3)}
    _, state = trained(opt, model, 3)
    opt.init(other)
    with pytest.raises(ValueError, match=re.escape("m of 'w' is f32[3] and the state has f32[2]")):
        opt.update(other, other, state)


class Held:
    pass


class Holding(fl.Module):
    w: mx.array
    held: Held = fl.static()


@pytest.mark.parametrize("as_module", [False, True])
def test_nothing_of_a_model_is_kept_with_its_optimizer_and_state(as_module):
    held = Held()
    model = Holding(mx.ones(2), held) if as_module else {"w": mx.ones(2), "held": held}
    seen, opt = weakref.ref(held), optim.AdamW(0.1)
    model, state = trained(opt, model, 3)
    del model, held
    gc.collect()
    assert seen() is None
    assert state.step.item() == 3


def test_a_value_that_cannot_be_hashed_is_no_obstacle():
    model = {"w": mx.ones(2), "note": bytearray(b"of mine")}
    after, state = trained(optim.AdamW(0.1), model, 2)
    assert (after["note"], state.step.item()) == (model["note"], 2)


def looked_at(monkeypatch, update):
    """Return of how many arrays the shape was looked at in an update."""
    found, kind_of = [], structure.kind_of
    with monkeypatch.context() as patched:
        for module in (structure, contents):
            patched.setattr(module, "kind_of", lambda array: found.append(array) or kind_of(array))
        update()
    return len(found)


@pytest.mark.parametrize(("kind", "most"), [("module", 0), ("frozen", 2), ("dict", 8)])
def test_shapes_are_looked_at_once(kind, most, monkeypatch):  # but for those of gradients made by hand, and of a dict
    opt, model = optim.AdamW(0.1), tree(kind)
    grads, state = gradients_of(model), opt.init(model)
    for _ in range(2):
        model, state = opt.update(model, grads, state)
    assert looked_at(monkeypatch, lambda: opt.update(model, grads, state)) <= most


class Narrowing(mlx.optimizers.SGD):
    """SGD whose results are of another dtype."""

    def apply_single(self, gradient, parameter, state):
        return super().apply_single(gradient, parameter, state).astype(mx.float16)


@pytest.mark.parametrize("kind", ["module", "dict", "frozen"])
def test_a_model_whose_dtypes_change_is_known_with_its_new_ones(kind):
    opt, model = optim.wrap(Narrowing)(0.1), tree(kind)
    after, _ = opt.update(model, gradients_of(model), opt.init(model))
    leaves, shape = fl.tree.flatten(after)
    assert structure.flat_of(after).signed() == structure.Signature(shape, tuple(map(structure.kind_of, leaves)))
    assert mx.float16 in {leaf.dtype for leaf in leaves}


@pytest.mark.parametrize("kind", ["module", "dict", "frozen"])
def test_models_in_turn_are_told_apart(kind):
    opt, one = optim.SGD(0.1), tree(kind)
    other = fl.tree.map(lambda leaf: leaf.astype(mx.float16), one)
    runs = [(each, opt.init(each), gradients_of(each)) for each in (one, other)]
    for _ in range(3):
        runs = [(*opt.update(model, grads, state), grads) for model, state, grads in runs]
    for (model, _, _), dtype in zip(runs, (mx.float32, mx.float16), strict=True):
        flat = structure.flat_of(model)
        assert {leaf.dtype for leaf in flat.leaves} == {dtype}
        assert flat.signed().leaves == tuple(map(structure.kind_of, flat.leaves))


def test_names_of_a_dict_are_worked_out_once(monkeypatch):
    found = []
    work_out = structure._leaf_names
    monkeypatch.setattr(structure, "_leaf_names", lambda given: found.append(given) or work_out(given))
    opt, model = optim.Adam(0.1), {"layers": [{"w": mx.ones(2)}, (mx.ones(3), None)]}
    state = opt.init(model)
    model, state = opt.update(model, model, state)
    found.clear()
    for _ in range(5):
        model, state = opt.update(model, model, state)
    assert found == []
    other = {"layers": [{"v": mx.ones(2)}, (mx.ones(3), None)]}
    with pytest.raises(ValueError, match=re.escape("'layers.0.v' has no state")):
        opt.update(other, other, state)


def test_a_chain_looks_at_the_results_of_its_functions_alone(monkeypatch):
    opt, model = optim.chain(optim.clip_by_value(1.0), optim.clip_by_global_norm(1.0), optim.AdamW(0.1)), Net()
    grads, state = gradients_of(model), opt.init(model)
    for _ in range(2):
        model, state = opt.update(model, grads, state)
    assert looked_at(monkeypatch, lambda: opt.update(model, grads, state)) <= 2 * len(fl.tree.leaves(model))


def test_slots_in_another_order_are_found_by_name():
    opt, model = optim.AdamW(0.1), Net()
    grads, (_, state) = gradients_of(model), trained(opt, model, 2)
    turned = state.replace(slots=dict(reversed(state.slots.items())))
    (one, _), (other, after) = (opt.update(model, grads, each) for each in (state, turned))
    assert fl.tree.equal(one, other)
    assert list(after.slots) == list(turned.slots)


class Growing(mlx.optimizers.Optimizer):
    """A rule whose slots change in shape after some steps."""

    def __init__(self, learning_rate=0.1):
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)

    def init_single(self, parameter, state):
        state["h"] = mx.zeros((1,))

    def apply_single(self, gradient, parameter, state):
        if self.state["step"].item() > 3:
            state["h"] = mx.concatenate([state["h"], mx.zeros((1,))])
        return parameter - 0.1 * gradient


def late_half(step):
    return mx.array(0.1) if step.item() < 3 else mx.array(0.1, mx.float16)


def test_a_rule_that_changes_a_shape_later_is_refused_in_the_next_step():
    opt, model = fl.optim.wrap(Growing)(0.1), {"w": mx.ones(2)}
    state = opt.init(model)
    for _ in range(4):
        model, state = opt.update(model, {"w": mx.ones(2)}, state)
    for each in (state, pickle.loads(pickle.dumps(state))):
        with pytest.raises(ValueError, match=r"h of 'w' is f32\[1\] and the state has f32\[2\]"):
            opt.update(model, {"w": mx.ones(2)}, each)


def test_a_state_after_another_dtype_of_the_learning_rate_is_that_of_its_pickle():
    opt, model = fl.optim.Adam(late_half), {"w": mx.ones(2)}
    state = opt.init(model)
    for _ in range(5):
        model, state = opt.update(model, {"w": mx.ones(2)}, state)
    step = fl.jit(lambda state: state.step + 1)
    step(state), step(pickle.loads(pickle.dumps(state)))
    assert step.trace_count == 1
