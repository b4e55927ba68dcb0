"""An optimizer whose gradients go through functions first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
from mlx.optimizers import cosine_decay

from ..core.words import describe
from .clipping import ClipByGlobalNorm, ClipByValue
from .contents import are_of_kinds, kinds_of
from .optimizer import Optimizer, require_optimizer
from .order import IN_A_CHAIN, is_average, require_averaged_first
from .parameters import Parameters, with_alike
from .wrapper import Wrapper

Clip = ClipByGlobalNorm | ClipByValue

OTHER_GRADIENTS = (
    "function {number} of the chain must return a dict with a gradient of the same shape for each that it is given, and did "
    "not do so for {names}"
)

A_SCHEDULE = (
    "argument {number} of chain is a schedule, a function of the step, where functions of the gradients are taken: give it to "
    "the optimizer as its learning_rate"
)
STARRED = "chain takes its functions and its optimizer one by one: chain(*...) for a {kind}"


class Chain(Wrapper):
    """An optimizer whose gradients go through functions first, as made by :func:`chain`.

    >>> import frostleaf as fl
    >>> fl.optim.chain(fl.optim.clip_by_value(1.0), fl.optim.SGD(0.1)).transforms
    (ClipByValue(max_value=1.0),)
    """

    transforms: tuple[Any, ...]
    optimizer: Optimizer

    def __init__(self, transforms: tuple[Any, ...], optimizer: Optimizer) -> None:
        self.transforms, self.optimizer = transforms, optimizer

    def _update(self, parameters: Parameters, gradients: Mapping[str, mx.array], state: Any) -> tuple[dict[str, mx.array], Any]:
        names, alike = tuple(gradients), gradients is parameters.alike
        kinds = parameters.kinds if alike else kinds_of(gradients.values())
        for number, transform in enumerate(self.transforms, 1):
            new = transform(dict(gradients))
            if type(new) is dict and are_of_kinds(new, names, kinds):
                gradients = new
                continue
            new = new if isinstance(new, Mapping) else {}
            wrong = [name for name in {**gradients, **new} if _shape(gradients, name) != _shape(new, name)]
            if wrong:
                raise ValueError(OTHER_GRADIENTS.format(number=number, names=", ".join(map(repr, wrong[:6]))))
            gradients = {name: new[name].astype(array.dtype) for name, array in gradients.items()}
        parameters = with_alike(parameters, gradients) if alike else parameters
        return self.optimizer._update(parameters, gradients, state)

    def _not_elementwise(self) -> Iterator[Any]:
        yield from (each for each in self.transforms if not isinstance(each, Clip))
        yield from super()._not_elementwise()

    def _averaging(self) -> str | None:
        return IN_A_CHAIN if any(map(is_average, self.transforms)) else super()._averaging()

    def _require_averaged(self) -> None:
        if not any(map(is_average, self.transforms)):
            super()._require_averaged()


def chain(*args: Any) -> Chain:
    """Return an optimizer whose gradients go through functions first, one after the other.

    Its state is that of the optimizer.

    Args:
        *args: Functions, then an optimizer. A function takes a dict from dotted paths to gradients and
            returns another with the same paths and shapes; the results are cast to the dtypes of the gradients given.
            :func:`clip_by_global_norm` and :func:`clip_by_value` make such functions.

    Raises:
        TypeError: If the last is not an optimizer, or one of the others can't be called or is one of MLX's schedules.
        ValueError: If gradients are clipped before they are averaged over ranks; in an update, if a function returns other
            paths or shapes.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt = fl.optim.chain(lambda grads: fl.tree.map(mx.sign, grads), fl.optim.SGD(1.0))
    >>> w = mx.array([0.0, 0.0])
    >>> opt.update(w, mx.array([3.0, -4.0]), opt.init(w))[0]
    array([-1, 1], dtype=float32)
    """
    if len(args) == 1 and isinstance(args[0], list | tuple):
        raise TypeError(STARRED.format(kind=type(args[0]).__name__))
    require_optimizer(args[-1] if args else None, "chain, as the last of its arguments,")
    *transforms, optimizer = args
    for number, each in enumerate(transforms, 1):
        if not callable(each) or isinstance(each, Optimizer):
            raise TypeError(
                f"chain takes functions of the gradients and then an optimizer; argument {number} is {describe(each)}"
            )
        if getattr(each, "__module__", None) == cosine_decay.__module__:
            raise TypeError(A_SCHEDULE.format(number=number))
    for place, each in enumerate(transforms):
        if is_average(each):
            break
        if isinstance(each, Clip):
            require_averaged_first(f"chain({each.written()}, ...)", Chain(tuple(transforms[place:]), optimizer)._averaging())
    return Chain(tuple(transforms), optimizer)


def _shape(gradients: Mapping[str, mx.array], name: str) -> Any:
    return getattr(gradients.get(name), "shape", None)
