"""The reference: it has all public names, its references lead somewhere, and its examples run."""

import ast
import doctest
import importlib
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / ".docs"
PAGES = sorted(DOCS.glob("*.rst"))
SOURCE = DOCS.parent / "src"
REFERENCE = re.compile(r":(?:func|class|meth|attr|data|mod|exc|obj):`~?([^`<>]+)`")


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


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning")  # NumPy's, of what Treescope reads
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags, encoding="utf-8")
    assert tried > 0
    assert failed == 0


@cache
def is_name(name: str) -> bool:
    """Return whether a dotted name stands for something."""
    module, _, rest = name.partition(".")
    try:
        found = importlib.import_module(module)
    except ImportError:
        return False
    for part in filter(None, rest.split(".")):
        if not hasattr(found, part):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except (AttributeError, ImportError):
                return False
        found = getattr(found, part)
    return True


def references(node: ast.AST, scope: str):
    """Yield what the docstrings in a file refer to, each with the module and class that it is written in."""
    if isinstance(node, ast.ClassDef):
        scope = f"{scope}.{node.name}"
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        yield from [(scope, name) for name in REFERENCE.findall(ast.get_docstring(node) or "")]
        for child in node.body:
            yield from references(child, scope)


def broken(source: str, module: str) -> list[str]:
    """Return what docstrings refer to that is no name in their class, file or package, of frostleaf, or of another library."""
    found = []
    for scope, name in references(ast.parse(source), module):
        around = scope.split(".")
        if not any(is_name(".".join([*around[:depth], name])) for depth in range(len(around), -1, -1)):
            found.append(f"{scope}: {name}")
    return found


def test_docstrings_refer_to_what_there_is():
    modules = {path: ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in sorted(SOURCE.rglob("*.py"))}
    assert len(modules) > 100
    assert [each for path, name in modules.items() for each in broken(path.read_text(), name.removesuffix(".__init__"))] == []


def test_a_reference_to_nothing_is_found():
    there = ":meth:`init`, :class:`SGD`, :func:`jit`, :func:`mlx.nn.relu`"
    text = f'class Optimizer:\n    """See {there}, :func:`jitt` and :meth:`inti`."""\n'
    module = "frostleaf.optim.optimizer"
    assert broken(text, module) == [f"{module}.Optimizer: jitt", f"{module}.Optimizer: inti"]


def test_entries_of_several_names_are_taken_one_by_one():
    specification = importlib.util.spec_from_file_location("several", DOCS / "extensions" / "several.py")
    several = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(several)
    lines = ["A, b: c.", "", "Args:", "    x: One.", "    *args, **kwargs: Two", "        lines.", "", "x, y: no entry."]
    several.split(None, "", "", None, None, lines)
    each = ["    *args: Two", "        lines.", "    **kwargs: Two", "        lines."]
    assert lines == ["A, b: c.", "", "Args:", "    x: One.", *each, "", "x, y: no entry."]
