"""Checkpoints of a small tree, for the tests of Checkpointer."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx

import frostleaf as fl
from frostleaf.io import names, parts, safetensors, shards
from frostleaf.io.sharded import INDEX

LIKE = {"w": mx.zeros(3)}


class Old(fl.Module):
    encoder: fl.nn.Linear
    head: fl.nn.Linear


class New(fl.Module):
    """What the other has, with another name for a layer."""

    backbone: fl.nn.Linear
    head: fl.nn.Linear


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


def files_in(folder: Path) -> dict[str, os.stat_result]:
    """Return the status of each file of a directory, by its path in there; nothing before it is created."""
    return {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if not path.is_dir()}


def nbytes(folder: Path) -> int:
    """Return the bytes of a directory's files, each counted once whatever its names; 0 before it is created."""
    return sum({status.st_ino: status.st_size for status in files_in(folder).values()}.values())


def left_over(folder: Path) -> set[str]:
    """Return the names of the files that no checkpoint of a directory needs."""
    heads = [name for name in os.listdir(folder) if names.HEAD.fullmatch(name)]
    beside = {name for head in heads for name in (shards.read_summary(str(folder / head)) or {}).get("files", ())}
    needed = {*heads, ".frostleaf-lock"}
    for name in beside:
        weight_map = json.loads((folder / name / INDEX).read_text())["weight_map"]
        needed |= {f"{name}/{each}" for each in (INDEX, *weight_map.values())}
    for head in heads:
        with safetensors.open_regular(folder / head) as file:
            needed.add(safetensors.read_header(file).metadata.get(parts.DESCRIBED_IN, head))
    assert needed - {".frostleaf-lock"} <= {*files_in(folder)}
    directories = {path.name for path in folder.iterdir() if path.is_dir()}
    return ({*files_in(folder)} - needed) | (directories - beside)


def as_before(folder: Path) -> None:
    """Let the checkpoints of a directory be as earlier versions wrote them: with files beside the heads, which name arrays."""
    for directory in [path for path in folder.iterdir() if path.is_dir()]:
        weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
        parts_of = {each: f"{directory.name}-{each}" for each in sorted({*weight_map.values()})}
        for each, name in parts_of.items():
            (directory / each).rename(folder / name)
        (directory / INDEX).unlink()
        index = f"{directory.name}.safetensors.index.json"
        (folder / index).write_text(json.dumps({"weight_map": {name: parts_of[each] for name, each in weight_map.items()}}))
        directory.rmdir()
        head = folder / f"{directory.name[:-9]}.safetensors"
        with safetensors.open_regular(head) as file:
            texts = safetensors.read_header(file).metadata
        found = {}
        for name in parts_of.values():
            with safetensors.open_regular(folder / name) as file:
                checksum = safetensors.read_header(file).metadata["crc32.header"]
            found[name] = [checksum, [each for each, its in weight_map.items() if parts_of[its] == name]]
        summary = json.dumps({**(shards.read_summary(str(head)) or {}), "files": [*parts_of.values(), index]})
        texts["frostleaf.summary"] = f"{zlib.crc32(summary.encode()):08x} {summary}"
        texts |= {"frostleaf": "2", parts.PARTS: json.dumps(found)}
        safetensors.write(str(head), {}, {key: text for key, text in texts.items() if not key.startswith("crc32")})
