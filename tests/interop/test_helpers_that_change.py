"""Objects in attributes that change in place: what a call does to them reaches no other tree, and not its key."""

import array
import collections
import random
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import frostleaf as fl


class Slotted:
    """An object without a dict."""

    __slots__ = ("size",)

    def __init__(self):
        self.size = 0

    def grow(self):
        self.size += 1


class Plain(Slotted):
    """An object with a dict and a slot."""


class Items(list):
    """A list of a class of its own."""


def add(value):
    value += 1


def put(value):
    value[0] = value[0] + 1


CHANGES = {
    "numpy": (lambda: np.zeros(2), add),
    "0-d": (lambda: np.array(0.0), add),
    "structured": (lambda: np.array([(1, 2.0)], "i4,f4"), lambda value: value.__setitem__(0, (3, 4.0))),
    "objects": (lambda: np.array([1, "a"], object), put),
    "an array": (lambda: mx.zeros(2), put),
    "a deque": (lambda: collections.deque([0], maxlen=3), lambda value: value.append(1)),
    "a bytearray": (lambda: bytearray(2), put),
    "an array of Python": (lambda: array.array("i", [0]), put),
    "a generator of NumPy": (lambda: np.random.default_rng(0), lambda value: value.random()),
    "a random state": (lambda: np.random.RandomState(0), lambda value: value.rand()),
    "a generator of Python": (lambda: random.Random(0), lambda value: value.random()),
    "an iterator": (lambda: iter([1, 2, 3]), next),
    "slots": (Slotted, Slotted.grow),
    "slots and a dict": (Plain, Plain.grow),
    "a class of list": (lambda: Items([0]), lambda value: value.append(1)),
    "a counter": (lambda: collections.Counter("ab"), lambda value: value.update("a")),
    "a list": (lambda: [0], lambda value: value.append(1)),
}
WRAPS = {
    "itself": (lambda value: value, lambda held: held),
    "in a list": (lambda value: [value, 1], lambda held: held[0]),
    "in a tuple": (lambda value: ("a", [value]), lambda held: held[1][0]),
    "in a dict": (lambda value: {"a": value}, lambda held: held["a"]),
    "in a deque": (lambda value: collections.deque([value]), lambda held: held[0]),
}
# An array in a container of MLX is a leaf.
HELD = [(name, wrap) for name in CHANGES for wrap in WRAPS if name != "an array" or wrap == "in a deque"]


@pytest.mark.parametrize(("name", "wrap"), HELD)
def test_what_a_call_changes_is_the_new_trees_own(name, wrap):
    make, change = CHANGES[name]
    inside, get = WRAPS[wrap]

    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = mx.ones(2)
            self.memory = inside(make())

        def remember(self):
            change(get(self.memory))

    def structure(times):
        model = Agent()
        for _ in range(times):
            model.remember()
        return fl.tree.structure(fl.from_mlx(model))

    first, second = fl.from_mlx(Agent()), fl.from_mlx(Agent())
    with pytest.warns(fl.UncollectedStateWarning, match="remember changed memory"):
        first.remember()
    assert fl.tree.structure(first) == structure(0) != structure(1)
    changed = first
    for times in (1, 2):
        _, changed = fl.stateful(changed.remember)
        assert fl.tree.structure(changed) == structure(times)
        assert fl.tree.structure(fl.from_mlx(fl.to_mlx(changed))) == structure(times)
    change(get(changed.memory))
    assert fl.tree.structure(changed) == structure(2)
    assert fl.tree.structure(first) == fl.tree.structure(second) == structure(0)
    for other in (second, fl.from_mlx(Agent())):
        assert fl.tree.structure(fl.stateful(other.remember)[1]) == structure(1)


def test_what_a_method_returns_is_nobodys():
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.visits, self.seen = np.zeros(2), collections.deque([1])

        def both(self):
            return self.visits, {"seen": self.seen}

    tree = fl.from_mlx(Agent())
    visits, rest = tree.both()
    visits += 1
    rest["seen"].append(2)
    assert tree.both()[0].tolist() == [0, 0]
    assert tree.both()[1]["seen"] == collections.deque([1])


def test_what_can_be_neither_copied_nor_pickled_is_one_object():
    class Locked(nn.Module):
        def __init__(self, lock):
            super().__init__()
            self.lock = lock

        def get(self):
            return self.lock

    lock = threading.Lock()
    tree = fl.from_mlx(Locked(lock))
    assert tree.lock is lock
    assert tree.get() is lock
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(Locked(lock)))
    assert fl.tree.structure(tree) != fl.tree.structure(fl.from_mlx(Locked(threading.Lock())))
