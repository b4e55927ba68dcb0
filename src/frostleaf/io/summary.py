"""What a checkpoint says of itself, at the beginning of its head, where it can be read without all of its header."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from .safetensors import METADATA, fail, open_regular, parse_json, read_beginning, read_header

STEP, TIME, METRICS, BEST, FILES = "step", "saved", "metrics", "best", "files"

_SUMMARY = "frostleaf.summary"  # the first key of the head's metadata
# What a head begins with, after its length: a string of JSON.
_BEGINNING = re.compile(rf'.{{8}}{{"{METADATA}":{{"{_SUMMARY}":("[^"\\]*(?:\\.[^"\\]*)*")'.encode(), re.DOTALL)
_PEEK = 2**12
_LATEST = 2**63  # nanoseconds


class Best(NamedTuple):
    """By what a run chooses its best checkpoints.

    Attributes:
        metric: The name of the metric.
        mode: Whether the best have the smallest, ``"min"``, or the largest, ``"max"``.
        keep: How many of them are kept.
    """

    metric: str
    mode: str
    keep: int = 1


def read_summary(head: str) -> dict[str, Any] | None:
    """Return what a checkpoint says of itself, if it can be without reading all of its header; ``None`` if it says nothing.

    Its ``files`` are the names of what is beside the head.

    Raises:
        OSError: If it can't be read.
        CheckpointError: If it says what no checkpoint says.
    """
    checksum, _, text = (_text_in(head) or "").partition(" ")
    if checksum != _checksum(text):
        return None
    given = parse_json(text, head, constants=True)
    if not is_summary(given):
        fail(head, f"the header's {_SUMMARY} isn't what it should be")
    return given  # type: ignore[no-any-return]


def _text_in(head: str) -> str | None:
    with suppress(ValueError):
        found = _BEGINNING.match(read_beginning(head, _PEEK))
        if found:
            with suppress(ValueError):
                return str(json.loads(found[1].decode()))
        # It is longer, or somebody wrote the header in another order.
        with open_regular(head) as file:
            return read_header(file).metadata.get(_SUMMARY)
    return None


def is_summary(given: Any) -> bool:
    """Return whether something read from a file is what a checkpoint says of itself."""
    if not isinstance(given, dict) or not {TIME, METRICS, FILES} <= given.keys():
        return False
    metrics, files, best = given[METRICS], given[FILES], given.get(BEST, ["", "min"])
    return (
        all(type(number) is int and 0 <= number < _LATEST for number in (given[TIME], given.get(STEP, 0)))
        and isinstance(metrics, dict)
        and all(isinstance(value, int | float) for value in metrics.values())
        and isinstance(files, list)
        and all(isinstance(name, str) for name in files)
        and isinstance(best, list)
        and [type(each) for each in best] in ([str, str], [str, str, int])
        and best[1] in ("min", "max")
        and min(best[2:], default=1) >= 1
    )


def summary_text(summary: Mapping[str, Any], files: list[str]) -> dict[str, str]:
    """Return what the head's metadata are to begin with."""
    text = json.dumps({**summary, FILES: files})
    return {_SUMMARY: f"{_checksum(text)} {text}"}


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
