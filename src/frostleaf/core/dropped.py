"""Statements that call for a changed copy and drop it, as is right where models change in place."""

from __future__ import annotations

import dis
import functools
import sys
import warnings
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class DroppedResultWarning(UserWarning):
    """A method that returns a changed copy was called as a statement, so that the copy is lost.

    >>> import frostleaf as fl, warnings
    >>> def set_up(model):
    ...     model.freeze()
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     set_up(fl.nn.Linear(2, 2))
    >>> print(caught[0].message)
    Module.freeze changes nothing in place: it returns a changed copy, which this statement drops. Write
    model = model.freeze(...).
    """


DROPPED = "{method} changes nothing in place: it returns a changed copy, which this statement drops. Write {write}."
DROPPED_BY_MLX = "{caller} calls {method} to change a model in place, and frostleaf's models never change. Write {write}."
ASKED_BY_MLX = (
    "{caller} takes this {cls} for an array, and asks for its {name}: MLX's own functions take dicts and arrays. Write {write}"
)
COUNTED_BY_MLX = (
    "{caller} counts arrays with {method} as modules of MLX have them, and would miscount those of a tree. Give it "
    "fl.to_mlx(model), which has the same memory, or write fl.summary(model)"
)
# What does the same here as the functions of MLX and mlx-lm in these of their modules.
_INSTEAD = {
    "mlx.nn.utils": (
        "fl.value_and_grad(fn)(model, ...), fl.checkpoint(model), or fl.distributed.average_gradients(gradients); to code that "
        "trains in place, such as that of mlx-lm, give fl.to_mlx(model)"
    ),
    "mlx.nn.layers.quantized": "model = fl.quantize(model, ...)",
    "mlx_lm.tuner.utils": (
        "adapted = fl.lora(model, where, ...), or fl.load_adapters(model, ...): without adapters, model is as it was"
    ),
    "mlx_lm.utils": "model = fl.from_mlx(dequantize_model(fl.to_mlx(model)))",
    "mlx.optimizers.optimizers": (
        "model, state = opt.update(model, grads, state), with an optimizer of fl.optim, and fl.optim.clip_grad_norm(grads, ...)"
    ),
}
_ANY_INSTEAD = "the function of fl, fl.nn or fl.optim that does the same, or model = model.update(...)"

# Bytecode is another in each version of Python. In one that this was not written for, nothing is said.
_IS_KNOWN = sys.implementation.name == "cpython" and (3, 10) <= sys.version_info < (3, 15)
_POP_TOP = dis.opmap.get("POP_TOP", -1)
_CACHE = dis.opmap.get("CACHE", -1)
# What timeit and the %timeit and %%time of notebooks name the code that they time, which drops every result.
_TIMED = "<timeit-src>", "<magic-timeit>", "<timed exec>"


BY_NAME = "{method} takes no positional argument, and was given a {given}: write {name}({by_name}=...)"


def returns_copy(write: str = "model = model.{name}(...)", by_name: str | None = None) -> Callable[[F], F]:
    """Decorate a method that returns a changed copy, so that whoever calls it as a statement is told what to write.

    Args:
        write: The statement to write.
        by_name: Of a method that takes all arguments by name, the argument that one without a name is meant for.

    Raises:
        TypeError: When the method is called, if it is a function of MLX that drops the result, or an argument has no name.

    Warns:
        DroppedResultWarning: When the method is called, if a statement drops a result that is another than what was given.
    """

    def decorate(method: F) -> F:
        if not _IS_KNOWN:
            return method

        @functools.wraps(method)
        def noticing(*args: Any, **kwargs: Any) -> Any:
            if by_name is not None and len(args) > 1:
                names = {"method": method.__qualname__, "name": method.__name__, "by_name": by_name}
                raise TypeError(BY_NAME.format(**names, given=type(args[1]).__name__))
            result = method(*args, **kwargs)
            caller = sys._getframe().f_back
            if caller is not None:
                # What follows the call, and the entries that Python keeps there for itself.
                code, after = caller.f_code.co_code, caller.f_lasti + 2
                while code[after] == _CACHE:
                    after += 2
                if code[after] == _POP_TOP:
                    changed = all(result is not given for given in (*args, *kwargs.values()))
                    _tell(caller, method, write, changed)
            return result

        return cast(F, noticing)

    return decorate


def asked_by_mlx(cls: type, name: str, caller: FrameType) -> str | None:
    """Return the message for an attribute of arrays that a class lacks, if a function of MLX asks for it."""
    module = str(caller.f_globals.get("__name__"))
    if not module.startswith("mlx."):
        return None
    return ASKED_BY_MLX.format(caller=module, cls=cls.__name__, name=name, write=_INSTEAD.get(module, _ANY_INSTEAD))


def require_no_search(method: str, caller: FrameType | None) -> None:
    """Raise a ``TypeError`` if code of mlx-lm calls a method that looks for layers to replace, and would not find them."""
    module = str(caller.f_globals.get("__name__")) if caller else ""
    if module in ("mlx_lm.tuner.utils", "mlx_lm.utils"):
        raise TypeError(DROPPED_BY_MLX.format(caller=module, method=method, write=_INSTEAD[module]))


def require_no_training(caller: FrameType | None) -> None:
    """Raise a ``TypeError`` if ``mlx.nn.value_and_grad`` asks for what is trained, which it would update in place."""
    module = str(caller.f_globals.get("__name__")) if caller else ""
    if module == "mlx.nn.utils":
        raise TypeError(DROPPED_BY_MLX.format(caller=module, method="Module.update", write=_INSTEAD[module]))


def require_no_count(method: str, caller: FrameType | None) -> None:
    """Raise a ``TypeError`` if mlx-lm counts arrays with a method: it asks modules for names that frozen ones have not."""
    module = str(caller.f_globals.get("__name__")) if caller else ""
    if module == "mlx_lm.utils":
        raise TypeError(COUNTED_BY_MLX.format(caller=module, method=method))


def _tell(caller: FrameType, method: Callable[..., Any], write: str, changed: bool) -> None:
    module = str(caller.f_globals.get("__name__"))
    by_mlx = module.startswith("mlx.")
    if (
        not (by_mlx or changed)
        or caller.f_code.co_filename in _TIMED
        or _called(caller.f_code, caller.f_lasti) != method.__name__
    ):
        return
    if by_mlx:
        instead = _INSTEAD.get(module, _ANY_INSTEAD)
        raise TypeError(DROPPED_BY_MLX.format(caller=module, method=method.__qualname__, write=instead))
    message = DROPPED.format(method=method.__qualname__, write=write.format(name=method.__name__))
    warnings.warn(message, DroppedResultWarning, stacklevel=3)


def _called(code: CodeType, offset: int) -> str | None:
    """Return the name of the function or method that is called by the instruction at an offset, if that can be told.

    A function in C has no frame: the frame that calls ``results.extend(map(Module.eval, models))`` calls ``extend``.
    """
    before = [each for each in dis.get_instructions(code) if each.offset <= offset]
    # What lies on the stack below the arguments: the function, and what it is bound to, or a place for that.
    below = 1 if sys.version_info < (3, 11) and before[-1].opname != "CALL_METHOD" else 2
    depth = 1  # of the stack after the call: its result
    for instruction in reversed(before):
        if depth <= below and isinstance(instruction.argval, str):
            return instruction.argval
        depth -= dis.stack_effect(instruction.opcode, instruction.arg)
    return None
