"""Law 4: an edit shares every array and every module that it did not touch, and one that changes nothing returns self."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from laws.strategies import (
    Interleaved,
    Kinds,
    Single,
    arrays,
    arrays_of,
    assert_shares,
    identical,
    law,
    law_for_each,
    modules,
    parts,
)

import frostleaf as fl

Path = tuple[Any, ...]


def name(path: Path) -> str:
    return ".".join(map(str, path))


def touches(paths: set[Path], path: Path) -> bool:
    """Return whether one of the paths leads to the given one or below it."""
    return any(each[: len(path)] == path for each in paths)


@st.composite
def selections(draw: st.DrawFn) -> tuple[fl.Module, set[Path]]:
    """A module and the paths of some of its arrays, at least one."""
    inner = draw(modules())
    module = Interleaved(a=draw(arrays()), b=None, c=inner, d="static", e=draw(st.sampled_from([inner, [inner, None]])))
    paths = [path for path, _ in arrays_of(module)]
    return module, draw(st.sets(st.sampled_from(paths), min_size=1))


def selecting(paths: set[Path]) -> Callable[[str, mx.array], bool]:
    names = {name(path) for path in paths}
    return lambda path, _: path in names


@law
@given(selections())
def test_set_replaces_what_is_selected_and_shares_the_rest(selection: tuple[fl.Module, set[Path]]) -> None:
    module, paths = selection
    new = mx.zeros(7)
    after = module.at(selecting(paths)).set(new)
    assert_shares(module, after, paths)
    now = dict(parts(after))
    assert all(now[path] is new for path in paths)


@law
@given(selections())
def test_apply_to_a_selection_shares_the_rest(selection: tuple[fl.Module, set[Path]]) -> None:
    module, paths = selection
    after = module.at([name(path) for path in paths]).apply(lambda part: part[None])
    assert_shares(module, after, paths)
    before, now = dict(parts(module)), dict(parts(after))
    assert all(now[path].ndim == before[path].ndim + 1 for path in paths)


@law
@given(selections())
def test_setting_what_is_there_returns_self(selection: tuple[fl.Module, set[Path]]) -> None:
    module, paths = selection
    path = min(paths, key=str)
    selected = module.at(name(path))
    assert selected.set(selected.get()) is module
    assert module.at(selecting(paths)).apply(lambda part: part) is module
    assert module.at(type(module)).apply(lambda part: part) is module


@law
@given(selections())
def test_freezing_a_selection_touches_no_array_and_no_other_module(selection: tuple[fl.Module, set[Path]]) -> None:
    module, paths = selection
    module = module.unfreeze()
    everything = module.freeze()
    edits = [(module, module.at(selecting(paths)).freeze()), (everything, everything.at(selecting(paths)).unfreeze())]
    for module, after in edits:
        for (path, one), (_, other) in zip(parts(module), parts(after), strict=True):
            if isinstance(one, mx.array | fl.Module) and (isinstance(one, mx.array) or not touches(paths, path)):
                assert other is one, path
    frozen = module.with_frozen(selecting(paths))
    assert frozen.with_frozen(selecting(paths)) is frozen
    free = module.with_frozen(selecting(paths), frozen=False)
    assert free.with_frozen(selecting(paths), frozen=False) is free


@law
@given(selections())
def test_update_shares_what_it_does_not_name(selection: tuple[fl.Module, set[Path]]) -> None:
    module, paths = selection
    saved = module.filter_and_map(lambda *_: True)
    new: dict[int, mx.array] = {}

    def put(value: Any, path: Path) -> Any:
        if isinstance(value, mx.array):
            if path not in paths:
                return value
            return new.setdefault(len(new), value[None])
        if isinstance(value, dict):
            # Keys of what has nothing to be updated in it can be left out.
            below = {key: put(item, (*path, key)) for key, item in value.items()}
            return {key: item for key, item in below.items() if touches(paths, (*path, key))}
        if isinstance(value, list):
            return [put(item, (*path, index)) for index, item in enumerate(value)]
        return value

    after = module.update(put(saved, ()), strict=False)
    assert_shares(module, after, paths)
    now = dict(parts(after))
    assert all(now[path].ndim == dict(parts(module))[path].ndim + 1 for path in paths)


@pytest.mark.filterwarnings("ignore:nothing was loaded, as there are no weights:frostleaf.UnmatchedWeightsWarning")
@pytest.mark.filterwarnings("ignore:the model has another shape:frostleaf.UnmatchedWeightsWarning")
@law
@given(selections())
def test_load_weights_shares_what_it_does_not_name(selection: tuple[fl.Module, set[Path]]) -> None:
    module, paths = selection
    saved = set(fl.tree.paths(module.parameters()))
    named = {path for path in paths if name(path) in saved}
    weights = [(name(path), part[None]) for path, part in arrays_of(module) if path in named]
    after = module.load_weights(weights, strict=False)
    now = dict(parts(after))
    assert all(now[path].ndim == dict(parts(module))[path].ndim + 1 for path in named)
    assert_shares(module, after, named)


@pytest.mark.filterwarnings("ignore:nothing was loaded, as there are no weights:frostleaf.UnmatchedWeightsWarning")
@law
@given(modules())
def test_loading_the_weights_that_are_there_returns_self(module: fl.Module) -> None:
    weights = [(name(path), part) for path, part in arrays_of(module)]
    saved = set(fl.tree.paths(module.parameters()))
    assert module.load_weights([pair for pair in weights if pair[0] in saved]) is module
    assert module.load_weights(weights, strict=False) is module
    assert module.load_weights([], strict=False) is module


@law
@given(modules(), st.data())
def test_map_modules_shares_the_modules_that_are_kept(module: fl.Module, data: st.DataObject) -> None:
    inner = [path for path, part in parts(module) if isinstance(part, fl.Module)]
    chosen = data.draw(st.sets(st.sampled_from(inner)))
    new = Single(mx.array(7.0))
    after = module.map_modules(lambda path, each: new if path in {name(one) for one in chosen} else None)
    if () in chosen:
        assert after is new
        return
    assert_shares(module, after, chosen)
    outermost = [path for path in chosen if not any(path[: len(each)] == each and path != each for each in chosen)]
    assert all(dict(parts(after))[path] is new for path in outermost)
    if not chosen:
        assert after is module


@law
@given(modules(), st.data())
def test_update_modules_shares_the_modules_that_are_not_named(module: fl.Module, data: st.DataObject) -> None:
    module = Single([module, None, {"a": module}])
    inner = [path for path, part in parts(module) if isinstance(part, fl.Module) and path]
    chosen = data.draw(st.sampled_from(inner))
    new = Single(mx.array(7.0))

    def around(value: Any, path: Path) -> Any:
        if not path:
            return new
        entry, *rest = path
        if isinstance(value, tuple | list):
            return [*[{}] * entry, around(value[entry], tuple(rest))]
        inside = getattr(value, entry) if isinstance(value, fl.Module) else value[entry]
        return {entry: around(inside, tuple(rest))}

    after = module.update_modules(around(module, chosen))
    assert_shares(module, after, {chosen})
    assert dict(parts(after))[chosen] is new


@law
@given(modules(), st.booleans())
def test_switching_the_mode_touches_no_array_and_no_module_that_is_in_it(module: fl.Module, mode: bool) -> None:
    after = module.train(mode)
    for (path, one), (_, other) in zip(parts(module), parts(after), strict=True):
        if isinstance(one, mx.array):
            assert other is one, path
        elif isinstance(one, fl.Module):
            switched = [part for _, part in parts(one) if isinstance(part, fl.Module) and part.training is not mode]
            assert (other is one) is (not switched), path
            assert other.training is mode


@law
@given(modules(), st.sampled_from([None, "weight", ["part0", "missing"]]), st.booleans())
def test_freezing_touches_no_array(module: fl.Module, keys: Any, recurse: bool) -> None:
    for method in (module.freeze, module.unfreeze):
        after = method(keys=keys, recurse=recurse)
        for (path, one), (_, other) in zip(arrays_of(module), arrays_of(after), strict=True):
            assert other is one, path
        again = after.freeze if method == module.freeze else after.unfreeze
        assert again(keys=keys, recurse=recurse) is after


@law
@given(selections(), st.booleans())
def test_apply_shares_what_the_function_returns_unchanged(selection: tuple[fl.Module, set[Path]], private: bool) -> None:
    def all_arrays(module: fl.Module, key: str, value: Any) -> bool:
        return isinstance(value, mx.array | fl.Module | dict | list)

    module, paths = selection
    chosen = {id(part) for path, part in arrays_of(module) if path in paths}
    after = module.apply(lambda part: part[None] if id(part) in chosen else part, all_arrays if private else None)
    saved = set(fl.tree.paths(module.parameters()))
    # An array that stands at two places is selected at both.
    touched = {path for path, part in arrays_of(module) if id(part) in chosen and (private or name(path) in saved)}
    assert_shares(module, after, touched)
    assert all(dict(parts(after))[path].ndim == dict(parts(module))[path].ndim + 1 for path in touched)


@law
@given(modules(), st.data())
def test_replace_shares_the_other_fields(module: fl.Module, data: st.DataObject) -> None:
    assume(type(module).__frostleaf__.children)
    field = data.draw(st.sampled_from(type(module).__frostleaf__.children))
    new = mx.array(7.0)
    after = module.replace(**{field: new})
    assert getattr(after, field) is new
    for other in type(module).__frostleaf__.fields:
        assert other == field or getattr(after, other) is getattr(module, other)
    assert (after.training, type(after)) == (module.training, type(module))


NOTHING: dict[str, Callable[[fl.Module], fl.Module]] = {
    "replace nothing": lambda module: module.replace(),
    "replace by the same": lambda module: module.replace(
        **{field: getattr(module, field) for field in type(module).__frostleaf__.fields}
    ),
    "apply the identity": lambda module: module.apply(lambda part: part),
    "apply to nothing": lambda module: module.apply(mx.zeros_like, lambda *_: False),
    "train in the same mode": lambda module: module.train().train(),
    "evaluate twice": lambda module: module.eval().eval(),
    "update with nothing": lambda module: module.update({}),
    "update with its parameters": lambda module: module.update(module.parameters(), strict=False),
    "update with itself": lambda module: module.update(module, strict=False),
    "update no modules": lambda module: module.update_modules({}),
    "update with its children": lambda module: module.update_modules(module.children()),
    "map modules to None": lambda module: module.map_modules(lambda path, each: None),
    "map modules to themselves": lambda module: module.map_modules(lambda path, each: each),
    "cast nothing": lambda module: module.astype(mx.float16, lambda dtype: False),
    "freeze twice": lambda module: module.freeze().freeze(),
    "unfreeze twice": lambda module: module.unfreeze().unfreeze(),
    "freeze a key that is not there": lambda module: module.freeze(keys="missing"),
    "load nothing": lambda module: module.load_weights([], strict=False),
}
# What is changed first, and then not changed again.
FIRST = {
    "train in the same mode": lambda module: module.train(),
    "evaluate twice": lambda module: module.eval(),
    "freeze twice": lambda module: module.freeze(),
    "unfreeze twice": lambda module: module.unfreeze(),
}


@pytest.mark.filterwarnings("ignore:nothing was loaded, as there are no weights:frostleaf.UnmatchedWeightsWarning")
@pytest.mark.parametrize("edit", NOTHING)
def test_an_edit_that_changes_nothing_returns_self(edit: str) -> None:
    @law_for_each
    @given(modules())
    def check(module: fl.Module) -> None:
        module = FIRST.get(edit, lambda each: each)(module)
        assert NOTHING[edit](module) is module

    check()


@law
@given(modules())
def test_one_object_at_two_places_can_be_edited_at_one_of_them(module: fl.Module) -> None:
    pair = Kinds(weight=module, seen=module, table=None, hidden=None, size=1)
    after = pair.at("weight").set(None)
    assert after.weight is None
    assert after.seen is module
    assert identical(pair.at("seen").set(None).weight, module)


class Copying(fl.Module):
    """A module whose converters make a new object each time they are asked."""

    weight: mx.array = fl.parameter(converter=lambda value: mx.array(value) + 1)
    bias: Any = None
    size: int = fl.static(default=3, converter=lambda value: value * 2)


EDITS: dict[str, Callable[[Copying], Copying]] = {
    "replace": lambda module: module.replace(bias=mx.zeros(2)),
    "set": lambda module: module.at("bias").set(mx.zeros(2)),
    "apply": lambda module: module.apply(lambda part: part + 1, lambda module, key, value: key == "bias"),
    "astype": lambda module: module.at("bias").astype(mx.float16),
    "update": lambda module: module.update({"bias": mx.zeros(2)}),
    "load_weights": lambda module: module.load_weights([("bias", mx.zeros(2))], strict=False),
    "freeze": lambda module: module.freeze(keys="bias"),
    "with_frozen": lambda module: module.with_frozen("bias"),
    "eval": lambda module: module.eval(),
    "map": lambda module: fl.tree.map(lambda leaf: leaf, module.replace(bias=mx.zeros(2))),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_does_not_convert_again_what_it_does_not_touch(edit: str) -> None:
    module = Copying([1.0, 2.0], mx.ones(2))
    after = EDITS[edit](module)
    assert after is not module
    assert after.weight is module.weight
    assert after.size == module.size == 6


def test_replacing_a_field_by_what_is_in_it_does_not_convert_it_again() -> None:
    module = Copying([1.0, 2.0])
    assert module.replace(weight=module.weight, size=module.size) is module
