"""How trees look: as text, and in pictures."""

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from . import plot
else:
    __getattr__ = lazily(__name__, {"plot": ""})

__all__ = ["plot"]
