"""The safetensors format: files that MLX and others read, and headers that are not believed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from safetensors import safe_open
from safetensors.mlx import save_file

import frostleaf as fl
from frostleaf.io import safetensors
from frostleaf.io.safetensors import DTYPES, MAX_HEADER, open_regular, read_array, read_checksums, read_header, write

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """Return a file with a header as given, or as JSON writes it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {**ENTRY, **changes}}


def read(file: Path) -> safetensors.Header:
    with open_regular(file) as handle:
        return read_header(handle)


BROKEN = {
    "nothing": (b"", "has 0 bytes, too few"),
    "seven bytes": (b"1234567", "has 7 bytes, too few"),
    "eight exabytes": (raw(entry(), length=2**63), "its header has 9223372036854775808 bytes, and the file has 77 altogether"),
    "the largest length": (raw(entry(), length=2**64 - 1), "its header has 18446744073709551615 bytes"),
    "a length past the end": (raw(entry(), length=70), "its header has 70 bytes, and the file has 77 altogether"),
    "no header": (raw(b""), "the header can't be read: Expecting value"),
    "half a header": (raw(b'{"w": '), "the header can't be read: Expecting value"),
    "two headers": (raw(b"{}{}"), "the header can't be read: Extra data"),
    "a list": (raw([]), "the header isn't a JSON object"),
    "a number": (raw(1), "the header isn't a JSON object"),
    "no UTF-8": (raw(b'{"\xff": 1}'), "the header can't be read: 'utf-8' codec"),
    "a byte order mark": (raw(b"\xef\xbb\xbf{}"), "the header can't be read"),
    "nested without end": (raw(b"[" * 1_000_000), "the header can't be read: "),
    "objects without end": (raw(b'{"a":' * 200_000), "the header can't be read: "),
    "a name twice": (
        raw(f'{{"w": {json.dumps(ENTRY)}, "w": {json.dumps(ENTRY)}}}'.encode()),
        "the header can't be read: the name 'w' is there twice",
    ),
    "a dtype twice": (raw(b'{"w": {"dtype": "F32", "dtype": "F32"}}'), "the name 'dtype' is there twice"),
    "NaN": (raw(b'{"w": NaN}'), "NaN is not a number of JSON"),
    "an endless number": (raw(b'{"w": ' + b"9" * 10_000 + b"}"), ": "),
    "metadata that are a list": (raw({"__metadata__": [], **entry()}), "__metadata__ isn't a mapping of strings to strings"),
    "metadata that are a text": (raw({"__metadata__": "a", **entry()}), "__metadata__ isn't a mapping of strings to strings"),
    "metadata with a number": (
        raw({"__metadata__": {"a": 1}, **entry()}),
        "__metadata__ isn't a mapping of strings to strings",
    ),
    "an entry that is a list": (raw({"w": [1, 2]}), "array 'w' is described by [1, 2]"),
    "an entry with less": (
        raw({"w": {"dtype": "F32", "shape": [2]}}),
        "array 'w' is described by {'dtype': 'F32', 'shape': [2]}",
    ),
    "an entry with more": (raw(entry(more=1)), "array 'w' is described by"),
    "an unknown dtype": (raw(entry(dtype="F33")), "array 'w' has the unknown dtype 'F33'"),
    "a dtype that is a list": (raw(entry(dtype=["F32"])), "array 'w' has the unknown dtype ['F32']"),
    "a shape that is a number": (raw(entry(shape=2)), "array 'w' has the shape 2"),
    "a negative shape": (raw(entry(shape=[-2])), "array 'w' has the shape [-2]"),
    "two negative lengths": (raw(entry(shape=[-1, -2])), "array 'w' has the shape [-1, -2]"),
    "half a length": (raw(entry(shape=[2.0])), "array 'w' has the shape [2.0]"),
    "a length of true": (raw(entry(shape=[2, True])), "array 'w' has the shape [2, True]"),
    "a length that overflows": (raw(entry(shape=[2**62 + 2])), "array 'w' has the shape [4611686018427387906]"),
    "a product that overflows": (
        raw(entry(shape=[2**31 - 1, 2**31 - 1, 2])),
        "takes 36893488113059364872 bytes, and its offsets leave it 8",
    ),
    "a long empty axis": (raw(entry(shape=[0, 2**40], data_offsets=[0, 0]), b""), "array 'w' has the shape [0, 1099511627776]"),
    "a thousand axes": (raw(entry(shape=[2**31 - 1] * 1000)), "array 'w' has the shape [2147483647, "),
    "one offset": (raw(entry(data_offsets=[0])), "array 'w' has the offsets [0]"),
    "negative offsets": (raw(entry(data_offsets=[-8, 0])), "array 'w' has the offsets [-8, 0]"),
    "offsets that are texts": (raw(entry(data_offsets=["0", "8"])), "array 'w' has the offsets ['0', '8']"),
    "offsets past the end": (raw(entry(data_offsets=[8, 16])), "array 'w' has the offsets [8, 16]"),
    "offsets far past the end": (raw(entry(data_offsets=[2**70, 2**70 + 8])), "array 'w' has the offsets"),
    "offsets in the wrong order": (raw(entry(data_offsets=[8, 0])), "and its offsets leave it -8"),
    "too few bytes for the shape": (raw(entry(shape=[3])), "shape [3] takes 12 bytes, and its offsets leave it 8"),
    "too many bytes for the dtype": (raw(entry(dtype="F16")), "takes 4 bytes, and its offsets leave it 8"),
    "overlapping arrays": (
        raw({"v": ENTRY, "w": ENTRY}),
        "array 'w' begins at byte 0 of the data, and the one before it ends at 8",
    ),
    "half overlapping arrays": (
        raw({"v": ENTRY, "w": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)),
        "array 'w' begins at byte 4 of the data, and the one before it ends at 8",
    ),
    "a gap": (
        raw(entry(data_offsets=[8, 16]), bytes(16)),
        "array 'w' begins at byte 8 of the data, and the one before it ends at 0",
    ),
    "data after the last": (raw(entry(), bytes(9)), "the arrays end at byte 8 of the data, and the file has 9 bytes of data"),
    "data of nothing": (raw({}, bytes(1)), "the arrays end at byte 0 of the data, and the file has 1 bytes of data"),
    "a file cut off": (raw(entry(), bytes(7)), "array 'w' has the offsets [0, 8]"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_header_that_can_not_be_true_is_an_error_that_names_the_file_and_the_reason(name: str, tmp_path: Path) -> None:
    content, reason = BROKEN[name]
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(fl.CheckpointError, match=re.escape(reason)) as caught:
        read(tmp_path / "broken.safetensors")
    assert str(caught.value).startswith(f"{tmp_path}/broken.safetensors: ")
    assert len(str(caught.value)) < 1000


def test_a_header_longer_than_readers_accept_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "long.safetensors"
    with open(file, "wb") as handle:
        handle.write((MAX_HEADER + 1).to_bytes(8, "little"))
        handle.truncate(MAX_HEADER + 100)  # which takes no room on the disk
    with pytest.raises(fl.CheckpointError, match="the header has 100000001 bytes, where 100000000 are allowed"):
        read(file)


def test_a_header_longer_than_readers_accept_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="the header has 1072 bytes, where 1000 are allowed"):
        write(f"{tmp_path}/long", {}, {"text": "x" * 1000})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_not_a_file_is_an_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    with pytest.raises(fl.CheckpointError, match=f"^{path}: is not a file$"):
        read(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")


def arrays() -> dict[str, mx.array]:
    made = {name: mx.arange(6).reshape(2, 3).astype(dtype, stream=mx.cpu) for name, dtype in DTYPES.items()}
    made |= {
        "scalar": mx.array(1.5),
        "empty": mx.zeros((0, 3)),
        "none": mx.zeros((3, 0), mx.int64),
        "flipped": mx.arange(6).reshape(2, 3).T,
    }
    made |= {"spread": mx.broadcast_to(mx.array([1, 2]), (3, 2)), "part": mx.arange(10)[2:8:3], "ä b": mx.array(True)}
    mx.eval(made)
    return made


def identical(one: mx.array, other: mx.array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(mx.array_equal(one, other, stream=mx.cpu))


def test_mlx_reads_what_is_written_here(tmp_path: Path) -> None:
    given = {name: array for name, array in arrays().items() if array.dtype != mx.float64}
    write(f"{tmp_path}/a.safetensors", given, {"note": "ä"})
    found, metadata = mx.load(f"{tmp_path}/a.safetensors", return_metadata=True)
    assert metadata["note"] == "ä"
    assert found.keys() == given.keys()
    assert all(identical(found[name], array) for name, array in given.items())


def test_what_mlx_writes_is_read_here(tmp_path: Path) -> None:
    given = {name: array for name, array in arrays().items() if array.dtype != mx.float64}
    mx.save_safetensors(f"{tmp_path}/a.safetensors", given, {"note": "ä"})
    header = read(tmp_path / "a.safetensors")
    assert header.metadata["note"] == "ä"
    assert {name: (entry.dtype, entry.shape) for name, entry in header.entries.items()} == {
        name: (array.dtype, array.shape) for name, array in given.items()
    }


def test_arrays_of_every_dtype_and_layout_come_back(tmp_path: Path) -> None:
    given = arrays()
    write(f"{tmp_path}/a.safetensors", given, {})
    with open_regular(tmp_path / "a.safetensors") as file:
        header = read_header(file)
        found = {name: read_array(file, header, name, checksum) for name, checksum in read_checksums(header).items()}
    assert found.keys() == given.keys()
    assert all(identical(found[name], array) for name, array in given.items())


def test_arrays_lie_at_multiples_of_the_size_of_their_elements(tmp_path: Path) -> None:
    write(f"{tmp_path}/a.safetensors", arrays(), {})
    assert all(entry.start % entry.dtype.size == 0 for entry in read(tmp_path / "a.safetensors").entries.values())


def test_a_file_that_ends_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write(f"{tmp_path}/a", {"w": mx.zeros(1000)}, {})
    with open_regular(tmp_path / "a") as file:
        header = read_header(file)
        os.truncate(tmp_path / "a", 1000)
        with pytest.raises(fl.CheckpointError, match="array 'w' is cut off"):
            read_array(file, header, "w", read_checksums(header)["w"])


@pytest.mark.parametrize("checksums", ["", "1", "1 2", "x"])
def test_checksums_of_other_arrays_are_an_error(checksums: str, tmp_path: Path) -> None:
    entries = {"w": safetensors.Entry(mx.float32, (2,), 0, 8)}
    texts = {"crc32": checksums}
    texts["crc32.header"] = safetensors._header_checksum(entries, texts)
    (tmp_path / "a").write_bytes(raw({"__metadata__": texts, **entry()}))
    if checksums == "1":
        assert read_checksums(read(tmp_path / "a")) == {"w": 1}
        return
    with pytest.raises(fl.CheckpointError, match="a: the header has no valid checksums"):
        read_checksums(read(tmp_path / "a"))


def test_a_checksum_is_not_written_in_another_way(tmp_path: Path) -> None:
    write(f"{tmp_path}/a", {"w": mx.zeros(2)}, {})
    content = (tmp_path / "a").read_bytes()
    start = content.index(b'"crc32.header"') + 16
    (tmp_path / "a").write_bytes(content[:start] + content[start : start + 8].upper() + content[start + 8 :])
    assert (tmp_path / "a").read_bytes() != content
    with pytest.raises(fl.CheckpointError, match="a: the header is damaged"):
        read_checksums(read(tmp_path / "a"))


def test_a_file_without_checksums_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(raw(entry()))
    with pytest.raises(fl.CheckpointError, match="a: the header has no valid checksums"):
        read_checksums(read(tmp_path / "a"))


MANY = {
    "z": mx.ones((2, 3)), "a": mx.arange(4, dtype=mx.uint8), "layers.10": mx.zeros(3, mx.float16), "layers.2": mx.ones(()),
    "none": mx.zeros((0, 2)), "c": mx.ones(2, mx.complex64), "y": mx.full((2, 3), 2.0), "i": mx.arange(3),
}  # fmt: skip


def rewritten_by_mlx(file: Path) -> None:
    arrays, metadata = mx.load(str(file), return_metadata=True)
    mx.eval(arrays)
    mx.save_safetensors(str(file), arrays, metadata)


def rewritten_by_hugging_face(file: Path) -> None:
    with safe_open(file, "mlx") as opened:
        arrays, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    save_file(arrays, file, metadata)


def backwards(file: Path) -> None:
    """Write a file again with its arrays and its header in the opposite order."""
    data = file.read_bytes()
    base = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:base])
    metadata, blobs = header.pop("__metadata__"), []
    for about in reversed(header.values()):
        start, stop = about["data_offsets"]
        about["data_offsets"] = [sum(map(len, blobs)), sum(map(len, blobs)) + stop - start]
        blobs.append(data[base + start : base + stop])
    text = json.dumps(dict(reversed([("__metadata__", dict(reversed(metadata.items()))), *header.items()]))).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


@pytest.mark.parametrize("rewrite", [rewritten_by_mlx, rewritten_by_hugging_face, backwards])
def test_a_tree_that_another_program_has_written_anew_in_another_order_is_read(rewrite: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tree = {"arrays": MANY, "model": fl.nn.Linear(20, 20), "n": 1}
    fl.save(file, {**tree, "again": tree["model"]}, {"epoch": 1})
    before = file.read_bytes()
    rewrite(file)
    assert file.read_bytes() != before
    loaded = fl.load(file, {**tree, "again": tree["model"]})
    assert fl.tree.equal(loaded, {**tree, "again": tree["model"]})
    assert loaded["again"] is loaded["model"] or loaded["again"].weight is loaded["model"].weight
    assert fl.load_metadata(file) == {"epoch": 1}


@pytest.mark.parametrize(
    ("old", "new"), [(b'"F32"', b'"I32"'), (b"[2, 3]", b"[3, 2]"), (b"epoch", b"epocg"), (b'"y":', b'"x":')]
)
def test_damage_of_a_file_in_another_order_is_found(old: bytes, new: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    fl.save(file, MANY, {"epoch": 1})
    backwards(file)
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, 1))
    with pytest.raises(fl.CheckpointError, match="the header"):
        fl.load(file, MANY)


def test_arrays_that_have_changed_their_places_are_found_damaged(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    fl.save(file, {"y": mx.ones(2), "z": mx.zeros(2)})
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"y":{', b'"?":{').replace(b'"z":{', b'"y":{').replace(b'"?":{', b'"z":{'))
    with pytest.raises(fl.CheckpointError, match="array 'y' is damaged"):
        fl.load(file, {"y": mx.ones(2), "z": mx.zeros(2)})


def test_other_metadata_are_told_of_load_weights(tmp_path: Path) -> None:
    file, model = tmp_path / "a.safetensors", fl.nn.Linear(2, 2)
    fl.save(file, model)
    arrays, metadata = mx.load(str(file), return_metadata=True)
    mx.eval(arrays)
    mx.save_safetensors(str(file), arrays, {**metadata, "format": "mlx"})
    with pytest.raises(fl.CheckpointError, match=r"another program has written the file anew.* model.load_weights reads"):
        fl.load(file, model)
    assert fl.tree.equal(fl.nn.Linear(2, 2).load_weights(file), model)
