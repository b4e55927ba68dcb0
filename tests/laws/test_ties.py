"""Laws of tied places: one leaf, the same object at both places, whatever the tree."""

import pickle

import mlx.core as mx
from hypothesis import assume, given
from hypothesis import strategies as st
from laws.strategies import Snapshot, identical, law, modules, parts

import frostleaf as fl
from frostleaf.core.words import keystr


@st.composite
def tied(draw):
    """A module, the same with ties, and the ties: the path of each place, and of its source."""
    module = draw(modules(max_leaves=8))
    places = [path for path, part in parts(module) if isinstance(part, mx.array)]
    arrays = {path: part for path, part in parts(module) if isinstance(part, mx.array)}
    names = dict(zip(places, map(keystr, places), strict=True))
    assume(len(set(names.values())) == len(names))
    source = draw(st.sampled_from(places)) if places else assume(False)
    alike = [path for path in places if path != source and arrays[path].shape == arrays[source].shape]
    assume(alike)
    targets = draw(st.lists(st.sampled_from(alike), min_size=1, max_size=3, unique=True))
    return module, module.tie({names[target]: names[source] for target in targets}), [(target, source) for target in targets]


def at(module, path):
    return dict(parts(module))[path]


def assert_tied(module, ties):
    paths = fl.tree.paths(module)
    assert len(paths) == len(fl.tree.leaves(module))
    for target, source in ties:
        assert at(module, target) is at(module, source)
        assert keystr(source) in paths
        assert keystr(target) not in paths


@law
@given(tied())
def test_a_tied_place_is_no_leaf_and_has_the_array_of_its_source(given):
    module, tied, ties = given
    assert_tied(tied, ties)
    sources = {source for _, source in ties}
    assert all(at(tied, source) is at(module, source) for source in sources)
    assert len(fl.tree.leaves(tied)) == len(fl.tree.leaves(module)) - len(ties)
    untied = tied.untie()
    assert fl.tree.structure(untied) == fl.tree.structure(module)
    assert all(at(untied, target) is at(module, source) for target, source in ties)


@law
@given(tied())
def test_round_trips(given):
    _, tied, ties = given
    leaves, structure = fl.tree.flatten(tied)
    again = fl.tree.unflatten(structure, leaves)
    assert_tied(again, ties)
    assert identical(again, tied)
    assert fl.tree.structure(again) == structure
    other = pickle.loads(pickle.dumps(tied))
    assert_tied(other, ties)
    assert fl.tree.structure(other) == structure


@law
@given(tied())
def test_edits_keep_ties_and_the_module_as_it_was(given):
    module, tied, ties = given
    snapshots = [Snapshot(module), Snapshot(tied)]
    assert_tied(tied.astype(mx.float16, None), ties)
    assert_tied(tied.freeze().unfreeze(keys="weight").eval(), ties)
    assert_tied(fl.tree.map(lambda leaf: leaf + leaf, tied), ties)
    assert_tied(fl.jit(lambda tree: tree)(tied), ties)
    assert_tied(tied.with_frozen(keystr(ties[0][1])), ties)
    for each in (tied.apply(lambda array: array), tied.map_modules(lambda path, each: each), tied.at("**").apply(lambda a: a)):
        assert each is tied
    for snapshot in snapshots:
        snapshot.assert_unchanged()
