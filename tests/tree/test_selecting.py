"""Which paths a path or a glob matches."""

from __future__ import annotations

import re

import mlx.core as mx
import pytest

from frostleaf.tree.selecting import matcher

ARRAY = mx.array(1)
PATHS = ["a", "b", "ab", "a.b", "a.b.c", "a.x.c", "a.x.y.c", "c", "layers.0.w", "layers.10.w", "a*", "a?"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("a", ["a"]),
        ("a.b", ["a.b"]),
        ("*", ["a", "b", "ab", "c", "a*", "a?"]),
        ("?", ["a", "b", "c"]),
        ("a*", ["a", "ab", "a*", "a?"]),
        ("a?", ["ab", "a*", "a?"]),
        ("*.b", ["a.b"]),
        ("a.*.c", ["a.b.c", "a.x.c"]),
        ("a.**.c", ["a.b.c", "a.x.c", "a.x.y.c"]),
        ("**.c", ["a.b.c", "a.x.c", "a.x.y.c", "c"]),
        ("**", PATHS),
        ("a.**", ["a", "a.b", "a.b.c", "a.x.c", "a.x.y.c"]),
        ("**.x.**", ["a.x.c", "a.x.y.c"]),
        ("layers.*.w", ["layers.0.w", "layers.10.w"]),
        ("layers.1*.w", ["layers.10.w"]),
        ("**.**.c", ["a.b.c", "a.x.c", "a.x.y.c", "c"]),
        ("[ab]", []),
        ("a|b", []),
        (".*", []),
        ("A", []),
        ("", []),
    ],
)
def test_a_glob_matches(glob: str, expected: list[str]) -> None:
    matches = matcher(glob)
    assert [path for path in PATHS if matches(tuple(path.split(".")), ARRAY)] == expected


@pytest.mark.parametrize("glob", ["a", "a.*", "a.**", "**", "**.c", "*", "a.**.c", "**.x.**", "layers.?.w"])
def test_a_glob_agrees_with_matching_name_by_name(glob: str) -> None:
    def agrees(names: list[str], parts: list[str]) -> bool:
        if not parts:
            return not names
        if parts[0] == "**":
            return any(agrees(names[count:], parts[1:]) for count in range(len(names) + 1))
        pattern = "".join(".*" if letter == "*" else "." if letter == "?" else re.escape(letter) for letter in parts[0])
        return bool(names) and re.fullmatch(pattern, names[0]) is not None and agrees(names[1:], parts[1:])

    matches = matcher(glob)
    for path in PATHS:
        names = path.split(".")
        assert matches(tuple(names), ARRAY) is agrees(names, glob.split(".")), path


def test_a_glob_that_ends_in_two_stars_selects_arrays_only() -> None:
    assert not matcher("a.**")(("a", "b"), [ARRAY])
    assert matcher("a.**")(("a", "b"), ARRAY)
    assert matcher("a.*")(("a", "b"), [ARRAY])


def test_the_root_has_no_name() -> None:
    assert not matcher("*")((), ARRAY)
    assert not matcher("")((), ARRAY)
    assert matcher("**")((), ARRAY)
    assert not matcher("**")((), [ARRAY])
    assert matcher(list)((), [ARRAY])


def test_numbers_in_a_path_are_names() -> None:
    assert matcher("a.0")(("a", 0), ARRAY)
    assert not matcher("a.0")(("a", 1), ARRAY)


ADVERSE = ["*a*a*a*a*a*a*a*a*b", "?".join("*" * 30) + "b", "a*" * 40 + "b"]


@pytest.mark.parametrize("glob", ADVERSE)
def test_the_stars_of_a_glob_are_never_tried_in_all_ways(glob: str) -> None:
    matches = matcher(f"layers.{glob}")
    assert not matches(("layers", "a" * 200), ARRAY)
    assert matches(("layers", "a" * 200 + "b"), ARRAY)


def test_the_double_stars_of_a_glob_are_never_tried_in_all_ways() -> None:
    matches = matcher(".".join(["**.a"] * 30) + ".**.b")
    assert not matches(("a",) * 200, ARRAY)
    assert matches((*("a",) * 200, "b"), ARRAY)


@pytest.mark.parametrize(
    ("glob", "name", "expected"),
    [
        ("[ab]*", "[ab]c", True), ("[ab]*", "a", False), ("[!a]?", "[!a]x", True), ("(*", "(x", True), ("*\n?", "a\nb", True),
        ("*", "a\nb", True), ("a?", "A?", False), ("?*", "", False), ("*", "", True), ("a**b", "axyb", True),
        ("*|*", "a|b", True),
    ],
)  # fmt: skip
def test_only_stars_and_question_marks_are_special_in_a_glob(glob: str, name: str, expected: bool) -> None:
    assert matcher(f"d.{glob}")(("d", name), ARRAY) is expected
