"""Layers of ``frostleaf.nn`` and those of ``mlx.nn`` or mlx-lm that they are twins of: the same names, but for a few."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn

from .. import nn
from ..core import fields
from ..core.construction import evolve
from ..core.instance import Definition, Metadata, field_values, level_of, metadata_of
from ..core.kept import Kept
from ..module import Module
from ..transforms.group import as_group
from .layout import Wrapped

# Of static values by name: returns those of the twin, or ``None`` if it has none that computes the same.
Translate = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


class Names(NamedTuple):
    """How the static values of a layer become those of its twin."""

    to_mlx: Translate
    from_mlx: Translate


def _as_they_are(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values


def _renamed(ours: str) -> Names:
    return Names(lambda values: {f"_{ours}": values[ours]}, lambda values: {ours: values[f"_{ours}"]})


def _kept_part(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"_p_1": 1 - values["p"]}


def _dropped_part(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    dropped = 1 - values["_p_1"]
    # The first is what was given, but for numbers of more digits; with either the same part is kept.
    given = (each for each in (round(dropped, 15), dropped) if 1 - each == values["_p_1"])
    return next(({"p": each} for each in given), None)


def _pool(name: str) -> Names:
    def to_mlx(values: Mapping[str, Any]) -> Mapping[str, Any]:
        made: Any = getattr(mlx.nn, name)(values["kernel_size"], values["stride"], values["padding"])
        return {**made, **{key: value for key, value in vars(made).items() if key not in ("_no_grad", "_training")}}

    def from_mlx(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
        size, stride, pairs = (_plain(values[key]) for key in ("_kernel_size", "_stride", "_padding"))
        ours = {"kernel_size": (*size,), "stride": (*stride,), "padding": tuple([before for before, _ in pairs])}
        theirs = {key: _plain(value) for key, value in values.items()}
        return ours if to_mlx(ours) == theirs else None

    return Names(to_mlx, from_mlx)


def _plain(value: Any) -> Any:
    return value.value if type(value) is Kept else value


def _in_order(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    group = _plain(values.get("group"))
    return {**values, "group": as_group(group), "segments": 1} if isinstance(group, mx.distributed.Group) else None


_SAME = Names(_as_they_are, _as_they_are)
# MLX's exchange with other ranks whenever their results are computed, ours in the order of the program: no layer becomes one
# of MLX's, whose code would run without that order.
_SHARDED = ("AllToShardedLinear", "QuantizedAllToShardedLinear", "QuantizedShardedToAllLinear", "ShardedToAllLinear")
_OTHER = {
    **{name: Names(_as_they_are, _in_order) for name in _SHARDED},
    **{name: _renamed("alpha") for name in ("CELU", "ELU")},
    **{name: Names(_kept_part, _dropped_part) for name in ("Dropout", "Dropout2d", "Dropout3d")},
    **{f"{kind}Pool{dims}d": _pool(f"{kind}Pool{dims}d") for kind in ("Avg", "Max") for dims in (1, 2, 3)},
    "GELU": _renamed("approx"),
    "LeakyReLU": _renamed("negative_slope"),
}
# Their arrays have no place in their twins, or for the last is their division not to be told from them.
_WITHOUT = ("QQLinear", "SinusoidalPositionalEncoding", "FullyShardedModule")
# These are mlx-lm's, in this file of its tuner.
_TUNER = {"DoRAEmbedding": "dora", "DoRALinear": "dora", "LoRAEmbedding": "lora", "LoRALinear": "lora"}
# Where there is no array, these have None, and others nothing.
_WITH_NONE = ("GRU", "LSTM", "RNN")


def mlx_class(kind: type) -> Any:
    """Return the class of ``mlx.nn`` that is the twin of one of ``frostleaf.nn``, or ``None``.

    Those of adapters are mlx-lm's, where it is installed.
    """
    name = kind.__name__
    known = name in nn.__all__ and name not in (*_WITHOUT, *_SHARDED) and getattr(nn, name) is kind
    if known and name in _TUNER:
        return tuner_class(name)
    return getattr(mlx.nn, name, None) if known else None


@functools.cache
def tuner_class(name: str) -> Any:
    """Return the class of mlx-lm's adapters that has a name, or ``None`` where mlx-lm is not installed."""
    with suppress(ImportError):
        return getattr(importlib.import_module(_tuner_file(name)), name)
    return None


def _tuner_file(name: str) -> str:
    return f"mlx_lm.tuner.{_TUNER[name]}"


def _is_twin(name: str, kind: type) -> bool:
    if name in _TUNER:
        return kind.__module__ == _tuner_file(name)
    return name in nn.__all__ and name not in _WITHOUT and getattr(mlx.nn, name, None) is kind


def static_of_twin(node: Module) -> Mapping[str, Any]:
    """Return the static values of a layer's twin."""
    translated = _OTHER.get(type(node).__name__, _SAME).to_mlx(metadata_of(node).static)
    assert translated is not None
    return translated


def has_none(node: Module) -> bool:
    """Return whether a layer's twin has ``None`` where it has no array."""
    return type(node).__name__ in _WITH_NONE


def frozen_names(node: Module) -> set[str]:
    """Return the names that are frozen in a layer's twin, in which buffers are frozen parameters."""
    metadata, children = level_of(node)
    definition = node.__frostleaf__
    named = zip(definition.children, children, strict=True)
    buffers = {name for name, child in named if child is not None and fields.kind(definition.fields[name]) == "buffer"}
    return {*metadata.frozen, *buffers}


def has_other_names(kind: type) -> bool:
    """Return whether a class of ``mlx.nn`` keeps what its constructor takes under other names, of which its twin has none."""
    return kind.__name__ in _OTHER and _is_twin(kind.__name__, kind)


def replaced(node: Wrapped, /, **changes: Any) -> Any:
    """Replace fields in a copy, by the names of the twin too: ``dropout.replace(p=0.1)``. See :meth:`Module.replace`."""
    twin = native(node)
    if twin is None or not changes.keys() <= twin.__frostleaf__.fields.keys():
        return evolve(node, changes)
    return evolve(node, static_of_twin(evolve(twin, changes)))


def shown_fields(node: Wrapped) -> list[tuple[str, Any]]:
    """Return the fields of the twin, which are what the constructor takes."""
    twin = native(node)
    return Wrapped._shown_fields(node) if twin is None else [*field_values(twin).items()]


def native(node: Wrapped) -> Module | None:
    """Return the layer of ``frostleaf.nn`` that is the twin of a wrapped layer, or ``None`` if there is none."""
    kind = type(node).__mlx__
    name = kind.__name__
    if not _is_twin(name, kind):
        return None
    twin: Any = getattr(nn, name)
    definition: Definition = twin.__frostleaf__
    metadata, children = level_of(node)
    given = dict(zip(node.__frostleaf__.children, children, strict=True))
    # What is static in a wrapped module may be a child here, such as a function that is an activation.
    given |= {key: value for key, value in metadata.static.items() if key in definition.children}
    static = _OTHER.get(name, _SAME).from_mlx({key: value for key, value in metadata.static.items() if key not in given})
    if static is None or {*static} != {*definition.static} or not {*given} <= {*definition.children}:
        return None
    if any(type(value) is Kept for value in (*static.values(), *given.values())):
        return None
    frozen = frozenset([each for each in metadata.frozen if each.split(".")[0] in definition.parameters])
    new = Metadata({key: static[key] for key in definition.static}, metadata.training, frozen, metadata.ties, metadata.shards)
    return definition.assemble(new, [given.get(key) for key in definition.children])  # type: ignore[no-any-return]
