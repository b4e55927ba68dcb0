"""The files of ``src/frostleaf`` import downwards in the order of the chapters, without circles, and at the top of the file."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "frostleaf"
# From the ground up. A file imports from its own chapter and from those before it.
CHAPTERS = [
    "core",
    "tree",
    "edits",
    "transforms",
    "io",
    "display",
    "module",
    "nn",
    "optim",
    "interop",
    "distributed",
    "__init__",
]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in ROOT.rglob("*.py") if path.name != "__main__.py"}


def imports_of(name: str) -> list[tuple[str, bool]]:
    """Return the modules of frostleaf that a file imports, and whether the import stands at the top of the file."""
    path, found = FILES[name], []
    tree = ast.parse(path.read_text())
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [
                (each.name.partition(".")[2], node in tree.body) for each in node.names if each.name.startswith("frostleaf")
            ]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("frostleaf")):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module if node.level else node.module.partition(".")[2]])])
            for each in node.names:
                inside = f"{module}.{each.name}".strip(".")
                found.append((inside if inside in FILES else module, node in tree.body))
    return found


def test_no_circles():
    graph = {name: {imported for imported, _ in imports_of(name)} - {name} for name in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_downwards_and_stand_at_the_top(name):
    def chapter(module: str) -> int:
        return CHAPTERS.index(module.partition(".")[0] or "__init__")

    for imported, at_the_top in imports_of(name):
        assert at_the_top, f"{name} imports {imported} inside a function"
        assert chapter(imported) <= chapter(name), f"{name} imports {imported}, which is above it"
