"""Matrix products that serve arrays of all shapes where a trace is to."""

from __future__ import annotations

import mlx.core as mx

from ..transforms.context import is_shapeless


def addmm(c: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """Compute :math:`c + a b`, as :func:`mlx.core.addmm` does.

    That broadcasts ``c`` to the shape that the sum has when it is traced. So in a trace for all shapes it is a sum.
    """
    return c + a @ b if is_shapeless() else mx.addmm(c, a, b)
