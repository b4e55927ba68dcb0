"""Which checkpoint of a directory was saved last, whatever tools have done to its files, and how few heads say so."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import law

import frostleaf as fl
from frostleaf.io import directory as directories
from frostleaf.io.directory import Directory

DAY = 86_400 * 10**9  # nanoseconds


def saved_at(folder: Path, step: int, nanoseconds: int) -> None:
    """Write the head of a checkpoint that says when it was saved."""
    fl.save(folder / f"step-{step:08d}.safetensors", mx.array(step), {"saved": nanoseconds, "metrics": {}, "files": []})


def touched(head: Path, by: int) -> None:
    os.utime(head, ns=(time.time_ns() + by,) * 2)


def copied(head: Path, by: int) -> None:
    shutil.copy(head, head.with_name("copy"))
    os.replace(head.with_name("copy"), head)


def linked(head: Path, by: int) -> None:
    head.with_name("link").unlink(missing_ok=True)
    os.link(head, head.with_name("link"))


def rewritten(head: Path, by: int) -> None:
    head.write_bytes(head.read_bytes())


def cut(head: Path, by: int) -> None:
    head.write_bytes(head.read_bytes()[:-1])


DONE = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from([touched, copied, linked, rewritten, cut]), st.integers(-DAY, 0)), max_size=6
)


@law
@given(st.permutations(range(8)), st.sampled_from([-DAY, 0, DAY]), DONE)
def test_checkpoints_come_from_the_one_that_was_saved_last(steps: list[int], clock: int, done: list) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            saved_at(Path(folder), step, time.time_ns() + clock)
        for step, what, by in done:
            what(Path(folder) / f"step-{step:08d}.safetensors", by)
        there = Directory(folder)
        expected = sorted([(entry.time, step) for step, entry in there.entries().items()], reverse=True)
        assert [*there.from_the_latest()] == expected
        assert there.latest() == expected[0][1]


def test_there_is_no_latest_of_an_empty_directory(tmp_path: Path) -> None:
    assert Directory(str(tmp_path)).latest() is None
    assert Directory(str(tmp_path / "none")).latest() is None


@pytest.mark.parametrize("going_back", [False, True])
def test_few_heads_are_read_to_learn_which_was_saved_last(
    going_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [*range(20)]
    for step in reversed(steps) if going_back else steps:
        saved_at(tmp_path, step, time.time_ns())
        time.sleep(0.01)  # clocks of files may be as coarse
    heads: list[str] = []
    read = directories.read_summary

    def counted(head: str) -> object:
        heads.append(head)
        return read(head)

    monkeypatch.setattr(directories, "read_summary", counted)
    assert Directory(str(tmp_path)).latest() == (0 if going_back else 19)
    assert len(heads) <= 2


@pytest.mark.parametrize("by", [10**6, DAY])
@pytest.mark.parametrize("first", range(1, 6))
def test_the_last_step_is_found_after_the_clock_was_set_back(
    first: int, by: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {step: DAY + step - by * (step >= first) for step in range(6)}
    saved = 0
    for step in changed:
        saved = max(saved + 1, changed[step])  # a run says that it saves later than before
        saved_at(tmp_path, step, saved)
    there = Directory(str(tmp_path))
    heads, real = {there.head(step): changed[step] for step in changed}, os.stat

    def stat(path: str) -> Any:
        found = real(path)
        said = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**{**said, "st_ctime_ns": heads[path]}) if path in heads else found

    with monkeypatch.context() as context:
        context.setattr(os, "stat", stat)
        found = [step for _, step in there.from_the_latest()]
    assert found == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "name", ["step-1.safetensors", "step-000000001.safetensors", "step-0000000१.safetensors", "step-00000001"]
)
def test_files_of_other_names_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    saved_at(tmp_path, 2, 0)
    shutil.copy(tmp_path / "step-00000002.safetensors", tmp_path / name)
    assert Directory(str(tmp_path)).steps() == [2]
