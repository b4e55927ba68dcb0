"""The operators of a module: its arrays and modules by key, as in the dict that a module of MLX is, and no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import mlx.core as mx

from ..core.instance import Instance
from ..core.words import describe, nearest, with_article

NO_SUCH_KEY = "{cls} has no array or module {key}{near}"
NOT_IN_THE_DICT = "{cls} has no array or module {key}: it is {value}, which {cls}.{name} returns"
NOT_ITERABLE = (
    "a module is one value, and iterating over this {cls} is not possible, nor assigning it to several names. Its parts are in "
    ".parameters(), .children() and .named_modules()"
)


NO_ARITHMETIC = (
    "{kind} is a tree, and {symbol} is for arrays: fl.tree.map(function, tree, ...) computes with those in it. To "
    "mlx.utils.tree_map it is no tree"
)
_BINARY = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@"}
_UNARY = {"neg": "-", "abs": "abs"}


class Keyed(Instance):
    """What gives :class:`Module` its keys."""

    __slots__ = ()

    def __contains__(self, key: object) -> bool:
        """Return whether a field of that name holds an array, a module, or a container, as in the dict that a module of MLX is.

        >>> import frostleaf as fl
        >>> "bias" in fl.nn.Linear(2, 2), "bias" in fl.nn.Linear(2, 2, bias=False)
        (True, False)
        """
        is_child = isinstance(key, str) and key in self.__frostleaf__.children
        return is_child and isinstance(_value(self, key), mx.array | Instance | tuple | Mapping)

    def __getitem__(self, key: str) -> Any:
        """Return what the field of that name holds, if the name is ``in`` the module.

        Raises:
            KeyError: If it is not; the message suggests the nearest name.

        >>> import frostleaf as fl
        >>> layer = fl.nn.Linear(2, 2)
        >>> layer["weight"] is layer.weight
        True
        """
        if key in self:
            return _value(self, key)
        cls = type(self).__name__
        definition = self.__frostleaf__
        if isinstance(key, str) and key in definition.fields:
            raise KeyError(NOT_IN_THE_DICT.format(cls=cls, key=describe(key), name=key, value=describe(_value(self, key))))
        there = [name for name in definition.children if name in self]
        near = nearest(str(key), there)
        if isinstance(key, int):
            # Where there is one item of that number, it may be meant.
            items = [name for name in there if isinstance(_value(self, name), tuple) and key < len(_value(self, name))]
            near = f": write .{items[0]}[{key}]" if len(items) == 1 else ": its parts go by name"
        raise KeyError(NO_SUCH_KEY.format(cls=cls, key=describe(key), near=near))

    if not TYPE_CHECKING:  # code from elsewhere gets a message of ours, and new code one of its checker

        def __setitem__(self, key: str, value: Any) -> None:
            setattr(self, key, value)

        def __delitem__(self, key: str) -> None:
            delattr(self, key)

        def __iter__(self) -> Any:
            raise TypeError(NOT_ITERABLE.format(cls=type(self).__name__))


def _value(module: Instance, key: Any) -> Any:
    return getattr(module, key, None)  # which a module that is being built need not have yet


def _refusing(symbol: str) -> Callable[..., NoReturn]:
    def refuse(self: Instance, *_: Any) -> NoReturn:
        raise TypeError(NO_ARITHMETIC.format(kind=with_article(type(self).__name__), symbol=symbol))

    return refuse


# A class of a user's own may have any of these operators.
REFUSED = {f"__{name}__": symbol for name, symbol in {**_BINARY, **_UNARY}.items()}
REFUSED |= {f"__r{name}__": symbol for name, symbol in _BINARY.items()}
for _name, _symbol in REFUSED.items():
    setattr(Keyed, _name, _refusing(_symbol))
