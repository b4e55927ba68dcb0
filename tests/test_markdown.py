"""The Python in each Markdown file runs, as one program from top to bottom, and prints what the file shows."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=fence) *$", re.S | re.M
)
# What a block may be in: Python, which is run here, and what is not run. README.md's commands are those of CI (test_readme.py).
LANGUAGES = {"python", "sh", "text", ""}


def markdown_files():
    """Return the Markdown files of the repository, without those in what git ignores."""
    ignored = {".git", *[line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]}
    pending, found = [ROOT], []
    while pending:
        for path in pending.pop().iterdir():
            if path.name in ignored or path.relative_to(ROOT).as_posix() in ignored:
                continue
            if path.is_dir():
                pending.append(path)
            elif path.suffix.lower() in (".md", ".markdown"):
                found.append(path)
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(found)}


def blocks(text):
    """Return the language and the text of each block of code in Markdown."""
    return [(block["language"].strip(), textwrap.dedent(block["body"])) for block in FENCE.finditer(text)]


FILES = markdown_files()
PROGRAMS = {
    name: python
    for name, path in FILES.items()
    if (python := [body for language, body in blocks(path.read_text()) if language == "python"])
}


def test_files_are_found():
    assert {"README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md", "src/frostleaf/core/README.md"} <= set(FILES)
    assert "README.md" in PROGRAMS


def test_blocks_are_found():
    text = "Text\n```python\na = 1\n```\n- in a list\n\n  ```py\n  b = 2\n  ```\n\n````\n```\n````\n~~~sh\nls\n~~~\n"
    assert blocks(text) == [("python", "a = 1\n"), ("py", "b = 2\n"), ("", "```\n"), ("sh", "ls\n")]


@pytest.mark.parametrize("name", FILES)
def test_no_block_is_in_a_language_that_no_test_knows(name):
    text = FILES[name].read_text()
    assert {language for language, _ in blocks(text)} <= LANGUAGES
    assert not re.search("^ *(```|~~~)", FENCE.sub("", text), re.MULTILINE), "a block has no end"


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_python_block_runs(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it saves files
    scope: dict[str, object] = {}
    for number, block in enumerate(PROGRAMS[name], 1):
        exec(compile(block, f"{name}, block {number}", "exec"), scope)
    printed = " ".join(capsys.readouterr().out.split())
    shown = [line.removeprefix("# ") for block in PROGRAMS[name] for line in block.splitlines() if line.startswith("# ")]
    for line in shown:
        assert " ".join(line.split()) in printed, f"{name} shows a line that was not printed: {line}"
