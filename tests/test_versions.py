"""What pyproject.toml allows works: the core of the tests with the lowest and the newest versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from frostleaf.core import versions

ROOT = Path(__file__).parents[1]
CORE = ["core", "tree", "edits", "laws", "transforms"]
TOOLS = ["hypothesis>=6.100", "numpy>=1.26", "pytest>=8.0", "pytest-xdist>=3.6"]
# What MLX 0.32.0 itself does otherwise than the newest, to which these tests compare.
OTHERWISE = [
    "edits/test_freezing.py::test_a_strict_key_is_an_error_where_it_is_one_in_mlx",  # more of them are
    "edits/test_quantization.py::test_an_error_is_of_the_class_that_mlx_raises_and_says_where",
    "laws/test_jit.py::test_random_numbers_are_those_of_the_function_itself",  # compiled, the last bit is another
    "transforms/jit/test_jitted.py::test_a_function_draws_for_some_shapes_only",
    "transforms/jit/test_jitted.py::test_only_a_function_that_draws_moves_the_random_state",
    "transforms/jit/test_odd_functions.py::test_recursion",  # a RecursionError inside is a RuntimeError with its text
    "transforms/jit/test_jitted.py::test_what_another_thread_drops_is_freed_where_it_was_traced",  # it is kept
    "transforms/test_stateful.py::test_batch_norm_called_twice_in_one_pass_moves_twice_as_in_mlx",  # the running variance
    "transforms/test_stateful.py::test_batch_norm_trained_by_a_jitted_step_has_the_statistics_of_mlx",
    "transforms/test_without_values.py::test_needing_a_value_says_what_to_write",  # other errors; memoryview ends the process
    "tree/test_vectors.py::test_unravel_is_transformed_as_slices_are",  # a second derivative is missing
]


def lowest() -> dict[str, str]:
    """Return the lowest version of each package, as pyproject.toml states it."""
    (line,) = re.findall(r"^dependencies = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return dict(re.findall(r'"(\w+)>=([\d.]+)"', line))


def test_the_versions_that_are_required_are_those_that_are_stated() -> None:
    stated = lowest()
    assert list(stated) == ["mlx", "optree", "attrs"]
    assert {name: version for name, (version, _) in versions.LOWEST.items()} == {name: stated[name] for name in versions.LOWEST}


@pytest.mark.parametrize("found", ["0.32", "0.32.0", "0.32.1.dev20251126+ab12", "0.100.0", "1.0", "2"])
def test_a_version_that_is_new_enough_passes(found: str) -> None:
    versions.require("mlx", found)


@pytest.mark.parametrize("found", ["0.31.9", "0.9", "0", "0.31.2.dev3+4"])
def test_an_older_version_is_an_error_that_says_what_to_install(found: str) -> None:
    with pytest.raises(ImportError) as caught:
        versions.require("mlx", found)
    assert str(caught.value) == (
        f"frostleaf needs mlx 0.32 or newer, and {found} is installed, which lacks a random state for each thread. Write: "
        "pip install --upgrade 'mlx>=0.32'"
    )


def test_an_older_version_is_found_before_anything_that_it_lacks() -> None:
    script = (
        "import sys, mlx.core as mx\n"
        "mx.__version__ = '0.29.0'\n"
        "sys.modules['mlx.nn.layers.activations'] = None\n"  # the import of it fails
        "import frostleaf\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ImportError: frostleaf needs mlx 0.32 or newer, and 0.29.0 is installed")


@pytest.mark.long
@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_the_core_works_with(which: str, tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("there is no uv to make an environment with")
    stated = lowest()
    stated["mlx[cpu]" if sys.platform == "linux" else "mlx"] = stated.pop("mlx")
    wanted = [f"{name}=={version}" if which == "lowest" else name for name, version in stated.items()]
    python = tmp_path / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path], check=True)
    install = [uv, "pip", "install", "--quiet", "--upgrade", "--python", python, *wanted, *TOOLS]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"the packages can't be installed: {installed.stderr[-400:]}")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{folder}" for folder in CORE)]
    command += [f"--deselect=tests/{test}" for test in OTHERWISE] * (which == "lowest")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
