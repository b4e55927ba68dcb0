"""The names of a checkpoint's files, and what to open in the place of a name that is none."""

from __future__ import annotations

import errno
import os
import re

from .first_bytes import identify

_STEP = r"[0-9]{8}|[1-9][0-9]{8,}"
HEAD = re.compile(rf"step-({_STEP})\.safetensors")
# What the names of all files of a checkpoint begin with, besides the head's.
CHECKPOINT = rf"step-(?P<step>{_STEP})-[0-9a-f]{{8}}"
# A directory, or what earlier versions have written instead: files.
BESIDE = re.compile(rf"(?P<checkpoint>{CHECKPOINT})(?:-\d+\.safetensors|\.safetensors\.index\.json)?")

_ENDING = ".safetensors"
_PART = "is a part of the checkpoint {head}, and may have arrays of earlier steps: {advice}"
_INDEX = ".safetensors.index.json"
_OF_HEAD = (
    "is the index of a checkpoint's weights: fl.load reads the tree in {head!r}, model.load_weights({path!r}) the weights"
)
_OTHER = "is no file of fl.save, which fl.load reads: model.load_weights({path!r}) reads weights from it"
_OF_CHECKPOINTS = "is a directory of checkpoints: fl.Checkpointer({path!r}).restore(like) reads the last, fl.load a file {head}"
_OF_WEIGHTS = "is a directory: of weights, model.load_weights({path!r}) reads them"


def head_of(path: str) -> str | None:
    """Return the path of a checkpoint's head for that of a file which is one of its parts by its name, or its directory's."""
    directory = os.path.dirname(path)
    for place in (path, directory):
        found = BESIDE.fullmatch(os.path.basename(place))
        if found:
            return os.path.join(os.path.dirname(place), f"step-{found['step']}{_ENDING}")
    return None


def refusal_of_part(path: str) -> str:
    """Return why a file is not to be read by itself, or with others; an empty string if it is no part of a checkpoint."""
    head = head_of(path) if path.endswith(_ENDING) else None
    if head is None:
        return ""
    there = os.path.exists(head)
    return _PART.format(head=os.path.basename(head), advice="give that" if there else "copy that here too, and give it")


def refusal_of_format(path: str) -> str:
    """Return what reads a file whose name or first bytes are those of something else than a tree; else an empty string.

    Raises:
        CheckpointError: If it is a directory, a pipe or a device.
    """
    if not os.path.exists(path):
        return ""
    found, other = identify(path)
    if other or found == _ENDING or not (found or path.endswith((_INDEX, ".npz", ".gguf"))):
        return other
    head = head_of(path)
    return (_OF_HEAD if head and os.path.exists(head) else _OTHER).format(path=path, head=head)


def refusal_of_directory(path: str) -> str:
    """Return why a directory can't be loaded as a tree, and what to write."""
    head = max(filter(HEAD.fullmatch, os.listdir(path)), default=None)
    return (_OF_WEIGHTS if head is None else _OF_CHECKPOINTS).format(path=path, head=head)


def require_there(path: str) -> None:
    """Raise an error if there is no file of a name, but one that also has the ending of fl.save's examples.

    Raises:
        FileNotFoundError: In that case.
    """
    if not os.path.lexists(path) and os.path.exists(path + _ENDING):
        advice = f"{os.strerror(errno.ENOENT)}, but one whose name ends in {_ENDING}"
        raise FileNotFoundError(errno.ENOENT, advice, path)
