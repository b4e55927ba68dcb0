"""model.at(where): what each kind of selection selects, what can be done with it, and what is said when it selects nothing."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import pytest
from shown import shown

import frostleaf as fl
from frostleaf.edits.selection import Selection
from frostleaf.tree import selecting, walk


class Linear(fl.Module):
    weight: mx.array
    bias: Any = None
    size: Any = fl.static(default=2)


class Pair(NamedTuple):
    left: Any
    right: Any


class Net(fl.Module):
    layers: Any
    table: Any
    head: Any
    rates: Any = fl.static(default=(0.1, {"a": 0.2}))
    seen: Any = fl.buffer(factory=lambda: mx.array(0))
    _hidden: Any = None


def linear() -> Linear:
    return Linear(mx.ones((2, 2)), mx.zeros(2))


def net() -> Net:
    return Net([linear(), linear(), None], {"b": linear(), "a": [mx.ones(1), 3]}, Pair(linear(), mx.ones(3)))


NET = net()
WEIGHTS = ["layers.0.weight", "layers.1.weight", "table.b.weight", "head.0.weight"]
BIASES = [path.replace("weight", "bias") for path in WEIGHTS]
LINEARS = [path.removesuffix(".weight") for path in WEIGHTS]
ARRAYS = [
    "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "table.b.weight", "table.b.bias", "table.a.0",
    "head.0.weight", "head.0.bias", "head.1", "seen",
]  # fmt: skip

SELECTIONS: list[tuple[Any, list[str]]] = [
    ("layers", ["layers"]),
    ("layers.0", ["layers.0"]),
    ("layers.0.weight", ["layers.0.weight"]),
    ("layers.2", ["layers.2"]),
    ("layers.0.size", ["layers.0.size"]),
    ("table.a.1", ["table.a.1"]),
    ("rates", ["rates"]),
    ("rates.1.a", ["rates.1.a"]),
    ("_hidden", ["_hidden"]),
    ("seen", ["seen"]),
    ("head.1", ["head.1"]),
    ("*", ["layers", "table", "head", "rates", "seen", "_hidden"]),
    ("layers.*", ["layers.0", "layers.1", "layers.2"]),
    ("layers.*.weight", ["layers.0.weight", "layers.1.weight"]),
    ("*.*.weight", WEIGHTS),
    ("**.weight", WEIGHTS),
    ("**", ARRAYS),
    ("layers.**", ARRAYS[:4]),
    ("layers.0.**", ARRAYS[:2]),
    ("**.0", ["layers.0", "table.a.0", "head.0", "rates.0"]),
    ("layers.?.bias", ["layers.0.bias", "layers.1.bias"]),
    ("l*s.1", ["layers.1"]),
    ("table.**.weight", ["table.b.weight"]),
    ("table.**.b", ["table.b"]),
    (Linear, LINEARS),
    (mx.array, ARRAYS),
    (Net, [""]),
    (fl.Module, [""]),
    (Pair, ["head"]),
    (tuple, ["layers", "table.a", "head", "rates"]),
    (MappingProxyType, ["table", "rates.1"]),
    (float, ["rates.0", "rates.1.a"]),
    (lambda path, array: path.endswith("bias"), BIASES),
    (lambda path, array: array.ndim == 2, WEIGHTS),
    (lambda path, array: True, ARRAYS),
    (["layers.0", "head.1"], ["layers.0", "head.1"]),
    (("head.1", "layers.0"), ["layers.0", "head.1"]),
    ({"head.1"}, ["head.1"]),
    ([Linear, "seen", lambda path, array: array.shape == (3,)], [*LINEARS, "head.1", "seen"]),
    ([["layers.0"], ["layers.1"]], ["layers.0", "layers.1"]),
    (["layers", "layers.0", "layers.0.weight"], ["layers"]),
    (["layers.0.weight", "layers.0"], ["layers.0"]),
    ([Linear, "**"], ["layers.0", "layers.1", "table.b", "table.a.0", "head.0", "head.1", "seen"]),
]


@pytest.mark.parametrize(("where", "expected"), SELECTIONS, ids=[shown(where) for where, _ in SELECTIONS])
def test_a_selection_selects(where: Any, expected: list[str]) -> None:
    assert sorted(NET.at(where).paths()) == sorted(expected)


@pytest.mark.parametrize(("where", "expected"), SELECTIONS, ids=[shown(where) for where, _ in SELECTIONS])
def test_the_selected_values_are_those_at_the_paths(where: Any, expected: list[str]) -> None:
    found = NET.at(where).get()
    if isinstance(where, str) and not set("*?") & set(where):
        found = {where: found}
    assert sorted(found) == sorted(expected)
    for path, value in found.items():
        assert value is reached(NET, path)


def reached(tree: Any, path: str) -> Any:
    for entry in path.split(".") if path else ():
        if isinstance(tree, fl.Module):
            tree = getattr(tree, entry)
        elif isinstance(tree, tuple):
            tree = tree[int(entry)]
        else:
            tree = tree[entry]
    return tree


@pytest.mark.parametrize(("where", "expected"), SELECTIONS, ids=[shown(where) for where, _ in SELECTIONS])
def test_what_is_set_stands_at_each_selected_path_and_nowhere_else(where: Any, expected: list[str]) -> None:
    new = "something new"
    after = NET.at(where).set(new)
    for path in expected:
        assert reached(after, path) == new
    if expected != [""]:
        kept = [path for path in ARRAYS if not any((path + ".").startswith(each + ".") for each in expected)]
        assert all(reached(after, path) is reached(NET, path) for path in kept)
        assert type(after.head) is Pair or "head" in expected


@pytest.mark.parametrize("where", ["layers.0.weight", "layers.*.weight", Linear, mx.array], ids=shown)
def test_apply_is_called_with_each_part_and_its_result_takes_the_place(where: Any) -> None:
    seen: list[Any] = []
    after = NET.at(where).apply(lambda part: seen.append(part) or (part, "applied"))
    paths = NET.at(where).paths()
    assert [id(part) for part in seen] == [id(reached(NET, path)) for path in paths]
    assert all(reached(after, path)[1] == "applied" for path in paths)


def test_a_static_field_can_be_read_and_set_by_its_path() -> None:
    model = net()
    assert model.at("layers.0.size").get() == 2
    after = model.at("layers.*.size").set([5, 6])
    assert after.layers[0].size == (5, 6)
    assert after.layers[0].weight is model.layers[0].weight
    assert fl.tree.structure(after) != fl.tree.structure(model)
    assert model.at("rates.1.a").set(0.7).rates == (0.1, {"a": 0.7})


def test_an_array_can_not_be_set_into_a_static_field() -> None:
    with pytest.raises(TypeError, match=r"Linear\.size is a static field and was given an array"):
        net().at("layers.0.size").set(mx.array(1))
    with pytest.raises(TypeError, match=r"Net\.rates is a static field and was given an array"):
        net().at("rates.0").set(mx.array(1))


def test_none_can_be_selected_by_its_path_and_filled() -> None:
    new = mx.ones(1)
    after = net().at("layers.2").set(new).at("_hidden").set({"a": [new]})
    assert after.layers[2] is new
    assert after._hidden["a"] == (new,)
    assert net().at("layers.2").get() is None


def test_where_one_selected_part_lies_in_another_the_outer_one_is_changed_once() -> None:
    calls: list[Any] = []
    _ = NET.at(["layers", "layers.0", mx.array]).apply(lambda part: calls.append(part) or part)
    assert NET.layers in calls
    assert not any(part is NET.layers[0].weight for part in calls)
    assert len(calls) == len(NET.at(["layers", mx.array]).paths())


def test_what_is_put_in_is_not_looked_into_again() -> None:
    layer = linear()
    outer = Net([layer], {}, None)
    after = outer.at(Linear).apply(lambda part: Net([part], {}, None))
    assert after.layers[0].layers[0] is layer


def test_astype_casts_what_is_selected() -> None:
    after = NET.at("layers").astype(mx.float16)
    assert {leaf.dtype for leaf in fl.tree.leaves(after.layers)} == {mx.float16}
    assert after.table is NET.table
    assert NET.at("seen").astype(mx.float16) is NET
    assert NET.at("seen").astype(mx.float16, None).seen.dtype == mx.float16
    assert NET.at(["seen", "head.1"]).astype(mx.int8, lambda dtype: dtype == mx.int32).head is NET.head


def test_freeze_and_unfreeze_change_what_is_trainable() -> None:
    after = NET.at("**.weight").freeze()
    assert sorted(fl.tree.paths(after.trainable_parameters())) == sorted([*BIASES, "table.a.0", "head.1"])
    assert fl.tree.structure(after.at(WEIGHTS).unfreeze()) == fl.tree.structure(NET)


def test_a_selection_can_be_kept_and_used_again() -> None:
    selection = NET.at("layers.0.bias")
    assert isinstance(selection, Selection)
    assert selection.get() is selection.get()
    assert selection.set(mx.ones(1)).layers[0].bias.tolist() == [1.0]
    assert selection.get() is NET.layers[0].bias


def test_selections_can_be_chained() -> None:
    after = NET.at("layers.0.bias").set(None).at("layers.1.bias").set(None).at("seen").apply(lambda seen: seen + 1)
    assert after.layers[0].bias is after.layers[1].bias is None
    assert after.seen.item() == 1


def test_a_predicate_is_asked_about_arrays_only_with_their_paths() -> None:
    asked: list[Any] = []
    NET.at(lambda path, array: asked.append((path, array)) or True).paths()
    assert [path for path, _ in asked] == ARRAYS
    assert all(isinstance(array, mx.array) for _, array in asked)


def test_each_of_several_predicates_is_asked_about_each_array_once() -> None:
    asked: list[tuple[int, str]] = []

    def predicate(number: int, answer: Any) -> Any:
        return lambda path, array: asked.append((number, path)) or answer(path)

    first, second = predicate(1, lambda path: path == "seen"), predicate(2, lambda path: path == "layers.0.weight")
    NET.at(["layers", first, second, "table.b"]).get()
    assert len(asked) == len(set(asked))
    assert {path for number, path in asked if number == 1} == {*ARRAYS}


# Costs, counted in nodes that are opened


def opened(monkeypatch: pytest.MonkeyPatch, function: Any) -> int:
    count = 0

    def counting(*args: Any) -> Any:
        nonlocal count
        count += 1
        return level(*args)

    level = walk.field_level
    with monkeypatch.context() as patch:
        patch.setattr(walk, "field_level", counting)
        patch.setattr(selecting, "field_level", counting)
        function()
    return count


MANY = Net([linear() for _ in range(100)], {"a": linear(), "a.b": linear(), 3: linear()}, None)


@pytest.mark.parametrize(
    ("where", "most"), [("layers.50.weight", 3), ("layers", 1), ("table.a.b", 4), ("table.a.b.bias", 4), ("table.3.weight", 3)]
)
def test_a_path_is_followed(monkeypatch: pytest.MonkeyPatch, where: str, most: int) -> None:
    assert opened(monkeypatch, MANY.at(where).get) <= most


USES = {
    **{name: getattr(Selection, name) for name in ("get", "freeze", "unfreeze", "paths")},
    "set": lambda selection: selection.set(mx.ones((2, 2))),
    "astype": lambda selection: selection.astype(mx.float16),
    "with_frozen": lambda selection: selection._tree.with_frozen(selection._where),
    "partition": lambda selection: fl.tree.partition(selection._tree, selection._where),
    "filter": lambda selection: fl.tree.filter(selection._tree, selection._where),
}


@pytest.mark.parametrize("use", USES)
def test_many_paths_are_found_in_one_walk(monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    def work(size: int) -> int:
        model = Net([linear() for _ in range(size)], {}, None)
        paths = [f"layers.{number}.weight" for number in range(size)]
        return opened(monkeypatch, lambda: USES[use](model.at(paths)))

    few, many = work(10), work(80)
    assert many <= 8 * few


@pytest.mark.parametrize("where", [["layers", "layers.0", "nope"], [Linear, "layers.0.wieght", "seen"], ["**", ["layers.x"]]])
def test_one_that_selects_nothing_is_named_among_others(where: Any) -> None:
    wrong = {"nope", "layers.0.wieght", "layers.x"}
    with pytest.raises(LookupError, match="|".join(wrong)) as caught:
        NET.at(where).get()
    assert not any(repr(each) in str(caught.value).split(" selects")[0] for each in ("layers", "seen", "**"))


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"a": {"b": 1, "b.c": 2}, "a.b": {"c": 3}, "a.b.c": 4}, "table.a.b.c"),
        ({"a": {"b": 1}, "a.b": 2}, "table.a.b"),
        ({0: [1, 2], "0": [3], "0.1": 4}, "table.0.1"),
        ({"": {"": 1}, ".": 2}, "table.."),
        ({"": 1}, "table."),
    ],
    ids=shown,
)
def test_following_a_path_finds_what_a_walk_finds(table: Any, where: str) -> None:
    model = Net([], table, None)
    followed, walked = model.at(where), model.at([where])
    assert followed.paths() == walked.paths() != []
    assert list(followed) == list(walked)


def test_a_tied_place_is_followed_to_its_source() -> None:
    model = Net([linear(), linear()], {}, None).tie({"layers.1.weight": "layers.0.weight"})
    for where in ("layers.1.weight", ["layers.1.weight", "seen"]):
        with pytest.raises(LookupError, match=r"'layers\.1\.weight' is tied to 'layers\.0\.weight': select that"):
            model.at(where).get()
    assert model.at("layers.1").get() is model.layers[1]


def test_several_paths_are_set_to_several_values_in_the_order_of_the_paths() -> None:
    layer = fl.nn.Linear(2, 3)
    weight, bias = mx.zeros((3, 2)), mx.zeros(3)
    for where in (["bias", "weight"], ("bias", "weight")):
        after = layer.at(where).set((bias, weight))
        assert after.weight is weight
        assert after.bias is bias
    assert fl.nn.Sequential(layer).at("layers").set([layer, layer]).layers == (layer, layer)


@pytest.mark.parametrize(
    ("where", "value"),
    [(["weight", "bias"], [1]), (["*"], [1, 2]), (["weight", fl.nn.Linear], (1, 2)), (["weight", "weight"], [1, 2])],
    ids=str,
)
def test_a_list_of_other_length_or_for_no_list_of_paths_is_refused(where: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"set was given \d values and the selection is .*, which selects \d\. Give as many"):
        fl.nn.Linear(2, 3).at(where).set(value)


# Errors

METHODS = {
    "get": lambda selection: selection.get(),
    "set": lambda selection: selection.set(1),
    "apply": lambda selection: selection.apply(lambda part: part),
    "astype": lambda selection: selection.astype(mx.float16),
    "freeze": lambda selection: selection.freeze(),
    "unfreeze": lambda selection: selection.unfreeze(),
    "paths": lambda selection: selection.paths(),
}
EMPTY = [
    "nope",
    "layers.9",
    "layers.0.wieght",
    "",
    "head.left",
    "nope.**",
    "*.*.*.*.*",
    int.__class__,
    dict,
    [],
    ["nope"],
    ["seen", "nope"],
    lambda p, a: False,
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", EMPTY, ids=shown)
def test_selecting_nothing_is_an_error_of_every_method(where: Any, method: str) -> None:
    with pytest.raises(LookupError, match="selects nothing in this Net"):
        METHODS[method](NET.at(where))


@pytest.mark.parametrize(
    ("where", "nearest"),
    [
        ("layers.0.wieght", "layers.0.weight"),
        ("layer.0.weight", "layers.0.weight"),
        ("haed", "head"),
        ("layers.7", "layers.0"),
        ("table.c", "table.b"),
        ("layers.*.wieght", "layers.0.weight"),
    ],
)
def test_the_error_suggests_the_nearest_paths(where: str, nearest: str) -> None:
    with pytest.raises(LookupError) as caught:
        NET.at(where).get()
    message = str(caught.value)
    assert message.startswith(f"{where!r} selects nothing in this Net. The nearest paths are ")
    assert repr(nearest) in message


@pytest.mark.parametrize(
    ("where", "meant"),
    [("**.qproj", "**.q_proj"), ("**.wieght", "**.weight"), ("**.qprj.*.bais", "**.q_proj.*.bias")],
)
def test_the_error_suggests_the_nearest_glob_where_no_path_is_near(where: str, meant: str) -> None:
    model = {"model": {"layers": [{"self_attn": {"q_proj": {"weight": mx.zeros(1), "bias": mx.zeros(1)}}}]}}
    with pytest.raises(LookupError, match=rf"selects nothing in this dict\. The nearest glob is {re.escape(repr(meant))}\.$"):
        Selection(model, where).get()


def test_the_model_itself_has_no_path() -> None:
    with pytest.raises(
        LookupError, match=r"^'' selects nothing in this Net, which has no path itself: .* all its arrays by '\*\*'\.$"
    ):
        NET.at("").get()
    with pytest.raises(LookupError) as caught:
        NET.at("x").get()
    assert "''" not in str(caught.value)


def test_the_end_of_a_path_is_told_to_be_a_glob() -> None:
    model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2))
    with pytest.raises(LookupError, match=r"like 'layers\.0\.weight'\. For all that end so, write '\*\*\.weight'\.$"):
        model.at("weight").get()
    assert len(model.at("**.weight").get()) == 2


def test_a_class_of_the_same_name_is_told() -> None:
    model = fl.nn.Sequential(fl.nn.Linear(2, 2))
    with pytest.raises(LookupError, match=r"of that name are frostleaf\.nn\.linear\.Linear: select by .* mlx\.nn\.layers"):
        model.at(nn.Linear).get()
    with pytest.raises(LookupError, match=r"of that name are mlx\.nn\.layers\.linear\.Linear: select by that class"):
        fl.from_mlx(nn.Sequential(nn.Linear(2, 2))).at(fl.nn.Linear).get()
    with pytest.raises(LookupError, match=r"^Conv1d selects nothing in this Sequential\.$"):
        model.at(nn.Conv1d).get()


@pytest.mark.parametrize("make", [lambda model: model, fl.convert], ids=["wrapped", "native"])
@pytest.mark.parametrize("select", [lambda model, where: model.at(where).get(), fl.lora], ids=["at", "lora"])
def test_a_class_of_which_only_what_is_made_of_it_is_there_is_told(make: Any, select: Any) -> None:
    model = nn.Sequential(nn.Embedding(4, 32), nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 2)))
    nn.quantize(model, group_size=32)
    model = make(fl.from_mlx(model))
    own = nn if make is not fl.convert else fl.nn
    for where in (nn.Linear, fl.nn.Linear, nn.Embedding):
        found = getattr(own, f"Quantized{where.__name__}")
        name = f"{found.__module__}.{found.__qualname__}"
        message = f"^{where.__name__} selects nothing in this Sequential, which has layers of {name}: select by that."
        with pytest.raises(LookupError, match=message):
            select(model, where)
        assert select(model, found)
    mixed = fl.nn.Sequential(fl.nn.QuantizedLinear(64, 2), fl.nn.LoRAEmbedding(3, 2), fl.nn.QQLinear(32, 32))
    with pytest.raises(LookupError, match=r"layers of .*\.QuantizedLinear and .*\.QQLinear: select by these\.$"):
        select(mixed, fl.nn.Linear)


def test_without_a_near_path_none_is_suggested() -> None:
    with pytest.raises(LookupError, match=r"^'zzzzzzzz' selects nothing in this Net\.$"):
        NET.at("zzzzzzzz").get()


@pytest.mark.parametrize("where", [3, None, 1.5, mx.array(1), {"a": 1}], ids=shown)
@pytest.mark.parametrize(
    "use",
    [NET.at, NET.with_frozen, lambda where: fl.tree.partition(NET, where)],
    ids=["at", "with_frozen", "partition"],
)
def test_what_can_not_select_is_an_error_when_it_is_given(use: Any, where: Any) -> None:
    with pytest.raises(TypeError, match=r"can't select by .*\. Give a path \('layers\.0\.weight'\), a glob"):
        use(where)


def test_what_a_predicate_raises_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        NET.at(lambda path, array: 1 / 0).get()


@pytest.mark.parametrize(
    ("key", "where"),
    [("a.b", "table.a.b"), ("x+y", "table.x+y"), ("(", "table.("), ("a\nb", "table.a\nb"), (0, "table.0")],
    ids=shown,
)
def test_a_key_of_any_kind_is_selected_by_its_dotted_name(key: Any, where: str) -> None:
    model = Net([], {key: mx.ones(1), "other": mx.ones(2)}, None)
    assert model.at(where).get() is model.table[key]
    assert model.at(where).set("five").table == {key: "five", "other": model.table["other"]}


def test_a_path_is_a_whole_name_and_not_a_part_of_one() -> None:
    model = Net([linear() for _ in range(11)], {}, None)
    assert model.at("layers.1").paths() == ["layers.1"]
    assert model.at("layers.1*").paths() == ["layers.1", "layers.10"]
    with pytest.raises(LookupError):
        model.at("layer").get()
    with pytest.raises(LookupError):
        model.at("weight").get()
    with pytest.raises(LookupError):
        model.at("layersX1").get()


TWO_PLACES = [
    ({"a.b": mx.ones(1), "a": {"b": mx.ones(2)}}, "table.a.b", "('table', 'a.b') and ('table', 'a', 'b')"),
    ({1: mx.ones(1), "1": mx.ones(2)}, "table.1", "('table', 1) and ('table', '1')"),
]


@pytest.mark.parametrize(("table", "where", "places"), TWO_PLACES, ids=["a dot in a key", "a number and its text"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda selection: selection.get(),
        lambda selection: selection.set(None),
        lambda selection: selection.apply(lambda array: array),
        lambda selection: selection.astype(mx.float16),
    ],
    ids=["get", "set", "apply", "astype"],
)
def test_a_path_that_leads_to_two_places_is_refused(table: Any, where: str, places: str, edit: Any) -> None:
    model = Net([linear()], table, None)
    for selection in (model.at(where), model.at([where, "layers.*"])):
        with pytest.raises(LookupError, match=re.escape(f"{where!r} leads to two places in this Net: {places}. Rename a key")):
            edit(selection)
    assert len(model.at(where)) == 2
    both = model.at("table.**").apply(mx.zeros_like)
    assert not any(array.any().item() for array in fl.tree.leaves(dict(both.table)))


NOT_A_FUNCTION: dict[str, tuple[Any, str]] = {
    "astype": (lambda model: model.astype(mx.float16, 3), "predicate is a function of a dtype"),
    "apply": (lambda model: model.apply(3), "map_fn is a function of an array"),
    "apply with a filter": (lambda model: model.apply(mx.abs, 3), "filter_fn is a function of a module, a key and a value"),
    "map of a view": (lambda model: model.filter_and_map(model.valid_parameter_filter, 3), "map_fn is a function of a leaf"),
    "at, astype": (lambda model: model.at("**").astype(mx.float16, 3), "predicate is a function of a dtype"),
    "at, apply": (lambda model: model.at("**").apply(3), "function is a function of a selected value"),
    "map_modules": (lambda model: model.map_modules(3), "fn is a function of a path and a module"),
    "quantize": (lambda model: fl.quantize(model, class_predicate=3), "class_predicate is a function of a path and a layer"),
}


@pytest.mark.parametrize(("edit", "shown"), NOT_A_FUNCTION.values(), ids=NOT_A_FUNCTION)
def test_what_can_not_be_called_is_refused_where_it_is_given(edit: Any, shown: str) -> None:
    with pytest.raises(TypeError, match=rf"^{shown}, and was given as 3, which can't be called$"):
        edit(NET)


def test_a_predicate_returns_a_bool() -> None:
    for where in (lambda path, array: array > 0, [lambda path, array: array > 0]):
        with pytest.raises(
            TypeError, match=r"^a predicate that selects must return a bool, and returned bool\[2,2\] for table\.w$"
        ):
            Net([], {"w": mx.ones((2, 2))}, None).at(where).get()
    assert Net([], {"w": mx.ones(2)}, None).at(lambda path, array: (array > 0).all()).paths() == ["table.w"]


class Stacked(fl.Module):
    weight: mx.array
    several: mx.array | tuple[mx.array, ...]
    converted: mx.array = fl.parameter(converter=mx.array, default=0.0)


def stacked() -> fl.nn.Sequential:
    return fl.nn.Sequential(*[Stacked(mx.ones(2), mx.ones(2)) for _ in range(2)])


@pytest.mark.parametrize("value", [[mx.ones(2), mx.zeros(2)], (mx.ones(2),), {"a": mx.ones(2)}, []], ids=shown)
@pytest.mark.parametrize("where", ["**.weight", mx.array, lambda path, value: path.endswith("weight")], ids=shown)
@pytest.mark.parametrize("model", [stacked(), fl.from_mlx(nn.Sequential(nn.Linear(2, 2)))], ids=shown)
def test_a_container_does_not_take_the_place_of_an_array(model: Any, where: Any, value: Any) -> None:
    said = r"(Sequential|Model)\.layers\.0\.weight holds one array, f32\[2(,2)?\], and set was given .*list of the paths"
    with pytest.raises(TypeError, match=said):
        model.at(where).set(value)


def test_where_several_arrays_may_be_a_list_may_be_set() -> None:
    pair = [mx.ones(2), mx.zeros(2)]
    after = stacked().at("**.several").set(pair)
    assert [layer.several for layer in after.layers] == [tuple(pair)] * 2
    assert stacked().at("layers.0.converted").set([1.0, 2.0]).layers[0].converted.tolist() == [1, 2]
    after = stacked().at("layers.0.weight").set(pair)  # one path is one place
    assert after.layers[0].weight == tuple(pair)
    with pytest.raises(TypeError, match=re.escape("at(['layers.0.weight', 'layers.1.weight']).set([...])")):
        stacked().at("**.weight").set(pair)
