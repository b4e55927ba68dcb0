"""update, update_modules, apply and map_modules, against mlx.nn.Module."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx
import mlx.core as mx
import mlx.nn as nn
import mlx.utils
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from twins import MODELS, Bag, Block, Linear, Norm, Nothing, Stack, Twin, linear, outcome, same, subject, twin

import frostleaf as fl

NEW = mx.array([7.0, 8.0])


def agree(ours: Any, theirs: Any, call: Callable[[Any], Any]) -> Any:
    """Do the same to both models, and compare what comes of it; return our new model, or the error."""
    before = fl.tree.flatten(ours)
    one, other = outcome(call, ours), outcome(call, theirs)
    assert one[0] == other[0], (one, other)
    if one[0] == "raised":
        assert one[1] is other[1], (one, other)
    else:
        assert same(one[1], theirs)
    after = fl.tree.flatten(ours)
    assert after[1] == before[1]
    assert all(new is old for new, old in zip(after[0], before[0], strict=True))
    return one[1]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return subject(request.param)


STRICT = [True, False]
WHOLE: dict[str, Callable[[Any], Any]] = {
    "all parameters": lambda m: m.filter_and_map(m.valid_parameter_filter, lambda a: a + 1),
    "trainable parameters": lambda m: m.filter_and_map(m.trainable_parameter_filter, lambda a: a + 1),
    "the same": lambda m: m.parameters(),
    "nothing": lambda m: {},
    "no dict": lambda m: 3,
    "None": lambda m: None,
    "an array": lambda m: NEW,
    "an unknown name": lambda m: {"unheard_of": NEW},
    "an unknown name and a known one": lambda m: {**m.parameters(), "unheard_of": NEW},
    "other shapes": lambda m: m.filter_and_map(m.valid_parameter_filter, lambda a: NEW[None]),
}


@pytest.mark.parametrize("strict", STRICT)
@pytest.mark.parametrize("update", WHOLE)
def test_update_does_what_mlx_does(model: tuple[Any, Any], update: str, strict: bool) -> None:
    agree(*model, lambda m: m.update(WHOLE[update](m), strict=strict))


@pytest.mark.parametrize("value", [3, "text", None, {"a": NEW}, [NEW]], ids=repr)
def test_what_is_no_array_is_an_error_where_it_is_one_in_mlx(model: tuple[Any, Any], value: Any) -> None:
    agree(*model, lambda m: m.update(m.filter_and_map(m.valid_parameter_filter, lambda a: value)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("a leaf", [NEW]),
        ("nested", {"second": [NEW]}),
        ("a list of layers", {"layers": {"0": {"weight": NEW}}}),
        ("a list of layers", {"layers": {0: {"weight": NEW}}}),
        ("arrays in a dict", {"table": [NEW]}),
        ("arrays in a list", {"ws": {0: NEW}}),
        ("a dict of layers", {"experts": {"a": [{}, {"bias": NEW}]}}),
        ("a namedtuple", {"ws": {"left": NEW}}),
    ],
    ids=str,
)
def test_a_list_for_a_dict_or_a_dict_for_a_list_is_a_value_error(name: str, parameters: Any) -> None:
    # MLX looks the index up in the dict, or the name in the list, and raises what that raises.
    ours, theirs = subject(name)
    assert outcome(theirs.update, parameters)[0] == "raised"
    with pytest.raises(ValueError, match=r"Received invalid type|does not have parameter"):
        ours.update(parameters)
    assert ours.update(parameters, strict=False) is ours


PARTIAL: list[tuple[str, Any]] = [
    ("a leaf", {"weight": NEW}),
    ("a leaf", {"weight": NEW, "bias": NEW}),
    ("a leaf", {"size": 4}),
    ("a leaf", {"wieght": NEW}),
    ("without bias", {"bias": NEW}),
    ("buffers", {"running_mean": NEW}),
    ("buffers", {"_table": NEW}),
    ("nested", {"second": {"weight": NEW}}),
    ("nested", {"second": NEW}),
    ("nested", {"second": {}}),
    ("nested", {"second": None}),
    ("nested", {"second": {"nope": NEW}}),
    ("nested", {"scale": 0.1}),
    ("nested", {"scale": NEW}),
    ("deep", {"second": {"second": {"first": {"bias": NEW}}}}),
    ("private", {"_private": {"weight": NEW}}),
    ("private array", {"_private": NEW}),
    ("a list of layers", {"layers": [{"weight": NEW}]}),
    ("a list of layers", {"layers": [{}, {}, {"weight": NEW}]}),
    ("a list of layers", {"layers": [{}, {"weight": NEW}]}),
    ("a list of layers", {"layers": [{}, {}, {}, {"weight": NEW}]}),
    ("a list of layers", {"layers": [{}, {}, {}, {}]}),
    ("a list of layers", {"layers": 3}),
    ("a list of layers", {"layers": []}),
    ("a list of layers", {"layers": {}}),
    ("a list of layers", {"layers": [NEW]}),
    ("a list of layers", {"layers": [None]}),
    ("a dict of layers", {"experts": {"a": [{"bias": NEW}]}}),
    ("a dict of layers", {"experts": {"a": [{}, NEW]}}),
    ("a dict of layers", {"experts": {"_c": {"bias": NEW}}}),
    ("a dict of layers", {"experts": {"unheard_of": {}}}),
    ("a dict of layers", {"layers": [NEW]}),
    ("lists in lists", {"layers": [[{"bias": NEW}], [], [[{"weight": NEW}]]]}),
    ("lists in lists", {"layers": [[{}, {}]]}),
    ("arrays in a list", {"ws": [NEW]}),
    ("arrays in a list", {"ws": [NEW, NEW, NEW]}),
    ("arrays in a list", {"ws": [NEW, NEW, NEW, NEW]}),
    ("arrays in a list", {"ws": NEW}),
    ("arrays in a dict", {"table": {"b": NEW, "a": [NEW], "_c": NEW}}),
    ("arrays in a dict", {"table": {"d": NEW}}),
    ("odd things in a list", {"ws": [None, NEW]}),
    ("odd things in a list", {"ws": [{}, NEW, {}, {}, [], {}]}),
    ("odd things in a list", {"ws": [{}, NEW, 3]}),
    ("odd things in a list", {"table": {"x": 1.0}}),
    ("odd things in a list", {"table": {"y": NEW}}),
    ("all things", {"ws": [{"bias": NEW}, NEW], "table": {"a": {"weight": NEW}}, "bias": {"first": NEW}}),
]


@pytest.mark.parametrize("strict", STRICT)
@pytest.mark.parametrize(("name", "parameters"), PARTIAL, ids=str)
def test_a_partial_update_does_what_mlx_does(name: str, parameters: Any, strict: bool) -> None:
    agree(*subject(name), lambda m: m.update(parameters, strict=strict))


def test_update_takes_tuples_for_lists() -> None:
    model = Bag([mx.ones(1), mx.ones(2)]).update({"ws": (NEW, NEW)})
    assert model.ws[0] is model.ws[1] is NEW
    assert type(model.ws) is tuple


def test_a_module_stands_for_its_parameters() -> None:
    model = Stack([linear(1)], head=linear(2))
    other = Stack([linear(3)], head=linear(4))
    after = model.update(other)
    assert after.layers[0].weight is other.layers[0].weight
    assert model.update({"layers": [linear(5)]}).layers[0].weight[0, 1].item() == 6.0


def test_update_keeps_modes_and_frozen_fields() -> None:
    model = Stack([linear(1)]).freeze().eval()
    after = model.update(Stack([linear(2)]).parameters())
    assert fl.tree.structure(after) == fl.tree.structure(model)


def test_a_namedtuple_stays_one() -> None:
    model, _ = subject("a namedtuple")
    after = model.update({"ws": [NEW]})
    assert type(after.ws) is type(model.ws)
    assert after.ws.left is NEW
    assert after.ws.right is model.ws.right


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hed": NEW}, r'Module does not have parameter named "hed"; the nearest is \'head\'\.'),
        ({"head": {"wieght": NEW}}, r'parameter named "wieght" in head; the nearest is \'weight\'\.'),
        ({"head": {"weight": 3}}, r"Received invalid type: int for head\.weight\."),
        ({"head": 3}, r"Received invalid type: int in head\."),
        ({"layers": [{}, {}]}, r"List index 1 is out of bounds for destination of length 1 in layers\."),
        (3, r"Received invalid type: int\."),
    ],
    ids=str,
)
def test_the_errors_of_update_say_where(parameters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stack([linear()], head=linear()).update(parameters)


# Submodules

MODULES: list[tuple[str, Any]] = [
    ("nested", {}),
    ("nested", {"second": linear(9)}),
    ("nested", {"second": Norm(NEW), "first": Nothing()}),
    ("nested", {"second": NEW}),
    ("nested", {"second": None}),
    ("nested", {"second": {}}),
    ("nested", {"second": {"weight": linear(9)}}),
    ("nested", {"second": {"weight": {}}}),
    ("nested", {"second": {"nope": linear(9)}}),
    ("nested", {"_private": linear(9)}),
    ("nested", {"scale": linear(9)}),
    ("nested", {"nope": linear(9)}),
    ("nested", 3),
    ("private", {"_private": linear(9)}),
    ("private", {"second": {"weight": {}}, "first": {}}),
    ("private", {"first": linear(9)}),
    ("deep", {"second": {"second": {"first": linear(9)}}}),
    ("deep", {"second": {"first": linear(9)}, "first": linear(8)}),
    ("a list of layers", {"layers": [linear(9)]}),
    ("a list of layers", {"layers": [{}, linear(8), linear(9)]}),
    ("a list of layers", {"layers": [{}, {}, {}, linear(9)]}),
    ("a list of layers", {"layers": [{}, {}, {}, {}]}),
    ("a list of layers", {"layers": [None]}),
    ("a list of layers", {"layers": [NEW]}),
    ("a list of layers", {"layers": {}}),
    ("a list of layers", {"layers": 3}),
    ("a dict of layers", {"experts": {"b": linear(9), "_c": linear(8)}}),
    ("a dict of layers", {"experts": {"a": [linear(9)]}}),
    ("a dict of layers", {"experts": {"a": [linear(9), linear(8)]}}),
    ("a dict of layers", {"experts": {"d": linear(9)}}),
    ("a dict of layers", {"layers": [linear(9)]}),
    ("lists in lists", {"layers": [[linear(9)], [], [[linear(8)], linear(7)]]}),
    ("lists in lists", {"layers": [[linear(9), linear(9)]]}),
    ("arrays in a list", {"ws": [linear(9)]}),
    ("arrays in a list", {"ws": [{}, {}]}),
    ("arrays in a list", {"ws": linear(9)}),
    ("all things", {"ws": [linear(9), {}], "table": {"a": linear(8)}, "bias": {"second": linear(7)}}),
]


@pytest.mark.parametrize("strict", STRICT)
@pytest.mark.parametrize(("name", "modules"), MODULES, ids=str)
def test_update_modules_does_what_mlx_does(name: str, modules: Any, strict: bool) -> None:
    def call(model: Any) -> Any:
        return model.update_modules(twin(modules) if isinstance(model, Twin) else modules, strict=strict)

    agree(*subject(name), call)


def test_update_modules_with_its_children_returns_self(model: tuple[Any, Any]) -> None:
    assert model[0].update_modules(model[0].children()) is model[0]


def test_update_modules_holds_the_very_modules_it_was_given() -> None:
    new = linear(9)
    model = Stack([linear(1), linear(2)], {"a": linear(3)})
    after = model.update_modules({"layers": [{}, new], "experts": {"a": new}})
    assert after.layers[1] is after.experts["a"] is new
    assert after.layers[0] is model.layers[0]


def test_the_errors_of_update_modules_say_where() -> None:
    with pytest.raises(ValueError, match=r'Module does not have sub-module named "hed"; the nearest is \'head\'\.'):
        Stack([], head=linear()).update_modules({"hed": linear()})


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("place", "given"), [("head", lambda new: {"head": new}), ("layers.0", lambda new: {"layers": [new]})])
def test_update_modules_says_what_to_do_with_a_module_of_mlx(strict: bool, place: str, given: Callable[[Any], Any]) -> None:
    model = fl.from_mlx(nn.Sequential(nn.Linear(2, 2))) if place == "layers.0" else Stack([], head=linear())
    with pytest.raises(ValueError, match=rf"^Received invalid type: Linear for {place}, a module of mlx.nn .* fl.from_mlx\("):
        model.update_modules(given(nn.Linear(3, 3)), strict=strict)
    assert model.update_modules(given(fl.from_mlx(nn.Linear(3, 3)))).at(f"{place}.weight").get().shape == (3, 3)


# apply

APPLY: dict[str, Callable[[Any], Any]] = {
    "to all": lambda m: m.apply(lambda a: a + 1),
    "to trainable parameters": lambda m: m.apply(lambda a: a * 2, m.trainable_parameter_filter),
    "to arrays and containers": lambda m: m.apply(
        lambda a: a[None], lambda module, key, value: isinstance(value, mx.array | list | dict | fl.Module)
    ),
    "to nothing": lambda m: m.apply(lambda a: a * 2, lambda *_: False),
    "to weights": lambda m: m.apply(
        lambda a: a * 2, lambda module, key, value: not isinstance(value, mx.array) or key.endswith("weight")
    ),
    "to the first in each list": lambda m: m.apply(
        lambda a: a * 2,
        lambda module, key, value: m.valid_parameter_filter(module, key, value) and not key.endswith((".1", ".2")),
    ),
    "a function that returns no array": lambda m: m.apply(lambda a: 3),
    "a function that returns None": lambda m: m.apply(lambda a: None),
    "a function that returns a dict": lambda m: m.apply(lambda a: {}),
    "a function that raises": lambda m: m.apply(lambda a: a.nope),
}


@pytest.mark.parametrize("call", APPLY)
def test_apply_does_what_mlx_does(model: tuple[Any, Any], call: str) -> None:
    agree(*model, APPLY[call])


def test_apply_is_called_with_each_array_in_the_order_of_mlx(model: tuple[Any, Any]) -> None:
    orders = []
    for each in model:
        orders.append([])
        each.apply(lambda a, seen=orders[-1]: seen.append(id(a)) or a)
    assert orders[0] == orders[1]


# map_modules


def test_map_modules_visits_the_modules_that_mlx_visits(model: tuple[Any, Any]) -> None:
    ours, theirs = model
    paths: list[str] = []
    assert ours.map_modules(lambda path, module: paths.append(path)) is ours
    visited: list[str] = []
    theirs.apply_to_modules(lambda path, module: visited.append(path))
    assert sorted(paths) == sorted(visited)


def test_map_modules_sees_a_module_after_its_children() -> None:
    seen: list[Any] = []

    def swap(path: str, module: Any) -> Any:
        seen.append((path, module))
        return Nothing() if isinstance(module, Linear) else None

    after = Stack([linear(), linear()]).map_modules(swap)
    assert [path for path, _ in seen] == ["layers.0", "layers.1", ""]
    assert isinstance(seen[-1][1].layers[0], Nothing)
    assert seen[-1][1] is after


def test_map_modules_can_replace_the_model_itself() -> None:
    new = Nothing()
    assert linear().map_modules(lambda path, module: new) is new


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, "3"),
        (True, "True"),
        (False, "False"),
        ("text", "'text'"),
        (fl.nn.Identity, "Identity"),
        (mx.float16, "mlx.core.float16"),
    ],
)
def test_map_modules_takes_modules_only(value: Any, shown: str) -> None:
    model = Stack([linear()])
    with pytest.raises(TypeError, match=rf"^fn returned {shown} for the Stack itself: it must return a module, or None"):
        model.map_modules(lambda path, module: None if path else value)
    with pytest.raises(TypeError, match=rf"^fn returned {shown} for layers\.0: it must return a module, or None"):
        model.map_modules(lambda path, module: value if path else None)


@pytest.mark.parametrize("value", [mx.ones(1), (linear(),), fl.nn.relu], ids=["array", "tuple", "function"])
def test_map_modules_puts_trees_and_functions_below_the_root_only(value: Any) -> None:
    model = Stack([linear()])
    assert model.map_modules(lambda path, module: value if path else None).layers[0] is value
    with pytest.raises(TypeError, match=r"^fn returned .* for the Stack itself"):
        model.map_modules(lambda path, module: None if path else value)


def test_map_modules_keeps_the_kind_of_container() -> None:
    after = Stack([linear()], {"a": linear()}).map_modules(lambda path, module: module.eval() if path else None)
    assert type(after.layers) is tuple
    assert type(after.experts).__name__ == "mappingproxy"
    assert [module.training for module in after.modules()] == [True, False, False]


def test_map_modules_meets_a_shared_module_at_each_of_its_places() -> None:
    paths: list[str] = []
    layer = linear()
    Block(layer, layer).map_modules(lambda path, module: paths.append(path))
    assert paths == ["second", "first", ""]


class Cells:
    def __init__(self, cells: Any, names: Any) -> None:
        self.cells, self.names = cells, names


fl.register_pytree_node(
    Cells, lambda node: (node.cells, node.names, node.names), lambda names, cells: Cells(list(cells), names)
)


@pytest.mark.parametrize("names", [["a", "b", "c"], [0, 1, 2]], ids=str)
def test_update_goes_into_a_registered_node_by_the_names_of_its_children(names: list[Any]) -> None:
    bag = Bag(Cells([mx.zeros(2), linear(), None], names))
    first, second, _ = names
    named = dict(tree_flatten(bag.parameters()))
    assert list(named) == [f"ws.{first}", f"ws.{second}.weight", f"ws.{second}.bias"]
    new = bag.update(tree_unflatten([(name, array + 1) for name, array in named.items()]))
    assert new.ws.cells[0].tolist() == [1, 1]
    assert all(mx.array_equal(value, named[name] + 1) for name, value in tree_flatten(new.parameters()))
    one = bag.update({"ws": {second: {"bias": NEW}}})
    assert one.ws.cells[1].bias is NEW
    assert one.ws.cells[0] is bag.ws.cells[0]
    assert one.ws.cells[1].weight is bag.ws.cells[1].weight
    assert bag.update(new).ws.cells[0] is new.ws.cells[0]
    assert bag.update({"ws": new.ws}).ws.cells[0] is new.ws.cells[0]
    assert bag.apply(mx.zeros_like).ws.cells[1].weight.sum().item() == 0
    with pytest.raises(ValueError, match='does not have parameter named "other" in ws'):
        bag.update({"ws": {"other": NEW}})
    assert bag.update({"ws": {"other": NEW}}, strict=False) is bag


def test_update_modules_goes_into_a_registered_node() -> None:
    bag, new = Bag(Cells([linear(), [linear()]], ["a", "b"])), linear()
    assert bag.update_modules({"ws": {"a": new}}).ws.cells[0] is new
    assert bag.update_modules({"ws": {"b": [new]}}).ws.cells[1][0] is new
    assert bag.update_modules(bag.leaf_modules()) is bag


class Named(nn.Module):
    """Has lists and dicts without arrays, for which MLX has branches without arrays."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        self.names, self.options, self._private, self.pair = ["a", "b"], {"a": 1, "b": [2, {"c": None}]}, ["c"], ("d",)
        self.layers = [{"kinds": ["e"], "fc": nn.Linear(2, 1)}, nn.relu]
        if tied:
            self.head.weight = self.fc.weight


GIVEN: dict[str, Callable[[Any], Any]] = {
    "parameters": lambda m: m.parameters(),
    "trainable parameters": lambda m: m.trainable_parameters(),
    "a module": lambda m: m,
    "modules inside": lambda m: {"fc": m.fc, "head": m.head, "layers": [{"fc": m.layers[0]["fc"], "kinds": [{}]}, {}]},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("given", GIVEN)
def test_a_wrapped_model_takes_what_mlx_says_are_the_parameters_of_another(given: str, tied: bool) -> None:
    source, target = Named(tied), Named(tied)
    assert "names" in source.parameters()
    new = GIVEN[given](source)
    assert fl.tree.equal(fl.from_mlx(target).update(new), fl.from_mlx(source))
    assert fl.tree.equal(fl.from_mlx(target).update({"layers": [{"kinds": [{}]}], "names": []}), fl.from_mlx(target))


@pytest.mark.parametrize("strict", STRICT)
@pytest.mark.parametrize("method", ["update", "update_modules"])
@pytest.mark.parametrize(
    "new",
    [
        {"names": [{}, {}]}, {"names": [{}]}, {"names": [{}, {}, {}]}, {"names": NEW}, {"names": ["a", "b"]}, {"names": [NEW]},
        {"names": {}}, {"options": {"a": {}}}, {"options": {"a": NEW}}, {"options": {"b": [{}, {"c": {}}]}}, {"nams": [{}]},
        {"options": {"z": {}}}, {"_private": [{}]}, {"layers": [{"kinds": [{}]}]}, {"layers": [{}, {}, {}]},
    ],
    ids=str,
)  # fmt: skip
def test_a_branch_without_arrays_is_what_it_is_in_mlx(method: str, new: Any, strict: bool) -> None:
    ours, theirs = fl.from_mlx(Named()), Named()
    kind, value = outcome(lambda m: getattr(m, method)(new, strict=strict), ours)
    expected, _ = outcome(lambda m: getattr(m, method)(new, strict=strict), theirs)
    assert kind == expected
    assert value is (ours if kind == "returned" else ValueError)


def test_the_advice_of_load_weights_works_for_the_parameters_of_mlx() -> None:
    source, target = Named(), fl.from_mlx(Named())
    with pytest.raises(TypeError, match="For nested dicts of arrays, such as parameters\\(\\) returns, there is update"):
        target.load_weights(source.parameters())
    assert fl.tree.equal(target.update(source.parameters()), fl.from_mlx(source))


class Held(fl.Module):
    emb: Any
    head: Any
    more: Any


def held() -> Held:
    model = Held(fl.nn.Embedding(3, 2), fl.nn.Linear(2, 3, bias=False), {"a": mx.zeros((3, 2)), "b": (mx.zeros((3, 2)),)})
    return model.tie(dict.fromkeys(("head.weight", "more.a", "more.b.0"), "emb.weight"))


@pytest.mark.parametrize("new", [{"head": {"weight": NEW}}, {"more": {"a": NEW}}, {"more": {"b": [NEW]}}], ids=["0", "1", "2"])
@pytest.mark.parametrize("outer", [False, True])
def test_a_tied_place_says_where_to_update(new: Any, outer: bool) -> None:
    model: Any = fl.nn.Sequential(held()) if outer else held()
    place = "layers.0.emb.weight" if outer else "emb.weight"
    with pytest.raises(ValueError, match=rf"It is tied to '{place}': update that, and both places have it\.$"):
        model.update({"layers": [new]} if outer else new)
    array = mx.ones((3, 2))
    after = model.update(mlx.utils.tree_unflatten([(place, array)]))
    inner = after.layers[0] if outer else after
    assert inner.head.weight is inner.more["a"] is inner.more["b"][0] is array


LOAD, NESTED = r"model\.load_weights\(\{.*?\}, strict=False\)", r"mlx\.utils\.tree_unflatten\(\[.*?\]\)"


def code_in(error: Any, pattern: str, **names: Any) -> Any:
    found = re.search(pattern, str(error.value))
    assert found is not None, error.value
    return eval(found[0].replace("...", "value"), {"mlx": mlx, **names})


@pytest.mark.parametrize("name", ["layers.1.weight", "layers.0.weight"])
def test_the_name_of_an_array_with_dots_says_what_takes_it(name: str) -> None:
    model = fl.nn.Sequential(fl.nn.Embedding(3, 2), fl.nn.Linear(2, 3, bias=False)).tie({"layers.0.weight": "layers.1.weight"})
    value = mx.ones((3, 2))
    with pytest.raises(ValueError, match=f'named "{name}"') as raised:
        model.update({name: value})
    assert ("It is tied to 'layers.1.weight'" in str(raised.value)) == (name == "layers.0.weight")
    assert code_in(raised, LOAD, model=model, value=value).layers[0].weight is value
    assert model.update(code_in(raised, NESTED, value=value)).layers[0].weight is value
    with pytest.raises(ValueError, match="tree_unflatten") as raised:
        fl.nn.Sequential(model).update({"layers": [{name: value}]})
    nested = code_in(raised, NESTED, value=value)
    assert fl.nn.Sequential(model).update(nested).layers[0].layers[0].weight is value


def test_the_name_of_a_module_with_dots_says_what_takes_it() -> None:
    model, new = fl.nn.Sequential(fl.nn.Embedding(3, 2), fl.nn.Linear(2, 3)), fl.nn.Linear(2, 4)
    for update, value in ((model.update_modules, new), (model.update, {"weight": new.weight})):
        with pytest.raises(ValueError, match=r'named "layers\.1"') as raised:
            update({"layers.1": value})
        assert "load_weights" not in str(raised.value)
        assert update(code_in(raised, NESTED, value=value)).layers[1].weight is new.weight


@pytest.mark.parametrize("new", [{"hed.weight": NEW}, {"a.b": NEW}, {"hed": NEW}], ids=["0", "1", "2"])
def test_a_name_that_leads_nowhere_gets_no_such_advice(new: Any) -> None:
    with pytest.raises(ValueError, match="Module does not have parameter named") as raised:
        held().update(new)
    assert "tree_unflatten" not in str(raised.value)
    assert "tied" not in str(raised.value)
