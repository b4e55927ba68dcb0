"""Words of ours for the errors of MLX about arrays that have no values."""

from __future__ import annotations

from typing import Any

from ..core.words import function_name

# As MLX words them.
_EVALUATED = "Attempting to eval an array during function transformations"
_MASK = "boolean indices are not yet supported"
_NO_PRIMITIVE = "Attempting to eval an array without a primitive"

NEEDED = (
    "{fn} needs the value of an array (if, assert, float, item, range, print, np.array), which has none while {transformation} "
    "traces it. Write mx.where(condition, a, b) for an if, pass a number that Python needs as a number, not as an array, and "
    "return what you want to see."
)
PLAIN = " Inside `with fl.disable_jit():` it runs as plain Python."
MASKED = "{fn} indexes with a mask: how many elements it selects is not known without values. Write mx.where(mask, x, other)."
LEAKED = (
    "The array was made while a transformation (fl.jit, fl.vmap, ...) traced a function, which put it where it outlives the "
    "trace: in a global, a nonlocal, an attribute or a list. Return it from the function."
)


_BETWEEN = "\n\n"  # their words and ours


class explained:  # noqa: N801
    """Add to an error of MLX about an array without a value, raised in a ``with`` block, what to write.

    The error keeps its class and its words.

    Args:
        transformation: That which traces a function.
        fn: The function.
    """

    __slots__ = ("_fn", "_transformation")

    def __init__(self, transformation: str = "", fn: Any = None) -> None:
        self._transformation = transformation
        self._fn = fn

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ValueError | RuntimeError) and _BETWEEN not in (text := str(error)):
            more = self._explanation(text)
            if more:
                error.args = (f"{text}{_BETWEEN}{more}",)

    def _explanation(self, text: str) -> str:
        if _NO_PRIMITIVE in text:
            return LEAKED
        if self._fn is None:
            return ""
        said = {"fn": function_name(self._fn), "transformation": self._transformation}
        if _EVALUATED in text:
            return NEEDED.format(**said) + PLAIN * (self._transformation == "fl.jit")
        return MASKED.format(**said) if _MASK in text else ""
