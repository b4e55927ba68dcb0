"""What works where an optimizer is to adapt the state of another: one around it, one in it, or one that remembers the same."""

from __future__ import annotations

from typing import Any

from ..core.definition import Node

_INSIDE = ". That is a state of the optimizer in this one: opt.init(model).replace(inner=state) goes on from it"
_AROUND = ". state.inner is one: give that"
_NOT_FLATTENED = (
    ". What an array remembers lies elsewhere in the state of a flattened optimizer, so that one can't become the other: go on "
    "with the optimizer that isn't flattened, or begin anew with opt.init(model)"
)
_FLATTENED = (
    ". What an array remembers lies elsewhere in the state of a flattened optimizer, so that one can't become the other: go on "
    "with fl.optim.flatten(opt), or begin anew with opt.init(model)"
)
_ONE_MEANING = {"Adam", "AdamW"}  # of the same slots
_SAME = ". Both remember the same: give state.replace(rule={rule!r})"
_ANEW = ". These remember something else: begin anew with opt.init(model)"


def advice_on_state(opt: Any, state: Any) -> str:
    """Return what to write where an optimizer can't adapt a state; an empty string if that isn't known."""
    if not isinstance(state, Node):
        return ""
    own, given = opt.__state__.__frostleaf__.fields, state.__frostleaf__.fields
    if "division" in own or "division" in given:  # of shards, which are gathered and scattered
        return ""
    if "inner" in own and hasattr(opt, "optimizer") and _takes(opt.optimizer, state):
        return _INSIDE
    if "inner" in given and _takes(opt, state.inner):  # type: ignore[attr-defined]
        return _AROUND
    if "slots" in own and "slots" in given and ("trained" in own) != ("trained" in given):
        return _NOT_FLATTENED if "trained" in own else _FLATTENED
    return ""


def advice_on_rule(given: str, rule: str) -> str:
    """Return what to write where the state of one rule is to be adapted to another."""
    return _SAME.format(rule=rule) if {given, rule} <= _ONE_MEANING else _ANEW


def _takes(opt: Any, state: Any) -> bool:
    try:
        opt._require_state(state, "adapt")
    except TypeError:
        return False
    return True
