"""The structure of an exported function's result in JSON, which names what the arguments have as well by its number there."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..core.containers import is_hashable
from ..core.instance import Metadata
from ..core.levels import Recipe, entries_of, one_level
from ..core.structure import Static, Structure, child_specs
from ..core.words import Path, describe, keystr, with_article

_ARRAY = "array"
_SEQUENCES = {"tuple": tuple, "list": list}
_MAPPINGS = {"dict": dict, "mappingproxy": types.MappingProxyType}
_IN_JSON = (bool, int, float, str)

_UNKNOWN = (
    "{place} is a {kind}, which a file can't hold, and no argument has one like it. Return arrays, numbers, strings, tuples, "
    "lists and dicts of them, and modules of the arguments"
)


class Parts:
    """What stands in the arguments of an exported function, numbered in order, outer ones first."""

    def __init__(self, structures: Sequence[Structure]) -> None:
        self.specs = [each for structure in structures for each in _specs_in(structure)]
        self._same: dict[Any, int] = {}
        self._like: dict[Any, int] = {}
        for number, spec in enumerate(self.specs):
            for known, key in ((self._same, _opened(spec)), (self._like, _kind_of(spec))):
                if is_hashable(key):
                    known.setdefault(key, number)

    def encode(self, spec: Any, path: Path = ()) -> Any:
        """Return the structure of a result, or a part of one, as JSON can hold it.

        Raises:
            TypeError: If there is something in it that neither JSON nor the arguments have; the message names the path.
        """
        spec = _opened(spec)
        if spec is mx.array:
            return _ARRAY
        if spec is None:
            return None
        if isinstance(spec, Static):
            return (
                {"value": spec.value} if type(spec.value) in _IN_JSON else {"same": self._number(self._same, spec, spec, path)}
            )
        kind, metadata, specs = spec
        is_module = isinstance(metadata, Metadata)
        if is_module and spec in self._same:
            return {"same": self._same[spec]}
        entries = entries_of(kind, metadata)
        inside = [self.encode(child, (*path, entry)) for entry, child in zip(entries, child_specs(specs), strict=True)]
        name = kind.__name__
        if kind is _SEQUENCES.get(name):
            return {name: inside}
        if kind is _MAPPINGS.get(name) and all(isinstance(key, str) for key in entries):
            return {name: [*entries], "children": inside}
        if hasattr(kind, "_fields") and issubclass(kind, tuple):
            return {"named": f"{kind.__module__}:{kind.__qualname__}", "children": inside}
        code = {"like": self._number(self._like, _kind_of(spec), spec, path), "children": inside}
        return (
            {**code, "training": metadata.training, "frozen": sorted(metadata.frozen), "ties": metadata.ties}
            if is_module
            else code
        )

    def _number(self, known: Mapping[Any, int], key: Any, spec: Any, path: Path) -> int:
        if not is_hashable(key) or key not in known:
            kind = spec.value if isinstance(spec, Static) else spec[0]
            place = f"{keystr(path)} of the result" if path else "the result"
            name = type(kind).__name__ if isinstance(spec, Static) else kind.__name__
            raise TypeError(
                _UNKNOWN.format(place=place, kind=f"{name} ({describe(kind)})" if isinstance(spec, Static) else name)
            )
        return known[key]

    def decode(self, code: Any) -> Any:
        """Return the spec that :meth:`encode` was given, with what these arguments have where it names a part of them.

        Raises:
            LookupError: If it has a named tuple whose module has not been imported.
        """
        if code == _ARRAY:
            return mx.array
        if code is None:
            return None
        if "value" in code:
            return Static(code["value"])
        if "same" in code:
            return self.specs[code["same"]]
        for name in _SEQUENCES.keys() & code.keys():
            example = _SEQUENCES[name]([None] * len(code[name]))
            return self._node(example, code[name])
        for name in _MAPPINGS.keys() & code.keys():
            return self._node(_MAPPINGS[name](dict.fromkeys(code[name])), code["children"])
        if "named" in code:
            return self._node(_named(code["named"])(*[None] * len(code["children"])), code["children"])
        kind, metadata, _ = _opened(self.specs[code["like"]])
        if isinstance(metadata, Metadata):
            ties = tuple((tuple(target), tuple(source)) for target, source in code["ties"])
            metadata = Metadata(metadata.static, code["training"], frozenset(code["frozen"]), ties)
        return kind, metadata, self._children(code["children"])

    def _node(self, example: Any, codes: Sequence[Any]) -> Any:
        metadata, _ = one_level(example)  # type: ignore[misc]
        return type(example), metadata, self._children(codes)

    def _children(self, codes: Sequence[Any]) -> Any:
        # As flatten writes it, so that the structures are equal.
        return len(codes) if all(code == _ARRAY for code in codes) else tuple([self.decode(code) for code in codes])


def _specs_in(spec: Any) -> Iterator[Any]:
    inner = _opened(spec)
    if isinstance(inner, tuple):
        yield spec
        for child in child_specs(inner[2]):
            yield from _specs_in(child)
    elif isinstance(inner, Static):
        yield spec


def _opened(spec: Any) -> Any:
    return spec.spec if isinstance(spec, Structure) else spec


def _kind_of(spec: Any) -> Any:
    """Return what tells a node from those that are not made in the same way from children."""
    spec = _opened(spec)
    if not isinstance(spec, tuple):
        return spec
    kind, metadata, _ = spec
    if isinstance(metadata, Recipe):
        return kind, metadata, len(metadata.entries)
    return kind, tuple(metadata.static), metadata.static_key


_NOT_IMPORTED = "the result holds {name}, and {module} has not been imported: import it first"


def _named(name: str) -> Any:
    """Return a class of named tuples from a module that has been imported. A file doesn't say what to import."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for each in qualname.split("."):
        found = getattr(found, each, None)
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise LookupError(_NOT_IMPORTED.format(name=with_article(qualname), module=module))
    return found
