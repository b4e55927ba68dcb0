"""What a method returns and is used later: it goes on with the weights of the tree that it was called on."""

import functools

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop.checks import same

import frostleaf as fl

X = mx.ones((1, 4))


class Holder:
    """A plain object."""

    def __init__(self, held):
        self.held = held


class Score(nn.Module):
    """Has a layer, a list and a helper."""

    def __init__(self):
        super().__init__()
        self.inner, self.sizes, self.helper = nn.Linear(4, 4), [2], Holder(3)

    def function(self):
        return lambda x: self.inner(x)

    def below(self):
        inner = self.inner
        return lambda x: inner(x)

    def expression(self):
        return (self.inner(x) for x in [X])

    def mapped(self):
        return map(self.inner, [X])

    def zipped(self):
        return zip(map(self.inner, [X]), [1], strict=True)

    def partial(self):
        return functools.partial(self.inner, X)

    def table(self):
        return {"f": [lambda x: self.inner(x)]}

    def held(self):
        return Holder(lambda x: self.inner(x))

    def compiled(self):
        return mx.compile(lambda x: self.inner(x))

    def gradient(self):
        return mx.grad(lambda x: self.inner(x).sum())

    def generated(self):
        yield lambda x: self.inner(x)

    @property
    def read(self):
        return lambda x: self.inner(x)

    def grow(self):
        def grow():
            self.sizes.append(1)
            self.helper.held += 1
            return len(self.sizes), self.helper.held

        return grow


USES = {
    "function": lambda made: made(X), "below": lambda made: made(X), "expression": next, "mapped": next,
    "zipped": lambda made: next(made)[0], "partial": lambda made: made(), "table": lambda made: made["f"][0](X),
    "held": lambda made: made.held(X), "compiled": lambda made: made(X), "gradient": lambda made: made(X),
    "generated": lambda made: next(made)(X), "read": lambda made: made(X),
}  # fmt: skip


def made(model, name):
    found = getattr(model, name)
    return found if name == "read" else found()


@pytest.mark.parametrize("name", USES)
def test_it_is_used_after_the_call(name):
    model = Score()
    tree = fl.from_mlx(model)
    expected = USES[name](made(model, name))
    first, other = made(tree, name), made(tree.at("inner.weight").apply(lambda weight: weight * 0), name)
    tree.mapped()
    assert same(USES[name](first), expected)
    assert not same(USES[name](other), expected)
    if name not in ("read", "generated"):
        assert same(USES[name](fl.stateful(getattr(tree, name))[0]), expected)


def test_what_it_changes_later_is_its_own():
    tree = fl.from_mlx(Score())
    first, second = tree.grow(), tree.grow()
    assert [first(), first(), second()] == [(2, 4), (3, 5), (2, 4)]
    assert tree.grow()() == (2, 4)
    assert (tree.sizes, tree.helper.held) == ([2], 3)
