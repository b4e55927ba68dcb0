"""Read and write Hugging Face's layout of large models: a directory of safetensors files with an index of the arrays."""

from __future__ import annotations

import fcntl
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import mlx.core as mx

from ..core.words import describe, level_of_caller, listed, nearest
from .atomic import atomic_write, fsync, remove_temporaries
from .formats import ENDINGS, check_arrays, read_file, write_file
from .safetensors import fail, open_regular, parse_json
from .sharing import read_sharing

INDEX = "model.safetensors.index.json"
INDEX_ENDING = ".index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5 * 10**9  # as in Hugging Face's libraries

_FILE_NAME = re.compile(r"[^/\\\0]+\.safetensors")
# Hugging Face's names for the files of a model, with or without a number of our own.
_SHARD = re.compile(r"model(-\d+)?-\d{5,}-of-\d{5,}\.safetensors")


def read_directory(directory: str) -> dict[str, mx.array]:
    """Return the arrays of a model's directory: of its ``model.safetensors``, else of its index, else of its numbered files.

    That is the order of Hugging Face's transformers.

    Raises:
        FileNotFoundError: If there are none of these, or a file that the index names is missing, or one of the numbers.
        CheckpointError: If one of the files is damaged.

    Warns:
        RuntimeWarning: If there are the first two, and the index doesn't name that file.
    """
    index, single = os.path.join(directory, INDEX), os.path.join(directory, SINGLE)
    if os.path.exists(single):
        with suppress(FileNotFoundError):  # another process has just replaced it by an index
            arrays = read_file(single)
            if os.path.exists(index) and SINGLE not in _files_in_index(directory):
                message = _TWO_MODELS.format(directory=directory, single=SINGLE, index=INDEX)
                warnings.warn(message, RuntimeWarning, stacklevel=level_of_caller())
            return arrays
    if os.path.exists(index):
        return read_index(index)
    names = os.listdir(directory)
    numbered = sorted(name for name in names if _SHARD.fullmatch(name))
    if numbered:
        return _read_numbered(directory, numbered)
    files = sorted(name for name in names if name.endswith((*ENDINGS, INDEX_ENDING)))
    others = f"; what it has is {listed(files)}" if files else ""
    raise FileNotFoundError(f"{directory} has neither a {INDEX} nor a {SINGLE}{others}")


_TWO_MODELS = (
    "{directory} has two models: {single}, which is read, as transformers does, and {index}, whose arrays are in other files. "
    "Give the path of the one that is meant, and remove what is out of date"
)
_INCOMPLETE = "{directory} has {found}, and of these numbers not {missing}, nor an index: give a list of files to read some"


def _read_numbered(directory: str, names: list[str]) -> dict[str, mx.array]:
    """Return the arrays of numbered files without an index, which have to be all of one number."""
    *_, count = names[0].removesuffix(".safetensors").split("-")
    expected = [f"model-{number:0{len(count)}}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
    if names != expected:
        missing = listed(name for name in expected if name not in names) or "those alone"
        raise FileNotFoundError(_INCOMPLETE.format(directory=directory, found=listed(names), missing=missing))
    return read_files([os.path.join(directory, name) for name in names])


def read_files(files: Sequence[str]) -> dict[str, mx.array]:
    """Return the arrays of several files.

    Raises:
        ValueError: If two of them have an array of the same name.
    """
    arrays: dict[str, mx.array] = {}
    for file in files:
        new = read_file(file)
        twice = next((name for name in new if name in arrays), None)
        if twice is not None:
            raise ValueError(f"{file} has {twice!r:.80}, which a file before it in {listed(files)} has too: give one of them")
        arrays |= new
    return arrays


def read_index(index: str) -> dict[str, mx.array]:
    """Return the arrays in an index. See :func:`read_directory`."""
    while True:
        before = _version(index)
        try:
            arrays = _read_shards(index)
        except (OSError, ValueError):
            if _version(index) == before:
                raise
        else:
            if _version(index) == before:
                return arrays
        # Another process has just saved a model here, and removed the files of the old one.


_NAMED = "\nThe weights are those that {index} names{others}."
_OTHERS = ", and {file}, which it names, has {name!r:.80} too: name it there, or give load_weights a list of the files"


def missing_in_index(path: Any, names: Set[str]) -> str:
    """Return what to say of names that the weights of a path lack, if an index says which these are; else an empty string."""
    if not isinstance(path, str | os.PathLike):
        return ""
    index = os.fspath(path)
    if os.path.isdir(index) and not os.path.exists(os.path.join(index, SINGLE)):
        index = os.path.join(index, INDEX)
    if not index.endswith(INDEX_ENDING):
        return ""
    with suppress(OSError, ValueError):
        directory = os.path.dirname(index)
        for file in dict.fromkeys(_read_index(index)[0].values()):
            for name in sorted(names & read_file(os.path.join(directory, file)).keys()):
                return _NAMED.format(index=index, others=_OTHERS.format(file=file, name=name))
        return _NAMED.format(index=index, others="")
    return ""


def write_directory(directory: str, arrays: Mapping[str, mx.array], limit: int) -> None:
    """Write arrays to a model's directory, in files of at most ``limit`` bytes of data; a larger array has a file of its own.

    The files of an older model are removed after the new index has replaced the old one.

    Raises:
        TypeError: If ``limit`` is not a whole number.
        ValueError: If it isn't positive, or a file can't hold an array.
        NotADirectoryError: If ``directory`` is a file.
    """
    if type(limit) is not int or limit < 1:
        error = ValueError if type(limit) is int else TypeError
        raise error(f"max_shard_bytes is a positive whole number of bytes, and was given as {describe(limit)}")
    check_arrays(arrays, ".safetensors", directory)
    if not os.path.isdir(directory):
        if os.path.lexists(directory):
            raise NotADirectoryError(f"{directory} is a file, and save_weights was to write a directory of that name")
        os.mkdir(directory)
        fsync(os.path.dirname(os.path.abspath(directory)))
    with _exclusive_lock(directory) as locked:
        if locked:
            # They are from saves that were killed. Temporary files with other names belong to single files.
            remove_temporaries(directory, lambda name: name == INDEX or _SHARD.fullmatch(name))
        shards = _split(arrays, limit)
        files = _unused_names(directory, len(shards))
        old = _old_files(directory)
        index = {
            "metadata": {"total_size": sum(array.nbytes for array in arrays.values())},
            "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
        }
        with ExitStack() as stack:
            # The first to be entered is the last to be renamed, so every file exists when the index names it.
            temporary = stack.enter_context(atomic_write(os.path.join(directory, INDEX)))
            with open(temporary, "w", encoding="utf-8") as handle:
                json.dump(index, handle, indent=2)
            for file, shard in zip(files, shards, strict=True):
                write_file(stack.enter_context(atomic_write(os.path.join(directory, file))), shard, ".safetensors")
        for file in old:
            with suppress(OSError):  # the next save tries again
                os.remove(os.path.join(directory, file))


def _read_shards(index: str) -> dict[str, mx.array]:
    directory = os.path.dirname(index)
    names, metadata = _read_index(index)
    shards: dict[str, dict[str, mx.array]] = {}
    for shard in dict.fromkeys(names.values()):
        path = os.path.join(directory, shard)
        if not os.path.exists(path):
            raise FileNotFoundError(f"{index} names the file {shard}, which is not there")
        shards[shard] = read_file(path)
    for name, shard in names.items():
        if name not in shards[shard]:
            suggestion = nearest(name, shards[shard])
            fail(index, f"names {shard} as the file of {name!r:.80}, which isn't in there{suggestion}")
    return read_sharing(index, names.keys(), metadata).spread({name: shards[shard][name] for name, shard in names.items()})


def _read_index(index: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return for each array its file, and the texts among what the index says besides."""
    with open_regular(index) as handle:
        given: Any = parse_json(handle.read(), index)
    names = given.get("weight_map") if isinstance(given, dict) else None
    if not isinstance(names, dict):
        fail(index, 'isn\'t the index of a model: it is to be an object whose "weight_map" has the file of each array')
    for name, shard in names.items():
        if not isinstance(shard, str) or not _FILE_NAME.fullmatch(shard):
            reason = "which isn't a .safetensors file in the directory of the index"
            fail(index, f"names {shard!r:.80} as the file of {name!r:.80}, {reason}")
    metadata = given.get("metadata")
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return names, {key: text for key, text in texts if isinstance(text, str)}


def _old_files(directory: str) -> set[str]:
    """Return the files of the model in the directory, to be removed when another has replaced it."""
    return {name for name in os.listdir(directory) if name == SINGLE or _SHARD.fullmatch(name)} | _files_in_index(directory)


def _files_in_index(directory: str) -> set[str]:
    """Return the files that the index of a directory names; none if there is no index, or it is broken."""
    with suppress(OSError, ValueError):
        return {*_read_index(os.path.join(directory, INDEX))[0].values()}
    return set()


def _unused_names(directory: str, count: int) -> list[str]:
    """Return Hugging Face's names for so many files, with a number added if such files exist already."""
    number = 1
    while True:
        model = "model" if number == 1 else f"model-{number}"
        files = [f"{model}-{each:05}-of-{count:05}.safetensors" for each in range(1, count + 1)]
        if not any(os.path.lexists(os.path.join(directory, file)) for file in files):
            return files
        number += 1


def _split(arrays: Mapping[str, mx.array], limit: int) -> list[dict[str, mx.array]]:
    shards: list[dict[str, mx.array]] = []
    room = 0
    for name, array in arrays.items():
        if array.nbytes > room or not shards:
            shards.append({})
            room = limit
        shards[-1][name] = array
        room -= array.nbytes
    return shards


@contextmanager
def _exclusive_lock(directory: str) -> Iterator[bool]:
    """Wait until nobody else saves to the directory, and lock it for the block. Yield whether the file system has locks.

    The lock of checkpoints is another one; nobody waits for that.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        locked = False
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        yield locked
    finally:
        os.close(handle)


def _version(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
