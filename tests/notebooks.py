"""Run the notebooks and store their outputs: ``python tests/notebooks.py``, or with the names of some of them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbclient
import nbformat

FOLDER = Path(__file__).parents[1] / "notebooks"
# What differs from run to run, or from machine to machine, and does not belong in a repository.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(path: Path) -> Any:
    """Return a notebook."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[tuple[int, Any]]:
    """Return the cells of code and their numbers."""
    return [(number, cell) for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


@contextmanager
def running(notebook: Any) -> Iterator[nbclient.NotebookClient]:
    """Start a kernel for a notebook, and end it."""
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False)
    with client.setup_kernel():
        yield client


def merged(outputs: list[Any]) -> list[Any]:
    """Return outputs with what was printed in one piece: a kernel sends it as it comes."""
    found: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and found and found[-1].get("name") == output.name:
            output = nbformat.from_dict({**output, "text": found.pop().text + output.text})
        found.append(output)
    return found


def texts(cell: Any) -> list[str]:
    """Return the texts that a cell put out."""
    return [
        output.text if output.output_type == "stream" else output.data.get("text/plain", "") for output in merged(cell.outputs)
    ]


def store(path: Path) -> None:
    """Run a notebook from top to bottom and write its outputs to its file."""
    notebook = read(path)
    with running(notebook) as client:
        for number, cell in code_cells(notebook):
            client.execute_cell(cell, number)
            cell.outputs = merged(cell.outputs)
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            store(path)
            print(path.stem)
