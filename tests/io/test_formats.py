"""One file of weights in each format: what is refused, and why."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from twins import linear

import frostleaf as fl

ENDINGS = ["npz", "safetensors", "gguf"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("keep", [0, 3, 8, 40, 0.5, -1])
def test_a_file_that_was_cut_off_is_an_error_that_names_it(ending: str, keep: float, tmp_path: Path) -> None:
    file = tmp_path / f"weights.{ending}"
    linear().save_weights(file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(fl.CheckpointError, match=rf"^{file}: "):
        linear().load_weights(file)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("what", ["a directory", "a pipe", "another format"])
def test_what_is_no_such_file_is_an_error_that_names_it(ending: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights.{ending}"
    if what == "a directory":
        file.mkdir()
        with pytest.raises(FileNotFoundError, match=f"weights.{ending} has neither"):
            linear().load_weights(file)
        return
    if what == "a pipe":
        os.mkfifo(file)
    else:
        other = tmp_path / ("other.gguf" if ending == "npz" else "other.npz")  # safetensors are read under any name
        linear().save_weights(other)
        other.rename(file)
    with pytest.raises(fl.CheckpointError, match=rf"^{file}: "):
        linear().load_weights(file)


def safetensors(file: Path, header: Any, data: bytes = b"\0" * 24) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(shape: Any, start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        {"weight": entry([2, 2], 0, 16), "bias": entry([2], 16, 32)},
        {"weight": entry([2, 2], 0, 16), "bias": entry([2], 8, 16)},
        {"weight": entry([2, 2], 8, 24), "bias": entry([2], 16, 24)},
        {"weight": entry([2, 3], 0, 16), "bias": entry([2], 16, 24)},
        {"weight": entry([2**31, 2**31, 4], 0, 0), "bias": entry([6], 0, 24)},
        {"weight": entry([-2, -2], 0, 16), "bias": entry([2], 16, 24)},
        b"[" * 100_000,
        b'{"a": 1, "a": 2}',
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_header_that_lies_is_an_error_that_names_the_file(header: Any, tmp_path: Path) -> None:
    safetensors(tmp_path / "weights.safetensors", header)
    with pytest.raises(fl.CheckpointError, match=r"weights.safetensors: "):
        linear().load_weights(tmp_path / "weights.safetensors")


def test_a_dtype_that_mlx_does_not_read_is_an_error(tmp_path: Path) -> None:
    safetensors(tmp_path / "weights.safetensors", {"weight": entry([3], 0, 24, "F64")})
    with pytest.raises(fl.CheckpointError, match=r"weights.safetensors: can't be read by MLX: .* unsupported dtype F64"):
        linear().load_weights(tmp_path / "weights.safetensors")


def test_a_file_says_who_wrote_it_as_the_readers_of_hugging_face_ask(tmp_path: Path) -> None:
    linear().save_weights(tmp_path / "weights.safetensors")
    assert mx.load(str(tmp_path / "weights.safetensors"), return_metadata=True)[1] == {"format": "mlx"}


def test_gguf_holds_eight_axes_and_no_more(tmp_path: Path) -> None:
    class Cube(fl.Module):
        weight: mx.array

    file = tmp_path / "weights.gguf"
    Cube(mx.ones([1] * 8)).save_weights(file)
    assert Cube(mx.zeros([1] * 8)).load_weights(file).weight.shape == (1,) * 8
    with pytest.raises(ValueError, match=r"a .gguf file holds arrays of at most 8 axes, and 'weight' has 9"):
        Cube(mx.ones([1] * 9)).save_weights(file)
