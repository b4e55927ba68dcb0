"""GGUF files, and the check without which some end the process."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.io.gguf import read_gguf


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def array(name: str = "a", shape: Any = (4,), kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return string(name) + axes + struct.pack("<IQ", kind, offset)


def value(kind: int, data: bytes, name: str = "key") -> bytes:
    return string(name) + struct.pack("<I", kind) + data


def gguf(
    *arrays: bytes,
    values: tuple[bytes, ...] = (),
    data: bytes = b"\0" * 4096,
    version: int = 3,
    counts: Any = None,
    align: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(arrays), len(values)))) + b"".join([*values, *arrays])
    return head + b"\0" * (-len(head) % align) + data


VALUES = (
    value(4, struct.pack("<I", 7)), value(6, struct.pack("<f", 0.5)), value(8, string("text")), value(7, b"\1"),
    value(9, struct.pack("<IQ", 8, 2) + string("one") + string("two")), value(9, struct.pack("<IQ3i", 5, 3, 1, 2, 3)),
)  # fmt: skip


def test_what_is_in_a_file_is_what_mlx_reads(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(gguf(array("a", (2, 3)), array("b", (), 1, 32), array("c", (0,), 24, 64), values=VALUES))
    found, theirs = read_gguf(str(file)), mx.load(str(file))
    assert {name: (each.dtype, each.shape) for name, each in found.items()} == {
        "a": (mx.float32, (2, 3)),
        "b": (mx.float16, ()),
        "c": (mx.int8, (0,)),
    }
    assert found.keys() == theirs.keys()


def test_an_alignment_is_heeded(tmp_path: Path) -> None:
    alignment = value(4, struct.pack("<I", 64), "general.alignment")
    (tmp_path / "x.gguf").write_bytes(gguf(array(), values=(alignment,), data=struct.pack("<4f", 1, 2, 3, 4), align=64))
    assert read_gguf(str(tmp_path / "x.gguf"))["a"].tolist() == [1, 2, 3, 4]


def test_a_quantized_file_fills_a_quantized_model(tmp_path: Path) -> None:
    # Two blocks of 32 numbers in 8 bits for each row, each behind its scale.
    blocks = [struct.pack("<e32b", 0.5, *range(-16, 16)) for _ in range(4)]
    (tmp_path / "x.gguf").write_bytes(gguf(array("fc.weight", (2, 64), 8), data=b"".join(blocks)))
    layer = fl.nn.Linear(64, 2, bias=False).to_quantized(group_size=32, bits=8)
    loaded = fl.eval_shape(lambda: layer).load_weights(tmp_path / "x.gguf", rename=lambda name: name.removeprefix("fc."))
    assert loaded(mx.ones(64)).tolist() == [-16, -16]


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "isn't a GGUF file"),
    "text": (b"hello\n" * 50, "isn't a GGUF file"),
    "an old version": (gguf(array(), version=1), "is GGUF of version 1, and MLX reads versions 2 and 3"),
    "a new version": (gguf(array(), version=4), "is GGUF of version 4, and MLX reads versions 2 and 3"),
    "cut off": (gguf(array(), data=b"\0" * 15), "array 'a' lies in bytes 64 to 80, and the file has 79"),
    "cut off in the header": (gguf(array())[:40], "the header is cut off, or is damaged"),
    "more arrays than there are": (gguf(array(), counts=(2**63, 0)), "the header is cut off, or is damaged"),
    "more keys than there are": (gguf(array(), counts=(1, 2**63)), "the header is cut off, or is damaged"),
    "a long name": (gguf(struct.pack("<Q", 2**62) + b"a"), "the header is cut off, or is damaged"),
    "a long list": (gguf(values=(value(9, struct.pack("<IQ", 4, 2**62)),)), "the header is cut off, or is damaged"),
    "a list of lists": (gguf(values=(value(9, struct.pack("<IQ", 9, 1)),)), "'key' is of the GGUF kind array of 9, which MLX"),
    "a float64": (gguf(values=(value(12, b"\0" * 8),)), "the metadata 'key' is of the GGUF kind 12, which MLX can't read"),
    "an unknown kind": (gguf(values=(value(77, b""),)), "the metadata 'key' is of the GGUF kind 77, which"),
    "no alignment": (gguf(array(), values=(value(4, b"\0" * 4, "general.alignment"),)), "general.alignment is 0, which isn't"),
    "an odd alignment": (gguf(array(), values=(value(8, string("x"), "general.alignment"),)), "general.alignment is None"),
    "many axes": (gguf(array(shape=(1,) * 9)), "array 'a' has 9 axes, and GGUF allows 8"),
    "a long axis": (gguf(array(shape=(2**31, 0))), "the shape [2147483648, 0], in which a length is out of range"),
    "too large": (gguf(array(shape=(2**31 - 1,) * 8)), "the arrays are said to take 1809251387"),
    "elsewhere": (gguf(array(offset=2**63)), "array 'a' lies in bytes 9223372036854775872"),
    "a type without size": (gguf(array(shape=(256,), kind=4)), "array 'a' is of the GGUF type 4, which MLX can't read"),
    "a type left out": (gguf(array(shape=(256,), kind=39)), "array 'a' is of the GGUF type 39, which MLX can't read"),
    "half a block": (gguf(array(shape=(2, 40), kind=8)), "blocks of 32 numbers, which don't divide its last axis in [2, 40]"),
    "a name twice": (gguf(array(), array()), "the name 'a' is there twice"),
    "many arrays in one place": (
        gguf(*(array(f"{number}", (1024,)) for number in range(9))),
        "the arrays are said to take 36864 bytes, and the file has",
    ),
    "not text": (gguf(array().replace(b"a", b"\xff", 1)), "can't be read as GGUF"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_that_names_it_and_the_reason(case: str, tmp_path: Path) -> None:
    data, message = BROKEN[case]
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(fl.CheckpointError) as caught:
        read_gguf(str(tmp_path / "x.gguf"))
    assert str(caught.value).startswith(f"{tmp_path}/x.gguf: ")
    assert message in str(caught.value)


def test_whatever_is_changed_in_a_header_the_process_lives(tmp_path: Path) -> None:
    good, chance = gguf(array("one", (2, 3)), array("two", (5,), 1, 32), values=VALUES, data=b"\0" * 64), random.Random(1)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.choice([1, 2, 4])):
            data[chance.randrange(len(data) - 64)] = chance.choice([0, 127, 255, chance.randrange(256)])
        (tmp_path / "x.gguf").write_bytes(data)
        try:
            mx.eval(read_gguf(str(tmp_path / "x.gguf")))
        except fl.CheckpointError:
            refused += 1
    assert 100 < refused < 300
