"""Models, selections and arrays of MLX in Treescope. Importing this file registers ``mx.array`` with Treescope.

``import frostleaf`` does so where Treescope was imported before, and else the first model or selection that Treescope shows.
Then ``treescope.render_array(x)`` draws ``x``, and Treescope shows arrays by dtype and shape. Nothing is evaluated but what
``render_array`` draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np
from treescope import formatting_util, ndarray_adapters, rendering_parts, repr_lib, type_registries

from ..core.definition import Node
from ..core.instance import Instance, field_values, is_finished, metadata_of
from ..core.shapes import LEAF, ShapeDtypeStruct
from ..core.words import dtype_name, in_a_line, keystr
from ..edits.selection import Selection
from ..io.inventory import CheckpointInfos
from ..tree.differences import Diff
from .rows import Summary

Renderer = Callable[..., Any]


@singledispatch
def show(value: Any, path: str | None, subtree_renderer: Renderer) -> Any:
    """Return what Treescope shows of a value; ``NotImplemented`` if it is to find a way itself."""
    return NotImplemented


@show.register
def _(value: Node, path: str | None, subtree_renderer: Renderer) -> Any:
    if not is_finished(value):
        return rendering_parts.build_one_line_tree_node(f"{type(value).__name__}(<being built>)", path)
    shown_fields = getattr(type(value), "_shown_fields", None)
    values = dict(shown_fields(value) if shown_fields else field_values(value))
    children = [
        rendering_parts.siblings_with_annotations(
            f"{name}=" if name.isidentifier() else name,
            subtree_renderer(each, path=None if path is None else f"{path}.{name}"),
        )
        for name, each in values.items()
    ]
    kind = type(value)
    return rendering_parts.build_foldable_tree_node_from_children(
        prefix=rendering_parts.siblings(rendering_parts.maybe_qualified_type_name(kind), _marks(value), "("),
        children=children,
        suffix=")",
        comma_separated=True,
        path=path,
        background_color=formatting_util.color_from_string(f"{kind.__module__}.{kind.__qualname__}"),
    )


@show.register
def _(value: Selection, path: str | None, subtree_renderer: Renderer) -> Any:  # type: ignore[type-arg]
    return repr_lib.render_dictionary_wrapper(Selection, dict(value), None, subtree_renderer)


def _marks(node: Node) -> Any:
    """Return in brackets what is special about a node."""
    metadata = metadata_of(node)
    marks = [] if metadata.training else ["eval"]
    marks += [f"frozen: {', '.join(sorted(metadata.frozen))}"] if metadata.frozen else []
    marks += [f"tied: {keystr(place)} → {keystr(source)}" for place, source in metadata.ties]
    shown = rendering_parts.text(f"[{in_a_line('; '.join(marks))}]" if marks else "")
    return rendering_parts.custom_style(shown, "font-style: italic")  # in a color that is read on any other


class ArrayAdapter(ndarray_adapters.NDArrayAdapter):  # type: ignore[misc]
    """Draws arrays of MLX in Treescope: bfloat16 as float32, and complex numbers by their absolute values."""

    def get_axis_info_for_array_data(self, array: mx.array) -> tuple[Any, ...]:
        """Return the length of each axis."""
        return tuple([ndarray_adapters.PositionalAxisInfo(axis, length) for axis, length in enumerate(array.shape)])

    def get_array_data_with_truncation(
        self, array: mx.array, mask: Any, edge_items_per_axis: tuple[int | None, ...]
    ) -> tuple[Any, Any]:
        """Return the numbers at the edges, and which of them are to be drawn."""
        shown = np.broadcast_to(np.ones((), bool) if mask is None else np.array(mask, bool), array.shape)
        for axis, edge in enumerate(edge_items_per_axis):
            if edge is not None:
                length = array.shape[axis]
                kept = [*range(edge), edge, *range(length - edge, length)]
                array, shown = mx.take(array, mx.array(kept), axis), np.take(shown, kept, axis)
                shown[(slice(None),) * axis + (edge,)] = False
        return _to_numpy(array), shown

    def get_array_summary(self, array: mx.array, fast: bool) -> str:
        """Return the dtype and the shape."""
        return f"mx.array {dtype_name(array.dtype)}{tuple(array.shape)}"

    def get_numpy_dtype(self, array: mx.array) -> Any:
        """Return the dtype in which the numbers are drawn."""
        return _to_numpy(mx.zeros((), array.dtype)).dtype

    def should_autovisualize(self, array: mx.array) -> bool:
        """Return ``False``: a picture needs the numbers, and is drawn when it is asked for."""
        return False


def _to_numpy(array: mx.array) -> Any:
    array = mx.abs(array) if mx.issubdtype(array.dtype, mx.complexfloating) else array
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def _show_array(value: Any, path: str | None, subtree_renderer: Renderer) -> Any:
    summary = f"<{_ADAPTER.get_array_summary(value, True)}>"
    shown = summary if isinstance(value, mx.array) else summary.replace("mx.array", "fl.ShapeDtypeStruct")
    return rendering_parts.build_one_line_tree_node(rendering_parts.abbreviation_color(rendering_parts.text(shown)), path)


def _show_text(value: Any, path: str | None, subtree_renderer: Renderer) -> Any:
    """Show a summary or differences as text, beside the page that they have."""
    lines = [rendering_parts.text(line) for line in repr(value).split("\n")]
    kind = type(value).__name__
    return rendering_parts.build_foldable_tree_node_from_children(f"{kind}(", lines, ")", path=path)


_ADAPTER = ArrayAdapter()
type_registries.NDARRAY_ADAPTER_REGISTRY[mx.array] = _ADAPTER
type_registries.TREESCOPE_HANDLER_REGISTRY.update(dict.fromkeys(LEAF, _show_array))
type_registries.TREESCOPE_HANDLER_REGISTRY.update(dict.fromkeys((Summary, Diff, CheckpointInfos), _show_text))
# Dicts in a module, which would be shown by their repr, with the numbers in them.
type_registries.TREESCOPE_HANDLER_REGISTRY[MappingProxyType] = lambda value, path, render: render(dict(value), path=path)
# A module or an array at two places is no mistake.
type_registries.IMMUTABLE_TYPES_REGISTRY.update({Instance: True, mx.array: True, ShapeDtypeStruct: True})
