"""What to write for the names that Orbax and PyTorch Lightning have for a directory of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.words import by_name, nearest
from .habits import NO_LIKE, refusal

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

_KEPT_APART = "save these with a second Checkpointer as well, of another directory, with keep=None and its own every"
_EACH = "leave every= out of Checkpointer(...), and call save for the steps to save: if step % 5 == 0 or step == last"
_TREE = "give one tree, such as a dict of what there is, and after it the metrics: save(step, tree, metrics)"
_LIKE = "give restore(like), or restore(like, step), where like is a tree of the structure that was saved"

_ARGUMENTS = by_name(
    {
        "give keep": "max_to_keep save_total_limit max_checkpoints keep_checkpoint_max",
        "give every": "save_interval_steps save_steps every_n_train_steps every_n_steps save_freq save_every period",
        "give every, in the steps that save(step, tree) counts": "every_n_epochs",
        "give best, the name of a metric, and metrics to save(step, tree, metrics)": "best_fn",
        "give best, the name of a metric": "metric_for_best_model monitor metric best_metric",
        "give mode": "best_mode",
        "give mode='max', or mode='min'": "greater_is_better",
        "give best and keep_best, and keep for the latest ones besides": "save_top_k keep_top_k",
        "give keep_best, and best, the name of a metric": "keep_n_best",
        "give best, the name of a metric, and keep=1: the latest one is kept besides": "save_best_only",
        "give keep, every, best and mode by themselves": "options",
        "give it first, as directory": "dirpath path root root_dir ckpt_dir checkpoint_dir output_dir folder",
        "leave it out: the files are step-00000010.safetensors": "filename prefix step_prefix step_name_format",
        "leave it out: the first save creates the directory": "create",
        "leave it out: what was left by a process that was killed is removed": "cleanup cleanup_tmp_directories",
        "leave it out: a background thread writes, and wait() waits for it": "async_save enable_async_checkpointing",
        "leave it out: a step that is saved again is replaced": "overwrite force enable_version_counter",
        "leave it out: the latest ones are kept, and keep says how many": "save_last",
        "leave it out, and give the model alone to save(step, model)": "save_weights_only",
        "save one tree, such as a dict of what there is": "item_names item_handlers",
        _KEPT_APART: "keep_period keep_time_interval keep_every_n_steps keep_checkpoint_every_n_hours",
    }
)
_KNOWN = "directory", "keep", "every", "best", "mode", "keep_best", "group"

_OF_SAVE = by_name(
    {
        _EACH: "force",
        _TREE: "args items item state params save_kwargs",
        "leave it out: a step that is saved again is replaced": "overwrite",
        "put it into the tree, as json.dumps(...) of it": "custom_metadata metadata",
    }
)
_RESTORE = "its arguments are like, step, where, strict and rename"
_OF_RESTORE = by_name({_LIKE: "args items item target restore_kwargs abstract_state"})


def refusal_of_arguments(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives arguments that ``Checkpointer`` doesn't have."""
    return refusal("Checkpointer()", names[0], _ARGUMENTS, nearest(names[0], _KNOWN))


def refusal_without_tree(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives ``Checkpointer.save`` no tree, but perhaps the parts of one by name."""
    if names and names[0] in _OF_SAVE:
        return refusal_in_save(names)
    parts = ", ".join(f"{name!r}: {name}" for name in names)
    tree = f"{{{parts:.800}}}" if parts else "tree"
    return f"save() takes a step and a tree: write save(step, {tree})"


def refusal_in_save(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives arguments that ``Checkpointer.save`` doesn't have: metrics, most likely."""
    metrics = ", ".join(f"{name!r}: ..." for name in names)
    return refusal("save()", names[0], _OF_SAVE, f": give metrics={{{metrics}}}")


def refusal_in_restore(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives arguments that ``Checkpointer.restore`` doesn't have."""
    return refusal("restore()", names[0], _OF_RESTORE, f": {_RESTORE}")


def refusal_without_like(names: Sequence[str]) -> str:
    """Return what is to be said to one who gives ``Checkpointer.restore`` no tree."""
    return refusal_in_restore(names) if names else NO_LIKE.format(call="restore(like)")
