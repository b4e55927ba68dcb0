"""The .npz files that we read and write, against NumPy and MLX."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.io.npz import read_npz, write_npz

ARRAYS = {
    "a": mx.arange(6.0).reshape(2, 3), "b.0": mx.array(3), "c": mx.zeros((0, 2)), "d": mx.array([True, False]),
    "e": mx.array([1 + 2j]), "f": mx.arange(24, dtype=mx.float16).reshape(2, 3, 4).transpose(2, 0, 1),
}  # fmt: skip


def test_numpy_reads_what_was_written(tmp_path: Path) -> None:
    write_npz(str(tmp_path / "x.npz"), ARRAYS)
    with np.load(tmp_path / "x.npz") as found:
        assert set(found) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert found[name].dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(found[name], np.asarray(array))


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">c8", ">f2"])
def test_the_remedy_for_another_order_of_bytes_works(dtype: str, tmp_path: Path) -> None:
    array = np.arange(6).astype(dtype)
    np.savez(tmp_path / "x.npz", a=array)
    with pytest.raises(fl.CheckpointError, match=r"which MLX doesn't have: write it with array\.astype") as error:
        read_npz(str(tmp_path / "x.npz"))
    code = str(error.value).partition("write it with ")[2].partition(",")[0]
    np.savez(tmp_path / "x.npz", a=eval(code, {"array": array}))
    assert read_npz(str(tmp_path / "x.npz"))["a"].tolist() == array.tolist()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_wrote_is_read_as_mlx_reads_it(save: Any, order: Any, tmp_path: Path) -> None:
    save(tmp_path / "x.npz", **{name: np.asarray(array, order=order) for name, array in ARRAYS.items()})
    found, theirs = read_npz(str(tmp_path / "x.npz")), mx.load(str(tmp_path / "x.npz"))
    assert found.keys() == theirs.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == theirs[name].dtype == array.dtype
        assert found[name].shape == theirs[name].shape == array.shape
        assert mx.array_equal(found[name], array)
        assert mx.array_equal(found[name], theirs[name])


def npy(header: bytes, data: bytes = b"\0" * 16, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2 if version == 1 else 4, "little") + header + data


def described(descr: str = "'<f4'", shape: str = "(4,)", order: str = "False") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}".encode()


def archive(*contents: bytes, method: int = zipfile.ZIP_STORED, name: str = "a.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for content in contents:
            file.writestr(name, content)
    return buffer.getvalue()


def wrong_crc() -> bytes:
    data = archive(npy(described(), b"\1" * 16))
    return data.replace(b"\1" * 16, b"\1" * 15 + b"\2")


BROKEN: dict[str, tuple[Any, str]] = {
    "empty": (b"", "File is not a zip file"),
    "text": (b"hello\n" * 50, "File is not a zip file"),
    "cut off": (archive(npy(described()))[:-30], "File is not a zip file"),
    "a flipped bit": (wrong_crc(), "Bad CRC-32"),
    "not npy": (archive(b"hello"), "'a' isn't a .npy file"),
    "no dict": (archive(npy(b"[1, 2]")), "'a' isn't a .npy file"),
    "no python": (archive(npy(b"{'descr': f()}")), "'a' isn't a .npy file"),
    "deep": (archive(npy(b"(" * 60000)), "'a' isn't a .npy file"),
    "an absurd header": (archive(npy(b"", version=2)[:8] + b"\xff" * 8), "'a' isn't a .npy file"),
    "objects": (archive(npy(described("'|O'"))), "array 'a' has the dtype '|O', which MLX doesn't have"),
    "records": (archive(npy(described("[('x', '<f4')]"))), "which MLX doesn't have"),
    "big-endian": (archive(npy(described("'>f4'"))), "array 'a' has the dtype '>f4', which MLX doesn't have"),
    "an absurd shape": (archive(npy(described(shape="(10**9, 10**9)"))), "'a' isn't a .npy file"),
    "a large shape": (
        archive(npy(described(shape="(1000000000, 1000000000)"))),
        "takes 4000000000000000000 bytes, and the file has 16",
    ),
    "a negative shape": (archive(npy(described(shape="(-1, -4)"))), "'a' isn't a .npy file"),
    "another shape": (archive(npy(described(shape="(3,)"))), "of dtype <f4 and shape (3,) takes 12 bytes, and the file has 16"),
    "the method": (
        archive(npy(described()), method=zipfile.ZIP_BZIP2),
        "'a.npy' is compressed in a way that .npz files",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_that_names_it_and_the_reason(case: str, tmp_path: Path) -> None:
    data, message = BROKEN[case]
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(fl.CheckpointError) as caught:
        read_npz(str(tmp_path / "x.npz"))
    assert str(caught.value).startswith(f"{tmp_path}/x.npz: can't be read as .npz: ")
    assert message in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(archive(npy(described()), npy(described())))
    with pytest.raises(fl.CheckpointError, match="the name 'a' is there twice"):
        read_npz(str(tmp_path / "x.npz"))


def test_whatever_is_changed_in_a_file_it_is_the_same_or_an_error(tmp_path: Path) -> None:
    write_npz(str(tmp_path / "x.npz"), ARRAYS)
    good, chance = (tmp_path / "x.npz").read_bytes(), random.Random(1)
    for _ in range(100):
        data = bytearray(good)
        for _ in range(chance.choice([1, 2, 4])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path / "x.npz").write_bytes(data)
        try:
            found = read_npz(str(tmp_path / "x.npz"))
        except fl.CheckpointError:
            continue
        # The directory at the end of the file, which says what is in it, has no checksum.
        assert all(name not in ARRAYS or mx.array_equal(array, ARRAYS[name]) for name, array in found.items())


def bomb(count: int, size: int) -> bytes:
    """Return an archive in which so many names stand for one array, compressed as far as it goes."""
    name = "%05d.npy"
    data = archive(npy(described("'|u1'", f"({size},)"), bytes(size)), method=zipfile.ZIP_DEFLATED, name=name % 0)
    start = data.index(b"PK\1\2")
    stop = data.index(b"PK\5\6")
    entries = b"".join(data[start:stop].replace((name % 0).encode(), (name % each).encode()) for each in range(count))
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0)
    return data[:start] + entries + end


def test_many_names_for_one_array_are_more_than_the_file_can_hold(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(bomb(100, 10**6))
    with pytest.raises(
        fl.CheckpointError, match=r"its arrays are said to take 1000\d+ bytes, more than a file of this size can hold"
    ):
        read_npz(str(tmp_path / "x.npz"))


def test_what_is_compressed_as_far_as_it_goes_is_read(tmp_path: Path) -> None:
    arrays = {f"a{number}": np.zeros(10**6, np.uint8) for number in range(20)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    assert (tmp_path / "x.npz").stat().st_size < 25_000
    assert {name: array.size for name, array in read_npz(str(tmp_path / "x.npz")).items()} == dict.fromkeys(arrays, 10**6)
