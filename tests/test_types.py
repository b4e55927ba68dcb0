"""What type checkers say about code that uses frostleaf: an error on each line that ends with ``# error``, and no other."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import frostleaf as fl

ROOT = Path(__file__).parents[1]
LAYERS = [value for value in map(vars(fl.nn).get, fl.nn.__all__) if isinstance(value, type) and issubclass(value, fl.Module)]

USER = """
import mlx.core as mx

import frostleaf as fl


class Inherited(fl.nn.Linear, init=False):
    def twice(self, x: mx.array) -> mx.array:
        return self(x) + self(x)


class Written(fl.nn.Linear):
    def __init__(self, dims: int) -> None:
        super().__init__(dims, dims)


class Generated(fl.Module):
    weight: mx.array
    layer: fl.nn.Linear
    scale: float = fl.static(default=1.0)


class InheritedFromGenerated(Generated, init=False):
    pass


Inherited(3, 4)
Inherited(3, 4, bias=False, dtype=mx.float16, key=mx.random.key(0)).twice(mx.ones((2, 3), mx.float16))
Inherited("a")  # error
Inherited("a", 4)  # error
Inherited(3, 4, weight=mx.ones(3))  # error
Inherited(weight=mx.ones(3), bias=None)  # error

Written(3)
Written("a")  # error
Written(3, 4)  # error

Generated(mx.ones(2), Inherited(3, 4))
Generated(mx.ones(2), Written(3), scale=2.0)
Generated(mx.ones(2))  # error
Generated(mx.ones(2), mx.ones(2))  # error
Generated(mx.ones(2), Written(3), "a")  # error
InheritedFromGenerated(mx.ones(2), Written(3), 2.0)
InheritedFromGenerated(mx.ones(2))  # error

fl.nn.Linear(3, 4)
fl.nn.Linear("a", 2)  # error
fl.nn.CELU(2.0)
fl.nn.CELU("a")  # error
fl.nn.Dropout(p=0.1)
fl.nn.Dropout("a")  # error
fl.nn.MaxPool2d((2, 2), padding=1)
fl.nn.MaxPool2d((2, 2, 2))  # error
fl.nn.TransformerEncoder(1, 8, 2, activation=fl.nn.ReLU())
fl.nn.TransformerEncoder(1, 8, 2, activation="relu")  # error

length: int = fl.nn.Conv1d(3, 4, 5).stride
lengths: tuple[int, int] = fl.nn.Conv2d(3, 4, (5, 5)).stride
wrong: int = fl.nn.Conv2d(3, 4, (5, 5)).stride  # error
layer: Inherited = Inherited(3, 4).eval()
"""


def call(layer, **options):
    """Return a call of a layer as source."""
    return f"fl.nn.{layer.__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"


def calls(layer):
    """Return calls of a layer with all its arguments, with one more, with the required ones alone, and without these."""
    parameters = inspect.signature(layer).parameters.values()
    named = {each.name: "anything" for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    required = {each.name: "anything" for each in parameters if each.name in named and each.default is each.empty}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    yield call(layer, **named)
    yield call(layer, **named, unknown="anything") + ("" if takes_any else "  # error")
    yield call(layer, **required)
    yield call(layer, **{name: value for name, value in named.items() if name not in required}) + "  # error" * bool(required)


def of_each_layer():
    head = ["from typing import Any", "", "import frostleaf as fl", "", "anything: Any = None"]
    return "\n".join([*head, *(line for layer in LAYERS for line in calls(layer))]) + "\n"


# What is checked, in one run of each checker, since it is the library that takes them long: the code of a user, and whether
# each layer takes what its signature says.
FILES = {"user.py": USER, "each_layer.py": of_each_layer()}
EXPECTED = {
    (name, number)
    for name, source in FILES.items()
    for number, line in enumerate(source.splitlines(), 1)
    if line.endswith("# error")
}


@pytest.fixture
def folder(tmp_path):
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
    return tmp_path


def test_mypy_accepts_the_library_and_finds_the_errors_of_its_users(folder):
    files = [str(folder / name) for name in FILES]
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--show-absolute-path", str(ROOT / "src"), *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # with the options in pyproject.toml
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(.+?):(\d+):(?:\d+:)? error", done.stdout, re.M)
    assert {Path(file) for file, _ in found} <= {folder / name for name in FILES}, done.stdout
    assert {(Path(file).name, int(line)) for file, line in found} == EXPECTED, done.stdout


def test_pyright_finds_the_errors_of_users(folder):
    config = {"typeCheckingMode": "strict", "include": list(FILES), "extraPaths": [str(ROOT / "src")]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors = [each for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    assert {(Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in errors} == EXPECTED, done.stdout


def test_the_lines_without_an_error_run():
    lines = [line for line in USER.splitlines() if not line.endswith("# error")]
    exec(compile("\n".join(lines), "user.py", "exec"), {"__name__": "user"})
