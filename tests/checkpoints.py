"""Checkpoints of a small tree, for the tests of Checkpointer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx

import frostleaf as fl
from frostleaf.io import names, shards

LIKE = {"w": mx.zeros(3)}


def tree(step: int) -> dict[str, mx.array]:
    return {"w": mx.full(3, float(step))}


def saved(folder: Path, *steps: int, metrics: Any = None, **options: Any) -> fl.Checkpointer:
    checkpoints = fl.Checkpointer(folder, **options)
    for step in steps:
        assert checkpoints.save(step, tree(step), metrics(step) if metrics else None)
    checkpoints.wait()
    return checkpoints


def files(folder: Path) -> list[int]:
    return sorted(int(name[5:13]) for name in os.listdir(folder) if name.endswith(".safetensors"))


def damage(folder: Path, step: int, place: int = -1) -> None:
    file = folder / f"step-{step:08d}.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def restored(folder: Path, step: int | None = None) -> int:
    found, value = fl.Checkpointer(folder).restore(LIKE, step)
    assert fl.tree.equal(value, tree(found))
    return found


def nbytes(folder: Path) -> int:
    """Return the bytes of a directory's files, each counted once whatever its names; 0 before it is created."""
    paths = folder.iterdir() if folder.exists() else ()
    return sum({status.st_ino: status.st_size for status in map(os.stat, paths)}.values())


def left_over(folder: Path) -> set[str]:
    """Return the names of the files that no checkpoint of a directory needs."""
    heads = [name for name in os.listdir(folder) if names.HEAD.fullmatch(name)]
    needed = {name for head in heads for name in (shards.read_summary(str(folder / head)) or {}).get("files", ())}
    assert needed <= {*os.listdir(folder)}
    return {*os.listdir(folder)} - needed - {*heads} - {".frostleaf-lock"}
