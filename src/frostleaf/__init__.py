"""frostleaf: functional parameters for MLX."""

from . import nn, tree
from .fields import buffer, parameter, static
from .module import Module
from .transforms.stateful import latest, record, stateful

__version__ = "0.1.0"
