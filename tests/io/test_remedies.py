"""What errors say to write instead, followed for each pair of many trees until the file loads."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl

DEEPEST = 6


class Layer(fl.Module):
    weight: mx.array
    scale: int = fl.static(default=1)


class Net(fl.Module):
    words: Any
    layers: Any
    head: Any


def net(layers: int = 2, scale: int = 1) -> Net:
    inner = [fl.nn.Sequential(fl.nn.Linear(32, 32, bias=False), Layer(mx.ones(2), scale)) for _ in range(layers)]
    return Net(fl.nn.Embedding(64, 32), inner, fl.nn.Linear(32, 64, bias=False))


def adapted(model: Net, scale: float = 10.0, rank: int = 2) -> Net:
    return fl.lora(model, "layers.*.layers.0", rank=rank, scale=scale)


PLAIN = net()
QUANTIZED = fl.quantize(PLAIN, group_size=32)
TIES = {"head.weight": "words.weight"}
MODELS: dict[str, Any] = {
    "plain": PLAIN,
    "tied": PLAIN.tie(TIES),
    "tied the other way": PLAIN.tie({"words.weight": "head.weight"}),
    "adapted": adapted(PLAIN),
    "of another scale": adapted(PLAIN, 20.0),
    "of another rank": adapted(PLAIN, rank=4),
    "tied and adapted": adapted(PLAIN.tie(TIES)),
    "quantized": QUANTIZED,
    "quantized and adapted": adapted(QUANTIZED),
    "bfloat16": PLAIN.astype(mx.bfloat16),
    "evaluated": PLAIN.eval(),
    "evaluated in parts": PLAIN.at("layers.*").apply(lambda module: module.eval()),
    "frozen": PLAIN.freeze(),
    "packed": fl.optim.pack(PLAIN),
    "packed adapters": fl.optim.pack(adapted(PLAIN)),
    "packed quantized": fl.optim.pack(adapted(QUANTIZED)),
    "deeper": net(3),
    "other values": net(scale=5),
    "another head": PLAIN.replace(head=fl.nn.Linear(32, 7)),
    "no head": PLAIN.replace(head=None),
    "nothing": None,
}
AROUND: dict[str, Callable[[Any], Any]] = {
    "alone": lambda tree: tree,
    "dict": lambda tree: {"model": tree, "n": 1},
    "tuple": lambda tree: (tree, 3),
    "one": lambda tree: [tree],
}

CODE = {
    "put": r"as in (like\S*?\.(?:at|tie|untie)\(.*)$|For the mode of the file give (.*?) there|packed.*: give like (.*?) there",
    "around": r"give (.*) for like(?:, where=.*)?, and take \S* of what is loaded",
    "inside": r"give for like what is at ('.*?') in it",
    "where": r"leave it out by where=(.*)$",
    "rename": r"rename=(lambda name: name\.replace\(.*?\)), strict=False\)",
    "strict": r"(strict=False) reads (?!what has the same name)",
}  # fmt: skip


def remedies(text: str) -> Iterator[tuple[str, str]]:
    """Yield the code that a message has, and what it is for."""
    for kind, pattern in CODE.items():
        for found in re.finditer(pattern, text, re.MULTILINE):
            yield kind, next(filter(None, found.groups()))


def put(like: Any, code: str) -> Any:
    """Return a tree with what some code gives in the place of what it begins with."""
    names = [eval(name) for name in re.findall(r"\[([^\]]*)\]", re.search(r"\blike((?:\[[^\]]*\])*)", code)[1])]  # type: ignore[index]

    def within(tree: Any, names: list[Any]) -> Any:
        if not names:
            return eval(code, {"like": like, "fl": fl})
        if isinstance(tree, dict):
            return tree | {names[0]: within(tree[names[0]], names[1:])}
        return type(tree)([within(each, names[1:]) if at == names[0] else each for at, each in enumerate(tree)])

    return within(like, names)


def follow(file: Path, like: Any, options: dict[str, Any], used: set[str], depth: int = 0) -> None:
    """Load a file, and do all that the error says to do, until it loads or nothing more is said that is code."""
    try:
        fl.load(file, like, **options)
    except fl.OtherStructureError as error:
        text = str(error)
    else:
        return
    assert depth < DEEPEST, text
    for kind, code in remedies(text):
        used.add(kind)
        if kind == "strict":
            fl.load(file, like, **{**options, "strict": False})
        elif kind == "rename":
            fl.load(file, like, **{**options, "strict": False, "rename": eval(code)})
        elif kind == "where":
            follow(file, like, options | {"where": eval(code)}, used, depth + 1)
        else:
            if kind == "put":
                changed = put(like, code)
            elif kind == "around":
                changed = eval(code, {"model": like})
            else:
                changed = like[int(name) if (name := eval(code)).isdecimal() else name]
            follow(file, changed, options, used, depth + 1)


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_said_of_models_works(strict: bool, tmp_path: Path) -> None:
    used: set[str] = set()
    for name, model in MODELS.items():
        for outer in AROUND:
            fl.save(tmp_path / "a", AROUND[outer](model))
            for other, like in MODELS.items():
                if outer == "dict" or "tied" in name + other:
                    follow(tmp_path / "a", AROUND[outer](like), {"strict": strict}, used)
            for inner in AROUND:
                follow(tmp_path / "a", AROUND[inner](model), {"strict": strict}, used)
    assert used >= ({"put", "around", "inside", "strict"} if strict else {"put", "around", "inside", "where"})


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_said_of_models_with_their_states_works(strict: bool, tmp_path: Path) -> None:
    adam, flat = fl.optim.Adam(0.1), fl.optim.flatten(fl.optim.Adam(0.1))
    used: set[str] = set()
    models = {name: MODELS[name] for name in ("plain", "tied", "quantized and adapted", "deeper")}
    runs = [{"m": model, "s": opt.init(model)} for model in models.values() for opt in (adam, flat)]
    runs += [{"m": model, "s": flat.init(model)} for model in map(fl.optim.pack, models.values())]
    runs.append({"m": PLAIN, "s": fl.optim.SGD(0.1, 0.9).init(PLAIN)})
    for one, other in itertools.permutations(runs, 2):
        fl.save(tmp_path / "a", one)
        for where in (None, ["m"]):
            follow(tmp_path / "a", other, {"strict": strict, "where": where}, used)
    assert used >= ({"put", "strict", "where"} if strict else {"put", "where"})


class Renamed(fl.Module):
    embedding: Any
    layers: Any
    head: Any


def test_what_is_said_of_other_names_works(tmp_path: Path) -> None:
    used: set[str] = set()
    fl.save(tmp_path / "a", PLAIN)
    follow(tmp_path / "a", Renamed(*[getattr(PLAIN, name) for name in ("words", "layers", "head")]), {}, used)
    assert used == {"rename"}


PROSE = [
    ("plain", "adapted", "load into the model without them, and call fl.lora then", "plain"),
    ("plain", "quantized and adapted", "load into a model with neither, and call fl.quantize and fl.lora then", "plain"),
    ("adapted", "plain", "make them first, fl.lora(model, where, rank=...), of the same layers and rank", "adapted"),
    ("quantized and adapted", "plain", "quantize it as that was, with fl.quantize", "quantized and adapted"),
    ("quantized and adapted", "quantized", "make them first, fl.lora(model", "quantized and adapted"),
    ("plain", "bfloat16", "give like the dtypes that the file has, and cast what is loaded, as with .astype(...)", "plain"),
    ("plain", "frozen", "load into a model in which the same is frozen as in the file's, and freeze or unfreeze", "plain"),
    ("plain", "tied", "load into the model without them, and tie what is loaded", "plain"),
    ("plain", "packed", "and call fl.optim.pack on what is loaded", "plain"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "like", "said", "remedy"), PROSE)
def test_what_is_said_in_words_works(name: str, like: str, said: str, remedy: str, tmp_path: Path) -> None:
    fl.save(tmp_path / "a", [MODELS[name]])
    with pytest.raises(fl.OtherStructureError, match=re.escape(said)):
        fl.load(tmp_path / "a", [MODELS[like]])
    loaded = fl.load(tmp_path / "a", [MODELS[remedy]])[0]
    done = {
        "adapted": lambda: adapted(loaded),
        "quantized and adapted": lambda: adapted(fl.quantize(loaded, group_size=32)),
        "bfloat16": lambda: loaded.astype(mx.bfloat16),
        "frozen": loaded.freeze,
        "tied": lambda: loaded.tie(TIES),
        "packed": lambda: fl.optim.pack(loaded),
    }
    if name == remedy == "plain":
        assert fl.tree.structure(done[like]()) == fl.tree.structure(MODELS[like])


OF_WEIGHTS = {
    "rename": r"rename=(lambda name: .*?)\.$|(?:: |,\n)\S+, which is tied to .*: rename=(\{.*?\}) leaves it out",
    "tie": r"model = (model\.tie\(.*\))\.$",
}  # fmt: skip


def follow_weights(model: Any, given: Any, options: dict[str, Any], used: set[str], depth: int = 0) -> None:
    """As :func:`follow`, of ``load_weights``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", fl.UnmatchedWeightsWarning)
        try:
            loaded = model.load_weights(given, **options)
        except ValueError as error:
            text = str(error)
        else:
            text = "".join(str(each.message) for each in caught)
            assert type(loaded) is type(model)
    assert depth < DEEPEST, text
    for kind, pattern in OF_WEIGHTS.items():
        for found in re.finditer(pattern, text, re.MULTILINE):
            code = next(filter(None, found.groups()))
            used.add(kind)
            if kind == "rename":
                assert "rename" not in options, text  # the second would take the place of the first
                follow_weights(model, given, options | {"rename": eval(code)}, used, depth + 1)
            else:
                follow_weights(eval(code, {"model": model}), given, options, used, depth + 1)


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_said_of_weights_works(strict: bool, tmp_path: Path) -> None:
    used: set[str] = set()
    names = (
        *("plain", "tied", "tied the other way", "adapted", "tied and adapted"),
        *("quantized", "quantized and adapted", "deeper", "no head"),
    )
    for one in names:
        named = dict(zip(fl.tree.paths(MODELS[one]), fl.tree.leaves(MODELS[one]), strict=True))
        below = {f"model.{name}": array for name, array in named.items()}
        files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        for file, tree in zip(files, (MODELS[one], {"m": MODELS[one], "n": 1, "z": mx.zeros(2)}), strict=True):
            fl.save(file, tree)
        for other in names:
            for given in (named, below, below | {"x": mx.zeros(1)}, *files):
                follow_weights(MODELS[other], given, {"strict": strict}, used)
    assert used == ({"rename", "tie"} if strict else {"rename"})
