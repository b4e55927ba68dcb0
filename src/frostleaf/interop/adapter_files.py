"""Adapters in the files of mlx-lm."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import mlx.core as mx

from ..core.definition import Node
from ..core.dropped import returns_copy
from ..core.shapes import ShapeDtypeStruct
from ..core.structure import flat_of
from ..core.words import describe, keystr, listed, nearest
from ..edits.views import named_modules
from ..io.atomic import atomic_write, require_path
from ..io.formats import ENDINGS, check_arrays, read_file, write_file
from ..io.safetensors import fail
from ..io.weights import load_weights
from ..transforms.shards import shards_in
from .adapters import adapters_in, lora, own_arrays, require_module, trained_paths
from .tuner import own_parts, settings

N = TypeVar("N", bound=Node)

_CONFIG, _WEIGHTS = "adapter_config.json", "adapters.safetensors"
_OWN = "lora_a", "lora_b", "m"


def save_adapters(model: Node, directory: str | os.PathLike[str]) -> None:
    """Save the adapters of a model as mlx-lm does, in a directory that is made if it isn't there.

    ``adapters.safetensors`` has their arrays, and ``adapter_config.json`` what they are and where. mlx-lm's ``load_adapters``,
    ``mlx_lm.load(..., adapter_path=...)`` and :func:`load_adapters` read them. A crash at any instant leaves the adapters that
    were there, or the new ones; or, where these have another rank, scale, dropout, kind or place, perhaps a directory without
    ``adapter_config.json``, which can't be loaded.

    Args:
        model: The model, adapted by :func:`frostleaf.lora`.
        directory: The path of the directory.

    Raises:
        TypeError: If ``model`` is no module, or ``directory`` no path.
        ValueError: If the model has no adapters, or is one itself; if each rank has a part of them; if they differ in rank,
            scale, dropout or kind; if other parameters are trainable, which mlx-lm's files have no place for; if only shapes
            are known.
        OSError: If the directory can't be made, or is a file or named like one of weights.

    >>> import frostleaf as fl, os, tempfile
    >>> model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adapted = fl.lora(model, "layers.1", rank=4)
    ...     fl.save_adapters(adapted, folder)
    ...     sorted(os.listdir(folder)), fl.tree.equal(fl.load_adapters(model, folder), adapted)
    (['adapter_config.json', 'adapters.safetensors'], True)
    """
    require_module("fl.save_adapters", model)
    path = _directory(directory, "fl.save_adapters")
    config, arrays = _contents(model)
    os.makedirs(path, exist_ok=True)
    config_file, weights_file = os.path.join(path, _CONFIG), os.path.join(path, _WEIGHTS)
    check_arrays(arrays, ".safetensors", weights_file)
    text = json.dumps(config, indent=4, default=float)  # numbers of NumPy
    if not _reads(config_file, text):
        with suppress(FileNotFoundError):  # the old one must not stand beside new arrays
            os.unlink(config_file)
    with atomic_write(weights_file) as temporary:
        write_file(temporary, arrays, ".safetensors")
    if not _reads(config_file, text):
        with atomic_write(config_file) as temporary, open(temporary, "w") as handle:
            handle.write(text)


@returns_copy("model = fl.load_adapters(model, ...)")
def load_adapters(model: N, directory: str | os.PathLike[str]) -> N:
    """Adapt a model as :func:`frostleaf.lora` does, and read the adapters that mlx-lm or :func:`save_adapters` has saved.

    The layers are those that the files have arrays for. Adapters of one base may be loaded side by side: they share its arrays.
    What mlx-lm saved of a model trained in full is loaded into the weights. The adapters are in training mode, as in mlx-lm:
    write ``fl.load_adapters(model, directory).eval()`` to generate. To read arrays into adapters that are there, write
    ``model.load_weights(f"{directory}/adapters.safetensors", strict=False)``.

    Args:
        model: The model that the adapters were made for, without them.
        directory: The path of the directory.

    Raises:
        TypeError: If ``model`` is no module, or ``directory`` no path.
        ValueError: If the files don't fit each other or the model, or a layer is adapted already.
        CheckpointError: If a file is damaged.
        OSError: If there is no such file, or ``directory`` is one.

    >>> import frostleaf as fl, tempfile
    >>> model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save_adapters(fl.lora(model, "layers.1", rank=4, dora=True), folder)
    ...     fl.load_adapters(model, folder).layers[1].lora_a
    array([[...]], dtype=float32)
    """
    require_module("fl.load_adapters", model)
    path = _directory(directory, "fl.load_adapters", _ONE_FILE)
    config_file, file = os.path.join(path, _CONFIG), os.path.join(path, _WEIGHTS)
    kind, options = _read_config(config_file)
    weights = read_file(file)
    if kind == "full":
        current = dict(zip(flat_of(model).structure.leaf_names(), flat_of(model).leaves, strict=True))
        _check(file, weights, current)
        return load_weights(model, [*weights.items()], False, None)
    layers = _layers_in(model, weights, file)
    adapted = lora(model, layers, **options, dora=kind == "dora", key=mx.random.key(0))
    adapters = {keystr(path): adapter for path, adapter in adapters_in(adapted).items()}
    expected = _arrays_of({layer: adapters[layer] for layer in layers})
    if missing := expected.keys() - weights.keys():
        raise ValueError(f"{file} has no {listed(sorted(missing))}")
    _check(file, weights, expected)
    return load_weights(adapted, [*weights.items()], False, None)


_NO_DIRECTORY = (
    "{function} takes a directory, which has {weights} and {config}, as mlx-lm does, and was given a file, {path!r}: give "
    "{around!r}{more}"
)
_ONE_FILE = ", or read the file into adapters that are there with model.load_weights(file, strict=False)"


def _directory(given: Any, function: str, more: str = "") -> str:
    """Return the path of a directory of adapters as text, unless it is that of a file, or would be."""
    path = require_path(given, f"{function}(model, directory)")
    is_file = not os.path.isdir(path) and (os.path.exists(path) or os.path.splitext(path)[1] in ENDINGS)
    if is_file:
        files = {"weights": _WEIGHTS, "config": _CONFIG, "around": os.path.dirname(path) or "."}
        raise NotADirectoryError(_NO_DIRECTORY.format(function=function, path=path, more=more, **files))
    return path


_NO_ADAPTERS = "this {cls} has no adapters to save: make some with fl.lora, or save the whole model with fl.save"
_ITSELF = "this {cls} is an adapter itself, and mlx-lm's files name layers inside a model: save it with fl.save"
_UNLIKE = (
    "mlx-lm's files have one rank, scale, dropout and kind for all adapters, and {one} has {first}, {other} {second}: save the "
    "whole model with fl.save"
)
_OTHERS = (
    "{names} would be lost: they are trainable, and mlx-lm's files of adapters have no place for them. Freeze them, or save "
    "the whole model with fl.save"
)


_DIVIDED = (
    "can't save {names}, of which each rank has a part: write whole = fl.distributed.gather(model) on all ranks, and "
    "fl.save_adapters(whole, directory) on one"
)


def _contents(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the two files say of the adapters in a model."""
    found = adapters_in(model)
    adapters = {keystr(path): adapter for path, adapter in found.items()}
    if not adapters or "" in adapters:
        raise ValueError((_ITSELF if adapters else _NO_ADAPTERS).format(cls=type(model).__name__))
    found_settings = {name: settings(adapter) for name, adapter in adapters.items()}
    (one, first), *rest = found_settings.items()
    for other, second in rest:
        if second != first:
            raise ValueError(_UNLIKE.format(one=one, first=describe(first), other=other, second=describe(second)))
    if others := trained_paths(model) - own_arrays(found):
        raise ValueError(_OTHERS.format(names=listed(sorted(map(keystr, others)))))
    structure = flat_of(model).structure
    parts = dict(zip(structure.leaf_names(), shards_in(structure), strict=True))
    arrays = _arrays_of(adapters)
    if divided := [name for name in arrays if any(shard.group.size() > 1 for shard in parts[name])]:
        raise ValueError(_DIVIDED.format(names=listed(divided)))
    for name, array in arrays.items():
        if isinstance(array, ShapeDtypeStruct):
            raise ValueError(f"can't save {name}, which is a ShapeDtypeStruct and has no numbers")
    parameters = {name: first[name] for name in ("rank", "scale", "dropout")}
    # As keys mlx-lm takes whole paths too; -1 stands for all layers.
    config = {"fine_tune_type": first["kind"], "num_layers": -1, "lora_parameters": {**parameters, "keys": [*adapters]}}
    return config, arrays


def _arrays_of(adapters: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{keystr(part)}": array for name, adapter in adapters.items() for part, array in own_parts(adapter)}


def _reads(file: str, text: str) -> bool:
    try:
        with open(file) as handle:
            return handle.read() == text
    except (OSError, ValueError):
        return False


_PEFT = (
    "is of PEFT, and mlx-lm's files are read here. Write model = fl.lora(model, where, rank=r, scale=lora_alpha / r), and then "
    "model.load_weights(pairs, strict=False), where each lora_a is a lora_A.weight.T, and lora_b a lora_B.weight.T"
)


def _read_config(file: str) -> tuple[str, dict[str, Any]]:
    """Return how a model was adapted, and the options of ``fl.lora`` for that."""
    with open(file, "rb") as handle:
        try:
            config = json.loads(handle.read())
        except (ValueError, RecursionError) as error:
            fail(file, f"is no JSON: {error}")
    if not isinstance(config, dict):
        fail(file, "isn't a JSON object")
    if "peft_type" in config:
        raise ValueError(f"{file} {_PEFT}")
    kind = config.get("fine_tune_type", "lora")
    if kind == "full":
        return kind, {}
    if kind not in ("lora", "dora"):
        raise ValueError(f"{file} has fine_tune_type {describe(kind)}, where 'lora', 'dora' or 'full' is needed")
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise ValueError(f"{file} has lora_parameters {describe(parameters)}, where a dict of rank and scale is needed")
    for name in ("rank", "scale"):
        if name not in parameters:
            hint = ". It has an alpha: the scale is alpha / rank" if name == "scale" and "alpha" in parameters else ""
            raise ValueError(f"{file} has no {name} in lora_parameters{hint}")
    return kind, {"dropout": 0.0, **{name: parameters[name] for name in ("rank", "scale", "dropout") if name in parameters}}


def _layers_in(model: Any, weights: Collection[str], file: str) -> list[str]:
    """Return the layers that some names of arrays belong to."""
    if not weights:
        raise ValueError(f"{file} has no arrays")
    there = {name for name, _ in named_modules(model)}
    layers: dict[str, None] = {}
    for name in sorted(weights):
        layer, own = _split(name)
        if own not in _OWN or not layer:
            raise ValueError(f"{file} has {name!r:.80}, which is no array of an adapter: these end in {listed(_OWN)}")
        if layer not in there:
            cls = type(model).__name__
            raise ValueError(f"{file} has {name!r:.80}, and this {cls} has no such layer{nearest(layer, there)}")
        layers[layer] = None
    return [*layers]


def _split(name: str) -> tuple[str, str]:
    """Return the layer that an array belongs to, and what it is there, whether there is one of them or a list."""
    layer, _, own = name.rpartition(".")
    return _split(layer) if own.isdigit() else (layer, own)


def _check(file: str, weights: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` unless the weights in a file are among the arrays of a model, and of their shapes."""
    if extra := weights.keys() - arrays.keys():
        raise ValueError(f"{file} has {listed(sorted(extra))}, and the model has no such arrays")
    for name in sorted(weights):
        if weights[name].shape != arrays[name].shape:
            given, expected = describe(weights[name]), describe(arrays[name])
            raise ValueError(f"{file} has {name} as {given}, where the model has {expected}")
