"""Law 3: nothing changes a finished module, or what it holds, or the arguments of a function."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import attrs
import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import Empty, Single, Snapshot, law, law_for_each, modules, parts, trees

import frostleaf as fl

FrozenInstanceError = attrs.exceptions.FrozenInstanceError


@law
@given(modules(), st.data())
def test_no_attribute_can_be_set_or_deleted(module: fl.Module, data: st.DataObject) -> None:
    inside = [part for _, part in parts(module) if isinstance(part, fl.Module)]
    snapshot = Snapshot(module)
    for part in inside:
        field = data.draw(st.sampled_from([*type(part).__frostleaf__.fields, "unheard_of", "training", "parameters"]))
        advice = (
            f"replace({field}=" if field in type(part).__frostleaf__.fields else "train(" if field == "training" else "replace("
        )
        with pytest.raises(FrozenInstanceError) as caught:
            setattr(part, field, mx.array(0))
        assert f"{type(part).__name__}.{field}" in str(caught.value)
        assert advice in str(caught.value)
        with pytest.raises(FrozenInstanceError) as caught:
            delattr(part, field)
        assert f"{type(part).__name__}.{field}" in str(caught.value)
        assert advice in str(caught.value)
    snapshot.assert_unchanged()


@law
@given(modules())
def test_the_containers_in_a_module_are_tuples_and_read_only_mappings(module: fl.Module) -> None:
    containers = [part for _, part in parts(module) if not isinstance(part, mx.array | fl.Module)]
    assert not any(isinstance(part, list | dict | set | bytearray) or hasattr(part, "append") for part in containers)
    for part in containers:
        if isinstance(part, MappingProxyType):
            with pytest.raises(TypeError, match="item assignment"):
                part["a"] = 1
        elif isinstance(part, tuple):
            with pytest.raises(TypeError, match="item assignment"):
                part[:] = ()


@law
@given(trees())
def test_what_a_module_was_made_of_can_change_without_changing_the_module(tree: Any) -> None:
    source = {"list": [tree], "dict": {"tree": tree}}
    module = Single(source)
    snapshot = Snapshot(module)
    source["list"].append(1)
    source["dict"]["more"] = 2
    source["new"] = 3
    snapshot.assert_unchanged()


# Every public method, with calls that succeed and calls that raise.

Call = Callable[[Any], Any]


def _drain(module: fl.Module) -> None:
    """Empty what the views return, to show that they are not the module's own."""
    for view in (
        module.parameters(),
        module.trainable_parameters(),
        module.children(),
        module.leaf_modules(),
        module.state,
    ):
        _empty(view)
    module.modules().clear()
    module.named_modules().clear()


def _empty(view: Any) -> None:
    for inner in view.values() if isinstance(view, dict) else view if isinstance(view, list) else ():
        _empty(inner)
    if isinstance(view, dict | list):
        view.clear()


def _fail(*_: Any) -> Any:
    raise RuntimeError("from the caller's function")


METHODS: dict[str, list[Call]] = {
    "apply": [
        lambda m: m.apply(lambda a: a + 1),
        lambda m: m.apply(lambda a: a + 1, lambda *_: True),
        lambda m: m.apply(_fail),
        lambda m: m.apply(lambda a: "no array"),
    ],
    "astype": [
        lambda m: m.astype(mx.float16),
        lambda m: m.astype(mx.float32, None),
        lambda m: m.astype("float16"),
        lambda m: m.astype(mx.float16, _fail),
    ],
    "at": [
        lambda m: m.at("*").get(),
        lambda m: m.at("**").paths(),
        lambda m: m.at("**").set(mx.array(0)),
        lambda m: m.at("*").set([1, {"a": 2}]),
        lambda m: m.at(mx.array).apply(lambda a: a[None]),
        lambda m: m.at(mx.array).apply(_fail),
        lambda m: m.at(_fail).get(),
        lambda m: m.at("**").astype(mx.bfloat16),
        lambda m: m.at("**").freeze(),
        lambda m: m.at("**").unfreeze(),
        lambda m: m.at("no.such.path").get(),
        lambda m: m.at(3),
    ],
    "children": [lambda m: m.children()],
    "eval": [lambda m: m.eval()],
    "filter_and_map": [
        lambda m: m.filter_and_map(lambda *_: True, lambda a: None),
        lambda m: m.filter_and_map(_fail),
        lambda m: m.filter_and_map(lambda *_: True, None, lambda *_: False),
    ],
    "freeze": [
        lambda m: m.freeze(),
        lambda m: m.freeze(recurse=False),
        lambda m: m.freeze(keys=["weight", "bias"]),
        lambda m: m.freeze(keys="no such key", strict=True),
    ],
    "is_module": [lambda m: m.is_module(m), lambda m: m.is_module(3)],
    "leaf_modules": [lambda m: m.leaf_modules()],
    "load_weights": [
        lambda m: m.load_weights(list(zip(fl.tree.paths(m.parameters()), fl.tree.leaves(m), strict=False))),
        lambda m: m.load_weights([("no.such.path", mx.array(0))]),
        lambda m: m.load_weights([(path, "no array") for path in fl.tree.paths(m.parameters())]),
        lambda m: m.load_weights([(path, mx.zeros((9, 9))) for path in fl.tree.paths(m.parameters())]),
        lambda m: m.load_weights([(path, mx.zeros((9, 9))) for path in fl.tree.paths(m.parameters())], strict=False),
        lambda m: m.load_weights("no such file.npz"),
        lambda m: m.load_weights("no such file.txt"),
    ],
    "map_modules": [
        lambda m: m.map_modules(lambda path, module: Empty()),
        lambda m: m.map_modules(lambda path, module: module.eval()),
        lambda m: m.map_modules(_fail),
    ],
    "modules": [lambda m: m.modules()],
    "named_modules": [lambda m: m.named_modules()],
    "parameters": [lambda m: m.parameters(), _drain],
    "replace": [
        lambda m: m.replace(**{name: mx.array(0) for name in type(m).__frostleaf__.children}),
        lambda m: m.replace(**{name: mx.array(0) for name in type(m).__frostleaf__.static}),
        lambda m: m.replace(unheard_of=1),
    ],
    "save_weights": [lambda m: m.save_weights("weights.txt"), lambda m: m.save_weights("no/such/folder/weights.npz")],
    "set_dtype": [lambda m: m.set_dtype(mx.float16), lambda m: m.set_dtype(16)],
    "state": [lambda m: m.state],
    "tie": [
        lambda m: m.tie({path: fl.tree.paths(m)[0] for path in fl.tree.paths(m)[1:]}),
        lambda m: m.tie({}),
        lambda m: m.tie({"no.such.path": "another"}),
        lambda m: m.tie(3),
    ],
    "train": [lambda m: m.train(), lambda m: m.train(False)],
    "trainable_parameter_filter": [
        lambda m: [m.trainable_parameter_filter(m, name, None) for name in m.__frostleaf__.fields]
    ],
    "trainable_parameters": [lambda m: m.trainable_parameters()],
    "training": [lambda m: m.training],
    "untie": [
        lambda m: m.untie(),
        lambda m: m.untie("no.such.path"),
        lambda m: m.tie({fl.tree.paths(m)[0]: fl.tree.paths(m)[-1]}).untie(fl.tree.paths(m)[0]),
    ],
    "unfreeze": [
        lambda m: m.unfreeze(),
        lambda m: m.unfreeze(recurse=False, keys="weight"),
        lambda m: m.unfreeze(keys="no such key", strict=True),
    ],
    "update": [
        lambda m: m.update({}),
        lambda m: m.update(fl.tree.map(lambda a: a[None], m.parameters())),
        lambda m: m.update({"unheard_of": 1}),
        lambda m: m.update(dict.fromkeys(type(m).__frostleaf__.fields, 1)),
        lambda m: m.update(dict.fromkeys(type(m).__frostleaf__.fields, 1), strict=False),
        lambda m: m.update(3),
    ],
    "update_modules": [
        lambda m: m.update_modules({}),
        lambda m: m.update_modules({name: Empty() for name in m.children()}),
        lambda m: m.update_modules({"unheard_of": Empty()}),
        lambda m: m.update_modules([1]),
    ],
    "valid_child_filter": [lambda m: [m.valid_child_filter(m, name, None) for name in type(m).__frostleaf__.fields]],
    "valid_parameter_filter": [lambda m: [m.valid_parameter_filter(m, name, None) for name in type(m).__frostleaf__.fields]],
    "with_frozen": [
        lambda m: m.with_frozen("**"),
        lambda m: m.with_frozen(fl.Module, frozen=False),
        lambda m: m.with_frozen("no.such.path"),
    ],
}  # fmt: skip


def test_each_public_method_of_module_is_in_the_list() -> None:
    assert {name for name in dir(fl.Module) if not name.startswith("_")} == METHODS.keys()


EXPECTED_ERRORS = (TypeError, ValueError, LookupError, RuntimeError, OSError)


def attempt(call: Call, argument: Any) -> None:
    with contextlib.suppress(*EXPECTED_ERRORS):
        call(argument)


@pytest.mark.filterwarnings("ignore:the model has another shape:frostleaf.UnmatchedWeightsWarning")
@pytest.mark.parametrize("name", METHODS)
def test_no_method_changes_its_receiver(name: str) -> None:
    @law_for_each
    @given(modules())
    def check(module: fl.Module) -> None:
        snapshot = Snapshot(module)
        for call in METHODS[name]:
            attempt(call, module)
            snapshot.assert_unchanged()

    check()


@law
@given(modules())
def test_special_methods_change_nothing(module: fl.Module) -> None:
    snapshot = Snapshot(module)
    assert repr(module)
    assert hash(module) == hash(module)
    assert module == module
    module.__reduce__()
    snapshot.assert_unchanged()


# The functions of fl.tree, each with a tree and with calls that raise.

TREE: dict[str, list[Call]] = {
    "allclose": [lambda t: fl.tree.allclose(t, t), lambda t: fl.tree.allclose(t, None)],
    "combine": [lambda t: fl.tree.combine(t, t), lambda t: fl.tree.combine([t], [t, t])],
    "diff": [lambda t: fl.tree.diff(t, t), lambda t: fl.tree.diff([t], (t,))],
    "equal": [lambda t: fl.tree.equal(t, t, [t])],
    "filter": [lambda t: fl.tree.filter(t, "**"), lambda t: fl.tree.filter(t, _fail)],
    "flatten": [lambda t: fl.tree.flatten(t)[0].clear()],
    "leaves": [lambda t: fl.tree.leaves(t).clear()],
    "map": [
        lambda t: fl.tree.map(lambda a: a + 1, t),
        lambda t: fl.tree.map(_fail, t),
        lambda t: fl.tree.map(_fail, [t], 1),
    ],
    "map_with_path": [lambda t: fl.tree.map_with_path(lambda p, a: p, t), lambda t: fl.tree.map_with_path(_fail, t)],
    "nbytes": [lambda t: fl.tree.nbytes(t)],
    "partition": [lambda t: fl.tree.partition(t, "**"), lambda t: fl.tree.partition(t, 3)],
    "paths": [lambda t: fl.tree.paths(t).clear()],
    "ravel": [lambda t: fl.tree.ravel(t)[1](fl.tree.ravel(t)[0]), lambda t: fl.tree.ravel(t)[1]({"x": mx.zeros(1)})],
    "reduce": [lambda t: fl.tree.reduce(lambda a, b: a, t), lambda t: fl.tree.reduce(_fail, t, 0)],
    "size": [lambda t: fl.tree.size(t)],
    "stack": [lambda t: fl.tree.stack([t, t]), lambda t: fl.tree.stack([t, [t]])],
    "structure": [lambda t: hash(fl.tree.structure(t))],
    "unflatten": [
        lambda t: fl.tree.unflatten(fl.tree.structure(t), fl.tree.leaves(t)),
        lambda t: fl.tree.unflatten(fl.tree.structure(t), [1] * 99),
    ],
    "unstack": [lambda t: fl.tree.unstack(t), lambda t: fl.tree.unstack(t, 9)],
}


def test_each_function_of_the_tree_module_is_in_the_list() -> None:
    assert {name for name in fl.tree.__all__ if not isinstance(getattr(fl.tree, name), type)} == TREE.keys()


@pytest.mark.parametrize("name", TREE)
def test_no_tree_function_changes_its_argument(name: str) -> None:
    @law_for_each
    @given(trees())
    def check(tree: Any) -> None:
        snapshot = Snapshot(tree)
        for call in TREE[name]:
            attempt(call, tree)
            snapshot.assert_unchanged()

    check()


@law
@given(modules())
def test_the_arguments_of_edits_stay_as_they_were(module: fl.Module) -> None:
    parameters = fl.tree.map(lambda a: a + 1, module.parameters())
    children = module.children()
    pairs = [(path, leaf) for path, leaf in zip(fl.tree.paths(parameters), fl.tree.leaves(parameters), strict=True)]
    keys = ["weight", "part0"]
    where = ["**", mx.array]
    snapshots = [Snapshot(each) for each in (parameters, children, pairs, keys, where)]
    after = module.update(parameters)
    _ = module.update_modules(children)
    _ = module.load_weights(pairs)
    _ = module.freeze(keys=keys)
    attempt(lambda m: m.with_frozen(where), module)
    for snapshot in snapshots:
        snapshot.assert_unchanged()
    # What the new module holds is its own as well.
    snapshot = Snapshot(after)
    _empty(parameters)
    snapshot.assert_unchanged()


@law
@given(modules())
def test_many_threads_can_edit_one_module(module: fl.Module) -> None:
    snapshot = Snapshot(module)
    expected = fl.tree.structure(module.eval().freeze())
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(fl.tree.structure(module.eval().freeze()) == expected)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    snapshot.assert_unchanged()
