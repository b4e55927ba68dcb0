"""What to write for the arguments that the functions of PyTorch, Equinox, NumPy and MLX have for files of trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def refusal(function: str, name: str, instead: Mapping[str, str], otherwise: str) -> str:
    """Return what is to be said to one who gives a function an argument that it doesn't have.

    Args:
        function: The function.
        name: The name of the argument.
        instead: What to write, by the names for which that is known.
        otherwise: How the message ends for another name.
    """
    ending = f": {instead[name]}" if name in instead else otherwise
    return f"{function} takes no argument {name!r:.80}{ending:.800}"


def refusal_in_save(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives arguments that ``save`` doesn't have: trees, most likely."""
    trees = ", ".join(f"{name!r}: ..." for name in names)
    return refusal("fl.save", names[0], _OF_SAVE, f": give one tree, as in fl.save(path, {{{trees}}})")


def refusal_in_load(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives arguments that ``load`` doesn't have."""
    return refusal("fl.load", names[0], _OF_LOAD, nearest(names[0], _KNOWN))


def refusal_without_like(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives ``load`` no tree."""
    return refusal_in_load(names) if names else NO_LIKE.format(call="fl.load(path, like)")
