"""How trees look: in text, in notebooks, in Treescope, and in pictures."""

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from . import plot
else:
    __getattr__ = lazily(__name__, {"plot": ""})

__all__ = ["plot"]
