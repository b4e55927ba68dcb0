"""What to say where weights and the parameters of a model don't match."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any

import mlx.core as mx

from ..core.definition import Node
from ..core.shapes import ShapeDtypeStruct
from ..core.structure import flat_of
from ..core.words import level_of_caller, listed, nearest, shape_and_dtype
from ..tree.walk import at_path, tied_places
from . import sharded
from .advice import of_layers, prefixes_of
from .divided import parts_in
from .renaming import Rename, unused_names

_LINES = 8
_KINDS = (mx.floating, mx.complexfloating)
_SUGGESTIONS = 5  # each takes as long as comparing one name with all others


class UnmatchedWeightsWarning(UserWarning):
    """:meth:`Module.load_weights` has loaded nothing, or what is none for its place, or a name in ``rename`` names nothing.

    Nothing is loaded, with ``strict=False``, if no weight has the name of a parameter, or there is none. An array is none for
    its place if the model has another shape there, which ``strict`` refuses, or another kind of numbers: integers, floats or
    complex ones. Of a mapping ``rename``, where not all was found, :func:`load` and :meth:`Checkpointer.restore` warn as well.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     model = fl.nn.Linear(1, 1).load_weights({"w": mx.ones((1, 1))}, strict=False)
    >>> caught[0].category.__name__
    'UnmatchedWeightsWarning'
    """


_UNMATCHED = "nothing was loaded, as none of the {count:,} weights has the name of a parameter of this {kind}: {names}.{advice}"
_NO_WEIGHTS = (
    "nothing was loaded, as there are no weights. Of a checkpoint in several files mx.load reads the head, which has names "
    "alone: give load_weights its path"
)


def warn_of_unmatched(
    module: Node,
    weights: Mapping[str, Any],
    current: Mapping[str, mx.array],
    origins: Mapping[str, str],
    rename: Rename | None,
    strict: bool,
    named: Set[str],
) -> None:
    """Warn if no weight has the name of a parameter, or what has it is none for its place, or ``rename`` has other names.

    Args:
        module: The model.
        weights: The weights by the model's names.
        current: The model's parameters by name.
        origins: The names under which the weights were given, where these are others.
        rename: What gave the model's names.
        strict: Whether all names and shapes are the same.
        named: The names that ``rename`` can be asked about.

    Warns:
        UnmatchedWeightsWarning: In that case.
    """
    matching = [name for name in current if name in weights]
    if current and not matching and (weights or not named):  # else all were left out
        told = [_unmatched(module, weights.keys(), current.keys(), origins, rename) if weights else _NO_WEIGHTS]
    else:
        unlike = [name for name in matching if _is_unlike(weights[name], current[name])]
        told = [_unlike(module, unlike, weights, current, origins, strict)] if unlike else []
        if len(matching) < len(current) and (unused := unused_names(rename, named)):
            told.append(unused)
    for message in told:
        warnings.warn(message, UnmatchedWeightsWarning, stacklevel=level_of_caller())


def _unmatched(module: Node, given: Set[str], wanted: Set[str], origins: Mapping[str, str], rename: Rename | None) -> str:
    names = listed([f"{name!r:.80}{nearest(name, wanted)}" for name in sorted(given)[:_SUGGESTIONS]], _SUGGESTIONS - 2)
    advice = _renaming_advice(given, wanted, origins, rename) or of_layers(given, wanted)
    return _UNMATCHED.format(count=len(given), kind=type(module).__name__, names=names, advice=advice)


_UNLIKE = (
    "the model has another shape, or another kind of numbers (integers, floats or complex ones), where these were loaded, as "
    "MLX loads whatever has the name: {names}.{advice}"
)
_LEFT_OUT = " For {name!r} to stay as it is, let rename give None for {given!r}, as rename={{{given!r}: None}}{strict} does"


def _is_unlike(new: mx.array, old: mx.array | ShapeDtypeStruct) -> bool:
    """Return whether an array is none for the place of another: not if both have one number, or the place has none yet."""
    if (new.shape == old.shape and new.dtype == old.dtype) or not old.size or new.size == old.size == 1:
        return False
    return new.shape != old.shape or any(mx.issubdtype(new.dtype, kind) != mx.issubdtype(old.dtype, kind) for kind in _KINDS)


def _unlike(
    module: Node,
    names: list[str],
    weights: Mapping[str, Any],
    current: Mapping[str, Any],
    origins: Mapping[str, str],
    strict: bool,
) -> str:
    kinds = [[shape_and_dtype(arrays[name].shape, arrays[name].dtype) for arrays in (weights, current)] for name in names]
    shown = [f"{name!r:.80} {new} for {old}" for name, (new, old) in zip(names, kinds, strict=True)]
    advice = _DIVIDED if parts_in(flat_of(module).structure) else of_layers(weights.keys(), current.keys())
    advice = advice or _LEFT_OUT.format(
        name=names[0], given=origins.get(names[0], names[0]), strict=" with strict=False" * strict
    )
    return _UNLIKE.format(names=listed(shown, _SUGGESTIONS - 2), advice=advice)


_NOT_SAVED = (
    "{names} can't come from weights, because arrays of private names and of buffers that aren't persistent are not saved, and "
    "the model has a ShapeDtypeStruct there. Load them into the model itself, without fl.eval_shape: of its arrays none is "
    "computed before it is used. Or put arrays there first, as in model.at({name!r}).set(array). With strict=False the shapes "
    "stay there"
)


def require_no_shapes(module: Node, loaded: Mapping[str, Any]) -> None:
    """Require that a model has arrays wherever none was loaded, and no shapes.

    Raises:
        ValueError: If it has shapes there; the message names them.
    """
    flat = flat_of(module)
    names = zip(flat.structure.leaf_names(), flat.leaves, strict=True)
    remaining = [name for name, leaf in names if isinstance(leaf, ShapeDtypeStruct) and name not in loaded]
    if remaining:
        raise ValueError(_NOT_SAVED.format(names=listed(remaining), name=remaining[0]))


_TIED = "{name}, which is tied to {source!r}, whose array is used: {leave_out} leaves it out"
_DIVIDED = (
    " Each rank has a part of this model: load whole weights into the whole model, and divide that, such as "
    "fl.distributed.fully_shard(whole.load_weights(file)) with whole = fl.eval_shape(Model), which holds no arrays"
)


def require_matching(
    module: Node,
    weights: Mapping[str, Any],
    current: Mapping[str, mx.array],
    origins: Mapping[str, str],
    rename: Rename | None,
    source: Any,
) -> None:
    """Require that weights have the names and the shapes of a model's parameters.

    Args:
        module: The model.
        weights: The weights by the model's names.
        current: The model's parameters by name.
        origins: The names under which the weights were given, where these are others.
        rename: What gave the model's names.
        source: What the weights were read from, which may be an index.

    Raises:
        ValueError: If a name is extra or missing, or an array has another shape, in MLX's words and what to write.
    """
    extra, missing = weights.keys() - current.keys(), current.keys() - weights.keys()
    divided = _DIVIDED if parts_in(flat_of(module).structure) else ""
    if extra:
        names = _listed(extra, missing or current, origins, tied_places(module), rename)
        advice = (
            divided
            or _renaming_advice(weights.keys(), current.keys(), origins, rename)
            or of_layers(weights.keys(), current.keys())
        )
        raise ValueError(f"Received {len(extra)} parameters not in model: \n{names}.{advice}")
    if missing:
        renaming = _renaming_advice(weights.keys(), current.keys(), origins, rename)
        advice = divided or f"{renaming}{_tying_advice(module, missing, weights)}" or of_layers(weights.keys(), current.keys())
        index = sharded.missing_in_index(source, missing)
        raise ValueError(f"Missing {len(missing)} parameters: \n{_listed(missing, (), origins)}.{advice}{index}")
    for name, array in current.items():
        new = weights[name]
        if new.shape != array.shape:
            raise ValueError(
                f"Expected shape {array.shape} but received shape {new.shape} for parameter {name}{divided and '.' + divided}"
            )


def _renaming_advice(given: Set[str], wanted: Set[str], origins: Mapping[str, str], rename: Rename | None) -> str:
    """Return what to say about ``rename`` to one whose weights have other names than the model's."""
    if isinstance(rename, Mapping):
        unused = unused_names(rename, {*origins.values()})
        return f"\n{unused}." if unused else ""
    if rename is None and (prefix := next(iter(prefixes_of(given, wanted - given)), "")):
        is_whole = all(prefix + name in given for name in wanted)
        others = (
            f" if name.startswith({prefix!r}) else None"
            if is_whole and any(not name.startswith(prefix) for name in given)
            else ""
        )
        return f"\nThey begin with {prefix!r}: give rename=lambda name: name.removeprefix({prefix!r}){others}."
    if rename is None and (prefix := next(iter(prefixes_of(wanted, given - wanted)), "")):
        return f"\nThe model's begin with {prefix!r}: give rename=lambda name: {prefix!r} + name."
    return ""


_TIE = (
    "\nIf {targets} is to be the same array as {sources}, which has its shape, tie them first: model = model.tie({{{ties}}})."
)
_TIES = (
    "\nIf {targets} are to be the same arrays as {sources}, which have their shapes, tie them first: "
    "model = model.tie({{{ties}}})."
)


def _tying_advice(module: Node, missing: Set[str], weights: Mapping[str, Any]) -> str:
    """Return what to say where matrices are missing, and such a one in a layer of another class is given, as for words."""
    flat = flat_of(module)
    paths = dict(zip(flat.structure.leaf_names(), flat.structure.leaf_paths(), strict=True))
    ties: dict[str, str] = {}
    for target in sorted(missing)[:_LINES]:
        array = at_path(module, paths[target])
        alike = [name for name in weights if name in paths and array.ndim > 1 and weights[name].shape == array.shape]
        layers = {type(at_path(module, paths[name][:-1])) for name in (target, *alike)}
        if len(alike) == 1 and len(layers) == 2:
            ties[target] = alike[0]
    if not ties:
        return ""
    pairs = ", ".join(f"{target!r}: {source!r}" for target, source in ties.items())
    targets, sources = (" and ".join(map(repr, dict.fromkeys(names))) for names in (ties, ties.values()))
    return (_TIE if len(ties) == 1 else _TIES).format(targets=targets, sources=sources, ties=pairs)


def _listed(
    names: Iterable[str],
    others: Iterable[str],
    origins: Mapping[str, str],
    tied: Mapping[str, str] = MappingProxyType({}),
    rename: Rename | None = None,
) -> str:
    lines = []
    ordered = sorted(names)
    for count, name in enumerate(ordered[:_LINES]):
        if name in tied:
            given = origins.get(name, name)
            # What is printed takes the place of the rename that gives other names.
            names_given = None if callable(rename) else {**(rename or {}), given: None}
            fits = names_given is not None and len(names_given) <= _LINES
            leave_out = f"rename={names_given}" if fits else f"a rename that gives None for {given!r}"
            lines.append(_TIED.format(name=name, source=tied[name], leave_out=leave_out))
            continue
        origin = f" (given as {origins[name]!r})" if origins.get(name, name) != name else ""
        lines.append(f"{name}{origin}{nearest(name, others) if count < _SUGGESTIONS else ''}")
    return ",\n".join(lines) + f"\nand {len(ordered) - _LINES:,} more" * (len(ordered) > _LINES)
