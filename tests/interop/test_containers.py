"""Layers and arrays in dicts and lists of other classes than Python's own two, and in those that people derive from them."""

import collections
import warnings

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop.checks import same
from mlx.utils import tree_flatten

import frostleaf as fl

X = mx.ones((1, 2))


class Named(dict):
    """A dict whose items are attributes, and whose own way to put one is not Python's."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.get("log", []).append(key)

    __getattr__ = dict.get


class Ordered(collections.OrderedDict):
    """As one derives it."""


class Layers(list):
    """A list of one's own, with a method."""

    def total(self):
        return len(self)


class InDict(nn.Module):
    """Goes through a dict of layers."""

    def __init__(self, make):
        super().__init__()
        self.layers = make()
        self.layers["b"] = nn.Linear(2, 2)
        self.layers["a"] = nn.Linear(2, 1)
        self.more = [make()]
        self.more[0]["scale"] = mx.array(3.0)

    def __call__(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x * self.more[0]["scale"] + len(self.layers)

    def later(self, x):
        self.layers.pop("a")
        self.layers["c"] = self.layers["b"]
        return list(self.layers)

    def turn(self):
        self.layers.move_to_end("b")
        return list(self.layers)


class InList(nn.Module):
    """Goes through a list of layers."""

    def __init__(self):
        super().__init__()
        self.layers = Layers([nn.Linear(2, 2), nn.Linear(2, 2)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x * self.layers.total()

    def later(self, x):
        self.layers.append(self.layers[0])
        return self.layers.total()


MODULES = {
    "dict": lambda: InDict(dict),
    "OrderedDict": lambda: InDict(collections.OrderedDict),
    "defaultdict": lambda: InDict(collections.defaultdict),
    "a dict of one's own": lambda: InDict(Named),
    "an OrderedDict of one's own": lambda: InDict(Ordered),
    "a list of one's own": InList,
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_layers_are_found_in_containers_of_any_class(make):
    module = make()
    tree = fl.from_mlx(module)
    back = fl.to_mlx(tree)
    for each in (tree, back, fl.convert(tree)):
        assert same(each(X), module(X))
    assert type(back.layers) is type(module.layers)
    assert len(back.layers) == len(module.layers)
    assert [*dict(tree_flatten(back.parameters()))] == [*dict(tree_flatten(module.parameters()))]
    gradient = fl.grad(lambda tree: tree(X).sum())(tree)
    _, expected = nn.value_and_grad(module, lambda x: module(x).sum())(X)
    assert same(dict(tree_flatten(fl.to_mlx(gradient).parameters())), dict(tree_flatten(expected)))


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_a_call_that_changes_a_container_leaves_it_as_it_was(make):
    module = make()
    tree = fl.from_mlx(module)
    expected = module(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.UncollectedStateWarning)
        changed = [tree.later(X) for _ in range(3)]
    assert same(tree(X), expected)
    _, after = fl.stateful(tree.later, X)
    assert changed == [module.later(X)] * 3
    assert same(after(X), module(X))


def test_the_order_that_a_call_changes_is_restored():
    tree = fl.from_mlx(InDict(collections.OrderedDict))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.UncollectedStateWarning)
        assert [tree.turn() for _ in range(3)] == [["a", "b"]] * 3


class Pair(tuple):
    """A tuple of one's own."""


def with_attributes(kind, *items):
    found = kind(*items)
    found.name = "x"
    return found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pair([mx.ones(2)]), r"^value is a Pair, .* lose its class\. Write tuple\(\.\.\.\) there$"),
        (lambda: with_attributes(Layers, [mx.ones(2)]), r"^value is a Layers, .* lose its name\. Write list\(\.\.\.\) there$"),
        (
            lambda: with_attributes(Ordered, {"a": mx.ones(2)}),
            r"^value is an Ordered, .* lose its name\. Write OrderedDict\(\.\.\.\) there$",
        ),
    ],
)
def test_what_a_tree_would_lose_of_a_container_is_said(make, message):
    module = nn.Linear(2, 2)
    module.value = make()
    with pytest.raises(ValueError, match=message):
        fl.from_mlx(module)
