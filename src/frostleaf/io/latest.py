"""Restore the checkpoint that was saved last, or the one before it, if that can't be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from ..core.words import level_of_caller, listed
from .directory import Directory
from .safetensors import CheckpointError
from .trees import OtherStructureError

T = TypeVar("T")


def restore_latest(directory: Directory, broken: set[tuple[int, int]], load_step: Callable[[int], T]) -> tuple[int, T]:
    """Return the step that was saved last, of those that can be read, and what is read of it.

    Args:
        directory: The directory.
        broken: To this the times and steps of those that can't be read are added.
        load_step: Reads a step.

    Raises:
        NoCheckpointError: If there is none.
        CheckpointError: If none can be read, or one is of another structure.

    Warns:
        RuntimeWarning: Of each that can't be read.
    """
    reasons: dict[tuple[int, int], str] = {}  # by time and step, as another may have been saved meanwhile
    is_complete = False
    while not is_complete:
        is_complete = True
        for each in directory.from_the_latest():
            if each in reasons:
                continue
            step = each[1]
            try:
                return step, load_step(step)
            except FileNotFoundError:
                reasons[each] = "it was removed while it was to be read"
                is_complete = False  # others save and prune: what is there now?
                break
            except OtherStructureError:
                raise
            except (CheckpointError, OSError) as error:
                reasons[each] = str(error)
                broken.add(each)
                message = f"the checkpoint of step {step} is passed over: {error}"
                warnings.warn(message, RuntimeWarning, stacklevel=level_of_caller())
    if reasons:
        lines = listed(reasons.values(), separator="\n")
        raise CheckpointError(f"{directory.path} has no checkpoint that can be restored:\n{lines}")
    directory.no_checkpoint()
