"""Save models to files and load them."""

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from . import alike as alike
    from . import weights as weights
else:
    __getattr__ = lazily(__name__, {"alike": "", "weights": ""})
