"""What people write from habit, and what it says."""

import contextlib
import re

import mlx.core as mx
import mlx.nn as nn
import pytest

import frostleaf as fl

X = mx.ones((2, 3))


class Steps(nn.Module):
    """Yields what it computes, and counts."""

    def __init__(self):
        super().__init__()
        self.lin, self.count = nn.Linear(3, 3), 0

    def __call__(self, x):
        return self.lin(x)

    def steps(self, x, number):
        for _ in range(number):
            self.count += 1
            x = self.lin(x)
            yield x

    async def later(self, x):
        return self.lin(x)


class Adapted(nn.Module):
    """Is another while a block runs."""

    def __init__(self):
        super().__init__()
        self.lin, self.adapted, self.inner = nn.Linear(3, 3), True, Steps()

    def __call__(self, x):
        return x + self.lin(x) if self.adapted else x

    @contextlib.contextmanager
    def disabled(self):
        self.adapted = False
        try:
            yield
        finally:
            self.adapted = True

    @contextlib.contextmanager
    def giving(self):
        self.adapted = False
        yield self
        self.adapted = True

    @contextlib.contextmanager
    def looking(self, x):
        yield self.lin(x)


@pytest.mark.parametrize(
    "around",
    [
        lambda call, tree: call(tree, X),
        lambda call, tree: fl.stateful(call, tree, X)[0],
        lambda call, tree: fl.jit(call)(tree, X),
        lambda call, tree: fl.value_and_grad(lambda tree: call(tree, X).sum())(tree)[0],
    ],
)
def test_a_block_that_changes_the_model_is_told(around):
    def old(tree, x):
        with tree.disabled():
            return tree(x)

    def edited(tree, x):
        return tree.at("adapted").set(False)(x)

    def given(tree, x):
        with tree.giving() as changed:
            return changed(x) + tree(x) - tree(x)

    tree = fl.from_mlx(Adapted())
    message = (
        re.escape("Adapted.disabled changes adapted while its block runs") + r".* model\.at\('adapted'\)\.set\(False\) there"
    )
    with pytest.warns(fl.UncollectedStateWarning, match=message):
        around(old, tree)
    expected = around(lambda tree, x: x, tree)
    for function in (edited, given):
        assert mx.allclose(around(function, tree), expected)
    with tree.looking(X) as seen:
        assert mx.array_equal(seen, tree.lin(X))


def generator(model):
    yield model(X)


async def coroutine(model):
    return model(X)


def test_a_method_that_yields_says_how_its_change_is_collected():
    tree = fl.from_mlx(Steps())
    message = "Write fl.stateful(lambda model: list(model.steps(...)), model), which"
    with pytest.warns(fl.UncollectedStateWarning, match=re.escape(message)):
        list(tree.steps(X, 3))
    out, after = fl.stateful(lambda model: list(model.steps(X, 3)), tree)
    assert (len(out), after.count, tree.count) == (3, 3, 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda tree: fl.stateful(tree.steps, X, 3),
        lambda tree: fl.stateful(generator, tree),
        lambda tree: fl.stateful(coroutine, tree),
        lambda tree: fl.stateful(tree.later, X),
    ],
)
def test_what_runs_later_is_not_collected(call):
    with pytest.raises(TypeError, match=r"fl\.stateful can't take .* list\(model\.steps"):
        call(fl.from_mlx(Steps()))


@pytest.mark.parametrize("function", [fl.convert, fl.quantize, lambda model: fl.lora(model, "**")])
def test_a_module_of_mlx_is_given_to_from_mlx_first(function):
    with pytest.raises(TypeError, match=r": give it fl\.from_mlx\(model\)$"):
        function(nn.Sequential(nn.Linear(64, 64)))


def test_what_dequantizes_a_model_of_mlx_says_what_to_write():
    dequantize_model = pytest.importorskip("mlx_lm.utils").dequantize_model
    model = fl.quantize(fl.from_mlx(nn.Sequential(nn.Linear(64, 64))))
    for each in (model, fl.convert(model)):
        with pytest.raises(TypeError, match=re.escape("model = fl.from_mlx(dequantize_model(fl.to_mlx(model)))")):
            dequantize_model(each)
        assert fl.from_mlx(dequantize_model(fl.to_mlx(each))).layers[0].weight.shape == (64, 64)


def test_what_trains_in_place_is_given_a_model_of_mlx():
    with pytest.raises(TypeError, match=re.escape("give fl.to_mlx(model)")):
        nn.value_and_grad(fl.nn.Linear(3, 3), lambda model, x: model(x).sum())(fl.nn.Linear(3, 3), X)
