"""Numbers, strings and bytes as text, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def encode_value(value: Any) -> tuple[str, str]:
    """Encode a number, a string or bytes exactly, as its type and a text."""
    kind = type(value).__name__
    if isinstance(value, str):  # it may have halves of surrogate pairs, which JSON confuses with whole ones
        return kind, value.encode("utf-8", "surrogatepass").hex()
    if isinstance(value, bytes):
        return kind, value.hex()
    if isinstance(value, complex):
        return kind, f"{value.real!r} {value.imag!r}"
    return kind, hex(value) if type(value) is int else repr(value)  # in decimal, an int may be too long for Python to read


_DECODERS: dict[str, Callable[[str], Any]] = {
    "bool": {"True": True, "False": False}.__getitem__,
    "int": lambda text: int(text, 16),
    "float": float,
    "complex": lambda text: complex(*map(float, text.split())),
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "bytes": bytes.fromhex,
}


def decode_value(kind: str, text: str) -> Any:
    """Return what :func:`encode_value` encoded."""
    return _DECODERS[kind](text)
