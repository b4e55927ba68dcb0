"""What to write for the arguments that the functions of PyTorch, Equinox, NumPy and MLX have for files of trees."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.words import by_name, nearest

_OF_SAVE = by_name(
    {
        "leave it out: a file that is there is replaced": "overwrite force",
        "leave it out: safetensors are written, and no pickles": "pickle_module pickle_protocol allow_pickle",
        "save what you want of the tree, as with fl.tree.filter": "filter_spec",
        "leave it out: arrays are the leaves": "is_leaf",
    }
)
_OF_LOAD = by_name(
    {
        "leave it out: the CPU and the GPU have the same memory": "map_location device",
        "leave it out: nothing of a file is run": "weights_only pickle_module allow_pickle",
        "give where, which selects what to read": "filter_spec",
        "leave it out: arrays are the leaves": "is_leaf",
        "give like, a tree of the same structure": "target item template",
        "leave it out: what was saved has its dtypes, and what is loaded is cast by .astype(...)": "dtype",
        "leave it out: fl.load_metadata(path) returns them": "return_metadata",
        "leave it out: fl.load reads what fl.save wrote": "format",
    }
)
NO_LIKE = (
    "{call} takes as like a tree of the structure that was saved, such as a new model, or fl.eval_shape(make_model). Without "
    "one, mx.load(file) reads the arrays by their names"
)
_KNOWN = "path", "like", "where", "strict", "rename"


def refusal_in_save(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives arguments that ``save`` doesn't have: trees, most likely."""
    trees = ", ".join(f"{name!r}: ..." for name in names)
    advice = _OF_SAVE.get(names[0], f"give one tree, as in fl.save(path, {{{trees}}})")
    return f"fl.save takes no argument {names[0]!r:.80}: {advice:.800}"


def refusal_in_load(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives arguments that ``load`` doesn't have."""
    advice = f": {_OF_LOAD[names[0]]}" if names[0] in _OF_LOAD else nearest(names[0], _KNOWN)
    return f"fl.load takes no argument {names[0]!r:.80}{advice}"


def refusal_without_like(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives ``load`` no tree."""
    return refusal_in_load(names) if names else NO_LIKE.format(call="fl.load(path, like)")
