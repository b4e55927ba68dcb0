"""The README's Python runs, in order, as one program; its commands are the ones that CI runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_every_python_block_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it saves files
    scope: dict[str, object] = {}
    for number, block in enumerate(blocks("python"), 1):
        exec(compile(block, f"README block {number}", "exec"), scope)
    printed = " ".join(capsys.readouterr().out.split())
    shown = [line.removeprefix("# ") for block in blocks("python") for line in block.splitlines() if line.startswith("# ")]
    for line in shown:
        assert " ".join(line.split()) in printed, f"the README shows a line that was not printed: {line}"


def test_ci_runs_the_test_command_of_the_readme():
    commands = [block.strip() for block in blocks("sh")]
    script = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith(("#", "set "))]
    assert script == [next(command for command in commands if "pytest" in command)]
