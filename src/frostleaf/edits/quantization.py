"""Copies in which layers are quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import optree

from ..core.definition import Node
from ..core.dropped import returns_copy
from ..core.levels import one_level
from ..core.registration import NAMESPACE
from ..core.words import Path, class_name, describe, keystr
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

    A layer is a module that holds no other. It is quantized by its method ``to_quantized``, which :class:`frostleaf.nn.Linear`
    and :class:`frostleaf.nn.Embedding` have. A layer that the model holds in several places is quantized once and held in the
    same places, and a model that is itself such a layer is quantized too. Frozen biases stay frozen, and what is in
    evaluation mode stays in it.

    Nothing is computed yet. ``fl.eval(small, at_once=0)`` does it layer by layer, and lets go of each weight of a model that
    nobody holds any more as it is quantized.

    Args:
        model: A module, or any tree that holds modules.
        group_size: How many neighbouring numbers share a scale. Default: that of the mode.
        bits: How many bits a number takes. Default: that of the mode.
        mode: ``"affine"``, ``"mxfp4"``, ``"nvfp4"`` or ``"mxfp8"``; see :func:`mlx.core.quantize`. Default: ``"affine"``.
        quantize_input: Whether the input of a layer is quantized as well; for linear layers without bias, in modes ``"nvfp4"``
            and ``"mxfp8"``. Default: ``False``.
        class_predicate: Called with the dotted path of each layer and the layer. Returns whether to quantize it, or a dict of
            what to give to ``to_quantized`` in place of the above. Default: whether the layer has that method.

    Raises:
        TypeError: If ``model`` is neither a module nor a container.
        ValueError: If the predicate returns something else, or selects what has no ``to_quantized``; if a layer can't be
            quantized so, for example because ``group_size`` does not divide its width.
        NotImplementedError: If the input of a layer with a bias is to be quantized.

    >>> import frostleaf as fl
    >>> model = fl.nn.Sequential(fl.nn.Embedding(9, 64), fl.nn.LayerNorm(64), fl.nn.Linear(64, 2))
    >>> small = fl.quantize(model, bits=8, class_predicate=lambda path, layer: path == "layers.2")
    >>> small.layers[2].weight.dtype, small.layers[2].bits
    (mlx.core.uint32, 8)
    >>> small.layers[0] is model.layers[0], model.layers[2]
    (True, Linear(weight=f32[2,64], bias=f32[2]))
    """
    if one_level(model) is None:
        raise TypeError(f"fl.quantize takes a module, or a tree that holds modules, and was given {class_name(model)}")
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

    return rewrite(model, enter, convert=True)  # type: ignore[no-any-return]


def _holds_modules(node: Node) -> bool:
    children = [getattr(node, name) for name in node.__frostleaf__.children]
    below: list[Any] = optree.tree_leaves(children, lambda value: isinstance(value, Node), namespace=NAMESPACE)  # type: ignore[arg-type]
    return any(isinstance(value, Node) for value in below)


def _given(answer: Any, options: dict[str, Any], name: str, layer: Any) -> dict[str, Any]:
    """Return the arguments for ``to_quantized`` that the predicate's answer stands for."""
    if not hasattr(layer, "to_quantized"):
        kind = type(layer).__name__
        raise ValueError(
            f"Unable to quantize {name}, a {kind}, which has no method to_quantized: class_predicate must return False for it"
        )
    if not isinstance(answer, bool | dict):
        returned = f"{describe(answer)} for {name}"
        raise ValueError(f"class_predicate must return a bool or a dict of options for to_quantized, and returned {returned}")
    given = options if isinstance(answer, bool) else answer
    # Not passed on where it is False: another's to_quantized need not know it.
    return {key: value for key, value in given.items() if key != "quantize_input" or value}


def _quantized(layer: Any, given: dict[str, Any], name: str) -> Any:
    try:
        return layer.to_quantized(**given)
    except (ValueError, NotImplementedError) as error:
        kind = ValueError if isinstance(error, ValueError) else NotImplementedError
        reason = str(error).rstrip(".")
        raise kind(
            f"can't quantize {name}: {reason}. Give a class_predicate that returns False, or options that suit, for it"
        ) from error
