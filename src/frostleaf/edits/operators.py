"""What ``+``, ``*`` and the like say of a module: arithmetic is for arrays, and for a tree there is ``fl.tree.map``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ..core.instance import Instance
from ..core.words import with_article

NO_ARITHMETIC = (
    "{kind} is a tree, and {symbol} is for arrays: fl.tree.map(function, tree, ...) computes with those in it. To "
    "mlx.utils.tree_map it is no tree"
)
_BINARY = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@"}
_UNARY = {"neg": "-", "abs": "abs"}


class WithoutArithmetic(Instance):
    """What tells of :class:`Module` that it is no number. A class of one's own may have any of these operators."""

    __slots__ = ()


def _refusing(symbol: str) -> Callable[..., NoReturn]:
    def refuse(self: Instance, *_: Any) -> NoReturn:
        raise TypeError(NO_ARITHMETIC.format(kind=with_article(type(self).__name__), symbol=symbol))

    return refuse


for _name, _symbol in {**_BINARY, **{f"r{name}": symbol for name, symbol in _BINARY.items()}, **_UNARY}.items():
    setattr(WithoutArithmetic, f"__{_name}__", _refusing(_symbol))
