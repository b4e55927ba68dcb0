"""Heads that say what no checkpoint says, with checksums that are right: an error that names the file, and nothing else."""

from __future__ import annotations

import json
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from damage import JUNK, change

import frostleaf as fl
from frostleaf.io import safetensors
from frostleaf.io.summary import read_summary

SUMMARY = "frostleaf.summary"
STILL = mx.array(np.arange(5000, dtype=np.int32))


def tree_of(step: int) -> dict[str, Any]:
    same = mx.full(300, step)
    return {"still": STILL, "w": mx.array([step]), "same": [same, same], "equal": mx.full(300, step), "step": step, "s": "ab"}


LIKE = tree_of(0)


def head_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with fl.Checkpointer(tmp_path, best="loss") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, tree_of(step), {"loss": 1 / step})
    return tmp_path


def forge(head: Path, changed: Callable[[dict[str, str]], Any]) -> None:
    """Change what a head says of the tree, with a checksum of what it says then."""
    content = head.read_bytes()
    with safetensors.open_regular(head) as file:
        header = safetensors.read_header(file)
    texts = header.metadata
    changed(texts)
    texts["crc32.header"] = safetensors._header_checksum(header.entries, texts)
    start = 8 + int.from_bytes(content[:8], "little")
    described = {key: value for key, value in json.loads(content[8:start]).items() if key != "__metadata__"}
    # What is read first of all stays the first.
    first = {SUMMARY: texts[SUMMARY]} if SUMMARY in texts else {}
    text = json.dumps({"__metadata__": {**first, **texts}, **described}).encode()
    head.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])


def forge_summary(head: Path, text: str) -> None:
    forge(head, lambda texts: texts.update({SUMMARY: f"{zlib.crc32(text.encode()):08x} {text}"}))


CALLS: dict[str, Callable[[fl.Checkpointer], Any]] = {
    "restore": lambda each: each.restore(LIKE, 2),
    "a part": lambda each: each.restore(LIKE, 2, where="w"),
    "what there is": lambda each: each.restore(LIKE, 2, strict=False),
    "info": lambda each: repr(each.info()),
    "latest": lambda each: each.latest_step(),
    "best": lambda each: each.best_step(),
    "metrics": lambda each: each.metrics(2),
    "diff": lambda each: repr(each.diff(1, 2)),
}


def check(folder: Path, what: Any) -> int:
    """Call everything, and return how many calls said that something is wrong."""
    head, refused = head_of(folder, 2), 0
    for name, call in CALLS.items():
        try:
            call(fl.Checkpointer(folder, best="loss"))
        except (fl.CheckpointError, FileNotFoundError) as error:
            assert str(folder) in str(error), (what, name)  # noqa: PT017
            refused += 1
    content = head.read_bytes()
    with fl.Checkpointer(folder, keep=None) as checkpoints:
        checkpoints.restore(LIKE, 1)
        checkpoints.save(3, tree_of(3))
    assert fl.Checkpointer(folder).restore(LIKE, 3)[0] == 3
    assert head.read_bytes() == content
    return refused


SUMMARIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda given: [3],
    "a string": lambda given: "x",
    "nothing": lambda given: None,
    "empty": lambda given: {},
    "no time": lambda given: {key: value for key, value in given.items() if key != "saved"},
    "a late time": lambda given: {**given, "saved": 10**400},
    "a long time": lambda given: {**given, "saved": 2**63},
    "an early time": lambda given: {**given, "saved": -1},
    "half a time": lambda given: {**given, "saved": 0.5},
    "true": lambda given: {**given, "saved": True},
    "metrics": lambda given: {**given, "metrics": [1]},
    "words": lambda given: {**given, "metrics": {"loss": "low"}},
    "files": lambda given: {**given, "files": {"a": 1}},
    "file": lambda given: {**given, "files": [1]},
    "best": lambda given: {**given, "best": "loss"},
    "best of lists": lambda given: {**given, "best": [["loss"], "min"]},
    "best of no mode": lambda given: {**given, "best": ["loss", "least"]},
    "best of none": lambda given: {**given, "best": ["loss", "min", 0]},
    "step": lambda given: {**given, "step": "2"},
}


@pytest.mark.filterwarnings("ignore:the checkpoint of step")
@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_of_another_kind_is_an_error_and_passed_over(name: str, folder: Path) -> None:
    forge_summary(head_of(folder, 2), json.dumps(SUMMARIES[name](read_summary(str(head_of(folder, 2))) or {})))
    reason = r"step-00000002.safetensors: the header's frostleaf.summary isn't what it should be"
    with pytest.raises(fl.CheckpointError, match=reason):
        fl.Checkpointer(folder).restore(LIKE, 2)
    with pytest.warns(RuntimeWarning, match=f"step 2 is passed over: .*{reason}"):
        assert fl.Checkpointer(folder, best="loss").restore(LIKE)[0] in (1, 2)
    assert check(folder, name) >= 1
    assert fl.Checkpointer(folder, best="loss").best_step() == 1


@pytest.mark.filterwarnings("ignore:the checkpoint of step")
@pytest.mark.parametrize("text", ["", "[" * 5000, '{"saved": 1, "saved": 2}', "9" * 5000, '{"a": 1e999}', "\ud800"], ids=repr)
def test_a_summary_that_is_no_json_is_an_error_or_nothing(text: str, folder: Path) -> None:
    if text == "\ud800":
        text = '"\\ud800"'
    forge_summary(head_of(folder, 2), text)
    check(folder, text)


def twice(texts: dict[str, str], place: Callable[[list[Any]], Any]) -> None:
    facts = json.loads(texts["frostleaf.structure"])
    facts.append(place(facts))
    texts["frostleaf.structure"] = json.dumps(facts)


OTHERS = "the header describes other arrays or values than the file has"
TWINS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "an array": (lambda facts: next(fact for fact in facts if fact[0] == "w"), OTHERS),
    "an array of another shape": (lambda facts: ["w", "", "array i32[7]"], OTHERS),
    "a number": (lambda facts: ["step", "", "a Python int"], OTHERS),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_name_that_is_there_twice_is_an_error_that_names_the_file(name: str, folder: Path) -> None:
    place, reason = TWINS[name]
    forge(head_of(folder, 2), lambda texts: twice(texts, place))
    for call in (CALLS["restore"], CALLS["a part"], CALLS["what there is"], CALLS["diff"]):
        with pytest.raises(fl.CheckpointError, match=f"step-00000002.safetensors: {reason}"):
            call(fl.Checkpointer(folder))
    with pytest.warns(RuntimeWarning, match="step 2 is passed over"):
        assert fl.Checkpointer(folder).restore(LIKE)[0] == 1


def test_two_values_of_one_name_are_an_error_that_names_the_file(folder: Path) -> None:
    def change_both(texts: dict[str, str]) -> None:
        twice(texts, lambda facts: ["step", "", "a Python int"])
        texts["frostleaf.values"] = json.dumps([*json.loads(texts["frostleaf.values"]), ["int", "0x1"]])

    forge(head_of(folder, 2), change_both)
    with pytest.raises(fl.CheckpointError, match=r"step-00000002.safetensors: two values have the name 'step'"):
        fl.Checkpointer(folder).restore(LIKE, 2, strict=False)
    with pytest.warns(RuntimeWarning, match="step 2 is passed over"):
        assert fl.Checkpointer(folder).restore(LIKE, strict=False)[0] == 1


@pytest.mark.filterwarnings("ignore:the checkpoint of step", "ignore::frostleaf.UncomparedValueWarning")
@pytest.mark.parametrize(
    ("count", "seed"), [pytest.param(40, 0, id="short"), pytest.param(5000, 1, marks=pytest.mark.long, id="long")]
)
def test_whatever_a_head_says_is_an_error_or_what_was_saved(count: int, seed: int, folder: Path) -> None:
    draw, head = random.Random(seed), head_of(folder, 2)
    whole = head.read_bytes()
    refused = 0
    for number in range(count):
        said: list[str] = []

        def changed(texts: dict[str, str], said: list[str] = said) -> None:
            key = draw.choice([key for key in texts if not key.startswith("crc32")])
            text = texts[key].partition(" ")[2] if key == SUMMARY else texts[key]
            try:
                given = json.loads(text)
            except ValueError:
                given = text
            container = isinstance(given, dict | list) and given and draw.random() < 0.8
            new = json.dumps(change(given, draw.choice(["field", "key"]), draw) if container else draw.choice(JUNK))
            texts[key] = f"{zlib.crc32(new.encode()):08x} {new}" if key == SUMMARY else new
            said.append(f"{key}: {new[:200]}")

        forge(head, changed)
        refused += check(folder, (number, said))
        os.unlink(head_of(folder, 3))
        head.write_bytes(whole)
    assert refused > count
