"""Files under names of other formats, and files of other formats: read by what they are, or told what they are."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from twins import linear

import frostleaf as fl


@pytest.mark.parametrize("ending", ["npz", "safetensors", "gguf"])
@pytest.mark.parametrize("name", ["weights", "weights.bin", "weights.v2"])
def test_weights_are_read_under_any_name(ending: str, name: str, tmp_path: Path) -> None:
    model = linear()
    model.save_weights(tmp_path / f"a.{ending}")
    (tmp_path / f"a.{ending}").rename(tmp_path / name)
    assert fl.tree.equal(linear(1).load_weights(tmp_path / name), model)
    if ending != "safetensors":
        with pytest.raises(fl.CheckpointError, match=r"is no file of fl.save.*model.load_weights"):
            fl.load(tmp_path / name, model)


def npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def torch_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": 1}, protocol=2))


OTHERS = {
    "pickle": lambda file: file.write_bytes(pickle.dumps({"weight": np.ones(2)})),
    "torch's pickle": lambda file: file.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"..."),
    "torch's zip": torch_zip,
    "HDF5": lambda file: file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)),
    "without names": lambda file: file.write_bytes(npy(np.ones((2, 2), np.float32))),
    "MessagePack": lambda file: file.write_bytes(b"\x82\xa6params\x81\xa6kernel\x01\xa4step\x02"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["a", "a.pt", "a.safetensors", "a.npz", "a.gguf"])
@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_programs_are_told_as_what_they_are(kind: str, name: str, tmp_path: Path) -> None:
    OTHERS[kind](tmp_path / name)
    words = {"torch's pickle": "pickle", "torch's zip": "pickle"}.get(kind, kind)
    for read in (linear().load_weights, lambda file: fl.load(file, linear()), fl.load_metadata):
        with pytest.raises(fl.CheckpointError, match=rf"^{re.escape(str(tmp_path / name))}: .*{words}.*a dict of dotted names"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["model", "model.bin", "model.safetensors", "model.npz", "model.gguf"])
def test_a_pointer_of_git_lfs_is_told_of_the_command_that_fetches_the_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for read in (linear().load_weights, lambda file: fl.load(file, linear()), fl.load_metadata):
        with pytest.raises(fl.CheckpointError, match=r"a pointer of Git LFS .* git lfs pull"):
            read(tmp_path / name)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for given in (tmp_path, [tmp_path / "model.safetensors"]):
        with pytest.raises(fl.CheckpointError, match=r"a pointer of Git LFS .* git lfs pull"):
            linear().load_weights(given)


def test_what_the_message_of_arrays_without_names_says_works(tmp_path: Path) -> None:
    weight, file = mx.ones((2, 2)), str(tmp_path / "a.eqx")
    OTHERS["without names"](Path(file))
    with pytest.raises(fl.CheckpointError) as raised:
        linear().load_weights(file)
    given: Any = eval(str(raised.value).rpartition("such as ")[2], {"mx": mx, "file": file})
    loaded = linear().load_weights(given, strict=False)
    assert mx.array_equal(loaded.weight, weight)


@pytest.mark.parametrize(("ending", "other"), [("npz", "gguf"), ("gguf", "npz")])
def test_a_name_of_another_format_of_weights_is_told(ending: str, other: str, tmp_path: Path) -> None:
    linear().save_weights(tmp_path / f"a.{ending}")
    (tmp_path / f"a.{ending}").rename(tmp_path / f"a.{other}")
    with pytest.raises(fl.CheckpointError, match=rf"is a \.{ending} file by its first bytes, .* give it the ending \.{ending}"):
        linear().load_weights(tmp_path / f"a.{other}")


@pytest.mark.parametrize("content", [b"", b"text", bytes(20)])
def test_what_begins_as_nothing_known_is_told_of_the_endings(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match="Unsupported file extension for"):
        linear().load_weights(tmp_path / "a.txt")


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0xA181, 0xBF8F, 0x4147])
def test_a_damaged_header_of_any_length_is_not_taken_for_another_format(length: int, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b" " * length)
    with pytest.raises(fl.CheckpointError, match="the header can't be read"):
        linear().load_weights(file)
