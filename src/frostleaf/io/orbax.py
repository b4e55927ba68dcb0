"""What to write for the names that Orbax and PyTorch Lightning have for a directory of checkpoints."""

from __future__ import annotations

from collections.abc import Collection

from ..core.words import nearest

# Of methods and attributes.
INSTEAD = {
    "all_steps": "write steps()",
    "wait_until_finished": "write wait()",
    "check_for_errors": "write wait(), which raises them; so does the next call of any method",
    "close": "write wait(), or use it in a with block; the lock is let go when the Checkpointer is dropped",
    "load": "write restore(like), which returns the step and the tree",
    "restore_latest": "write restore(like), which restores the latest",
    "restore_best": "write restore(like, step=checkpoints.best_step())",
    "latest": "write latest_step(), or restore(like), which restores the latest",
    "latest_checkpoint": "write latest_step(), or restore(like), which restores the latest",
    "best": "write best_step()",
    "best_checkpoint": "write best_step(), and restore(like, step=checkpoints.best_step())",
    "best_model_path": "write best_step(), and restore(like, step=checkpoints.best_step())",
    "save_checkpoint": "write save(step, tree)",
    "should_save": "give every=, and call save(step, tree) at each step, which returns whether it saves",
    "directory": "keep the path that it was given; repr shows it",
    "item_metadata": "write metrics(step) or info()",
    "delete": "remove the files of the step, those that begin with its name: others don't need them",
    "reload": "leave it out: each method looks at the directory",
}

_ARGUMENTS = {
    "max_to_keep": "give keep",
    "save_interval_steps": "give every",
    "best_fn": "give best, the name of a metric, and metrics to save(step, tree, metrics)",
    "best_mode": "give mode",
    "save_top_k": "give best and keep_best, and keep for the latest ones besides",
    "keep_n_best": "give keep_best, and best, the name of a metric",
    "save_total_limit": "give keep",
    "metric_for_best_model": "give best, the name of a metric",
    "greater_is_better": "give mode='max', or mode='min'",
    "save_steps": "give every",
    "async_save": "leave it out: a background thread writes, and wait() waits for it",
    "monitor": "give best, the name of a metric",
    "options": "give keep, every, best and mode by themselves",
    "create": "leave it out: the first save creates the directory",
    "step_prefix": "leave it out: the files are step-00000010.safetensors",
    "item_names": "save one tree, such as a dict of what there is",
    "enable_async_checkpointing": "leave it out: a background thread writes, and wait() waits for it",
}
_KNOWN = "directory", "keep", "every", "best", "mode", "keep_best", "group"


def refusal_of_argument(name: str) -> str:
    """Return what is to be said to one who gives an argument that ``Checkpointer`` doesn't have."""
    advice = f": {_ARGUMENTS[name]}" if name in _ARGUMENTS else nearest(name, _KNOWN)
    return f"Checkpointer() takes no argument {name!r}{advice}"


def refusal_without_tree(names: Collection[str]) -> str:
    """Return what is to be said to one who gives ``Checkpointer.save`` no tree, but perhaps the parts of one by name."""
    parts = ", ".join(f"{name!r}: {name}" for name in names)
    return f"save() takes a step and a tree: write save(step, {'{' + parts + '}' if parts else 'tree'})"


def refusal_in_save(name: str) -> str:
    """Return what is to be said to one who gives an argument that ``Checkpointer.save`` doesn't have: a metric, most likely."""
    return f"save() takes no argument {name!r}: give metrics={{{name!r}: ...}}"
