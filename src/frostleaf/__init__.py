"""frostleaf: functional parameters for MLX."""

from . import tree
from .fields import buffer, parameter, static
from .module import Module

__version__ = "0.1.0"
