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


def lazy_imports(tree: ast.Module, path: Path) -> list[ast.stmt]:
    """Return what a package shows to type checkers alone, and imports when it is first used. Other files have none of it."""
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return [each for block in blocks for each in block.body] if path.name == "__init__.py" else []


def imports_of(name: str) -> list[tuple[str, bool]]:
    """Return the modules of frostleaf that a file imports, and whether the import stands at the top of the file."""
    path, found = FILES[name], []
    tree = ast.parse(path.read_text())
    package = list(path.relative_to(ROOT).parent.parts)
    top = [*tree.body, *lazy_imports(tree, path)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(each.name.partition(".")[2], node in top) for each in node.names if each.name.startswith("frostleaf")]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("frostleaf")):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module if node.level else node.module.partition(".")[2]])])
            for each in node.names:
                inside = f"{module}.{each.name}".strip(".")
                found.append((inside if inside in FILES else module, node in top))
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


@pytest.mark.parametrize("name", [name for name, path in FILES.items() if lazy_imports(ast.parse(path.read_text()), path)])
def test_a_package_imports_lazily_what_it_shows_to_type_checkers(name):
    path = FILES[name]
    tree = ast.parse(path.read_text())
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazily"]
    table = {file: names.split() for file, names in ast.literal_eval(call.args[1]).items()}
    shown = {}
    for node in lazy_imports(tree, path):
        assert isinstance(node, ast.ImportFrom)
        assert node.level == 1
        names = [alias.name for alias in node.names]
        shown.update({node.module: names} if node.module else {each: table.get(each, []) for each in names})
    assert {file: names for file, names in shown.items() if names or file in table} == table
