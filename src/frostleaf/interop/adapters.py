"""Adapting layers of a model in a copy, and merging what they learned."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, SupportsIndex, TypeVar

import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule

from ..core.arguments import require_bool
from ..core.construction import evolve
from ..core.definition import Node
from ..core.dropped import returns_copy
from ..core.instance import Metadata, Ties, metadata_of
from ..core.leaves import require_seen
from ..core.shapes import LEAF, ShapeDtypeStruct
from ..core.sharing import with_values
from ..core.structure import Structure, flat_of, specs_in
from ..core.words import Path, class_name, describe, keystr, listed, with_article
from ..edits.freezing import freeze, trainable, with_frozen
from ..edits.views import named_modules
from ..nn.checks import REAL
from ..nn.dora import DoRAEmbedding, DoRALinear
from ..nn.embedding import Embedding
from ..nn.initial import split
from ..nn.linear import Linear
from ..nn.lora import LoRAEmbedding, LoRALinear
from ..nn.quantized import QuantizedEmbedding, QuantizedLinear
from ..transforms.eval_shape import eval_shape
from ..transforms.shards import shards_in
from ..tree.selecting import Where, matcher, require_found, search
from ..tree.walk import Descend, all_ties, at_path, rewrite, source_of
from .layout import Wrapped
from .tuner import SWITCHES, Adapt, fused, held_name, is_adapter, original_way, own_parts
from .twins import mlx_class, native

N = TypeVar("N", bound=Node)

# How a layer is adapted: by LoRA, and by DoRA if that can be.
Ways = tuple[Adapt, Adapt | None]
# Those of layers of each class of frostleaf.nn and its subclasses, and of the twin of that class in mlx.nn and its subclasses.
_WAYS: dict[type, Ways] = {
    Linear: (LoRALinear.from_base, DoRALinear.from_base),
    QuantizedLinear: (LoRALinear.from_base, DoRALinear.from_base),
    Embedding: (LoRAEmbedding.from_base, DoRAEmbedding.from_base),
    QuantizedEmbedding: (LoRAEmbedding.from_base, None),
}
_WAYS_OF_TWINS: dict[type, Ways] = {mlx_class(cls): ways for cls, ways in _WAYS.items()}


# Names that PEFT and mlx-lm's configuration have for arguments.
_KEYS = ": give the layers as where, such as '**.q_proj'"
_ALPHA = ": give scale=alpha / rank"
_OF_OTHERS = {
    "target_modules": _KEYS, "keys": _KEYS, "lora_alpha": _ALPHA, "alpha": _ALPHA, "r": ": give it as rank",
    "num_layers": _KEYS, "lora_dropout": ": give it as dropout", "use_dora": ": give it as dora",
}  # fmt: skip
_ARGUMENTS = "model, where, rank, scale, dropout, dora and key"


@returns_copy("model = fl.lora(model, ...)")
def lora(
    model: N,
    where: Where | None = None,
    rank: int = 8,
    scale: float = 20.0,
    dropout: float = 0.0,
    dora: bool = False,
    key: mx.array | None = None,
    **of_others: Any,
) -> N:
    """Adapt layers of a model in a copy that is frozen but for the adapters, and shares every array of the model.

    Each layer that is selected, or that has an array which is, stands inside a :class:`frostleaf.nn.LoRALinear` or
    :class:`frostleaf.nn.LoRAEmbedding` afterwards; with ``dora`` inside a :class:`frostleaf.nn.DoRALinear` or
    :class:`frostleaf.nn.DoRAEmbedding`. Quantized layers may be adapted too (QLoRA). Adapters that are there already are as
    trainable as they were. A layer that is tied stays so, by its new path. A net that stands at two
    places as a whole is adapted once. The adapters are in training mode and drop, as in mlx-lm, whatever the mode of the model,
    which mlx-lm loads in evaluation mode: write ``.eval()`` before you generate.

    In a model that :func:`frostleaf.from_mlx` made, layers of ``mlx.nn`` may be selected too, and mlx-lm's layers of experts,
    which its own code adapts. :func:`frostleaf.to_mlx` gives such a model back with the adapters of mlx-lm, where this is
    installed; elsewhere with modules that compute the same.

    Names of weights are those of mlx-lm, whose ``linear_to_lora_layers`` draws the same numbers from the same random state.
    :func:`frostleaf.fuse` merges the adapters into the weights, :func:`frostleaf.save_adapters` saves them.

    Hu et al., `LoRA: low-rank adaptation of large language models <https://arxiv.org/abs/2106.09685>`_; Liu et al., `DoRA:
    weight-decomposed low-rank adaptation <https://arxiv.org/abs/2402.09353>`_; Dettmers et al., `QLoRA: efficient finetuning of
    quantized LLMs <https://arxiv.org/abs/2305.14314>`_.

    Args:
        model: The model.
        where: The layers, as in :meth:`Module.at`: a path, a glob, a class, a predicate, or a list of these.
        rank: The rank of the change to each weight. Default: ``8``.
        scale: What the change is multiplied by; others call it alpha / rank. Default: ``20.0``.
        dropout: The probability of dropping an element, in training mode. Default: ``0.0``.
        dora: Whether lengths of rows are learned too. Default: ``False``.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Raises:
        TypeError: If ``model`` is no module, ``where`` is no selection, ``dora`` is no bool or ``key`` is no key, or for an
            argument that there is not, with what to write for those of PEFT and mlx-lm.
        LookupError: If nothing is selected; the message suggests the nearest paths.
        ValueError: If something is selected that can't be adapted, is adapted already, or has shards of larger arrays; if
            ``rank`` is not a positive int, ``scale`` is no number, or ``dropout`` is outside of ``[0, 1)``.

    >>> import frostleaf as fl
    >>> model = fl.nn.Sequential(fl.nn.Embedding(9, 4), fl.nn.Linear(4, 4), fl.nn.Linear(4, 9))
    >>> adapted = fl.lora(model, fl.nn.Linear, rank=2)
    >>> [path for path in fl.tree.paths(adapted) if "lora" in path]
    ['layers.1.lora_a', 'layers.1.lora_b', 'layers.2.lora_a', 'layers.2.lora_b']
    >>> adapted.layers[1].linear, adapted.layers[1].linear.weight is model.layers[1].weight
    (Linear(weight=❄f32[4,4], bias=❄f32[4]), True)
    """
    require_module("fl.lora", model)
    if of_others:
        name = next(iter(of_others))
        raise TypeError(f"fl.lora takes no {name}{_OF_OTHERS.get(name, '')}. Its arguments are {_ARGUMENTS}")
    if where is None:
        raise TypeError("fl.lora takes the layers to adapt as where, such as '**.q_proj' or fl.nn.Linear, and was given none")
    matcher(where)
    _check_numbers(rank, scale, dropout)
    require_bool("dora", dora)
    adapters = adapters_in(model)
    trained = trained_paths(model) & own_arrays(adapters) if adapters else set()
    frozen = freeze(model, recurse=True, keys=None, strict=False, frozen=True)
    layers = _layers(frozen, where, dora, adapters)
    _require_whole("fl.lora", model, layers, "adapt the model before it is divided")
    new = {}
    for (path, (layer, adapt)), each in zip(layers.items(), split(key, len(layers)), strict=True):
        new[path] = _made(adapt, layer, r=rank, dropout=dropout, scale=scale, key=each)
    adapted = _with_layers(frozen, new, lambda path, rest: (*path, held_name(new[path]), *rest))
    thawed = trained | own_arrays({path: new[path] for path in _frozen_from_above(frozen, new)})
    return with_frozen(adapted, thawed, frozen=False) if thawed else adapted


@returns_copy("model = fl.fuse(model, ...)")
def fuse(model: N, dequantize: bool = False) -> N:
    """Merge the adapters of a model into the weights of the layers that they hold, in a copy that shares the rest.

    A model without adapters is returned as it is. The layers keep their mode, and stay frozen if they were: ``unfreeze`` makes
    them trainable.
    Where a weight was tied, it is changed at the adapted place alone and not tied any more.

    Args:
        model: The model.
        dequantize: Whether the weights of quantized layers that were adapted are not quantized again. Default: ``False``.

    Raises:
        TypeError: If ``model`` is no module, or ``dequantize`` no bool.
        ValueError: If an adapter has shards of larger arrays.

    >>> import frostleaf as fl
    >>> model = fl.nn.Sequential(fl.nn.Linear(4, 4), fl.nn.Linear(4, 9))
    >>> fl.fuse(fl.lora(model, "layers.0")).unfreeze()
    Sequential(layers=(Linear(weight=f32[4,4], bias=f32[4]), Linear(weight=f32[9,4], bias=f32[9])))
    """
    require_module("fl.fuse", model)
    require_bool("dequantize", dequantize)
    adapters = adapters_in(model)
    _require_whole("fl.fuse", model, adapters, "give it fl.distributed.gather(model)")
    new = {path: _made(fused, adapter, dequantize) for path, adapter in adapters.items()}
    return _with_layers(model, new, lambda path, rest: (*path, *rest[1:]) if rest[0] == held_name(adapters[path]) else None)


def adapters_in(model: Any) -> dict[Path, Any]:
    """Return the adapters in a model by their paths.

    >>> import frostleaf as fl
    >>> list(adapters_in(fl.lora(fl.nn.Sequential(fl.nn.Linear(2, 3)), "layers.0")))
    [('layers', 0)]
    """
    modules = flat_of(model).structure.remember(_modules)
    return {path: at_path(model, path) for path, kind, _ in modules if is_adapter(kind)}


def _modules(structure: Structure) -> tuple[tuple[Path, type, Metadata], ...]:
    """Return the path, the class and the metadata of each module, outer ones first."""
    nodes = [(path, spec) for path, spec in specs_in(structure) if type(spec) is tuple]
    return tuple([(path, kind, metadata) for path, (kind, metadata, _) in nodes if type(metadata) is Metadata])


def _frozen_from_above(model: Any, paths: Collection[Path]) -> list[Path]:
    """Return those of some paths that a name in a module around them freezes, with all that is below."""
    around = {path: metadata for path, _, metadata in flat_of(model).structure.remember(_modules) if metadata.frozen}
    starts = [(path, length) for path in paths for length in range(len(path)) if path[:length] in around]
    return [path for path, length in starts if around[path[:length]].freezes(path[length:])]


def own_arrays(adapters: Mapping[Path, Any]) -> set[Path]:
    """Return the paths of the arrays that adapters have beside the layers that they hold."""
    return {(*path, *part) for path, adapter in adapters.items() for part, _ in own_parts(adapter)}


def trained_paths(model: Any) -> set[Path]:
    """Return the paths of what is trained."""
    leaves = zip(flat_of(model).structure.leaf_paths(), trainable(model), strict=True)
    return {path for path, trains in leaves if trains}


def require_module(function: str, model: Any) -> None:
    """Raise a ``TypeError`` if what a function was given as a model is none, or keeps one without its layers."""
    if not isinstance(model, Node):
        advice = ": give it fl.from_mlx(model)" if isinstance(model, MLXModule) else ""
        raise TypeError(f"{function} takes a model first, and was given {class_name(model)}{advice}")
    require_seen(function, model)


_DIVIDED = "{function} takes whole layers, and {array} is a shard, {shard}: {advice}"


def _require_whole(function: str, model: Any, layers: Mapping[Path, Any], advice: str) -> None:
    """Raise a ``ValueError`` if there are shards of larger arrays in one of the layers at some paths."""
    structure = flat_of(model).structure
    for path, shards in zip(structure.leaf_paths(), shards_in(structure), strict=True):
        if shards and _first_part(path, layers) is not None:
            raise ValueError(_DIVIDED.format(function=function, array=keystr(path), shard=shards[0], advice=advice))


def _check_numbers(rank: Any, scale: Any, dropout: Any) -> None:
    if isinstance(rank, LEAF) or not isinstance(rank, SupportsIndex) or operator.index(rank) < 1:
        raise ValueError(f"fl.lora takes a positive int as rank, and was given {describe(rank)}")
    if not isinstance(scale, REAL):
        raise ValueError(f"fl.lora takes a number as scale, and was given {describe(scale)}")
    if not isinstance(dropout, REAL) or not 0 <= dropout < 1:  # type: ignore[operator]
        raise ValueError(f"fl.lora takes a number >= 0 and < 1 as dropout, and was given {describe(dropout)}")


def _layers(model: Any, where: Where, dora: bool, adapters: Mapping[Path, Any]) -> dict[Path, tuple[Any, Adapt]]:
    """Return the selected layers by their paths, each with the class that adapts it, in the order in which mlx-lm draws."""
    found = search(model, where)
    require_found(model, found)
    ties = all_ties(model)
    layers: dict[Path, tuple[Any, Adapt]] = {}
    for path, value in {**found.values, **_tied_layers(model, where, ties)}.items():
        holder, layer = _holder(model, path, value, adapters, ties)
        if holder not in layers:
            adapt = _way_for(layer, holder, path, dora)
            layers[holder] = (native(layer) if isinstance(layer, Wrapped) else None) or layer, adapt
    order: dict[str, int] = {}
    # Of shapes alone, original code can't say what its layers are.
    _made(lambda model: order.update(_drawing_order(model)), model)
    return dict(sorted(layers.items(), key=lambda item: order.get(keystr(item[0]), len(order))))


def _tied_layers(model: Any, where: Where, ties: Collection[Path]) -> dict[Path, Any]:
    """Return the layers that are tied as a whole and selected: as in MLX, each place of one gets an adapter."""
    matches, found = matcher(where), {}
    for target in ties:
        layer = at_path(model, target)
        if isinstance(layer, Node) and _ways(layer):
            flat = flat_of(layer)
            inside = zip(flat.structure.leaf_paths(), flat.leaves, strict=True)
            if matches(target, layer) or any(matches((*target, *path), leaf) for path, leaf in inside):
                found[target] = layer
    return found


def _holder(model: Any, path: Path, value: Any, adapters: Mapping[Path, Any], ties: Mapping[Path, Path]) -> tuple[Path, Any]:
    """Return the path and the module of a selected value: the adapter around it, itself, or the innermost that holds it.

    The path leads through no tied module.
    """
    while not isinstance(value, Node):
        path = path[:-1]
        value = at_path(model, path)
    path = (*source_of(path[:-1], ties), *path[-1:])
    around = _first_part(path, adapters)
    return (path, value) if around is None else (around, adapters[around])


_ADAPTED = (
    "{name} is adapted already, as {kind}: adapt the model that this one was made from, or one in which fl.fuse has merged the "
    "adapters"
)
_NO_LAYER = "fl.lora can't adapt {name}, {kind}{selected}. It adapts {classes}{advice}"
_NO_DORA = "DoRA can't adapt {name}, {kind}: leave it out, or give dora=False"


def _way_for(layer: Any, path: Path, selected: Path, dora: bool) -> Adapt:
    names = {"name": keystr(path) or "the model", "kind": with_article(type(layer).__name__)}
    if is_adapter(type(layer)):
        raise ValueError(_ADAPTED.format(**names))
    ways = _ways(layer)
    if ways is None:
        inside = [keystr((*path, *rest)) for rest in _adaptable(layer)]
        advice = f". Select layers in it: {listed(map(repr, inside))}" if inside else ""
        # Those of mlx-lm stand in a tree as they are.
        classes = listed([*[cls.__name__ for cls in _WAYS], *(SWITCHES if isinstance(layer, Wrapped) else ())])
        given = "" if path == selected else f", which holds {keystr(selected)}"
        raise ValueError(_NO_LAYER.format(**names, selected=given, classes=classes, advice=advice))
    way = ways[dora]
    if way is None:
        raise ValueError(_NO_DORA.format(**names))
    return way


def _ways(layer: Any) -> Ways | None:
    if not isinstance(layer, Wrapped):
        return next((_WAYS[cls] for cls in type(layer).__mro__ if cls in _WAYS), None)
    own = original_way(layer)
    return (own, None) if own else next((_WAYS_OF_TWINS[cls] for cls in layer.__mlx__.__mro__ if cls in _WAYS_OF_TWINS), None)


def _adaptable(module: Any) -> list[Path]:
    found: list[Path] = []

    def enter(path: Path, value: Any) -> Any:
        if is_adapter(type(value)):
            return value
        if _ways(value):
            found.append(path)
        return Descend

    rewrite(module, enter)
    return found


def _drawing_order(model: Any) -> dict[str, int]:
    """Number the names of all modules: those in ``model.layers``, one of these after the other, and then the others."""
    modules = named_modules(model)
    names: dict[int, list[str]] = {}
    for name, module in modules:
        names.setdefault(id(module), []).append(name)
    layers = getattr(model, "layers", ())
    blocks = [names[id(layer)].pop() for layer in layers if names.get(id(layer))] if isinstance(layers, list | tuple) else []
    first = [name for block in blocks for name, _ in modules if f"{name}.".startswith(f"{block}.")]
    return {name: number for number, name in enumerate(dict.fromkeys([*first, *[name for name, _ in modules]]))}


def _made(make: Callable[..., Any], module: Any, *args: Any, **options: Any) -> Any:
    """Return what ``make`` makes of a module, of which only shapes may be known."""
    shapes_only = any(isinstance(leaf, ShapeDtypeStruct) for leaf in flat_of(module).leaves)
    return eval_shape(make, module, *args, **options) if shapes_only else make(module, *args, **options)


def _with_layers(model: N, new: Mapping[Path, Any], moved: Callable[[Path, Path], Path | None]) -> N:
    """Put layers at paths of a model, and ties at the new places of the arrays, where these are the same still.

    Args:
        model: The model.
        new: The layers by their paths.
        moved: Called with the path of one and with that of an array from there, before; returns the array's path after.
    """
    modules = flat_of(model).structure.remember(_modules)
    all_pairs = {path: metadata.ties for path, _, metadata in modules if metadata.ties and _first_part(path, new) is None}
    ties = {path: moving for path, pairs in all_pairs.items() if (moving := _touched(path, pairs, new))}
    if not ties:
        return with_values(model, new)  # type: ignore[no-any-return]
    trained, freed = trained_paths(model), []

    def untied(path: Path, value: Any) -> Any:
        return (
            evolve(value, ties=tuple([pair for pair in all_pairs[path] if pair not in ties[path]])) if path in ties else value
        )

    def after(holder: Path, place: Path) -> Path | None:
        path = (*holder, *place)
        layer = _first_part(path, new)
        there = path if layer is None else moved(layer, path[len(layer) :])
        return there and there[len(holder) :]

    def tied(path: Path, value: Any) -> Any:
        kept = []
        for pair in _of_arrays(model, path, ties.get(path, ())):
            target, source = (after(path, place) for place in pair)
            if target and source and _is_same(value, target, source):
                kept.append((target, source))
            elif target and (*path, *pair[1]) not in trained:
                freed.append((*path, *target))
        return evolve(value, ties=tuple(sorted([*metadata_of(value).ties, *kept], key=str))) if kept else value

    return with_frozen(rewrite(with_values(rewrite(model, leave=untied), new), leave=tied), freed, frozen=True)  # type: ignore[no-any-return]


def _touched(holder: Path, pairs: Ties, new: Collection[Path]) -> Ties:
    """Return those ties of a module at a path that lead into one of some layers, or to it."""
    return tuple([pair for pair in pairs if any(_first_part((*holder, *place), new) is not None for place in pair)])


def _of_arrays(model: Any, holder: Path, pairs: Ties) -> Iterator[tuple[Path, Path]]:
    """Yield ties, and those of the arrays inside for one of modules."""
    for target, source in pairs:
        for inside in flat_of(at_path(model, (*holder, *source))).structure.leaf_paths():
            yield (*target, *inside), (*source, *inside)


def _first_part(path: Path, paths: Collection[Path]) -> Path | None:
    """Return the shortest beginning of a path that is one of some paths."""
    return next((path[:length] for length in range(len(path) + 1) if path[:length] in paths), None)


def _is_same(node: Any, target: Path, source: Path) -> bool:
    """Return whether one array stands at two paths."""
    one, other = at_path(node, target), at_path(node, source)
    return isinstance(one, LEAF) and one is other
