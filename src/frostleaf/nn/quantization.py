"""Quantizing layers in copies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import optree
from mlx.nn.layers.base import Module as MLXModule

from ..core.arguments import require_callable
from ..core.definition import Node
from ..core.dropped import returns_copy
from ..core.instance import metadata_of
from ..core.leaves import require_seen
from ..core.levels import one_level
from ..core.registration import NAMESPACE
from ..core.shapes import ShapeDtypeStruct
from ..core.structure import flat_of
from ..core.words import Path, class_name, describe, keystr, listed
from ..edits.modes import train
from ..transforms.eval_shape import eval_shape
from ..tree.selecting import warn_if_asked_in_vain
from ..tree.walk import Descend, rewrite

T = TypeVar("T")


@returns_copy("model = fl.quantize(model, ...)")
def quantize(
    model: T,
    group_size: int | None = None,
    bits: int | None = None,
    *,
    mode: str = "affine",
    quantize_input: bool = False,
    class_predicate: Callable[[str, Any], bool | dict[str, Any]] | None = None,
) -> T:
    """Quantize the layers of a model in a copy that shares the rest.

    A layer is a module that holds no other. Its method ``to_quantized`` quantizes it; :class:`frostleaf.nn.Linear` and
    :class:`frostleaf.nn.Embedding` have one. A layer that the model holds at several places is quantized once and is one object
    there again; a model may itself be such a layer. Frozen biases stay frozen, and each layer keeps its mode.

    Nothing is computed yet. ``fl.eval(small, at_once=0)`` computes it layer by layer; if the first model is not referenced any
    more, that frees each weight as soon as it is quantized.

    Args:
        model: A module, or any tree that holds modules.
        group_size: How many neighbouring numbers share a scale. Default: that of the mode.
        bits: How many bits a number takes. Default: that of the mode.
        mode: ``"affine"``, ``"mxfp4"``, ``"nvfp4"`` or ``"mxfp8"``; see :func:`mlx.core.quantize`. Default: ``"affine"``.
        quantize_input: Whether the inputs of layers are quantized too; for linear layers without bias, in modes ``"nvfp4"``
            and ``"mxfp8"``. Default: ``False``.
        class_predicate: Called with the dotted path of each layer and the layer. Returns whether to quantize it, or a dict of
            arguments for ``to_quantized`` instead of the above. Default: whether the layer has that method.

    Raises:
        TypeError: If ``model`` is neither a module nor a container, or is packed; if ``to_quantized`` has no option of a name
            that is given.
        ValueError: If the predicate returns something else, or selects a layer without ``to_quantized``; if a layer can't be
            quantized this way, for example because ``group_size`` does not divide its width.
        NotImplementedError: If ``quantize_input`` and a selected layer has a bias.

    Warns:
        UserWarning: If the predicate selects nothing, since it asks whether layers of a wrapped model are instances of a class
            of ``mlx.nn``.

    >>> import frostleaf as fl
    >>> model = fl.nn.Sequential(fl.nn.Embedding(9, 64), fl.nn.LayerNorm(64), fl.nn.Linear(64, 2))
    >>> small = fl.quantize(model, bits=8, class_predicate=lambda path, layer: path == "layers.2")
    >>> small.layers[2].weight.dtype, small.layers[2].bits
    (mlx.core.uint32, 8)
    >>> small.layers[0] is model.layers[0], model.layers[2]
    (True, Linear(weight=f32[2,64], bias=f32[2]))
    """
    if one_level(model) is None:
        advice = ": give it fl.from_mlx(model)" if isinstance(model, MLXModule) else ""
        raise TypeError(f"fl.quantize takes a module, or a tree that holds modules, and was given {class_name(model)}{advice}")
    require_seen("fl.quantize", model)
    if class_predicate is not None:
        require_callable("class_predicate", class_predicate, "a path and a layer")
    options = {"group_size": group_size, "bits": bits, "mode": mode, "quantize_input": quantize_input}
    selects = class_predicate or (lambda path, layer: hasattr(layer, "to_quantized"))
    made: dict[int, list[tuple[dict[str, Any], Any]]] = {}

    def enter(path: Path, value: Any) -> Any:
        if not isinstance(value, Node) or _holds_modules(value):
            return Descend
        name = keystr(path) or "the model"
        answer = selects(keystr(path), value)
        if not answer:
            return value
        given = _given(answer, options, name, value)
        before = made.setdefault(id(value), [])
        for same, result in before:
            if same == given:
                return result
        before.append((given, _quantized(value, given, name)))
        return before[-1][1]

    after = rewrite(model, enter, convert=True)
    if after is model:
        warn_if_asked_in_vain(class_predicate, model)
    return after  # type: ignore[no-any-return]


def _holds_modules(node: Node) -> bool:
    children = [getattr(node, name) for name in node.__frostleaf__.children]
    below: list[Any] = optree.tree_leaves(children, lambda value: isinstance(value, Node), namespace=NAMESPACE)  # type: ignore[arg-type]
    return any(isinstance(value, Node) for value in below)


def _given(answer: Any, options: dict[str, Any], name: str, layer: Any) -> dict[str, Any]:
    """Return the arguments for ``to_quantized``, given what the predicate returned."""
    if not hasattr(layer, "to_quantized"):
        kind = type(layer).__name__
        raise ValueError(
            f"Unable to quantize {name}, a {kind}, which has no method to_quantized: class_predicate must return False for it"
        )
    if not isinstance(answer, bool | dict):
        returned = f"{describe(answer)} for {name}"
        raise ValueError(f"class_predicate must return a bool or a dict of options for to_quantized, and returned {returned}")
    given = options if isinstance(answer, bool) else answer
    takes = inspect.signature(layer.to_quantized).parameters
    for option in given if all(each.kind is not each.VAR_KEYWORD for each in takes.values()) else ():
        if option not in takes and (option != "quantize_input" or given[option]):
            method = f"{type(layer).__name__}.to_quantized"
            raise TypeError(f"can't quantize {name}: {method} has no option {describe(option)}; it takes {listed(takes)}")
    # Not passed on if it is False: a user's own to_quantized need not know it.
    return {key: value for key, value in given.items() if key != "quantize_input" or value}


def _quantized(layer: Any, given: dict[str, Any], name: str) -> Any:
    shapes_only = any(isinstance(leaf, ShapeDtypeStruct) for leaf in flat_of(layer).leaves)
    try:
        made = eval_shape(type(layer).to_quantized, layer, **given) if shapes_only else layer.to_quantized(**given)
    except (ValueError, NotImplementedError) as error:
        kind = ValueError if isinstance(error, ValueError) else NotImplementedError
        reason = str(error).rstrip(".")
        raise kind(
            f"can't quantize {name}: {reason}. Give a class_predicate that returns False for it, or other options"
        ) from error
    return train(made, metadata_of(layer).training)
