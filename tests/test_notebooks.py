"""Every notebook runs, its cells in any order; it is short, and was stored with the outputs of a run from top to bottom."""

import re

import pytest
from notebooks import FOLDER, code_cells, read, running, texts

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Paths, addresses, times, and errors or warnings that are printed.
UNSTABLE = re.compile(
    r"(?:^|[\s'\"(])/\w+/|[A-Z]:\\\\| at 0x|\d ?(?:ms|µs|s|seconds)\b|\d\d:\d\d|Traceback|Warning:", re.MULTILINE
)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each_notebook
def test_cells_run_again_and_in_any_order_with_the_same_outputs(path):
    notebook = read(path)
    first, *others = code_cells(notebook)
    with running(notebook) as client:
        for number, cell in [first, *others]:
            client.execute_cell(cell, number)
        expected = {number: texts(cell) for number, cell in others}
        for number, cell in reversed(others):  # each before all that it stood after
            client.execute_cell(cell, number)
            assert texts(cell) == expected[number], cell.source


@each_notebook
def test_a_notebook_keeps_the_outputs_of_a_run_from_top_to_bottom(path):
    cells = [cell for _, cell in code_cells(read(path))]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [text for cell in cells for text in texts(cell) if UNSTABLE.search(text)]
    assert [output for output in outputs if "image/png" in output.get("data", {})], "there is no picture"


@each_notebook
def test_a_notebook_is_short_and_says_what_it_shows(path):
    notebook = read(path)
    assert len(notebook.cells) <= 20
    assert path.stat().st_size < 300_000
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.search(r"\bseconds\b|\bminutes?\b", first.source), "the first cell does not say how long it takes"


def test_there_are_notebooks():
    assert NOTEBOOKS
