"""Checkpoints of several files, of which one is damaged, gone, another's, or a link: an error that names the file and why."""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import left_over
from damage import at_most, mutated

import frostleaf as fl
from frostleaf.io import parts, safetensors
from frostleaf.io.shards import read_summary


def tree_of(step: int) -> dict[str, Any]:
    """Return a tree with arrays that stay, arrays that change, and arrays that are written again each time."""
    return {
        "still": [mx.array(np.arange(5000, dtype=np.int32) + number) for number in range(2)],
        "changes": mx.array(np.arange(5000, dtype=np.int32) + 10 * step),
        "step": step,
    }


LIKE = tree_of(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints = fl.Checkpointer(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, tree_of(step))
    checkpoints.wait()
    return tmp_path


def head_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def shards_of(folder: Path, step: int) -> list[Path]:
    """Return the paths of the file that is shared and of the one that is not."""
    with safetensors.open_regular(head_of(folder, step)) as file:
        return [folder / name for name in parts.read_parts(safetensors.read_header(file))]


def replace(path: Path, content: bytes) -> None:
    """Give a name to other bytes; what has the same bytes under another name keeps them."""
    path.unlink()
    path.write_bytes(content)


def rewritten(folder: Path, changed: Callable[[dict[str, Any]], Any]) -> None:
    """Change which arrays the head of step 3 says are where, with a checksum of what it says then."""
    head = head_of(folder, 3)
    with safetensors.open_regular(head) as file:
        metadata = safetensors.read_header(file).metadata
    given = json.loads(metadata[parts.PARTS])
    new = changed(given)
    metadata[parts.PARTS] = json.dumps(given if new is None else new)
    safetensors.write(str(head), {}, {key: text for key, text in metadata.items() if not key.startswith("crc32")})


def renamed(given: dict[str, Any], name: str) -> dict[str, Any]:
    first, *rest = given
    return {name: given[first], **{each: given[each] for each in rest}}


def exchange_headers(given: dict[str, Any]) -> None:
    one, other = given.values()
    one[0], other[0] = other[0], one[0]


def exchange_names(given: dict[str, Any]) -> None:
    one, other = given.values()
    one[1], other[1] = ["changes"], ["still.0", "still.1"]


def write_description(folder: Path, changed: Callable[[dict[str, str], str], Any]) -> None:
    """Put what describes the tree of step 3 into another file, as that of a large tree is, and change the head's metadata."""
    head = head_of(folder, 3)
    with safetensors.open_regular(head) as file:
        metadata = safetensors.read_header(file).metadata
    shard = shards_of(folder, 3)[0]
    content, header = safetensors.without_arrays({"frostleaf.structure": metadata.pop("frostleaf.structure")}, str(head))
    shard.with_name("tree.safetensors").write_bytes(content)
    name = f"{shard.parent.name}/tree.safetensors"
    described = json.dumps({**json.loads(metadata[parts.PARTS]), name: [header.metadata["crc32.header"], None]})
    metadata |= {parts.PARTS: described, parts.DESCRIBED_IN: name}
    changed(metadata, name)
    safetensors.write(str(head), {}, {key: text for key, text in metadata.items() if not key.startswith("crc32")})
    assert changed is not nothing or fl.tree.equal(fl.load(head, LIKE), tree_of(3))


def nothing(*_: Any) -> None:
    pass


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (
        lambda folder: shards_of(folder, 3)[0].unlink(),
        r"HEAD.*names the file step-0+3-\w+/01.safetensors, which is not",
    ),
    "another's": (
        lambda folder: shutil.copy(shards_of(folder, 2)[1], shards_of(folder, 3)[1]),
        "SHARD.*is another file than the one of this name that .*HEAD.* was saved with",
    ),
    "another's with a link": (
        lambda folder: (shards_of(folder, 3)[1].unlink(), os.link(shards_of(folder, 2)[1], shards_of(folder, 3)[1])),
        "SHARD.*is another file than",
    ),
    "a link to another's": (
        lambda folder: (shards_of(folder, 3)[1].unlink(), shards_of(folder, 3)[1].symlink_to(shards_of(folder, 2)[1])),
        "SHARD.*is another file than",
    ),
    "a link to nothing": (
        lambda folder: (shards_of(folder, 3)[1].unlink(), shards_of(folder, 3)[1].symlink_to("nothing")),
        "HEAD.*names the file",
    ),
    "a link to itself": (
        lambda folder: (shards_of(folder, 3)[1].unlink(), shards_of(folder, 3)[1].symlink_to(shards_of(folder, 3)[1])),
        "Too many levels of symbolic links",
    ),
    "a directory": (
        lambda folder: (shards_of(folder, 3)[1].unlink(), shards_of(folder, 3)[1].mkdir()),
        "SHARD.*is not a file",
    ),
    "a pipe": (lambda folder: (shards_of(folder, 3)[1].unlink(), os.mkfifo(shards_of(folder, 3)[1])), "SHARD.*is not a file"),
    "empty": (lambda folder: replace(shards_of(folder, 3)[1], b""), "SHARD.*has 0 bytes, too few"),
    "a bit": (
        lambda folder: replace(
            shards_of(folder, 3)[1],
            (content := shards_of(folder, 3)[1].read_bytes())[:-1] + bytes([content[-1] ^ 1]),
        ),
        "SHARD.*array 'changes' is damaged",
    ),
    "no checksums": (
        lambda folder: mx.save_safetensors(str(shards_of(folder, 3)[1]), {"changes": tree_of(3)["changes"]}),
        "SHARD.*no valid checksums",
    ),
    "checksums exchanged": (lambda folder: rewritten(folder, exchange_headers), "is another file than the one"),
    "names exchanged": (lambda folder: rewritten(folder, exchange_names), "HEAD.*which isn't in there"),
    "a path": (
        lambda folder: rewritten(folder, lambda given: renamed(given, "a/b.safetensors")),
        "HEAD.*names the file 'a/b.safetensors' for some arrays, which isn't a .safetensors file beside it",
    ),
    "a path above": (
        lambda folder: rewritten(folder, lambda given: renamed(given, "../b.safetensors")),
        r"HEAD.*names the file '\.\./b.safetensors' for some",
    ),
    "a path of Windows": (lambda folder: rewritten(folder, lambda given: renamed(given, "a\\b.safetensors")), "HEAD.*for some"),
    "itself": (lambda folder: rewritten(folder, lambda given: renamed(given, head_of(folder, 3).name)), "HEAD.*for some"),
    "no parts": (lambda folder: rewritten(folder, lambda given: {}), "HEAD.*the header describes other arrays"),
    "a list": (lambda folder: rewritten(folder, lambda given: [given]), "HEAD.*isn't a mapping of files"),
    "a part": (lambda folder: rewritten(folder, lambda given: dict.fromkeys(given)), "HEAD.*doesn't say which arrays"),
    "a number": (
        lambda folder: rewritten(folder, lambda given: {name: [part[0], [1]] for name, part in given.items()}),
        "HEAD.*doesn't say which arrays",
    ),
    "an array twice": (
        lambda folder: rewritten(folder, lambda given: {name: [part[0], ["changes"]] for name, part in given.items()}),
        "HEAD.*has an array in two files",
    ),
    "no description": (
        lambda folder: (write_description(folder, nothing), shards_of(folder, 3)[2].unlink()),
        "HEAD.*names the file step-.*/tree.safetensors, which is not there",
    ),
    "another description": (
        lambda folder: (
            write_description(folder, nothing),
            shards_of(folder, 3)[2].write_bytes(safetensors.without_arrays({"frostleaf.structure": "[]"}, "")[0]),
        ),
        "tree.safetensors: is another file than the one of this name",
    ),
    "a description that is not named": (
        lambda folder: write_description(folder, lambda metadata, name: metadata.pop(parts.DESCRIBED_IN)),
        "HEAD.*frostleaf.structure isn't what it should be|HEAD.*the header can't be read",
    ),
    "a description elsewhere": (
        lambda folder: write_description(folder, lambda metadata, name: metadata.update({parts.DESCRIBED_IN: "../x"})),
        "HEAD.*the header's frostleaf.described is '../x', which isn't one of its files",
    ),
    "a description without one": (
        lambda folder: write_description(
            folder, lambda metadata, name: metadata.update({parts.DESCRIBED_IN: next(iter(json.loads(metadata[parts.PARTS])))})
        ),
        "HEAD.*frostleaf.structure isn't what it should be|HEAD.*the header can't be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_is_said_and_the_checkpoint_before_is_restored(name: str, folder: Path) -> None:
    damage, reason = DAMAGE[name]
    shard = f"{shards_of(folder, 3)[1].parent.name}/{shards_of(folder, 3)[1].name}"
    damage(folder)
    reason = reason.replace("HEAD", "step-00000003.safetensors").replace("SHARD", shard)
    with pytest.raises((fl.CheckpointError, OSError), match=reason):
        fl.load(head_of(folder, 3), LIKE)
    with pytest.warns(RuntimeWarning, match="step 3 is passed over"):
        step, tree = fl.Checkpointer(folder).restore(LIKE)
    assert fl.tree.equal((step, tree), (2, tree_of(2)))
    again = fl.Checkpointer(folder)  # which finds nothing to share there, and goes on
    assert again.save(4, tree_of(4))
    assert 4 in again.steps()
    assert fl.tree.equal(again.restore(LIKE, 4), (4, tree_of(4)))


def test_the_names_that_a_damaged_head_gives_its_files_are_not_removed(folder: Path) -> None:
    other = folder.parent / "other.safetensors"
    other.write_text("text")
    head = head_of(folder, 1)
    with safetensors.open_regular(head) as file:
        metadata = safetensors.read_header(file).metadata
    names = ["../other.safetensors", str(other), shards_of(folder, 3)[1].parent.name]
    summary = {**(read_summary(str(head)) or {}), "files": names}
    text = json.dumps(summary)
    metadata = {"frostleaf.summary": f"{zlib.crc32(text.encode()):08x} {text}", **metadata}
    safetensors.write(str(head), {}, {key: text for key, text in metadata.items() if not key.startswith("crc32")})
    checkpoints = fl.Checkpointer(folder, keep=1)
    checkpoints.save(4, tree_of(4))
    checkpoints.save(5, tree_of(5))
    assert checkpoints.steps() == [5]
    assert other.exists()


@pytest.mark.parametrize(
    ("count", "seed"), [pytest.param(200, 0, id="short"), pytest.param(10_000, 1, marks=pytest.mark.long, id="long")]
)
def test_a_damaged_file_is_an_error_or_has_exactly_what_was_saved(count: int, seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    write_description(folder, nothing)
    files = [head_of(folder, 3), *shards_of(folder, 3)]
    assert len(files) == 4
    contents = {path: path.read_bytes() for path in files}
    others = [path.read_bytes() for path in [head_of(folder, 2), *shards_of(folder, 2)]]
    refused = 0
    for number in range(count):
        path = draw.choice(files)
        kind, content = draw.choice([lambda: mutated(contents[path], draw), lambda: ("another", draw.choice(others))])()  # noqa: B023
        replace(path, content)
        try:
            loaded = fl.load(head_of(folder, 3), LIKE)
        except (fl.CheckpointError, FileNotFoundError) as error:
            assert str(folder) in str(error), (number, kind)  # noqa: PT017
            refused += 1
        else:
            # Another head, whole as it is, is another checkpoint.
            step = 2 if path == files[0] and content == others[0] else 3
            assert fl.tree.equal(loaded, tree_of(step)), (number, kind)
        replace(path, contents[path])
    assert refused > 0.5 * count


@pytest.mark.parametrize("size", [0, 100, 1000, 20_000])
def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else(size: int, folder: Path) -> None:
    checkpoints = fl.Checkpointer(folder)
    _, tree = checkpoints.restore(LIKE)
    before = sorted(os.listdir(folder))
    with at_most(size):
        assert checkpoints.save(4, {**tree_of(4), "still": tree["still"]})
        with pytest.raises(fl.CheckpointError, match=r"step 4 could not be saved in .*: .*File too large"):
            checkpoints.wait()
    assert sorted(os.listdir(folder)) == before
    for step in (1, 2, 3):
        assert fl.tree.equal(checkpoints.restore(LIKE, step), (step, tree_of(step)))
    assert checkpoints.save(4, tree_of(4))
    assert checkpoints.steps() == [2, 3, 4]
    assert not left_over(folder)
    assert fl.tree.equal(checkpoints.restore(LIKE), (4, tree_of(4)))


@pytest.mark.parametrize("steps", [(3,), (4, 5, 6)])
def test_nothing_is_left_of_a_checkpoint_that_could_not_be_read_once_it_is_replaced_or_removed(
    steps: tuple[int, ...], folder: Path
) -> None:
    head = head_of(folder, 3)
    content = bytearray(head.read_bytes())
    content[20] ^= 1
    replace(head, bytes(content))
    checkpoints = fl.Checkpointer(folder)
    with pytest.warns(RuntimeWarning, match="step 3 is passed over"):
        checkpoints.restore(LIKE)
    for step in steps:
        checkpoints.save(step, tree_of(step)), checkpoints.wait()
    assert checkpoints.steps() == ([1, 2, 3] if steps == (3,) else [4, 5, 6])
    assert not left_over(folder)


def test_what_was_found_to_be_damaged_is_written_again(folder: Path) -> None:
    """A disk that fails changes bytes, and no time."""
    checkpoints, tree = fl.Checkpointer(folder, keep=None), tree_of(3)
    for step in (4, 5):
        checkpoints.save(step, tree), checkpoints.wait()
    shard = shards_of(folder, 5)[0]
    before = shard.stat()
    with shard.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes([shard.read_bytes()[-100] ^ 1]))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(fl.CheckpointError, match="is damaged"):
        checkpoints.restore(LIKE, 5)
    checkpoints.save(6, tree)
    assert fl.tree.equal(checkpoints.restore(LIKE, 6)[1], tree)
