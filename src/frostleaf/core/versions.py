"""The lowest versions of what frostleaf stands on, looked at before anything else is imported."""

from __future__ import annotations

import re

import mlx.core as mx
import optree

# As in pyproject.toml, with what the versions before lack.
LOWEST = {
    "mlx": ("0.32", "a random state for each thread"),
    "optree": ("0.12.1", "an import without a warning, and before 0.12 dicts that keep their order"),
}

_TOO_OLD = (
    "frostleaf needs {name} {lowest} or newer, and {found} is installed, which lacks {lacking}. Write: "
    "pip install --upgrade '{name}>={lowest}'"
)


def require(name: str, found: str) -> None:
    """Raise an error if a version of a package is too old.

    Raises:
        ImportError: In that case; the message says what is missing and how to get it.
    """
    lowest, lacking = LOWEST[name]
    if _numbers(found) < _numbers(lowest):
        raise ImportError(_TOO_OLD.format(name=name, lowest=lowest, found=found, lacking=lacking))


def _numbers(version: str) -> list[int]:
    """Return the numbers that a version begins with: those of ``"0.32.1.dev3+ab"`` are 0, 32 and 1."""
    return [int(number) for number in re.findall(r"(?:^|(?<=\d)\.)(\d+)", version.split("+")[0].split(".dev")[0])]


require("mlx", mx.__version__)  # type: ignore[attr-defined]
require("optree", optree.__version__)
