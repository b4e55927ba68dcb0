"""The reference: it has all public names, its references lead somewhere, and its examples run."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / ".docs"
PAGES = sorted(DOCS.glob("*.rst"))


def build(source: Path, folder: Path) -> str:
    """Read pages as the reference's are read, without writing any, and return the warnings."""
    command = [sys.executable, "-m", "sphinx", "-n", "-q", "-b", "dummy", "-c", DOCS, source, folder / "built"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_reference_is_whole(tmp_path):
    assert build(DOCS, tmp_path) == ""


# What is wrong on a page, and what is said of it.
WRONG = {
    ":func:`frostleaf.jitt`": "py:func reference target not found: frostleaf.jitt",
    ":class:`frostleaf.core.structure.Flat`": "py:class reference target not found: frostleaf.core.structure.Flat",
    ":func:`mlx.nn.reluu`": "py:func reference target not found: mlx.nn.reluu",
    "``fl.nn.Lineal``": "py:obj reference target not found: frostleaf.nn.Lineal",
    "`jitt`": "py:obj reference target not found: jitt",
    r":math:`\nosuch{x}`": r"can't read the formula \nosuch{x}",
    2 * ".. py:function:: frostleaf.vmap()\n\n": "duplicate object description of frostleaf.vmap",
    ".. public:: frostleaf\n   :from: core.fields": "frostleaf.jit is public and on no page",
}


def test_what_is_wrong_is_told(tmp_path):
    (tmp_path / "index.rst").write_text("Title\n=====\n\n" + "\n\n".join(WRONG))
    told = build(tmp_path, tmp_path)
    assert [warning for warning in WRONG.values() if warning not in told] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags, encoding="utf-8")
    assert tried > 0
    assert failed == 0
