"""The three kinds of field a module has: parameters, buffers and static values."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import attrs

from .words import describe

KIND = "frostleaf.kind"
PERSISTENT = "frostleaf.persistent"
FROZEN = "frostleaf.frozen"
CAST = "frostleaf.cast"
MEANING = "frostleaf.meaning"


def parameter(*given: NoReturn, frozen: bool = False, **options: Any) -> Any:
    """Declare a field of parameters: arrays, modules, and tuples or mappings of them.

    A bare annotation means the same; call this to give the field a default, a factory, a converter or a validator.

    Args:
        frozen: Whether the field starts out frozen, as by :meth:`Module.freeze` with its name; ``unfreeze`` makes it
            trainable. Default: ``False``.
        **options: What :func:`attrs.field` accepts.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Scale(fl.Module):
    ...     factor: mx.array = fl.parameter(factory=lambda: mx.ones(3))
    >>> Scale()
    Scale(factor=f32[3])
    """
    _require_none("parameter", given)
    return _field("parameter", options, {FROZEN: frozen})


def buffer(*given: NoReturn, persistent: bool = True, cast: bool | None = None, **options: Any) -> Any:
    """Declare a field of arrays that belong to the model but are never trained, such as running statistics.

    A buffer is a leaf of the tree like a parameter: it is cast, mapped and passed through ``jit``. It is not among the
    trainable parameters, frozen or not. A call of the module gives it another value with :func:`record`:
    ``fl.record(self, seen=self.seen + 1)``, and :func:`stateful` returns the model that has it.

    Args:
        persistent: Whether the arrays are among :meth:`Module.parameters` and are saved with them. ``False`` is for what is
            computed again when a model is built, such as rotary tables. Default: ``True``.
        cast: Whether :meth:`Module.astype` casts the arrays by default. ``False`` is for numbers that half precision would
            ruin, such as an optimizer's learning rate: they are cast only if the caller gives a predicate of their own that
            says so, or selects them. Default: it does, but :class:`Policy` casts no buffer of a module in training mode that is
            persistent, since what is recorded would lose its small changes; ``True`` is for one that is only read.
        **options: What :func:`attrs.field` accepts.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Count(fl.Module):
    ...     seen: mx.array = fl.buffer(factory=lambda: mx.array(0))
    >>> list(Count().parameters()), list(Count().trainable_parameters())
    (['seen'], [])
    """
    _require_none("buffer", given)
    return _field("buffer", options, {PERSISTENT: persistent, CAST: cast})


def static(*given: NoReturn, **options: Any) -> Any:
    """Declare a field of metadata: a hashable value that is part of the model's structure and never an array.

    Two models have the same structure only if their static values are equal, so ``jit`` traces again when one differs.
    Lists, dicts and sets are allowed too: they are made immutable. ``dict(model.config)`` is a dict again, for ``json.dumps``
    and others that take nothing else; what is inside is immutable too.

    Args:
        **options: What :func:`attrs.field` accepts.

    Raises:
        TypeError: When the module is built, if the value holds an array or can't be hashed.

    >>> import frostleaf as fl
    >>> class Power(fl.Module):
    ...     exponent: int = fl.static(default=2)
    >>> Power(3)
    Power(exponent=3)
    """
    _require_none("static", given)
    return _field("static", options, {})


def _require_none(kind: str, given: tuple[object, ...]) -> None:
    """Raise a ``TypeError`` if anything was given by position, as a default is in other libraries."""
    if given:
        shown = describe(given[0])
        raise TypeError(
            f"fl.{kind} takes no positional arguments, and was given {shown}. A default is fl.{kind}(default={shown})"
        )


def kind(attribute: attrs.Attribute[Any]) -> str:
    """Return ``"parameter"``, ``"buffer"`` or ``"static"``."""
    return str(attribute.metadata.get(KIND, "parameter"))


def is_parameter(attribute: attrs.Attribute[Any]) -> bool:
    """Return whether the field's arrays are trained unless they are frozen."""
    return kind(attribute) == "parameter" and not attribute.name.startswith("_")


def is_bare(attribute: attrs.Attribute[Any]) -> bool:
    """Return whether the field holds parameters, and nothing but an annotation declares it."""
    return is_parameter(attribute) and KIND not in attribute.metadata


def persistent(attribute: attrs.Attribute[Any]) -> bool:
    """Return whether the field's arrays are saved with the model's parameters."""
    return bool(attribute.metadata.get(PERSISTENT, True)) and not attribute.name.startswith("_")


def frozen(attribute: attrs.Attribute[Any]) -> bool:
    """Return whether the field starts out frozen."""
    return bool(attribute.metadata.get(FROZEN, False))


def cast(attribute: attrs.Attribute[Any]) -> bool:
    """Return whether the field's arrays are cast by default."""
    return attribute.metadata.get(CAST) is not False


def gives_meaning(attribute: attrs.Attribute[Any]) -> bool:
    """Return whether the arrays beside a static field mean something else if its value is another."""
    return bool(attribute.metadata.get(MEANING, False))


def is_state(attribute: attrs.Attribute[Any]) -> bool:
    """Return whether the field is a buffer of what a module may record, and not declared as one that is only read."""
    return kind(attribute) == "buffer" and persistent(attribute) and attribute.metadata.get(CAST) is None


def _field(kind: str, options: dict[str, Any], marks: dict[str, Any]) -> Any:
    options["metadata"] = {**(options.get("metadata") or {}), KIND: kind, **marks}
    return attrs.field(**options)


def is_array(field: attrs.Attribute[Any]) -> bool:
    """Return whether a field is declared to hold one array, or ``None`` in its place."""
    names = _annotated(field)
    return bool(names) and names <= {"mx.array", "mlx.core.array"}


def may_be_number(field: attrs.Attribute[Any]) -> bool:
    """Return whether a field is declared to hold a number, among other things."""
    return not _annotated(field).isdisjoint({"bool", "int", "float", "complex"})


def _annotated(field: attrs.Attribute[Any]) -> set[str]:
    """Return the names in a field's annotation, but for ``None`` and ``Optional``."""
    annotation: Any = field.type
    names = re.findall(r"[\w.]+", annotation if isinstance(annotation, str) else repr(annotation))
    return {*names} - {"class", "None", "NoneType", "Optional", "typing.Optional"}
