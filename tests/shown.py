"""Values as names of test cases."""

from __future__ import annotations

import re
from typing import Any


def shown(value: Any) -> str:
    """Return the value as text without the addresses that are others in each run, so that a test case keeps its name."""
    return re.sub(r"( object)? at 0x[0-9a-f]+", "", str(value))
