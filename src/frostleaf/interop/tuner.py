"""The adapters of mlx-lm: which classes of its own they are, and what its code makes of a layer that only it knows."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from ..core.construction import evolve
from ..core.instance import metadata_of
from ..core.words import Path
from ..edits.modes import train
from ..nn.low_rank import Adapter
from ..transforms.random import require_own_state, rng, unchanged_state
from .calls import made_from
from .layout import Wrapped
from .twins import native

# Makes an adapter of a layer, a rank, a dropout, a scale and a key.
Adapt = Callable[..., Any]

_HELD = "linear", "embedding"
_OWN = "lora_a", "lora_b", "m"
SWITCHES = "SwitchLinear", "QuantizedSwitchLinear"


def is_adapter(kind: type) -> bool:
    """Return whether a class is one of adapters: of :class:`Adapter`, or a wrapped one that has the same parts."""
    if not issubclass(kind, Wrapped):
        return issubclass(kind, Adapter)
    children = kind.__frostleaf__.children
    return {*_OWN[:2]} <= {*children} and any(name in children for name in _HELD) and hasattr(kind.__mlx__, "fuse")


def held_name(adapter: Any) -> str:
    """Return the name of the field in which an adapter has the layer that it adapts."""
    children = adapter.__frostleaf__.children
    return adapter.held if isinstance(adapter, Adapter) else next(name for name in _HELD if name in children)


def own_parts(adapter: Any) -> Iterator[tuple[Path, Any]]:
    """Yield the arrays that an adapter has beside the layer that it holds, and their paths in it."""
    children = adapter.__frostleaf__.children
    for name in adapter.own if isinstance(adapter, Adapter) else [name for name in children if name in _OWN]:
        value = getattr(adapter, name)
        if isinstance(value, tuple | list):  # an array for each part of the output
            yield from (((name, index), each) for index, each in enumerate(value))
        else:
            yield (name,), value


def settings(adapter: Any) -> dict[str, Any]:
    """Return the rank, the scale, the dropout and the kind of an adapter, as mlx-lm's configuration has them."""
    parts = dict(own_parts(adapter))
    first = next(array for (name, *_), array in parts.items() if name == "lora_a")
    # That of experts has the axes [experts, rank, input].
    rank = first.shape[-1] if first.ndim == 2 else first.shape[-2]
    dropout: Any = adapter.dropout
    if isinstance(dropout, Wrapped):
        dropout = native(dropout)
    kind = "dora" if ("m",) in parts else "lora"
    return {"rank": rank, "scale": adapter.scale, "dropout": dropout.p, "kind": kind}


def fused(adapter: Any, dequantize: bool) -> Any:
    """Return the layer that an adapter holds, with the change merged into its weight."""
    if isinstance(adapter, Adapter):
        return adapter.fuse(dequantize)
    with unchanged_state():  # mlx-lm draws a weight that it drops
        new = made_from(adapter, lambda live: live.fuse(dequantize=dequantize))
    held = getattr(adapter, held_name(adapter))
    frozen = metadata_of(held).frozen & {*new.__frostleaf__.children}
    return evolve(train(new, held.training), frozen=metadata_of(new).frozen | frozen)


def original_way(layer: Wrapped) -> Adapt | None:
    """Return how code of mlx-lm adapts a layer that has a way of its own, or experts; or ``None`` for other layers."""
    kind = layer.__mlx__
    if hasattr(kind, "to_lora"):
        return functools.partial(_adapted, lambda live, **options: live.to_lora(**options))
    if any(cls.__module__ == "mlx_lm.models.switch_layers" and cls.__name__ in SWITCHES for cls in kind.__mro__):
        return functools.partial(_adapted, importlib.import_module("mlx_lm.tuner.lora").LoRASwitchLinear.from_base)
    return None


def _adapted(make: Callable[..., Any], layer: Wrapped, *, key: mx.array | None, **options: Any) -> Any:
    """Return the tree of what original code makes of a live layer, with the layer inside."""
    if key is None:
        require_own_state()
        adapter = made_from(layer, lambda live: make(live, **options))
    else:
        with rng(key):
            adapter = made_from(layer, lambda live: make(live, **options))
    return evolve(adapter, {held_name(adapter): layer})
