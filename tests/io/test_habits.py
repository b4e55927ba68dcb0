"""Arguments that other libraries have for files of trees: the error says what to write, and that works."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("map_location", ": leave it out: the CPU and the GPU have the same memory"),
        ("weights_only", ": leave it out: nothing of a file is run"),
        ("filter_spec", ": give where"),
        ("target", ": give like"),
        ("were", "; the nearest is 'where'"),
        ("something", ""),
    ],
)
def test_arguments_of_load_of_other_libraries_are_told_of_ours(name: str, words: str, tmp_path: Path) -> None:
    fl.save(tmp_path / "a", mx.ones(2))
    load: Any = fl.load
    for like in ([mx.ones(2)], []):
        with pytest.raises(TypeError, match=rf"^fl\.load takes no argument {name!r}{re.escape(words)}"):
            load(tmp_path / "a", *like, **{name: None})


@pytest.mark.parametrize(
    ("name", "words"), [("overwrite", "leave it out: a file that is there"), ("filter_spec", "save what you want")]
)
def test_arguments_of_save_of_other_libraries_are_told_of_ours(name: str, words: str, tmp_path: Path) -> None:
    save: Any = fl.save
    with pytest.raises(TypeError, match=rf"^fl\.save takes no argument {name!r}: {words}"):
        save(tmp_path / "a", mx.ones(2), **{name: True})
    assert not [*tmp_path.iterdir()]


def test_trees_that_are_given_by_name_are_told_of_one_of_them(tmp_path: Path) -> None:
    save: Any = fl.save
    model = fl.nn.Linear(2, 2)
    for others in ((), (model,)):
        with pytest.raises(TypeError, match="give one tree, as in") as caught:
            save(tmp_path / "a", *others, model=model, state=mx.ones(2))
    code = re.search(r"fl\.save\(path, (.*)\)$", str(caught.value))
    assert code is not None
    assert code[1] == "{'model': ..., 'state': ...}"
    with pytest.raises(TypeError) as caught:
        save(tmp_path / "a", **{f"layers.{index}" * 20: mx.ones(2) for index in range(999)})
    assert len(str(caught.value)) < 1000


def test_signatures_are_as_before_and_say_what_is_missing(tmp_path: Path) -> None:
    assert [*inspect.signature(fl.load).parameters] == ["path", "like", "where", "strict", "rename"]
    assert [*inspect.signature(fl.Checkpointer.save).parameters] == ["self", "step", "tree", "metrics"]
    load: Any = fl.load
    with pytest.raises(TypeError, match=r"fl\.load\(path, like\) takes as like a tree of the structure that was saved"):
        load(tmp_path / "a")
