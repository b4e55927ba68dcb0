"""Compiled functions of trees."""

from .arguments import MutableArgumentWarning, RetraceWarning
from .captured import CapturedArrayWarning
from .jitted import Jitted, disable_jit, jit

__all__ = ["CapturedArrayWarning", "Jitted", "MutableArgumentWarning", "RetraceWarning", "disable_jit", "jit"]
