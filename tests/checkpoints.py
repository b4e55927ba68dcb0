"""Checkpoints of a small tree, for the tests of Checkpointer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx

import frostleaf as fl

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
