"""How a summary is printed."""

from __future__ import annotations

import mlx.core as mx
import pytest
from display.nets import Net, X

import frostleaf as fl


def test_rows_that_are_alike_are_printed_once() -> None:
    model = fl.nn.TransformerEncoder(12, 4, 2)
    shown = repr(fl.summary(model, fl.ShapeDtypeStruct((1, 2, 4)), None)).split("\n")
    assert len(shown) < 24
    assert any(line.split()[:4] == ["layers.(0-11)", "12", "×", "TransformerEncoderLayer"] for line in shown)
    assert any(line.startswith("    attention ") for line in shown)
    assert any(line.startswith("      query_proj ") for line in shown)
    one = repr(fl.summary(model.at("layers.3.linear1").freeze()))
    assert "layers.(0-2, 4-11)" in one
    assert "  layers.3 " in one


@pytest.mark.parametrize("columns", [10, 40, 60, 80, 200])
def test_lines_are_as_wide_as_the_terminal_at_most(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = repr(fl.summary(Net().at("spare").freeze(), X)).split("\n")
    assert max(map(len, lines)) <= columns
    assert ("bytes" in lines[0]) == (columns > 10)
    assert ("trainable" in lines[0], "output" in lines[0]) == (columns > 50, columns > 50)
    assert columns == 10 or all("…" not in line.split()[-2] for line in lines[2:7])


def test_many_rows_are_counted() -> None:
    model = fl.nn.Sequential(*[fl.nn.Linear(1, size + 1) for size in range(150)])
    shown = repr(fl.summary(model)).split("\n")
    assert len(shown) < 110
    assert any(line.startswith("and 51 more rows: depth= or where= shows fewer") for line in shown)
    assert len(fl.summary(model).rows) == 151


@pytest.mark.parametrize("columns", [60, 80])
def test_other_columns_are_left_out_before_a_path_is_cut(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    model = fl.nn.TransformerEncoder(2, 4, 2)
    lines = repr(fl.summary(model, fl.ShapeDtypeStruct((1, 2, 4)), None)).split("\n")
    assert "trainable" not in lines[0]
    assert not any("…" in line[:24] for line in lines)
    assert any(line.startswith("      query_proj ") for line in lines)


def test_wide_characters_take_two_places() -> None:
    lines = repr(fl.summary({"層": fl.nn.Linear(2, 2), "é\u0301": fl.nn.Linear(2, 2), "x": fl.nn.Linear(2, 2)})).split("\n")
    places = [line.index("Linear") for line in lines[3:6]]
    assert places == [places[2] - 1, places[2] + 1, places[2]]


def test_an_array_without_a_name_is_not_listed_by_name() -> None:
    assert "by name" not in repr(fl.summary(mx.zeros(3)))
