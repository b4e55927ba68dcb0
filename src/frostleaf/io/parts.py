"""Checkpoints in several files: a head, which names the files that have its arrays, and those files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from .names import CHECKPOINT
from .safetensors import HEADER_CHECKSUM, Header, fail, open_regular, parse_json, read_array, read_checksums, read_header

T = TypeVar("T")

PARTS, DESCRIBED_IN = "frostleaf.parts", "frostleaf.described"  # keys of the head's metadata

_FILE_NAME = re.compile(rf"(?:{CHECKPOINT}/)?[^/\\\0]+\.safetensors")


class Part(NamedTuple):
    """What a head says of a file beside it.

    Attributes:
        header: The checksum of that file's header.
        names: Which arrays are read from there, or ``None`` for all that are in there and in no later file.
    """

    header: str
    names: list[str] | None


class Opened:
    """A file that is open for reading, and once :meth:`complete` was called, those beside it that have arrays of it.

    Attributes:
        header: What its header says; when it is complete, with the arrays of all its files.
        checksums: When it is complete, the checksum of each array.
        places: When it is complete, for each array its file and what that file's header says.
    """

    def __init__(self, file: BufferedReader, stack: ExitStack) -> None:
        self.header = read_header(file)
        self.checksums: dict[str, int] = {}
        self.places: dict[str, tuple[BufferedReader, Header]] = {}
        self._file, self._stack = file, stack

    def complete(self) -> None:
        """Check the header's own checksum, and open the files that it names.

        Raises:
            CheckpointError: If the header is damaged, or a file is gone, or is not the one that the header means.
            FileNotFoundError: If a file is gone because the checkpoint is, or another has its place.
        """
        head = self.header
        self.checksums = read_checksums(head)
        self.places = dict.fromkeys(head.entries, (self._file, head))
        entries, metadata, parts = dict(head.entries), head.metadata, read_parts(head)
        described_in = metadata.get(DESCRIBED_IN)
        if described_in is not None and described_in not in parts:
            fail(head.file, f"the header's {DESCRIBED_IN} is {described_in!r:.80}, which isn't one of its files")
        for name, part in parts.items():
            file = self._stack.enter_context(self._open_part(name))
            header = read_header(file)
            checksums = read_checksums(header)
            if header.metadata[HEADER_CHECKSUM] != part.header:
                fail(header.file, f"is another file than the one of this name that {head.file} was saved with")
            if name == described_in:
                metadata = {**header.metadata, **metadata}
            for array in header.entries if part.names is None else part.names:
                if array not in header.entries:
                    fail(head.file, f"names {name} as the file of {array!r:.80}, which isn't in there")
                entries[array], self.checksums[array] = header.entries[array], checksums[array]
                self.places[array] = file, header
        self.header = Header(head.file, entries, metadata)

    def read(self, name: str) -> mx.array:
        """Return an array, after checking its checksum. See :func:`frostleaf.io.safetensors.read_array`."""
        file, header = self.places[name]
        return read_array(file, header, name, self.checksums[name])

    def require_not_replaced(self) -> None:
        """Let :func:`read_opened` read again if the file is another now.

        Raises:
            FileNotFoundError: If it is, or there is none.
        """
        if not os.path.samestat(os.stat(self.header.file), os.fstat(self._file.fileno())):
            raise _ReplacedError

    @contextmanager
    def _open_part(self, name: str) -> Iterator[BufferedReader]:
        head = self.header.file
        # A directory may be made of links to files that have other names where they are.
        here, there = os.path.dirname(head), os.path.dirname(os.path.realpath(head))
        path = os.path.join(here if os.path.exists(os.path.join(here, name)) else there, name)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open_regular(path))
            except FileNotFoundError:
                self.require_not_replaced()
                fail(head, f"names the file {name}, which is not there")
            yield file


class _ReplacedError(FileNotFoundError):
    pass


def read_opened(path: str | os.PathLike[str], read: Callable[[Opened], T]) -> T:
    """Return what a function returns of a file that may name others for its arrays, all of which are closed then.

    If somebody replaces the checkpoint meanwhile, so that its files are gone, the new one is read.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is not a safetensors file.
    """
    while True:
        with suppress(_ReplacedError), ExitStack() as stack:
            return read(Opened(stack.enter_context(open_regular(path)), stack))


def parts_text(parts: Mapping[str, Part]) -> str:
    """Return what the head's metadata say of the files beside it."""
    return json.dumps(parts, separators=(",", ":"))


def read_parts(head: Header) -> dict[str, Part]:
    """Return the files beside a head that have arrays of it, by name.

    Raises:
        CheckpointError: If a name leads elsewhere, or an array is to be in two files.
    """
    given = parse_json(head.metadata.get(PARTS, "{}"), head.file)
    if not isinstance(given, dict):
        fail(head.file, f"the header's {PARTS} isn't a mapping of files")
    parts = {name: _part(name, value, head) for name, value in given.items()}
    names = [*head.entries, *(array for part in parts.values() for array in part.names or ())]
    if len({*names}) < len(names):
        fail(head.file, f"the header's {PARTS} has an array in two files")
    return parts


def _part(name: str, given: Any, head: Header) -> Part:
    if not _FILE_NAME.fullmatch(name) or name == os.path.basename(head.file):
        fail(head.file, f"names the file {name!r:.80} for some arrays, which isn't a .safetensors file beside it")
    well_formed = isinstance(given, list) and len(given) == 2 and all(map(isinstance, given, (str, list | None)))
    if not well_formed or not all(isinstance(array, str) for array in given[1] or ()):
        fail(head.file, f"the header's {PARTS} doesn't say which arrays are in {name!r:.80}")
    return Part(*given)
