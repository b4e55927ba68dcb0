"""Optimizers for parts of a model: which parameter goes where, against the optimizers alone."""

import gc
from typing import Any

import mlx.core as mx
import mlx.optimizers
import pytest
from optim.stacks import gradients_of, named, nothing, trained

import frostleaf as fl
from frostleaf import optim
from frostleaf.core.words import describe
from frostleaf.optim import parameters
from frostleaf.optim.multi_optimizer import COUNT, NOTHING_LEFT
from frostleaf.optim.optimizer import NOT_A_STATE, NOT_AN_OPTIMIZER, OTHER_STATE

NOT_A_WHERE = (
    "can't select by {where!r}. Give a path ('layers.0.weight'), a glob ('layers.*.bias', '**.weight'), a class, a function of "
    "(path, array) that returns a bool, or a list of these."
)


def net():
    return fl.nn.Sequential(
        fl.nn.Linear(2, 3, key=mx.random.key(0)),
        fl.nn.LayerNorm(3),
        fl.nn.Linear(3, 1, key=mx.random.key(1)).freeze(keys="bias"),
    )


ALL = {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.2.weight"}
SELECTIONS = {
    "a path": ("layers.0.weight", {"layers.0.weight"}),
    "a module": ("layers.0", {"layers.0.weight", "layers.0.bias"}),
    "a glob": ("**.weight", {"layers.0.weight", "layers.1.weight", "layers.2.weight"}),
    "a class": (fl.nn.Linear, {"layers.0.weight", "layers.0.bias", "layers.2.weight"}),
    "a predicate": (lambda path, array: array.ndim == 2, {"layers.0.weight", "layers.2.weight"}),
    "several": (("layers.1", "layers.0.bias"), {"layers.0.bias", "layers.1.weight", "layers.1.bias"}),
    "with something frozen": ("layers.2", {"layers.2.weight"}),
    "everything": ("**", ALL),
}
each_selection = pytest.mark.parametrize(("where", "names"), SELECTIONS.values(), ids=SELECTIONS)


@each_selection
def test_only_what_is_selected_is_trained_and_remembered(where, names):
    opt = optim.masked(optim.AdamW(0.1), where)
    model, state = trained(opt, net())
    assert set(state.slots) == names
    before, after, plain = named(net()), named(model), named(trained(optim.AdamW(0.1), net())[0])
    for path in before:
        assert mx.array_equal(after[path], plain[path] if path in names else before[path]), path
    again, _ = opt.update(model, gradients_of(model), state)
    assert {path for path in before if named(again)[path] is after[path]} == before.keys() - names


def test_a_list_is_several_selections():
    opt = optim.masked(optim.SGD(0.1), ["layers.1", "layers.0.bias"])
    assert set(opt.init(net()).slots) == SELECTIONS["several"][1]


@each_selection
def test_a_parameter_goes_to_the_first_optimizer_that_selects_it(where, names):
    opts = optim.SGD(0.1, momentum=0.9), optim.Lion(0.01), optim.AdamW(0.1)
    opt = optim.multi({where: opts[0], "layers.0": opts[1], "**": opts[2]}) if where not in ("layers.0", "**") else None
    if opt is None:  # A dict has each key once; filters are a list.
        opt = optim.MultiOptimizer(opts, [where, "layers.0"])
    model, state = trained(opt, net())
    parts = [names, {"layers.0.weight", "layers.0.bias"} - names, ALL - names - {"layers.0.weight", "layers.0.bias"}]
    assert [set(inner.slots) for inner in state.inner] == parts
    after = named(model)
    for part, each in zip(parts, opts, strict=True):
        alone = named(trained(each, net())[0])
        assert all(mx.array_equal(after[path], alone[path]) for path in part)
    assert opt.learning_rate(state) is state.inner[0].hyperparameters["learning_rate"]


def test_wrappers_for_each_part_keep_to_their_part():
    opt = optim.multi({
        "**.bias": optim.chain(optim.clip_by_global_norm(0.1), optim.SGD(1.0)),
        "layers.0": optim.accumulate(optim.SGD(1.0), 2),
        "**": optim.ema(optim.skip_nonfinite(optim.SGD(1.0)), 0.5),
    })  # fmt: skip
    model, grads = net(), gradients_of(net())
    after, state = opt.update(model, grads, opt.init(model))
    before, now, gradients = named(model), named(after), named(grads)
    clipped, _ = mlx.optimizers.clip_grad_norm({path: grad for path, grad in gradients.items() if "bias" in path}, 0.1)
    for path, gradient in gradients.items():
        step = clipped[path] if "bias" in path else mx.zeros_like(gradient) if path == "layers.0.weight" else gradient
        assert mx.array_equal(now[path], before[path] - step), path
    assert set(state.inner[2].average) == {"layers.1.weight", "layers.2.weight"}


def test_gradients_that_are_not_finite_stop_their_part_alone():
    opt = optim.multi({"a": optim.skip_nonfinite(optim.SGD(1.0)), "**": optim.skip_nonfinite(optim.SGD(1.0))})
    model = {"a": mx.ones(2), "b": mx.ones(2)}
    after, state = opt.update(model, {"a": mx.array([mx.inf, 0.0]), "b": mx.ones(2)}, opt.init(model))
    assert ({name: leaf.tolist() for name, leaf in after.items()}) == {"a": [1.0, 1.0], "b": [0.0, 0.0]}
    assert [inner.skipped.item() for inner in state.inner] == [1, 0]


@pytest.mark.parametrize("wrap", [
    lambda opt: opt, optim.skip_nonfinite, lambda opt: optim.ema(opt, 0.5), lambda opt: optim.accumulate(opt, 2), optim.flatten,
    lambda opt: optim.chain(optim.clip_by_global_norm(1.0), optim.clip_by_value(1.0), opt),
])  # fmt: skip
def test_an_optimizer_may_have_nothing_to_train_now_and_something_later(wrap):
    frozen = [fl.nn.Linear(1, 1).freeze(), mx.ones(1)]
    opt = optim.multi({fl.nn.Linear: wrap(optim.SGD(1.0)), "**": optim.SGD(1.0)})
    after, state = trained(opt, frozen, 2)
    assert after[0].weight is frozen[0].weight
    model = [after[0].unfreeze(), after[1]]
    adapted = opt.adapt(state, model)
    assert adapted.inner[1].slots["1"]["v"] is state.inner[1].slots["1"]["v"]
    trained(opt, model, 2, adapted)


def test_masked_in_masked_and_in_multi_selects_what_both_select():
    opt = optim.masked(optim.masked(optim.SGD(0.1), "**.bias"), "layers.0")
    assert list(opt.init(net()).slots) == ["layers.0.bias"]
    opt = optim.multi({"layers.0": optim.masked(optim.SGD(0.1), "**.bias"), "**": optim.SGD(0.2)})
    model, state = trained(opt, net())
    assert list(state.inner[0].slots) == ["layers.0.bias"]
    assert mx.array_equal(model.layers[0].weight, net().layers[0].weight)


# What does not fit


def test_masked_with_nothing_selected_says_what_there_is():
    opt = optim.masked(optim.SGD(0.1), "layers.0.wieght")
    names = "'layers.0.weight', 'layers.0.bias', 'layers.1.weight', 'layers.1.bias', 'layers.2.weight'"
    message = f"'layers.0.wieght' selects nothing that can be trained: it has {names}"
    state = optim.SGD(0.1).init(net())
    for call in (
        lambda: opt.init(net()),
        lambda: opt.update(net(), gradients_of(net()), state),
        lambda: opt.adapt(state, net()),
    ):
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            call()
        assert str(raised.value) == message
    with pytest.raises(ValueError, match=r"'layers\.2\.bias' selects nothing that can be trained"):
        optim.masked(optim.SGD(0.1), "layers.2.bias").init(net())
    with pytest.raises(ValueError, match=r"it has '0', '1', '2', '3', '4', '5', '6', '7', \.\.\."):
        optim.masked(optim.SGD(0.1), "a").init([mx.ones(1) for _ in range(9)])
    with pytest.raises(ValueError, match=r"it has nothing$"):
        opt.update(net().freeze(), None, state)


@pytest.mark.parametrize(
    ("where", "wrong", "advice"),
    [
        ("layers.0.wieght", "layers.0.wieght", "; the nearest is 'layers.0.weight'"),
        ("layer.2", "layer.2", "; the nearest is 'layers.2'"),
        (("layers.0", "layers.1.bais"), "layers.1.bais", "; the nearest is 'layers.1.bias'"),
    ],
)
def test_a_path_that_leads_nowhere_is_not_passed_over(where, wrong, advice):
    message = f"{wrong!r} selects no array of the Sequential{advice}"
    opts = [optim.multi({where: SGD, "**": SGD}), optim.MultiOptimizer([SGD, SGD], [where])]
    if isinstance(where, tuple):
        opts.append(optim.masked(SGD, where))
    for opt in opts:
        state = optim.SGD(0.1).init(net())
        if not isinstance(opt, optim.Masked):
            state = optim.multi({"layers.0": SGD, "**": SGD}).init(net())
        for call in (lambda opt=opt: opt.init(net()), lambda opt=opt, state=state: opt.adapt(state, net())):
            with pytest.raises(ValueError) as raised:  # noqa: PT011
                call()
            assert str(raised.value) == message


def test_a_selection_that_is_no_path_or_is_frozen_may_select_nothing():
    opt = optim.multi({fl.nn.Conv1d: SGD, "**.scale": SGD, lambda path, array: False: SGD, "layers.2.bias": SGD, "**": SGD})
    assert [len(state.slots) for state in opt.init(net()).inner] == [0, 0, 0, 0, len(ALL)]


def test_selecting_a_tied_place_says_where_its_array_is():
    model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)).tie({"layers.1.weight": "layers.0.weight"})
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        optim.multi({"layers.1.weight": SGD, "**": SGD}).init(model)
    message = "'layers.1.weight' selects no array of the Sequential. It is tied to 'layers.0.weight': select that"
    assert str(raised.value) == message


def test_parameters_that_no_optimizer_is_for_are_named():
    opt = optim.multi({"layers.0": optim.SGD(0.1), "**.bias": optim.SGD(0.1)})
    # What is frozen needs no optimizer, until it is trained.
    state = opt.init(net().at(["layers.1.weight", "layers.2.weight"]).freeze())
    for call in (
        lambda: opt.init(net()), lambda: opt.update(net(), gradients_of(net()), state), lambda: opt.adapt(state, net()),
    ):  # fmt: skip
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            call()
        names = "'layers.1.weight', 'layers.2.weight'"
        assert str(raised.value) == f"no optimizer of multi is for {names}. Add one for the rest, under '**' at the end"


SGD = optim.SGD(0.1)
NO_OPTIMIZERS = "multi takes a dict from selections to optimizers, and was given "


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optim.multi({}), TypeError, NO_OPTIMIZERS + "{}"),
        (lambda: optim.multi(SGD), TypeError, NO_OPTIMIZERS + "SGD(...)"),
        (lambda: optim.multi([("a", SGD)]), TypeError, None),
        (lambda: optim.multi({"a": 3}), TypeError, NOT_AN_OPTIMIZER.format(function="multi", given="3")),
        (lambda: optim.multi({"a": optim.SGD}), TypeError, NOT_AN_OPTIMIZER.format(function="multi", given="SGD")),
        (lambda: optim.multi({3: SGD}), TypeError, NOT_A_WHERE.format(where=3)),
        (lambda: optim.MultiOptimizer([3]), TypeError, NOT_AN_OPTIMIZER.format(function="MultiOptimizer", given="3")),
        (lambda: optim.MultiOptimizer([]), ValueError, COUNT.format(filters=0, optimizers=0)),
        (lambda: optim.MultiOptimizer([SGD] * 3, ["a"]), ValueError, COUNT.format(filters=1, optimizers=3)),
        (lambda: optim.MultiOptimizer([SGD], ["a", "b"]), ValueError, COUNT.format(filters=2, optimizers=1)),
        (lambda: optim.MultiOptimizer([SGD], [None]), TypeError, NOT_A_WHERE.format(where=None)),
        (lambda: optim.masked(None, "a"), TypeError, NOT_AN_OPTIMIZER.format(function="masked", given="None")),
        (lambda: optim.masked("a", SGD), TypeError, NOT_AN_OPTIMIZER.format(function="masked", given="'a'")),
        (lambda: optim.masked(SGD, 3), TypeError, NOT_A_WHERE.format(where=3)),
        (lambda: optim.masked(SGD, lambda path: True), TypeError, None),
    ],
)
def test_what_cannot_be_put_together_is_refused(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert message is None or str(raised.value) == message


@pytest.mark.parametrize(
    ("keys", "earlier", "later"),
    [
        (["**", "weight"], "'**'", "'weight'"),
        (["bias", "**", fl.nn.Linear], "'**'", "Linear"),
        (["**", "*"], "'**'", "'*'"),
        ([("a", "**"), nothing], None, "nothing"),
        (["layers.**", "layers.0", "**"], "'layers.**'", "'layers.0'"),
        (["layers.*", ("layers.0", "layers.1")], "'layers.*'", None),
        (["**.bias", "layers.0.bias"], "'**.bias'", "'layers.0.bias'"),
    ],
)
def test_an_entry_of_multi_that_can_never_train_is_refused(keys, earlier, later):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        optim.multi(dict.fromkeys(keys, SGD))
    shown = {"earlier": earlier or describe(keys[0]), "later": later or describe(keys[1])}
    assert str(raised.value) == NOTHING_LEFT.format(**shown)


@pytest.mark.parametrize(
    "keys",
    [
        ["weight", "**"], ["layers.0", "layers.*", "**"], ["layers.*", "layers.0.bias", "**"], [fl.nn.Linear, "layers.0", "**"],
        ["**.bias", "layers.0", "**"], [nothing, "**"], ["table", "table.x"], ["layers.0.**", ("layers.0.bias", "layers.1")],
    ],
)  # fmt: skip
def test_an_entry_of_multi_that_may_train_something_is_not(keys):
    assert optim.multi(dict.fromkeys(keys, SGD)).filters == tuple(keys)


def test_the_states_of_other_optimizers_are_refused():
    opt, grads = optim.multi({"**.bias": SGD, "**": optim.Adam(0.1)}), gradients_of(net())
    other = optim.multi({"**.bias": SGD, "layers.0": SGD, "**": SGD}).init(net())
    given = "the states of 3 optimizers, where there are 2"
    for method, call in {
        "update": lambda: opt.update(net(), grads, other),
        "adapt": lambda: opt.adapt(other, net()),
        "learning_rate": lambda: opt.learning_rate(other),
    }.items():
        with pytest.raises(TypeError) as raised:
            call()
        assert str(raised.value) == NOT_A_STATE.format(optimizer="MultiOptimizer", method=method, given=given)
    swapped = opt.init(net()).replace(inner=opt.init(net()).inner[::-1])
    with pytest.raises(TypeError, match=r"SGD\.update takes the state .* was given the state of Adam, where the rule is SGD"):
        opt.update(net(), grads, swapped)
    elsewhere = optim.multi({"**.weight": SGD, "**": optim.Adam(0.1)}).init(net())
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.update(net(), grads, elsewhere)
    differences = [f"{path!r} {what}" for path in sorted(ALL) for what in ("has no state", "is not trainable")]
    shown = "; ".join(differences[:6]) + "; ..."
    assert str(raised.value) == OTHER_STATE.format(optimizer="MultiOptimizer", method="update", differences=shown)


def counted(monkeypatch):
    """Return a list to which each pass over a model to find what is selected adds the selection."""
    passes, mask = [], parameters.mask
    monkeypatch.setattr(parameters, "mask", lambda model, where: passes.append(where) or mask(model, where))
    return passes


SEVERAL = ("layers.0.weight", "layers.1", "**.bias")
MAKERS = {
    "masked by a path": lambda: optim.masked(optim.SGD(0.1), "layers.0.weight"),
    "masked by many": lambda: optim.masked(optim.SGD(0.1), SEVERAL),
    "masked by a list": lambda: optim.masked(optim.SGD(0.1), [*SEVERAL, fl.nn.Linear]),
    "multi": lambda: optim.multi({SEVERAL: optim.SGD(0.1), fl.nn.Linear: optim.Adam(0.1), "**": optim.SGD(0.5)}),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_is_selected_is_found_once_for_a_structure(make, monkeypatch):
    class Own(fl.nn.Sequential):
        """For a structure that no other test has."""

    opt, model = make(), Own(*net().layers)
    passes = counted(monkeypatch)
    state = opt.init(model)
    found = len(passes)
    assert 0 < found <= 3
    for step in range(3):
        model, state = opt.update(model, gradients_of(model, step), state)
    assert len(passes) == found
    # Another structure is another question, and the first one is still answered.
    frozen = model.freeze(keys="bias")
    state = opt.adapt(state, frozen)
    _ = opt.update(frozen, gradients_of(frozen), state)
    assert len(passes) == 2 * found
    make().init(model)
    assert len(passes) == 2 * found


@pytest.mark.parametrize("several", [False, True])
def test_a_predicate_is_asked_about_the_arrays_of_each_model(several):
    def is_short(path, array):
        return array.size == 2

    opt = optim.masked(optim.SGD(1.0), (is_short, "tree.w") if several else is_short)
    models = [{"a": mx.ones(2), "b": mx.ones(3), "w": mx.ones(3)}, {"a": mx.ones(3), "b": mx.ones(2), "w": mx.ones(3)}]
    models = [Holder(tree) for tree in models]
    assert fl.tree.structure(models[0]) == fl.tree.structure(models[1])
    assert [sorted(opt.init(model).slots) for model in models] == [
        [name, "tree.w"] if several else [name] for name in ("tree.a", "tree.b")
    ]


class Holder(fl.Module):
    tree: Any


def test_what_was_found_is_let_go_with_the_structure():
    opt = optim.masked(optim.SGD(1.0), "w")

    def make():
        class Net(fl.Module):
            w: mx.array

        opt.init(Net(mx.ones(2)))

    gc.collect()
    before = len(parameters._masks)
    for _ in range(5):
        make()
    gc.collect()
    assert len(parameters._masks) <= before
