"""Wrong values given to every public function, on a model of 2,000 layers: what is said is short, and nothing is evaluated."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl

LAYERS = 2_000

LONGEST = 1_500


class Layer(fl.Module):
    weight: mx.array
    name: Any = fl.static(default="a layer")


class Model(fl.Module):
    layers: Any

    def __call__(self, x: Any) -> Any:
        return x


@dataclasses.dataclass
class Batch:
    """A plain object: its ``repr`` prints, and so evaluates, the arrays in it."""

    arrays: Any


class Rows(list):  # type: ignore[type-arg]
    """A list that is no tree."""


class Silent:
    """A value that can't be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Given:
    """A model and wrong values, whose arrays can't be evaluated: they are those of a trace."""

    def __init__(self, array: mx.array) -> None:
        self.model = Model([Layer(array + index) for index in range(LAYERS)])
        arrays = fl.tree.leaves(self.model)
        self.fewer = self.model.replace(layers=self.model.layers[1:])
        self.wrong: dict[str, Any] = {
            "a model": self.model,
            "another model": self.fewer,
            "a dict of arrays": {f"name.{index}": array for index, array in enumerate(arrays)},
            "a list of arrays": arrays,
            "paths": [f"layers.{index}.wieght" for index in range(LAYERS)],
            "parameters": self.model.parameters(),
            "an object": Batch(arrays),
            "a namespace": SimpleNamespace(arrays=arrays),
            "a deque": collections.deque(arrays),
            "a list of another class": Rows(arrays),
            "what can't be shown": Silent(),
            "a function": lambda *args, **kwargs: 3,
            "text": "text." * 40,
            "a number": 10**30,
            "None": None,
        }


def traced(test: Callable[[Given], None]) -> None:
    """Run a test in a trace, in which the evaluation of an array is an error."""

    def run(x: mx.array) -> mx.array:
        test(Given(x))
        return x

    mx.vmap(run)(mx.zeros(2))


def messages(call: Callable[[], Any]) -> Iterator[str]:
    """Yield what is said when a function is called, when what it returns is called or entered, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            yield str(error)
    yield from [str(each.message) for each in caught]


def check(what: str, call: Callable[[], Any], evaluates: bool = False) -> None:
    for message in messages(call):
        assert len(message) <= LONGEST, f"{what}: {len(message)} characters: {message[:400]}"
        assert " at 0x" not in message, f"{what}: {message[:400]}"
        assert evaluates or "[eval]" not in message, f"{what} evaluates"
        assert "no repr" not in message, what


def required(function: Callable[..., Any]) -> int:
    """Return how many arguments a function can be given by position, three at most."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    count = sum(each.kind in kinds for each in parameters)
    several = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    return 3 if several else min(count, 3)


def calls(function: Callable[..., Any], given: Given) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls with each wrong value in each place, and models in the others; and with each name that there may be."""
    for kind, value in given.wrong.items():
        for place in range(required(function)):
            args = [given.model] * place + [value]
            yield f"{kind} in place {place}", lambda args=args: used(function(*args), given)  # type: ignore[misc]
        args = [value] + [given.fewer] * (required(function) - 1)
        yield f"{kind} in place 0 of all", lambda args=args: used(function(*args), given)  # type: ignore[misc]
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                yield f"{kind} as {name}", lambda name=name, value=value: used(function(given.model, **{name: value}), given)  # type: ignore[misc]


def used(result: Any, given: Given) -> None:
    """Use what a function returned: enter a context, call a function with a wrong value."""
    if isinstance(result, contextlib.AbstractContextManager):
        with result:
            pass
    elif inspect.isfunction(result) or isinstance(result, fl.Jitted):
        result(given.model)


# What reads numbers, and says so; MLX's rules compare their betas with 0 and 1.
EVALUATE = {
    "eval", "async_eval", "save", "save_weights", "equal", "allclose", "diff", "Adam", "AdamW", "Adamax", "Lion",
    "histograms", "norms", "changes", "export_function",
}  # fmt: skip
NAMESPACES: dict[str, Any] = {"fl": fl, "fl.tree": fl.tree, "fl.nn": fl.nn, "fl.optim": fl.optim, "fl.plot": fl.plot}


def functions(module: Any) -> list[Callable[..., Any]]:
    """Return the public functions and classes of a module, but for errors, and for what only jit makes."""
    public = [getattr(module, name) for name in module.__all__]
    own = [each for each in public if callable(each) and each.__module__.startswith("frostleaf")]
    return [each for each in own if not (inspect.isclass(each) and issubclass(each, Exception | fl.Jitted))]


@pytest.mark.parametrize("space", NAMESPACES)
def test_what_public_functions_say_is_short(space: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for what takes a text as the name of a file

    @traced
    def test(given: Given) -> None:
        for function in functions(NAMESPACES[space]):
            for what, call in calls(function, given):
                check(f"{space}.{function.__name__}, {what}", call, function.__name__ in EVALUATE)


def test_what_methods_of_a_module_say_is_short(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    methods = [name for name in dir(fl.Module) if not name.startswith("_") and callable(getattr(fl.Module, name))]

    @traced
    def test(given: Given) -> None:
        for name in methods:
            for what, call in calls(getattr(given.model, name), given):
                check(f"{name}, {what}", call, name in EVALUATE)


def test_what_methods_of_a_selection_say_is_short() -> None:
    methods = [name for name in dir(fl.Selection) if not name.startswith("_")]

    @traced
    def test(given: Given) -> None:
        for name in methods:
            for what, call in calls(getattr(given.model.at("layers.7"), name), given):
                check(f"{name}, {what}", call)
            for where in (given.wrong["paths"], "text." * LAYERS, given.wrong["a function"]):
                check(f"{name} of nothing", next(calls(getattr(given.model.at(where), name), given))[1])


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: fl.optim.SGD(0.1),
    "masked": lambda: fl.optim.masked(fl.optim.SGD(0.1), "**"),
    "multi": lambda: fl.optim.multi({"layers.0.weight": fl.optim.SGD(0.1), "**": fl.optim.Adam(0.1)}),
    "flatten": lambda: fl.optim.flatten(fl.optim.SGD(0.1)),
    "shard": lambda: fl.optim.shard(fl.optim.SGD(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_says_is_short(name: str) -> None:
    opt = OPTIMIZERS[name]()

    @traced
    def test(given: Given) -> None:
        some = ("another model", "a dict of arrays", "parameters", "an object", "None")
        states = {"the state of fewer": opt.init(given.fewer), **{kind: given.wrong[kind] for kind in some}}
        for what, value in states.items():
            check(f"{what} as a state", lambda value=value: opt.update(given.model, given.model, value))
            check(f"{what} as a state to adapt", lambda value=value: opt.adapt(value, given.model))
            check(f"{what} as gradients", lambda value=value: opt.update(given.model, value, opt.init(given.model)))
            check(f"{what} as a model", lambda value=value: opt.init(value))


def ones(count: int, cls: Any = Layer) -> Model:
    return Model([cls(mx.ones(1)) for _ in range(count)])


def test_what_is_said_of_two_large_trees_is_short(tmp_path: Any) -> None:
    model, fewer = ones(LAYERS), ones(LAYERS - 5)
    named = Model({f"layer {index}": layer for index, layer in enumerate(model.layers)})
    half = model.astype(mx.float16)
    other = model.freeze().eval()
    fl.save(tmp_path / "model", model)
    weights = [(f"x.{path}", leaf) for path, leaf in zip(fl.tree.paths(model), fl.tree.leaves(model), strict=True)]
    for tree in (fewer, named, half, other):
        check("load", lambda tree=tree: fl.load(tmp_path / "model", tree))
        check("map", lambda tree=tree: fl.tree.map(lambda *_: None, model, tree))
        check("stack", lambda tree=tree: fl.tree.stack([model, tree]))
        check("combine", lambda tree=tree: fl.tree.combine(model, tree))
        check("update", lambda tree=tree: model.update(tree.parameters()))
        check("load_weights", lambda tree=tree: tree.load_weights(weights))
    with pytest.raises(ValueError, match="and 1,992 more"):
        model.load_weights(weights)
    with pytest.raises(ValueError, match=r"Missing 2000 parameters"):
        model.load_weights([])
    assert repr(fl.tree.diff(model, half)) == f"layers.(0-{LAYERS - 1}).weight: dtype f32[1] -> f16[1]"
    assert len(repr(fl.tree.diff(named, named.astype(mx.float16))).splitlines()) == 100


def test_the_error_for_unlike_trees_compares_no_values() -> None:
    @traced
    def test(given: Given) -> None:
        one, other, *_ = given.model.layers
        with pytest.raises(ValueError, match=r"does not have the structure of the first:\nlayers.0: mode 'train' -> 'eval'$"):
            fl.tree.stack([Model([one]), Model([other.eval()])])
