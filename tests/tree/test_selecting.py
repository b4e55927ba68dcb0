"""Which paths a path or a glob matches."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.tree.selecting import matcher

ARRAY = mx.array(1)
PATHS = ["a", "b", "ab", "a.b", "a.b.c", "a.x.c", "a.x.y.c", "c", "layers.0.w", "layers.10.w", "a*", "a?"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("a", ["a"]),
        ("a.b", ["a.b"]),
        ("*", ["a", "b", "ab", "c", "a*", "a?"]),
        ("?", ["a", "b", "c"]),
        ("a*", ["a", "ab", "a*", "a?"]),
        ("a?", ["ab", "a*", "a?"]),
        ("*.b", ["a.b"]),
        ("a.*.c", ["a.b.c", "a.x.c"]),
        ("a.**.c", ["a.b.c", "a.x.c", "a.x.y.c"]),
        ("**.c", ["a.b.c", "a.x.c", "a.x.y.c", "c"]),
        ("**", PATHS),
        ("a.**", ["a", "a.b", "a.b.c", "a.x.c", "a.x.y.c"]),
        ("**.x.**", ["a.x.c", "a.x.y.c"]),
        ("layers.*.w", ["layers.0.w", "layers.10.w"]),
        ("layers.1*.w", ["layers.10.w"]),
        ("**.**.c", ["a.b.c", "a.x.c", "a.x.y.c", "c"]),
        ("[ab]", []),
        ("a|b", []),
        (".*", []),
        ("A", []),
        ("", []),
    ],
)
def test_a_glob_matches(glob: str, expected: list[str]) -> None:
    matches = matcher(glob)
    assert [path for path in PATHS if matches(tuple(path.split(".")), ARRAY)] == expected


@pytest.mark.parametrize("glob", ["a", "a.*", "a.**", "**", "**.c", "*", "a.**.c", "**.x.**", "layers.?.w"])
def test_a_glob_agrees_with_matching_name_by_name(glob: str) -> None:
    def agrees(names: list[str], parts: list[str]) -> bool:
        if not parts:
            return not names
        if parts[0] == "**":
            return any(agrees(names[count:], parts[1:]) for count in range(len(names) + 1))
        pattern = "".join(".*" if letter == "*" else "." if letter == "?" else re.escape(letter) for letter in parts[0])
        return bool(names) and re.fullmatch(pattern, names[0]) is not None and agrees(names[1:], parts[1:])

    matches = matcher(glob)
    for path in PATHS:
        names = path.split(".")
        assert matches(tuple(names), ARRAY) is agrees(names, glob.split(".")), path


def test_a_glob_that_ends_in_two_stars_selects_arrays_only() -> None:
    assert not matcher("a.**")(("a", "b"), [ARRAY])
    assert matcher("a.**")(("a", "b"), ARRAY)
    assert matcher("a.*")(("a", "b"), [ARRAY])


def test_the_root_has_no_name() -> None:
    assert not matcher("*")((), ARRAY)
    assert not matcher("")((), ARRAY)
    assert matcher("**")((), ARRAY)
    assert not matcher("**")((), [ARRAY])
    assert matcher(list)((), [ARRAY])


def test_numbers_in_a_path_are_names() -> None:
    assert matcher("a.0")(("a", 0), ARRAY)
    assert not matcher("a.0")(("a", 1), ARRAY)


ADVERSE = ["*a*a*a*a*a*a*a*a*b", "?".join("*" * 30) + "b", "a*" * 40 + "b"]


@pytest.mark.parametrize("glob", ADVERSE)
def test_the_stars_of_a_glob_are_never_tried_in_all_ways(glob: str) -> None:
    matches = matcher(f"layers.{glob}")
    assert not matches(("layers", "a" * 200), ARRAY)
    assert matches(("layers", "a" * 200 + "b"), ARRAY)


def test_the_double_stars_of_a_glob_are_never_tried_in_all_ways() -> None:
    matches = matcher(".".join(["**.a"] * 30) + ".**.b")
    assert not matches(("a",) * 200, ARRAY)
    assert matches((*("a",) * 200, "b"), ARRAY)


@pytest.mark.parametrize(
    ("glob", "name", "expected"),
    [
        ("[ab]*", "[ab]c", True), ("[ab]*", "a", False), ("[!a]?", "[!a]x", True), ("(*", "(x", True), ("*\n?", "a\nb", True),
        ("*", "a\nb", True), ("a?", "A?", False), ("?*", "", False), ("*", "", True), ("a**b", "axyb", True),
        ("*|*", "a|b", True),
    ],
)  # fmt: skip
def test_only_stars_and_question_marks_are_special_in_a_glob(glob: str, name: str, expected: bool) -> None:
    assert matcher(f"d.{glob}")(("d", name), ARRAY) is expected


CELL = """
import frostleaf as fl, mlx.core as mx
class Lyr(fl.Module):
    w: mx.array
    class Inner(fl.Module):
        w: mx.array
class Sub(Lyr): pass
"""
BUILD_AGAIN = r"defined again is of the old class: build it again, or .*new\.update\(old\.parameters\(\)\)"


@pytest.fixture
def run_cell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return the function that runs the cell of a notebook once more, and returns the notebook."""
    notebook = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", notebook)

    def run(cell: str = CELL) -> Any:
        exec(cell, notebook.__dict__)
        return notebook

    return run


SELECTS: dict[str, Callable[[Any, Any], Any]] = {
    "at": lambda net, cls: fl.nn.Sequential(*net.values()).at(cls).paths(),
    "at several": lambda net, cls: fl.nn.Sequential(*net.values()).at(["layers.1", cls]).set(None),
    "partition": fl.tree.partition,
    "filter": lambda net, cls: fl.tree.filter(net, (cls, "**.bias")),
    "multi": lambda net, cls: fl.optim.multi({cls: fl.optim.SGD(0.0), "**": fl.optim.SGD(0.1)}).init(net),
    "masked": lambda net, cls: fl.optim.masked(fl.optim.SGD(0.0), cls).init(net),
}


@pytest.mark.parametrize("select", SELECTS.values(), ids=SELECTS)
@pytest.mark.parametrize("name", ["Lyr", "Sub", "Inner"])
def test_a_class_that_was_defined_again_is_not_passed_over(run_cell: Any, select: Any, name: str) -> None:
    def cls(notebook: Any) -> Any:
        return notebook.Lyr.Inner if name == "Inner" else getattr(notebook, name)

    net = {"a": cls(run_cell())(mx.ones(2)), "b": fl.nn.Linear(2, 2)}
    again = cls(run_cell())
    wanted = again.__mro__[1] if name == "Sub" else again  # an instance of a subclass counts too
    message = rf"(a|layers\.0) is of another definition of {wanted.__name__}.*{BUILD_AGAIN}"
    with pytest.raises(LookupError, match=message):
        select(net, wanted)
    select({"a": again(mx.ones(2)), "b": fl.nn.Linear(2, 2)}, wanted)


def _made_in_a_function() -> Any:
    class Lyr(fl.Module):
        w: mx.array

    return Lyr


def test_classes_of_one_name_that_are_both_in_use_are_told_apart(run_cell: Any) -> None:
    one, other = _made_in_a_function(), _made_in_a_function()
    assert fl.nn.Sequential(one(ARRAY), other(ARRAY)).at(one).paths() == ["layers.0"]
    first, later = run_cell().Lyr, run_cell("class Lyr(Lyr): pass").Lyr
    assert fl.nn.Sequential(first(ARRAY), later(ARRAY)).at(later).paths() == ["layers.1"]
    assert fl.tree.filter({"a": first(ARRAY)}, later)["a"].w is None
    mlx_name = run_cell("class Linear(fl.Module):\n    w: mx.array").Linear
    assert fl.nn.Sequential(mlx_name(ARRAY), fl.nn.Linear(2, 2)).at(mlx_name).paths() == ["layers.0"]


ALIGNED: dict[str, Callable[[Any, Any], Any]] = {
    "map": lambda old, new: fl.tree.map(mx.add, [new], [old]),
    "combine": lambda old, new: fl.tree.combine([new], [old]),
    "stack": lambda old, new: fl.tree.stack([new, old]),
    "update": lambda old, new: fl.optim.SGD(0.1).update([new], [old], fl.optim.SGD(0.1).init([new])),
}


@pytest.mark.parametrize("function", ALIGNED.values(), ids=ALIGNED)
def test_trees_from_before_and_after_a_class_was_defined_again(run_cell: Any, function: Any) -> None:
    old = run_cell().Lyr(mx.ones(2))
    new = run_cell().Lyr(mx.zeros(2))
    with pytest.raises(ValueError, match=f"(?s)another.*Lyr.*{BUILD_AGAIN}"):
        function(old, new)
    function(new.update(old.parameters()), new)
    same_name = run_cell("class Linear(fl.Module):\n    weight: mx.array\n    bias: mx.array").Linear(ARRAY, ARRAY)
    with pytest.raises(ValueError, match="Linear") as caught:
        function(same_name, fl.nn.Linear(2, 2))
    assert "build it again" not in str(caught.value)


class Tied(fl.Module):
    a: Any
    b: Any
    c: Any = None


def tied() -> Any:
    return Tied(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2, bias=False), [fl.nn.Embedding(2, 2)]).tie(
        {"b.weight": "a.weight", "c.0.weight": "a.weight"}
    )


SGD = fl.optim.SGD(0.1)
PASSES: dict[str, Callable[[Any, Any], Any]] = {
    "multi": lambda model, where: fl.optim.multi({where: SGD, "**": SGD}).init(model),
    "MultiOptimizer": lambda model, where: fl.optim.MultiOptimizer([SGD, SGD], [where]).init(model),
    "masked": lambda model, where: fl.optim.masked(SGD, where).init(model),
    "partition": fl.tree.partition,
    "filter": fl.tree.filter,
}


@pytest.mark.parametrize("select", PASSES)
@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("b.weight", "It"), ("b", "'b.weight'"), (("a.bias", "b.weight"), "It"), ("c", "'c.0.weight'"), ("b.**", "'b.weight'"),
        ("b.*", "'b.weight'"), ("c.**.weight", "'c.0.weight'"), (fl.nn.Embedding, "'c.0.weight'"),
    ],
)  # fmt: skip
def test_a_selection_of_tied_places_only_says_where_the_array_is(select: str, where: Any, place: str) -> None:
    if select in ("partition", "filter") and (isinstance(where, type) or "*" in where):
        assert fl.tree.leaves(fl.tree.filter(tied(), where)) == []
        return
    with pytest.raises(ValueError, match=rf"selects no array of the Tied\. {place} is tied to 'a\.weight': select that"):
        PASSES[select](tied(), where)


@pytest.mark.parametrize("select", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize(
    "where", ["a.weight", "**.weight", ("a", "*.weight"), fl.nn.Linear, "a", lambda path, array: path == "a.weight"]
)
def test_a_selection_that_has_the_source_of_what_is_tied_works(select: Any, where: Any) -> None:
    select(tied(), where)


@pytest.mark.parametrize("where", ["b.weight", "b.**", "c.*.weight", ["a", "c.**"]])
def test_at_tied_places_only_says_where_the_array_is(where: Any) -> None:
    with pytest.raises(LookupError, match=r"'(b|c\.0)\.weight' is tied to 'a\.weight': select that"):
        tied().at(where).paths()


class Cell(NamedTuple):
    h: Any
    c: Any = None


def with_cell() -> Any:
    return Tied(Cell(mx.ones(2), mx.ones(2)), [Cell(fl.nn.Linear(2, 2))])


NAMED = [
    ("a.h", "a.h", "a.0"), ("b.0.h.weight", "b.0.h.weight", "b.0.0.weight"), ("b.0.h", "b.0.h", "b.0.0"), ("*.c", "a.c", "a.1"),
    ("**.h.bias", "b.0.h.bias", "b.0.0.bias"), (("b.**", "a.c"), "a.c", "a.1"), (["a.h", "a.1"], "a.h", "a.0"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "path"), NAMED)
def test_the_fields_of_a_named_tuple_go_by_their_numbers_and_that_is_said(where: Any, name: str, path: str) -> None:
    message = re.escape(f"{name!r} is {path!r}, since the fields of a named tuple go by their numbers")
    with pytest.raises(LookupError, match=message):
        with_cell().at(where).get()
    where = tuple(where) if isinstance(where, list) else where
    for select, call in PASSES.items():
        if select in ("partition", "filter") and "*" in where:
            continue
        with pytest.raises(ValueError, match=message):
            call(with_cell(), where)


@pytest.mark.parametrize("select", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("where", ["a.0", "b.*.0.weight", "b"])
def test_the_fields_of_a_named_tuple_are_selected_by_their_numbers(select: Any, where: str) -> None:
    select(with_cell(), where)
    assert len(with_cell().at(where)) == 1


SELECTIONS: dict[str, Callable[[Any], Any]] = {
    "at": lambda where: fl.nn.Linear(2, 2).at(where),
    "partition": lambda where: fl.tree.partition(fl.nn.Linear(2, 2), where),
    "masked": lambda where: fl.optim.masked(SGD, where),
    "MultiOptimizer": lambda where: fl.optim.MultiOptimizer([SGD], [where]),
}


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("where", [lambda model: model.weight, lambda: True, len, lambda path, array, *, more: True])
def test_a_function_that_is_not_one_of_path_and_array_says_how_it_is_called(select: Any, where: Any) -> None:
    with pytest.raises(TypeError, match=r"can't be called with two arguments: .* called with \(path, array\) .* its path"):
        select(where)


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize(
    "where", [{"weight": True, "bias": False}, fl.tree.map(lambda array: array.ndim > 1, fl.nn.Linear(2, 2))]
)
def test_a_tree_of_bools_is_no_selection(select: Any, where: Any) -> None:
    with pytest.raises(TypeError, match=r"can't select by .*, a tree: none of bools is taken\. Give a path .*, a glob"):
        select(where)
