"""Write a checkpoint: one file, or a head and a directory of others, of which other checkpoints have some too."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from itertools import compress
from typing import Any, NamedTuple

import mlx.core as mx

from ..core.structure import Structure
from ..edits.freezing import frozen_leaves
from . import safetensors
from .atomic import atomic_write, fsync, remove
from .known import File, Place, Shard, stamp_of
from .names import BESIDE
from .parts import DESCRIBED_IN, PARTS, Part, parts_text, read_parts
from .safetensors import HEADER_CHECKSUM, CheckpointError, open_regular, read_header
from .sharded import INDEX, INDEX_ENDING
from .sharing import Sharing, find_sharing
from .summary import FILES, read_summary, summary_text
from .trees import DESCRIBING, VERSION, WITH_PARTS, WITH_SHARING, Snapshot, versioned

# A file of its own isn't worth while for fewer bytes, nor is a file shared for the sake of a small part of it.
_LEAST, _MOSTLY = 2**14, 0.75
_MOST_SHARED = 32
_DESCRIPTION = "tree.safetensors"
_DIGITS = len(str(_MOST_SHARED + 2))  # as many as the last needs, so that the files of a checkpoint are sorted by name


class Draft(NamedTuple):
    """A checkpoint that is to be written.

    Attributes:
        snapshot: The tree.
        beside: The name of the directory that its files get beside the head, if it has others.
        summary: What :func:`read_summary` is to return.
        structure: The tree's structure. What is frozen isn't expected to change.
        known: Where some of the arrays are written already.
        last: Where others of the same names are, which may be equal to these.
    """

    snapshot: Snapshot
    beside: str
    summary: Mapping[str, Any]
    structure: Structure
    known: Mapping[str, Place]
    last: Mapping[str, Place]


class Written(NamedTuple):
    """What is in a checkpoint's files.

    Attributes:
        places: Where each array is.
        beside: The names of what is beside the head.
        refusal: Why the file system has not linked to a file that is shared, if it has not.
    """

    places: dict[str, Place]
    beside: list[str]
    refusal: OSError | None


def write_checkpoint(head: str, draft: Draft) -> Written:
    """Write a checkpoint without the arrays that are in files already, which get another name, by a hard link.

    It is there as soon as its head is. After an error nothing is left of it, unless the head is there: then all is. What could
    not be removed then, or may not yet, is in the directory beside it.

    Args:
        head: The path of its head, which is its only file if it shares nothing and is not frozen in part.
        draft: What to write.
    """
    snapshot, beside, summary, structure, known, last = draft
    sharing, checksums, equal = _to_store(draft)
    arrays = {name: snapshot.arrays[name] for name in checksums}
    metadata = {**snapshot.metadata, **sharing.texts()}
    shards = {place.shard for place in last.values()}
    files = _Files(head, beside, {os.path.dirname(path) for shard in shards for path in shard.paths[-2:]})
    try:
        linked = files.link(_worth_sharing(equal.values()))
        places = {name: place.at(linked[place.file]) for name, place in equal.items() if place.file in linked}
        rest = {name: array for name, array in arrays.items() if name not in places}
        # What has stayed tells more than what is frozen.
        steady = {*equal, *known} if places else {*equal, *known, *compress(snapshot.arrays, structure.remember(frozen_leaves))}
        settled = {name: array for name, array in rest.items() if name in steady}
        if _nbytes(settled) < _LEAST:
            settled = {}
        moving = {name: array for name, array in rest.items() if name not in settled}
        if places or (settled and moving):
            for group in filter(None, (settled, moving)):
                places |= files.write(group, checksums)
            metadata = files.write_description(metadata)
            files.write_index(places, sharing)
            files.flush()
            parts = {PARTS: parts_text(files.parts(places))}
            files.write_head({}, {**summary_text(summary, files.names), **versioned(metadata, WITH_PARTS), **parts}, {})
        else:
            files.remove()  # none of which was linked
            metadata = versioned(metadata, WITH_SHARING if sharing else VERSION)
            places = files.write_head(arrays, {**summary_text(summary, files.names), **metadata}, checksums)
    except BaseException:
        if not files.may_be_named():  # the head may be there, though flushing the directory failed
            files.remove()
        raise
    return Written({name: places[sharing.stored(name)] for name in snapshot.arrays}, files.names, files.refusal)


def _to_store(draft: Draft) -> tuple[Sharing, dict[str, int], dict[str, Place]]:
    """Return what is stored under other names, the checksum of each array to be stored, and where that is in a file already."""
    arrays, known, last = draft.snapshot.arrays, draft.known, draft.last
    # An array at several places keeps the name that it has in a file already.
    in_files = {name for name, place in {**last, **known}.items() if place.name == name}
    sharing, checksums = find_sharing(arrays, {name: place.checksum for name, place in known.items()}, in_files)
    equal = {name: place for name in checksums if (place := _place_of(name, checksums[name], draft)) is not None}
    # For other programs each object has its name, unless its bytes are in a file under the other name already.
    for name, other in sharing.copies.items():
        place = _place_of(name, checksums[other], draft)
        if place is not None:
            equal[name] = place
        if place is not None or other not in equal:
            checksums[name] = checksums[other]
    copies = {name: other for name, other in sharing.copies.items() if name not in checksums}
    return sharing._replace(copies=copies), checksums, equal


def _place_of(name: str, checksum: int, draft: Draft) -> Place | None:
    """Return where an array is under its name in a file already, or ``None``."""
    known, last = draft.known.get(name), draft.last.get(name)
    if known is not None and known.name == name:
        return known
    return last if last is not None and last.is_of(name, draft.snapshot.arrays[name], checksum) else None


def files_named(head: str) -> list[str]:
    """Return the names of what a file says is beside it, whatever else it says.

    Raises:
        OSError: If it can't be read.
        CheckpointError: If it is damaged.
    """
    with suppress(CheckpointError):
        summary = read_summary(head)
        if summary is not None:
            return [*summary[FILES]]
    with open_regular(head) as file:
        names = [*dict.fromkeys(name.partition("/")[0] for name in read_parts(read_header(file)))]
    # Earlier versions wrote the files beside the head, and an index with them.
    shards = [found for name in names if name.endswith(".safetensors") and (found := BESIDE.fullmatch(name))]
    return [*names, *{f"{shard['checkpoint']}.safetensors{INDEX_ENDING}" for shard in shards}]


class _Files:
    """The files of a checkpoint that is being written.

    Args:
        head: The path of its head.
        beside: The name of the directory that the others get beside it.
        last: The directories in which the last checkpoint has its files.

    Attributes:
        names: The names of what is beside the head.
        refusal: Why a link was not made.
    """

    def __init__(self, head: str, beside: str, last: Set[str]) -> None:
        self._head, self._last = head, last
        self._directory = os.path.join(os.path.dirname(head), beside)
        self._shards = 0
        self._parts: dict[str, Part] = {}  # besides the shards
        self.names: list[str] = []
        self.refusal: OSError | None = None

    def link(self, shards: Iterable[Shard]) -> dict[File, Shard]:
        """Give shards that are there another name, and return those of which it was possible."""
        linked: dict[File, Shard] = {}
        for shard in shards:
            try:
                is_linked = shard.link(self._next())
            except OSError as error:
                is_linked, self.refusal = False, error.with_traceback(None)
            if is_linked:
                linked[shard.file] = shard
            else:
                self._shards -= 1
        return linked

    def write(self, arrays: Mapping[str, mx.array], checksums: Mapping[str, int]) -> dict[str, Place]:
        """Write arrays to another shard, and return their places."""
        # Hugging Face's readers ask who wrote a file.
        return _write(self._next(), arrays, {"format": "mlx"}, checksums, flush=False)

    def write_description(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Write what describes the tree, unless it is short, and return the metadata that the head is to have instead."""
        describing = {key: metadata[key] for key in DESCRIBING if key in metadata}
        if sum(map(len, describing.values())) < _LEAST:
            return dict(metadata)
        content, header = safetensors.without_arrays(describing, self._path(_DESCRIPTION))
        self._write_or_link(_DESCRIPTION, content)
        described_in = f"{self.names[0]}/{_DESCRIPTION}"
        self._parts[described_in] = Part(header.metadata[HEADER_CHECKSUM], None)
        return {**{key: text for key, text in metadata.items() if key not in describing}, DESCRIBED_IN: described_in}

    def write_index(self, places: Mapping[str, Place], sharing: Sharing) -> None:
        """Write an index of the shards, for others than :func:`frostleaf.load`."""
        nbytes = sum(place.nbytes for place in places.values())
        files = {name: place.shard.name for name, place in places.items()}
        # A file that had an array under two names would be refused by Hugging Face's readers, as would an index of names that
        # no file has.
        index = {"metadata": {"total_size": nbytes, **sharing.texts()}, "weight_map": files}
        self._write_or_link(INDEX, json.dumps(index, separators=(",", ":")).encode())

    def flush(self) -> None:
        """Return when the names of all files but the head are on the disk."""
        fsync(self._directory)
        fsync(os.path.dirname(self._directory))

    def parts(self, places: Mapping[str, Place]) -> dict[str, Part]:
        """Return what the head is to say of the files."""
        names: dict[Shard, list[str]] = {}
        for name, place in places.items():
            names.setdefault(place.shard, []).append(name)
        parts: dict[str, Part] = {}
        later: set[str] = set()
        for shard in sorted(names, key=lambda shard: shard.name, reverse=True):
            is_whole = shard.names - later == {*names[shard]}
            parts[f"{self.names[0]}/{shard.name}"] = Part(shard.header, None if is_whole else names[shard])
            later.update(names[shard])
        return self._parts | dict(reversed(parts.items()))

    def write_head(
        self, arrays: Mapping[str, mx.array], metadata: Mapping[str, str], checksums: Mapping[str, int]
    ) -> dict[str, Place]:
        """Write the head, and return the places of the arrays that are in it."""
        return _write(self._head, arrays, metadata, checksums)

    def may_be_named(self) -> bool:
        """Return whether the head that is there names these files, or can't be read now."""
        try:
            return bool(self.names) and files_named(self._head) == self.names
        except (FileNotFoundError, ValueError):
            return False
        except OSError:
            return True

    def remove(self) -> None:
        """Remove the files besides the head."""
        self.names = [name for name in self.names if not remove(self._directory)]

    def _next(self) -> str:
        self._shards += 1
        # Not model*.safetensors: mlx-lm would read all of these, in any order, and so older versions of some arrays.
        return self._path(f"{self._shards:0{_DIGITS}d}.safetensors")

    def _path(self, name: str) -> str:
        if not self.names:
            self.names.append(os.path.basename(self._directory))
            os.mkdir(self._directory)
        return os.path.join(self._directory, name)

    def _write_or_link(self, name: str, content: bytes) -> None:
        """Write a file, or link to the one of this name in the last checkpoint, if that has the same content."""
        path = self._path(name)
        for directory in self._last:
            with suppress(OSError, ValueError), open_regular(os.path.join(directory, name)) as file:
                if file.read() == content:
                    os.link(file.name, path)
                    if os.path.samestat(os.lstat(path), os.fstat(file.fileno())):
                        return
                    os.unlink(path)
        with atomic_write(path, flush=False) as temporary, open(temporary, "wb") as file:
            file.write(content)


def _write(
    path: str, arrays: Mapping[str, mx.array], metadata: Mapping[str, str], checksums: Mapping[str, int], flush: bool = True
) -> dict[str, Place]:
    with atomic_write(path, flush=flush) as temporary:
        header = safetensors.write(temporary, arrays, metadata, checksums)
        stamp = stamp_of(os.stat(temporary))
    shard = Shard(header._replace(file=path), stamp)
    return {name: Place(shard, name, entry, checksums[name]) for name, entry in header.entries.items()}


_OLDEST, _NEWEST = (-math.inf, ""), (math.inf, "")


def _worth_sharing(places: Iterable[Place]) -> list[Shard]:
    """Return the shards that hold enough of some arrays, and little else, from the oldest to the newest.

    A shard also has arrays that another has in a newer version. Whoever reads all of them in this order and keeps the last of
    each name has what is needed: a shard that would not fit in is left out.
    """
    needed: dict[File, list[Place]] = {}
    for place in places:
        needed.setdefault(place.file, []).append(place)
    nbytes = {file: sum(place.nbytes for place in found) for file, found in needed.items()}
    chosen: list[Shard] = []
    current: dict[str, tuple[float, str]] = {}  # the age of the shard that each array is to be read from
    passed: dict[str, tuple[float, str]] = {}  # and of the newest that has it otherwise
    for file in sorted(needed, key=lambda file: -nbytes[file]):
        shard, names = needed[file][0].shard, {place.name for place in needed[file]}
        others = shard.names - names
        if nbytes[file] < max(_LEAST, _MOSTLY * shard.nbytes) or len(chosen) == _MOST_SHARED:
            continue
        if all(current.get(name, _NEWEST) > shard.age for name in others) and all(
            passed.get(name, _OLDEST) < shard.age for name in names
        ):
            chosen.append(shard)
            current.update(dict.fromkeys(names, shard.age))
            passed.update((name, max(passed.get(name, _OLDEST), shard.age)) for name in others)
    return sorted(chosen, key=lambda shard: shard.age)


def _nbytes(arrays: Mapping[str, mx.array]) -> int:
    return sum(array.nbytes for array in arrays.values())
