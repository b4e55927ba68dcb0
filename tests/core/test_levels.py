"""One level of Python's own containers, which are opened without asking optree: as optree opens them, with shared recipes."""

import pickle
from types import MappingProxyType

import mlx.core as mx
import optree
import pytest

import frostleaf as fl
from frostleaf.core import levels
from frostleaf.core.levels import one_level
from frostleaf.core.registration import NAMESPACE


class Name(str):
    pass


CONTAINERS = [
    (), (1, None), [], [[2]], {}, {"b": 1, "a": (2,)}, {2: 1, "a": 2}, {True: 1}, {1: 1}, {1.0: 1}, {None: 1}, {(1, "a"): 1},
    {Name("a"): 1}, MappingProxyType({}), MappingProxyType({"b": 1, "a": 2}), MappingProxyType({1: 2}),
]  # fmt: skip


@pytest.mark.parametrize("value", CONTAINERS, ids=repr)
def test_a_container_is_opened_as_optree_opens_it(value):
    recipe, children = one_level(value)
    theirs, metadata, entries, make = optree.tree_flatten_one_level(value, namespace=NAMESPACE)
    assert [*children] == theirs
    assert recipe.entries == entries
    new = [[number] for number in range(len(children))]
    made, expected = recipe.make(recipe.metadata, new), make(metadata, new)
    assert (type(made), made) == (type(expected), expected)
    assert [*made] == [*expected]


@pytest.mark.parametrize("value", CONTAINERS, ids=repr)
def test_a_recipe_equals_those_of_the_same_keys_alone(value):
    recipe, _ = one_level(value)
    for other in CONTAINERS:
        if type(other) is type(value):
            keyed = isinstance(value, dict | MappingProxyType)
            same = not keyed or [(type(key), key) for key in other] == [(type(key), key) for key in value]
            assert (one_level(other)[0] == recipe) == same
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe
    assert hash(again) == hash(recipe)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("make", [dict.fromkeys, lambda names: MappingProxyType(dict.fromkeys(names))], ids=["dict", "proxy"])
def test_too_few_children_are_refused(make, length):
    recipe, _ = one_level(make(["a", "b"]))
    with pytest.raises(ValueError, match="zip"):
        recipe.make(recipe.metadata, [1] * length)


def test_containers_of_the_same_names_share_a_recipe(monkeypatch):
    def tree():
        return {"layers": [{"weight": mx.array(1), "bias": (mx.array(2), None)} for _ in range(3)]}

    def recipes(spec):
        inside = spec[2] if type(spec) is tuple and type(spec[2]) is tuple else ()
        return ([spec[1]] if type(spec) is tuple else []) + [each for child in inside for each in recipes(child)]

    monkeypatch.setattr(levels.optree, "tree_flatten_one_level", None)
    one, other = (recipes(fl.tree.structure(tree()).spec) for _ in range(2))
    assert len(one) == 8
    assert all(left is right for left, right in zip(one, other, strict=True))


def test_a_container_given_is_not_handed_out():
    value = [1, 2]
    assert one_level(value)[1] is not value
