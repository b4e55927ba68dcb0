"""Hugging Face's layout of large models: a directory of safetensors files, and an index that says which array is where."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import mlx.core as mx

from ..node import nearest
from .atomic import flush, remove_unfinished, replacing
from .formats import ENDINGS, check_arrays, read_file, write_file
from .safetensors import fail, opened, parsed

INDEX = "model.safetensors.index.json"
INDEX_ENDING = ".index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5 * 10**9  # as in Hugging Face's libraries

NO_MODEL = "{directory} has neither a {index} nor a {single}{others}"
NOT_AN_INDEX = 'isn\'t the index of a model: it is to be an object whose "weight_map" has the file of each array'
BAD_SHARD = "names {shard!r:.80} as the file of {name!r:.80}, which isn't a .safetensors file in the directory of the index"
NO_SHARD = "{index} names the file {shard}, which is not there"
NOT_IN_SHARD = "names {shard} as the file of {name!r:.80}, which isn't in there{nearest}"
BAD_LIMIT = "max_shard_bytes is a positive whole number of bytes, and was given as {given!r}"
NOT_A_DIRECTORY = "{directory} is a file, and save_weights was to write a directory of that name"

_IN_DIRECTORY = re.compile(r"[^/\\\0]+\.safetensors")
# What Hugging Face calls the files of a model, with or without a number of our own.
_SHARD = re.compile(r"model(-\d+)?-\d{5,}-of-\d{5,}\.safetensors")


def read_directory(directory: str) -> dict[str, mx.array]:
    """Return the arrays of a model's directory: those that its index names, or those of its ``model.safetensors``.

    Raises:
        FileNotFoundError: If there is neither, or a file that the index names is missing.
        CheckpointError: If one of them is not what it should be.
    """
    index, single = os.path.join(directory, INDEX), os.path.join(directory, SINGLE)
    if os.path.exists(index):
        return read_index(index)
    if os.path.exists(single):
        return read_file(single)
    files = sorted(name for name in os.listdir(directory) if name.endswith((*ENDINGS, INDEX_ENDING)))
    others = f"; what it has is {', '.join(files)}" if files else ""
    raise FileNotFoundError(NO_MODEL.format(directory=directory, index=INDEX, single=SINGLE, others=others))


def read_index(index: str) -> dict[str, mx.array]:
    """Return the arrays that an index names. See :func:`read_directory`."""
    while True:
        before = _stamp(index)
        try:
            arrays = _read_shards(index)
        except (OSError, ValueError):
            if _stamp(index) == before:
                raise
        else:
            if _stamp(index) == before:
                return arrays
        # Another process has saved a model here meanwhile, and taken away the files of the old one.


def write_directory(directory: str, arrays: Mapping[str, mx.array], limit: int) -> None:
    """Write arrays to a model's directory, in files of at most ``limit`` bytes of data where one array isn't more.

    The files of the model that was there are left alone until the new index has replaced the old one, and removed then.

    Raises:
        TypeError: If ``limit`` is not a whole number.
        ValueError: If it isn't positive, or a file can't hold an array.
        NotADirectoryError: If there is a file in the place of the directory.
    """
    if type(limit) is not int:
        raise TypeError(BAD_LIMIT.format(given=limit))
    if limit < 1:
        raise ValueError(BAD_LIMIT.format(given=limit))
    check_arrays(arrays, ".safetensors", directory)
    if not os.path.isdir(directory):
        if os.path.lexists(directory):
            raise NotADirectoryError(NOT_A_DIRECTORY.format(directory=directory))
        os.mkdir(directory)
        flush(os.path.dirname(os.path.abspath(directory)))
    with _alone(directory) as locked:
        if locked:
            # What saves that were killed had not finished writing. Other names are of somebody's single file.
            remove_unfinished(directory, lambda name: name == INDEX or _SHARD.fullmatch(name))
        shards = _split(arrays, limit)
        files = _unused_names(directory, len(shards))
        old = _files_of_model(directory)
        index = {
            "metadata": {"total_size": sum(array.nbytes for array in arrays.values())},
            "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
        }
        with ExitStack() as stack:
            # What is entered first is renamed last: every file is there when the index names it.
            written = stack.enter_context(replacing(os.path.join(directory, INDEX)))
            with open(written, "w", encoding="utf-8") as handle:
                json.dump(index, handle, indent=2)
            for file, shard in zip(files, shards, strict=True):
                write_file(stack.enter_context(replacing(os.path.join(directory, file))), shard, ".safetensors")
        for file in old:
            with suppress(FileNotFoundError):
                os.remove(os.path.join(directory, file))


def _read_shards(index: str) -> dict[str, mx.array]:
    directory = os.path.dirname(index)
    names = _read_index(index)
    shards: dict[str, dict[str, mx.array]] = {}
    for shard in dict.fromkeys(names.values()):
        path = os.path.join(directory, shard)
        if not os.path.exists(path):
            raise FileNotFoundError(NO_SHARD.format(index=index, shard=shard))
        shards[shard] = read_file(path)
    for name, shard in names.items():
        if name not in shards[shard]:
            fail(index, NOT_IN_SHARD.format(shard=shard, name=name, nearest=nearest(name, shards[shard])))
    return {name: shards[shard][name] for name, shard in names.items()}


def _read_index(index: str) -> dict[str, str]:
    with opened(index) as handle:
        given: Any = parsed(handle.read(), index)
    names = given.get("weight_map") if isinstance(given, dict) else None
    if not isinstance(names, dict):
        fail(index, NOT_AN_INDEX)
    for name, shard in names.items():
        if not isinstance(shard, str) or not _IN_DIRECTORY.fullmatch(shard):
            fail(index, BAD_SHARD.format(shard=shard, name=name))
    return names


def _files_of_model(directory: str) -> set[str]:
    """Return the files that are to go when another model has taken the place of the one in the directory."""
    files = {name for name in os.listdir(directory) if name == SINGLE or _SHARD.fullmatch(name)}
    with suppress(OSError, ValueError):  # there is no index, or it is broken
        files.update(_read_index(os.path.join(directory, INDEX)).values())
    return files


def _unused_names(directory: str, count: int) -> list[str]:
    """Return the names of Hugging Face for so many files; with a number in them where there are such files already."""
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
def _alone(directory: str) -> Iterator[bool]:
    """Return a context in which no other saves to the directory: they wait for one another. Its value is whether that is so.

    It is another lock than that of checkpoints, for which nobody waits.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        locked = False
        with suppress(OSError):  # not every network file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        yield locked
    finally:
        os.close(handle)


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
