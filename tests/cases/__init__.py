"""Each layer of mlx.nn, in the ways that it can be built and called. One file for each file of ``frostleaf.nn``."""

from importlib import import_module
from pkgutil import iter_modules

from .case import Case, case, in_eval_mode

FILES = sorted(module.name for module in iter_modules(__path__) if module.name != "case")

CASES: dict[str, Case] = {
    f"{file}: {name}": each for file in FILES for name, each in import_module(f"{__name__}.{file}").CASES.items()
}

__all__ = ["CASES", "Case", "case", "in_eval_mode"]
