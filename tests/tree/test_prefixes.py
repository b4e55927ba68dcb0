"""Trees that go with a tree: values for its parts."""

import re
from types import MappingProxyType

import mlx.core as mx
import mlx.nn
import mlx.utils
import pytest

import frostleaf as fl
from frostleaf.core.words import describe
from frostleaf.tree import prefixes
from frostleaf.tree.prefixes import broadcast_prefix

MISMATCH = "{what} does not have the structure of the tree it goes with. At {path}: {given} where there is {expected}."

A, B = mx.zeros(1), mx.zeros(2)
TREE = {"a": (A, "text", None), "b": [B, {"c": A}], "m": fl.nn.Linear(1, 1)}


@pytest.mark.parametrize(
    ("other", "values"),
    [
        (None, [None] * 5),
        (7, [7] * 5),
        ({"m": 1, "a": (2, "other", None), "b": (3, None)}, [2, 3, None, 1, 1]),
        (MappingProxyType({"a": None, "b": [A, {"c": "d"}], "m": fl.nn.Linear(1, 1).replace(weight=None)}),
         [None, A, "d", None, ...]),
    ],
)  # fmt: skip
def test_each_array_has_what_stands_at_its_place_or_above_it(other, values):
    found = list(broadcast_prefix(other, TREE, "other"))
    assert [path for path, _, _ in found] == [("a", 0), ("b", 0), ("b", 1, "c"), ("m", "weight"), ("m", "bias")]
    assert all(leaf is expected for (_, leaf, _), expected in zip(found, fl.tree.leaves(TREE), strict=True))
    assert all(value is expected or expected is ... for (_, _, value), expected in zip(found, values, strict=True))


@pytest.mark.parametrize(
    ("other", "path", "given", "expected"),
    [
        ("text", "the root", "'text'", "dict of 3 (a, b, m)"),
        (A, "the root", "f32[1]", "dict of 3 (a, b, m)"),
        ({**TREE, "m": (1, 2)}, "m", "tuple of 2 (0, 1)", "Linear of 2 (weight, bias)"),
        ({**TREE, "m": {"weight": 1, "bias": 2}}, "m", "dict of 2 (weight, bias)", "Linear of 2 (weight, bias)"),
        ({**TREE, "b": [B, {"d": A}]}, "b.1", "dict of 1 (d)", "dict of 1 (c)"),
    ],
)
def test_another_node_in_the_place_of_one_is_an_error_that_says_where(other, path, given, expected):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        list(broadcast_prefix(other, TREE, "other"))
    assert str(raised.value) == MISMATCH.format(what="other", path=path, given=given, expected=expected)


@pytest.mark.parametrize("value", [0.0, "text", mx.float32, len])
@pytest.mark.parametrize(
    ("other", "given"), [(A, "f32[1]"), ({"x": [A]}, "dict of 1 (x)"), (fl.nn.Linear(1, 1), "Linear of 2 (weight, bias)")]
)
def test_an_array_beside_a_static_value_is_not_lost(value, other, given):
    expected = MISMATCH.format(what="tree 2", path="b.0", given=given, expected=describe(value))
    advice = "Only arrays are leaves: make it an array in the first tree too."
    with pytest.raises(ValueError, match=re.escape(f"{expected} {advice}")):
        fl.tree.map(lambda a, b: a, {"a": A, "b": [value]}, {"a": A, "b": [other]})


@pytest.mark.parametrize("other", [None, 0.0, 1, "text", (), {"x": 1}])
def test_what_has_no_arrays_may_stand_beside_a_static_value(other):
    assert fl.tree.map(lambda a, b: b, {"a": A, "n": 0.0}, {"a": B, "n": other}) == {"a": B, "n": 0.0}


@pytest.mark.parametrize("prefix", [0, None, (0, None)])
def test_what_goes_with_a_whole_module_is_not_looked_up_in_it(prefix, monkeypatch):
    tree = (fl.nn.Linear(2, 2), fl.nn.Linear(2, 2))
    opened = []
    monkeypatch.setattr(
        prefixes, "one_level", lambda value, one_level=prefixes.one_level: opened.append(value) or one_level(value)
    )
    found = [axis for _, _, axis in broadcast_prefix(prefix, tree, "other")]
    assert found == ([0, 0, None, None] if prefix == (0, None) else [prefix] * 4)
    assert all(isinstance(each, tuple) for each in opened)


@pytest.mark.parametrize("empty", [{}, [], (), [{}, {}], {"a": [{}, ()]}], ids=repr)
def test_a_branch_with_nothing_in_it_goes_with_none(empty):
    """MLX's parameters() have them for lists of strings."""
    tree, other = {"a": A, "b": {"c": B}}, {"b": {"c": B + 1, "names": empty}, "kinds": empty, "a": A + 1}
    added, back = fl.tree.map(mx.add, tree, other), fl.tree.map(mx.add, other, tree)
    assert added.keys() == {"a", "b"}
    assert mx.array_equal(added["a"], A + A + 1)
    assert mx.array_equal(back["b"]["c"], B + B + 1)
    assert back["kinds"] == empty


@pytest.mark.parametrize("value", [None, 1, "text", [None], {"d": A}, fl.nn.Identity(), [{}, A]], ids=repr)
def test_a_branch_with_something_in_it_does_not(value):
    tree = {"a": A}
    for one, other in ((tree, {"a": A, "b": value}), ({"a": A, "b": value}, tree)):
        with pytest.raises(ValueError, match=r"At the root: dict of . \(.*\) where there is dict of"):
            fl.tree.map(lambda *values: values[0], one, other)


def test_gradients_of_mlx_go_with_our_parameters():
    class Named(mlx.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.names = mlx.nn.Linear(1, 1), ["a", "b"]

    model = Named()
    ours = fl.from_mlx(model)
    gradients = mlx.nn.value_and_grad(model, lambda x: model.fc(x).sum())(A)[1]
    assert gradients["names"] == [{}, {}]
    stepped = fl.tree.map(lambda array, gradient: array - gradient, ours.parameters(), gradients)
    expected = mlx.utils.tree_map(lambda array, gradient: array - gradient, model.parameters(), gradients)
    assert fl.tree.equal(ours.update(stepped), ours.update(expected))


def word_model() -> fl.nn.Sequential:
    return fl.nn.Sequential(fl.nn.Embedding(5, 2), fl.nn.Linear(2, 5, bias=False))


TIES = {"layers.1.weight": "layers.0.weight"}
PLAIN = word_model()
TIED = PLAIN.tie(TIES)
REVERSED = PLAIN.tie({"layers.0.weight": "layers.1.weight"})
ALIGNED = {
    "map": lambda tree, other: fl.tree.map(lambda one, two: one + two, tree, other),
    "map_with_path": lambda tree, other: fl.tree.map_with_path(lambda path, one, two: one + two, tree, other),
    "apply_updates": fl.optim.apply_updates,
    "jvp": lambda tree, other: fl.jvp(lambda tree: sum(leaf.sum() for leaf in fl.tree.leaves(tree)), [tree], [other]),
    "vmap": lambda tree, other: fl.vmap(lambda tree: 0, in_axes=(fl.tree.map(lambda _: 0, other),))(tree),
}


@pytest.mark.parametrize("name", ALIGNED)
def test_a_tree_that_is_tied_the_other_way_has_the_same_values(name):
    call = ALIGNED[name]
    call(TIED, REVERSED)
    if name == "map":
        assert fl.tree.equal(call(TIED, REVERSED), fl.tree.map(lambda leaf: 2 * leaf, TIED).at("layers.0.weight").set(
            TIED.layers[0].weight + REVERSED.layers[1].weight))  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        TIED.freeze(),
        TIED.eval(),
        fl.grad(lambda model: model(mx.array([1])).sum())(TIED),
        fl.tree.map(lambda _: None, PLAIN),
        fl.tree.map(lambda _: None, TIED),
        PLAIN.replace(layers=(PLAIN.layers[0], PLAIN.layers[1].replace(weight=PLAIN.layers[0].weight))),
        REVERSED.replace(layers=(REVERSED.layers[0], REVERSED.layers[1])),
    ],
    ids=["frozen", "evaluated", "gradients", "none", "none of the tied", "one array at both", "reversed"],
)
def test_trees_that_lose_nothing_by_their_ties_go_together(other):
    found = fl.tree.map(lambda one, two: two, TIED, other)
    assert fl.tree.leaves(found) == fl.tree.leaves(other)[:1] or all(
        one is two for one, two in zip(fl.tree.leaves(found), fl.tree.leaves(other), strict=False)
    )
