"""The states of optimizers of divided models: what is remembered of each array is divided as the array is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..core.sharing import with_leaves
from ..core.structure import Structure, flat_of, specs_in
from ..core.words import Path, describe, keystr
from ..nn.shards import leaves_in
from ..optim.optimizer import State
from ..optim.packing import Packed
from ..optim.sharding import ShardedState
from ..transforms.shards import Shard, shards_in
from ..tree.walk import rewrite

OF_A_MODEL = (
    "the state of an optimizer does not tell how its arrays are divided; the model that it is for does. Give both: "
    "fl.distributed.gather(state, model), and shard(whole, model) for the way back"
)
OF_SHARDED = (
    "the state of sharded = fl.optim.shard(opt) is made whole by sharded.gather(state), and divided by sharded.scatter(whole); "
    "in accumulate, ema and the like it is state.inner"
)
OTHER_SHAPE = "{path} is {given}, and {name} of the model, which is divided, is {array}: what its parts are can't be told"
NOT_BY_NAME = (
    "{path} is {given}, which is not remembered of one array of the model, of which some are divided: what its parts are can't "
    "be told. Train divided models with an optimizer that remembers something of each array by its name, not with "
    "fl.optim.flatten(opt)"
)
OF_PACKED = (
    "a packed tree does not tell which of its arrays are shards, and {path} has some: give the tree that packed.unpack() "
    "returns, and of an optimizer's state one that was made for that"
)


class Place(NamedTuple):
    """What a model tells of one of its arrays.

    Attributes:
        name: Its name in the model that is asked for.
        shape: Its shape in the other.
        shards: How it is divided.
    """

    name: str
    shape: tuple[int, ...]
    shards: Sequence[Shard]


def has_state(tree: Any) -> bool:
    """Return whether there is the state of an optimizer in a tree."""
    return any(issubclass(kind, State) for kind in flat_of(tree).structure.module_classes())


def places(model: Any, whole: Any) -> tuple[dict[str, Place], dict[str, Place]]:
    """Return for the names of arrays in a divided model, and for those in the whole one, what they are in the other.

    Args:
        model: The model.
        whole: The shapes that it has when it is gathered.
    """
    structure, other = flat_of(model).structure, flat_of(whole).structure
    names = zip(structure.leaf_names(), other.leaf_names(), strict=True)
    arrays = zip(flat_of(model).leaves, flat_of(whole).leaves, strict=True)
    known = [*zip(names, arrays, shards_in(structure), strict=True)]
    return (
        {name: Place(new, part.shape, shards) for (name, new), (part, _), shards in known},
        {name: Place(old, array.shape, shards) for (old, name), (_, array), shards in known},
    )


def require_unpacked(tree: Any) -> None:
    """Require that no shards are packed.

    Raises:
        ValueError: If some are; the message has the path.
    """
    for path, spec in specs_in(flat_of(tree).structure):
        if isinstance(spec, tuple) and spec[0] is Packed and any(shards_in(spec[1].static["layout"].structure)):
            raise ValueError(OF_PACKED.format(path=keystr(path) or "what was given"))


def changed(tree: Any, known: Mapping[str, Place], change: Callable[[Any, Sequence[Shard], str], Any]) -> Any:
    """Return states of optimizers with other arrays under the names of those of a model, and with its other names.

    Raises:
        ValueError: If there is no state of an optimizer, or one of :func:`frostleaf.optim.shard`, or an array in it has another
            shape than that of the model, and not ``()``, or is not under the name of one.
    """
    flat = flat_of(tree)
    kinds = flat.structure.module_classes()
    if any(issubclass(kind, ShardedState) for kind in kinds):
        raise ValueError(OF_SHARDED)
    if not has_state(tree):
        raise ValueError(f"with a model, the state of an optimizer is to be given, and {describe(tree)} has none")
    leaves = [
        leaf if place is None else change(leaf, place.shards, path)
        for path, leaf, place in _placed(flat.leaves, flat.structure, known)
    ]

    def leave(path: Path, value: Any) -> Any:
        if not isinstance(value, Mapping) or not any(name != known[name].name for name in value if name in known):
            return value
        return {known[name].name if name in known else name: each for name, each in value.items()}

    return rewrite(with_leaves(tree, leaves), leave=leave, convert=True)


def _placed(leaves: Sequence[Any], structure: Structure, known: Mapping[str, Place]) -> Iterator[tuple[str, Any, Place | None]]:
    is_divided = any(place.shards for place in known.values())
    in_state = leaves_in(structure, State)
    for path, leaf, is_remembered in zip(structure.leaf_paths(), leaves, in_state, strict=True):
        name = next((entry for entry in path if entry in known), None)
        if name is None and is_remembered and is_divided and leaf.ndim:
            raise ValueError(NOT_BY_NAME.format(path=keystr(path), given=describe(leaf)))
        place = known[name] if name is not None and known[name].shards and leaf.ndim else None
        if place is not None and leaf.shape != place.shape:
            given = {"path": keystr(path), "given": describe(leaf), "name": name, "array": place.shape}
            raise ValueError(OTHER_SHAPE.format(**given))
        yield keystr(path), leaf, place
