"""Products of a function's Jacobian with vectors, where both are trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx

from ..core.shapes import require_no_shapes
from ..core.words import describe, function_name, keystr
from ..tree.functions import flatten, unflatten
from ..tree.prefixes import argument, broadcast_prefix
from .collectives import in_jvp
from .context import differentiating, setting
from .gradients import NOTHING_TRAINABLE, Differentiated, found_in, take_apart


def vjp(fn: Callable[..., Any], primals: Sequence[Any], cotangents: Any) -> tuple[Any, tuple[Any, ...]]:
    """Compute ``fn(*primals)`` and the product of ``cotangents`` with its Jacobian: a gradient for each primal.

    As in :func:`grad`, the derivatives are with respect to the trainable floating-point leaves, and each gradient has the class
    and shape of its primal, with ``None`` everywhere else.

    Args:
        fn: A function of trees that returns a tree.
        primals: The arguments, in a tuple.
        cotangents: A tree like the result. ``None`` for an array, or for a whole subtree, means zero. As in MLX, the cotangent
            of a result that is not a tuple may be given in a tuple.

    Returns:
        The result, and a tuple with a gradient for each primal.

    Raises:
        ValueError: If ``primals`` is not a tuple or has nothing trainable, or ``cotangents`` is not like the result; the
            message names the path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> def outer(tree, x):
    ...     return {"product": tree["w"] * x, "name": "outer"}
    >>> out, (tree, x) = fl.vjp(outer, ({"w": mx.array(2.0), "n": 1}, mx.array(3.0)), {"product": mx.array(10.0), "name": None})
    >>> out["product"].item(), tree, x.item()
    (6.0, {'w': array(30, dtype=float32), 'n': None}, 20.0)
    """
    name = function_name(fn)
    apart = _parts("vjp", fn, primals, name)
    given = flatten(cotangents)[0]
    result: list[Any] = []

    def on_leaves(*leaves: mx.array) -> list[mx.array]:
        rest = iter(leaves)
        out = fn(*[each.tree_with(rest) for each in apart])
        result.append(out)
        # Outputs come in the order of the cotangents, which MLX needs before the result is known. MLX skips an output whose
        # gradient is stopped, and would give its cotangent to the next; contiguous hides the stop.
        places: dict[int, list[mx.array]] = {}
        for leaf, cotangent in _matched(out, cotangents):
            flowing = leaf if mx.issubdtype(leaf.dtype, mx.inexact) else mx.stop_gradient(leaf)
            places.setdefault(id(cotangent), []).append(mx.contiguous(flowing))
        used = sum(map(len, places.values()))
        if used != len(given):
            raise ValueError(f"{len(given)} cotangents were given, and the result of {name} has an array for {used} of them")
        return [places[id(cotangent)].pop() for cotangent in given]

    trained = [leaf for each in apart for leaf in each.trainable_leaves()]
    if given:
        gradients = iter(differentiating(lambda: mx.vjp(on_leaves, trained, given)[1]))
    else:
        on_leaves(*trained)
        gradients = map(mx.zeros_like, trained)
    return result[0], tuple(each.gradient_with(gradients) for each in apart)


def jvp(fn: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """Compute ``fn(*primals)`` and the product of its Jacobian with ``tangents``: how the result changes along them.

    Args:
        fn: A function of trees that returns a tree.
        primals: The arguments, in a tuple.
        tangents: A tuple with a tree like each primal. ``None`` for an array, or for a whole subtree, means zero; what is not
            trainable must have ``None``. So a gradient is a tangent.

    Returns:
        The result, and a tree like it with an array for each floating-point leaf and ``None`` everywhere else.

    Raises:
        ValueError: If ``primals`` and ``tangents`` are not tuples of one length, nothing in the primals is trainable, or a
            tangent is not like its primal; the message names the path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.jvp(lambda tree: {"y": tree["x"] ** 2, "n": 7}, ({"x": mx.array(3.0)},), ({"x": mx.array(10.0)},))
    ({'y': array(9, dtype=float32), 'n': 7}, {'y': array(60, dtype=float32), 'n': None})
    """
    name = function_name(fn)
    apart = _parts("jvp", fn, primals, name)
    if not isinstance(tangents, tuple | list):
        raise _not_a_tuple("jvp", "tangents", tangents)
    if len(tangents) != len(apart):
        raise ValueError(f"fl.jvp was given {len(apart)} primals and {len(tangents)} tangents")
    moving = [list(_tangents(each, primals[number], tangents[number], number)) for number, each in enumerate(apart)]
    moved = [
        Differentiated(each.leaves, [moves is not None for moves in tangent], each.structure)
        for each, tangent in zip(apart, moving, strict=True)
    ]
    result: list[Any] = []

    def on_leaves(*leaves: mx.array) -> list[mx.array]:
        rest = iter(leaves)
        result.append(fn(*[each.tree_with(rest) for each in moved]))
        return [leaf for leaf in flatten(result[0])[0] if mx.issubdtype(leaf.dtype, mx.inexact)]

    vectors = [each for tangent in moving for each in tangent if each is not None]
    begun = [leaf for each in moved for leaf in each.trainable_leaves()]
    with setting(in_jvp, True):
        moves = differentiating(lambda: mx.jvp(on_leaves, begun, vectors)[1]) if begun else map(mx.zeros_like, on_leaves())
    changes = iter(moves)
    leaves, structure = flatten(result[0])
    values = [next(changes) if mx.issubdtype(leaf.dtype, mx.inexact) else None for leaf in leaves]
    return result[0], unflatten(structure, values, static=lambda _: None)


def _parts(of: str, fn: Callable[..., Any], primals: Any, name: str) -> list[Differentiated]:
    if not isinstance(primals, tuple | list):
        raise _not_a_tuple(of, "primals", primals)
    apart = [take_apart(tree) for tree in primals]
    for each in apart:
        require_no_shapes(f"fl.{of}", each.trainable_leaves())
    if not any(any(each.mask) for each in apart):
        one = len(apart) == 1
        found = found_in(apart[0] if one else take_apart(tuple(primals)))
        raise ValueError(NOTHING_TRAINABLE.format(number=0 if one else "0 and every other", fn=name, found=found))
    return apart


def _not_a_tuple(of: str, what: str, given: Any) -> ValueError:
    return ValueError(f"fl.{of} takes {what} as a tuple with a tree for each argument, and was given {describe(given)}")


def _matched(out: Any, cotangents: Any) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield each array of the result that has a cotangent, with the cotangent."""
    alone = isinstance(cotangents, tuple | list) and len(cotangents) == 1 and not isinstance(out, tuple | list)
    for path, leaf, cotangent in broadcast_prefix(cotangents[0] if alone else cotangents, out, "the tree of cotangents"):
        if cotangent is not None:
            _require_like("cotangent", cotangent, leaf, keystr(path) or "the result")
            yield leaf, cotangent


def _tangents(each: Differentiated, primal: Any, tangent: Any, number: int) -> Iterator[mx.array | None]:
    """Yield the tangent of each array of a primal, or ``None``."""
    found = broadcast_prefix(tangent, primal, f"the tangent of argument {number}")
    for (path, leaf, value), trains in zip(found, each.mask, strict=True):
        place = argument((number, *path))
        if value is not None and not trains:
            reason = "frozen or a buffer" if mx.issubdtype(leaf.dtype, mx.floating) else describe(leaf)
            raise ValueError(f"{place} is given a tangent, and is not differentiated: it is {reason}. Give None there")
        if value is not None:
            _require_like("tangent", value, leaf, place)
        yield value


def _require_like(what: str, value: Any, leaf: mx.array, path: str) -> None:
    if not isinstance(value, mx.array) or value.shape != leaf.shape or value.dtype != leaf.dtype:
        raise ValueError(f"the {what} of {path} is {describe(value)}, and must be {describe(leaf)} or None")
