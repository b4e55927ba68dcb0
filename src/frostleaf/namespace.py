"""frostleaf's corner of optree's registry."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import optree

NAMESPACE = "frostleaf"

# The order in which a function meets the items of a dict is part of what it computes, so it is part of the structure.
# The mode is entered for this namespace only and never left; it would be left if the context manager were collected.
_insertion_ordered = optree.registry.dict_insertion_ordered(True, namespace=NAMESPACE)
_insertion_ordered.__enter__()


def _flatten_mapping(mapping: Any) -> tuple[Iterable[Any], Any, Iterable[Any]]:
    keys = tuple(mapping)
    return tuple(mapping.values()), keys, keys


def _unflatten_mapping(keys: Any, values: Iterable[Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(dict(zip(keys, values, strict=True)))


optree.register_pytree_node(
    MappingProxyType, _flatten_mapping, _unflatten_mapping, path_entry_type=optree.MappingEntry, namespace=NAMESPACE
)
