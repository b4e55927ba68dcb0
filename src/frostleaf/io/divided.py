"""Trees in which this process has parts of arrays: a file gets these alone, which is warned of."""

from __future__ import annotations

import warnings
from collections.abc import Container

from ..core.structure import Structure
from ..core.words import level_of_caller, listed
from ..transforms.shards import Shard, shards_in


class PartialWeightsWarning(UserWarning):
    """A file was written with this rank's part of arrays, which a model that isn't divided can't load.

    Files of parts are for models divided in the same way, each rank's in its own; MLX's divided layers load them too.

    >>> import frostleaf as fl, warnings
    >>> warnings.simplefilter("ignore", fl.PartialWeightsWarning)  # where files of parts are meant
    """


_PARTS = (
    "{file} gets the part of rank {rank} alone of {names}. For a file of the whole write whole = fl.distributed.gather({tree}) "
    "on all ranks, and {save} on one. Where files of parts are meant, one for each rank, filter fl.PartialWeightsWarning"
)


def parts_in(structure: Structure) -> dict[str, tuple[Shard, ...]]:
    """Return how arrays are divided of which other ranks have parts, by their names."""
    places = zip(structure.leaf_names(), shards_in(structure), strict=True)
    return {name: shards for name, shards in places if shards and any(shard.group.size() > 1 for shard in shards)}


def warn_of_parts(structure: Structure, file: str, tree: str, save: str, among: Container[str] | None = None) -> None:
    """Warn if arrays that are saved are parts of larger ones.

    Args:
        structure: That of the tree.
        file: What is written.
        tree: What to call the tree, for which one writes ``save`` when it is whole.
        save: The same.
        among: The names of what is saved. Default: all.
    """
    parts = {name: shards for name, shards in parts_in(structure).items() if among is None or name in among}
    if parts:
        rank = next(iter(parts.values()))[0].group.rank()
        text = _PARTS.format(file=file, rank=rank, names=listed([*parts]), tree=tree, save=save)
        warnings.warn(text, PartialWeightsWarning, level_of_caller())
