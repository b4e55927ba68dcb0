"""The README's commands are the ones that CI runs; test_markdown.py runs its Python."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_ci_runs_the_test_command_of_the_readme():
    commands = [block.strip() for block in blocks("sh")]
    script = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith(("#", "set "))]
    assert script == [next(command for command in commands if "pytest" in command)]
