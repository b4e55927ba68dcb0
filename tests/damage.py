"""Files with something wrong, and disks that are full."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

JUNK: list[Any] = [
    None, True, 0, 1, -1, 8, 2**31, 2**63, 2**64, 10**400, 0.5, 1e400, "", "F32", "F64", "U8", "x", "0", "../x", [], [0],
    [0, 0], [0, 2**62], [[[[]]]], {}, {"a": {}}, {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
]  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Return a file with something wrong, and in a word what."""
    length = 8 + int.from_bytes(content[:8], "little")
    kind = draw.choice(
        ["bit", "bits", "header bit", "length", "cut", "more", "zeros", "swap", "twice", "field", "field", "key", "twin"]
    )
    changed = bytearray(content)
    if kind in ("bit", "bits", "header bit"):
        for _ in range(draw.randint(2, 20) if kind == "bits" else 1):
            changed[draw.randrange(length if kind == "header bit" else len(content))] ^= 1 << draw.randrange(8)
    elif kind == "length":
        changed[:8] = draw.choice([draw.randbytes(8), draw.randrange(2 * len(content)).to_bytes(8, "little")])
    elif kind == "cut":
        del changed[draw.randrange(len(content)) :]
    elif kind == "more":
        changed += draw.randbytes(draw.randint(1, 100))
    elif kind == "zeros":
        start = draw.randrange(len(content))
        changed[start : start + 512] = bytes(len(changed[start : start + 512]))
    elif kind in ("swap", "twice"):
        size = draw.randint(1, 64)
        one, other = draw.randrange(len(content) - size), draw.randrange(len(content) - size)
        if kind == "twice":
            changed[one:one] = content[other : other + size]
        else:
            changed[one : one + size], changed[other : other + size] = content[other : other + size], content[one : one + size]
    else:
        header = json.loads(content[8:length])
        text = json.dumps(change(header, kind, draw)).encode()
        changed = bytearray(len(text).to_bytes(8, "little") + text + content[length:])
    return kind, bytes(changed)


class Twins(dict[str, Any]):
    """A dict that JSON writes with one of its keys twice."""

    def items(self) -> Any:
        return [*super().items(), *list(super().items())[:1]]


def change(header: Any, kind: str, draw: random.Random) -> Any:
    """Return the header with a value replaced by another, a key renamed, removed or written twice, at a random place."""
    places: list[tuple[Any, Any]] = []
    waiting = [header]
    while waiting:
        value = waiting.pop()
        below = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
        places += [(value, key) for key, _ in below]
        waiting += [each for _, each in below]
    if kind == "twin":
        return Twins(header)
    owner, key = draw.choice(places)
    if kind == "field":
        owner[key] = draw.choice([*JUNK, owner[draw.choice([*owner])] if isinstance(owner, dict) else None])
    elif isinstance(owner, dict):
        value = owner.pop(key)
        if draw.random() < 0.5:
            owner[draw.choice(["x", "../x", "__metadata__", "a/b", key + " ", *header])] = value
    else:
        owner.pop(key)
    return header


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond a size inside the block, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
