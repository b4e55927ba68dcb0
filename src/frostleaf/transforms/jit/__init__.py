"""Compiled functions of trees."""

from .captured import CapturedArrayWarning
from .jitted import Jitted, disable_jit, jit

__all__ = ["CapturedArrayWarning", "Jitted", "disable_jit", "jit"]
