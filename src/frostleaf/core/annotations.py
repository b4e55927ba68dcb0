"""Names in annotations that Python 3.10 lacks, and that ``typing.get_type_hints`` is to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self as Self
    from typing_extensions import dataclass_transform as dataclass_transform
else:
    Self = Any

    def dataclass_transform(**_: Any) -> Callable[[type], type]:
        """Return the class unchanged: only type checkers read the real one."""
        return lambda cls: cls
