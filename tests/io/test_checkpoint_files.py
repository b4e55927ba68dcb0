"""Which files a checkpoint needs, whatever its head looks like: none of them is ever removed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import files_in, left_over

import frostleaf as fl
from frostleaf.io import atomic, checkpointer, parts, safetensors, saving

LIKE = {"still": mx.zeros(5000), "changes": mx.zeros(5000)}
STILL = mx.arange(5000).astype(mx.float32)


def tree_of(step: int) -> dict[str, mx.array]:
    return {"still": STILL, "changes": mx.full(5000, float(step))}


def head_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def save(folder: Path, *steps: int, keep: int | None = None, metrics: Any = None) -> fl.Checkpointer:
    with fl.Checkpointer(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, tree_of(step), metrics)
    return checkpoints


def check(folder: Path, *steps: int) -> None:
    checkpoints = fl.Checkpointer(folder)
    assert checkpoints.steps() == [*steps]
    for step in steps:
        assert fl.tree.equal(checkpoints.restore(LIKE, step), (step, tree_of(step)))


def rewritten(head: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write a file's header as another tool may, which says the same in another way."""
    content = head.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    text = json.dumps(changed(json.loads(content[8:end]))).encode()
    head.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def metadata_in_order(header: dict[str, Any]) -> dict[str, Any]:
    return {**header, "__metadata__": dict(sorted(header["__metadata__"].items()))}


@pytest.mark.parametrize("count", [0, 90, 105, 120, 1000])
def test_a_checkpoint_with_many_metrics_keeps_its_files(count: int, tmp_path: Path) -> None:
    metrics = {f"accuracy/class_{number:03d}": 0.123456789 for number in range(count)}
    assert save(tmp_path, 1, 2, metrics=metrics).metrics(2) == metrics
    save(tmp_path, 3)  # another run, which cleans up
    check(tmp_path, 1, 2, 3)
    assert not left_over(tmp_path)
    assert [len(each.metrics) for each in fl.Checkpointer(tmp_path).info()] == [count, count, 0]
    save(tmp_path, 4, keep=1)
    check(tmp_path, 4)
    assert not left_over(tmp_path)


@pytest.mark.parametrize("order", [metadata_in_order, lambda header: dict(reversed(header.items()))], ids=["keys", "all"])
def test_a_checkpoint_whose_header_was_written_by_others_keeps_its_files(order: Any, tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    rewritten(head_of(tmp_path, 2), order)
    save(tmp_path, 3)
    check(tmp_path, 1, 2, 3)


def test_what_is_not_known_is_not_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    before = {*files_in(tmp_path)}
    with safetensors.open_regular(head_of(tmp_path, 2)) as file:
        metadata = safetensors.read_header(file).metadata
    without = {key: text for key, text in metadata.items() if "summary" not in key and not key.startswith("crc32")}
    safetensors.write(str(head_of(tmp_path, 2)), {}, without)
    save(tmp_path, 3)
    assert before <= {*files_in(tmp_path)}
    check(tmp_path, 1, 2, 3)


# While others write


class Model(fl.Module):
    still: mx.array
    changes: mx.array


READS: dict[str, Callable[[Path], Any]] = {
    "the last": lambda folder: fl.Checkpointer(folder).restore(LIKE)[1]["changes"],
    "a step": lambda folder: fl.Checkpointer(folder).restore(LIKE, 2)[1]["changes"],
    "a part": lambda folder: fl.Checkpointer(folder).restore(LIKE, where="changes")[1]["changes"],
    "load": lambda folder: fl.load(head_of(folder, 2), LIKE)["changes"],
    "weights": lambda folder: Model(*LIKE.values()).load_weights(str(head_of(folder, 2))).changes,
    "the differences": lambda folder: mx.array(7 * len(fl.Checkpointer(folder).diff(1, 2))),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", READS)
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    other, opened = fl.Checkpointer(tmp_path, keep=None), parts.open_regular
    other.restore(LIKE, 2)

    def replaced(path: Any) -> Any:
        if "step-00000002-" in str(path):
            monkeypatch.setattr(parts, "open_regular", opened)
            other.save(2, {**tree_of(7), "still": STILL})
            other.wait()
            assert not Path(path).exists()
        return opened(path)

    monkeypatch.setattr(parts, "open_regular", replaced)
    assert (READS[name](tmp_path) == 7).all()
    assert parts.open_regular is opened


def test_one_that_is_saved_again_after_it_was_removed_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, 2)
    read, again = checkpointer.read, []

    def removed(path: str, *given: Any) -> Any:
        if "step-00000002." in path and not again:
            again.append(head_of(tmp_path, 2).read_bytes())
            save(tmp_path, 2)
            raise FileNotFoundError(path)
        return read(path, *given)

    monkeypatch.setattr(checkpointer, "read", removed)
    assert fl.Checkpointer(tmp_path).restore(LIKE)[0] == 2


@pytest.mark.parametrize("before", [True, False])
def test_files_that_are_removed_while_they_are_counted_are_no_error(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, stat = save(tmp_path, 1, 2), os.stat
    gone = f"{head_of(tmp_path, 1)}"

    def pruned(path: Any, **options: Any) -> Any:
        status = None if before else stat(path, **options)
        if path == gone and os.path.lexists(gone):
            os.unlink(gone)
        return status or stat(path, **options)

    monkeypatch.setattr(os, "stat", pruned)
    assert [each.step for each in checkpoints.info()][-1] == 2


# Failures, and copies


def fail_when(monkeypatch: pytest.MonkeyPatch, fails: Callable[[str], bool]) -> None:
    """Let the disk fail to flush some paths."""
    fsync = atomic.fsync

    def failing(path: str) -> None:
        if fails(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(path)

    monkeypatch.setattr(atomic, "fsync", failing)


@pytest.mark.parametrize("step", [3, 2], ids=["new", "replaced"])
def test_a_checkpoint_whose_directory_could_not_be_flushed_is_whole(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = fl.Checkpointer(tmp_path, keep=2)
    for each in (1, 2):
        checkpoints.save(each, tree_of(each))
    checkpoints.wait()
    before = head_of(tmp_path, step).read_bytes() if step == 2 else None
    with monkeypatch.context() as patch:
        head = head_of(tmp_path, step)
        fail_when(patch, lambda path: path == str(tmp_path) and head.exists() and head.read_bytes() != before)
        checkpoints.save(step, {**tree_of(step), "still": STILL})
        with pytest.raises(fl.CheckpointError, match=rf"step {step} could not be saved in .*: .*Input/output error"):
            checkpoints.wait()
    check(tmp_path, *range(1, step + 1))
    checkpoints.save(step + 1, tree_of(step + 1))
    checkpoints.wait()
    check(tmp_path, step, step + 1)
    assert not left_over(tmp_path)


def test_what_a_failed_checkpoint_could_not_remove_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = fl.Checkpointer(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree_of(step)), checkpoints.wait()
    with monkeypatch.context() as patch:
        fail_when(patch, lambda path: "step-00000003.safetensors" in path)
        patch.setattr(os, "rmdir", lambda *given, **options: os.listdir("/nothing"))
        checkpoints.save(3, tree_of(3))
        with pytest.raises(fl.CheckpointError, match="step 3 could not be saved"):
            checkpoints.wait()
        assert left_over(tmp_path)
    checkpoints.save(4, tree_of(4)), checkpoints.wait()
    check(tmp_path, 1, 2, 4)
    assert not left_over(tmp_path)


@pytest.mark.parametrize("step", [3, 2], ids=["new", "replaced"])
def test_a_head_that_can_not_be_read_after_it_was_written_keeps_its_files(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, head, opened = fl.Checkpointer(tmp_path, keep=2), head_of(tmp_path, step), os.open
    for each in (1, 2):
        checkpoints.save(each, tree_of(each)), checkpoints.wait()
    before = head.read_bytes() if step == 2 else None

    def fails(path: Any, *given: Any, **options: Any) -> int:
        if os.path.dirname(path) == str(tmp_path) and os.fspath(path) == str(head):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return opened(path, *given, **options)

    with monkeypatch.context() as patch:
        fail_when(patch, lambda path: path == str(tmp_path) and head.exists() and head.read_bytes() != before)
        replace = os.replace
        patch.setattr(os, "replace", lambda *given: (replace(*given), patch.setattr(os, "open", fails)))
        checkpoints.save(step, {**tree_of(step), "still": STILL})
        with pytest.raises(fl.CheckpointError, match=f"step {step} could not be saved"):
            checkpoints.wait()
    check(tmp_path, *range(1, step + 1))
    for each in (4, 5):
        checkpoints.save(each, tree_of(each)), checkpoints.wait()
    check(tmp_path, 4, 5)
    assert not left_over(tmp_path)


def test_a_disk_that_fails_for_a_moment_takes_no_checkpoint_from_those_that_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = fl.Checkpointer(tmp_path, keep=2)
    for step in range(1, 8):
        with monkeypatch.context() as patch:
            if step == 3:
                patch.setattr(saving.Saving, "_prune", failing_for(tmp_path, saving.Saving._prune))
            checkpoints.save(step, tree_of(step)), checkpoints.wait()
    check(tmp_path, 6, 7)
    assert not left_over(tmp_path)


def failing_for(folder: Path, function: Any) -> Any:
    """Return a function during which the disk knows nothing of a directory."""

    def call(*given: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("stat", "listdir", "scandir"):
                patch.setattr(os, name, fails(getattr(os, name)))
            function(*given)

    def fails(of_os: Any) -> Any:
        def call(path: Any, *given: Any, **options: Any) -> Any:
            if os.fspath(path) == str(folder):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return of_os(path, *given, **options)

        return call

    return call


def test_a_step_that_could_not_be_saved_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = save(tmp_path, 1)
    with monkeypatch.context() as patch:
        fail_when(patch, lambda path: "step-00000050" in path)
        checkpoints.save(50, tree_of(50))
        with pytest.raises(fl.CheckpointError, match="step 50 could not be saved"):
            checkpoints.wait()
    checkpoints.save(40, tree_of(40))
    checkpoints.wait()
    check(tmp_path, 1, 40)
    with pytest.raises(fl.CheckpointError, match="step 39 comes before step 40"):
        checkpoints.save(39, tree_of(39))


@pytest.mark.parametrize("name", ["best.safetensors", "best", "step-00000002.safetensors.bak", ".best.ckpt"])
def test_what_a_copy_of_a_head_names_stays_for_as_long_as_it(name: str, tmp_path: Path) -> None:
    checkpoints = fl.Checkpointer(tmp_path, keep=1)
    best, renamed = tmp_path / name, head_of(tmp_path, 70)
    for step in range(1, 7):
        checkpoints.save(step, tree_of(step))
        checkpoints.wait()
        if step == 2:
            best.write_bytes(head_of(tmp_path, 2).read_bytes())
    head_of(tmp_path, 6).rename(renamed)
    checkpoints.save(7, tree_of(7))
    checkpoints.__exit__(None, None, None)
    for step in (71, 72):  # in runs that clean up
        assert fl.tree.equal(fl.load(best, LIKE), tree_of(2))
        assert fl.tree.equal(fl.load(renamed, LIKE), tree_of(6))
        save(tmp_path, step)
    best.unlink(), renamed.unlink()
    save(tmp_path, 73, keep=1)
    check(tmp_path, 73)
    assert not left_over(tmp_path)


def test_while_a_copy_of_a_head_can_not_be_read_nothing_that_it_may_name_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, best, opened = fl.Checkpointer(tmp_path, keep=1), tmp_path / "best.safetensors", os.open

    def fails(path: Any, *given: Any, **options: Any) -> int:
        if os.fspath(path) == str(best):
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *given, **options)

    for step in range(1, 6):
        checkpoints.save(step, tree_of(step)), checkpoints.wait()
        if step == 2:
            best.write_bytes(head_of(tmp_path, 2).read_bytes())
            monkeypatch.setattr(os, "open", fails)
        if step == 3:
            monkeypatch.undo()
    assert fl.tree.equal(fl.load(best, LIKE), tree_of(2))
    best.unlink()
    checkpoints.save(6, tree_of(6)), checkpoints.wait()
    assert not left_over(tmp_path)


def test_two_who_save_one_step_leave_nothing_that_none_needs(tmp_path: Path) -> None:
    one, other = fl.Checkpointer(tmp_path, keep=1), fl.Checkpointer(tmp_path, keep=1)
    fl.eval(trees := [tree_of(step) for step in range(12)])
    for step, tree in enumerate(trees):
        one.save(step, tree)
        other.save(step, tree)
    one.wait(), other.wait()
    one.save(12, trees[0]), one.wait()
    other.save(13, trees[0]), other.wait()
    assert not left_over(tmp_path)


def test_a_head_that_has_the_name_of_another_step_is_said_to_be_another(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    head_of(tmp_path, 1).write_bytes(head_of(tmp_path, 3).read_bytes())
    with pytest.raises(fl.CheckpointError, match=r"step-00000001\.safetensors: .* of step 3, and its name says step 1"):
        fl.Checkpointer(tmp_path).restore(LIKE, 1)
    assert fl.tree.equal(fl.load(head_of(tmp_path, 1), LIKE), tree_of(3))
    assert fl.Checkpointer(tmp_path).restore(LIKE, 3)[0] == 3


def test_a_directory_of_links_to_a_store_is_read(tmp_path: Path) -> None:
    store, links = tmp_path / "store", tmp_path / "links"
    save(store, 1, 2)
    links.mkdir()
    for number, name in enumerate(sorted(files_in(store))):
        (links / name).parent.mkdir(exist_ok=True)
        (links / name).symlink_to(f"{store}/{number}")
        (store / name).rename(store / str(number))
    check(links, 1, 2)
    assert fl.tree.equal(fl.load(head_of(links, 2), LIKE), tree_of(2))
    assert (Model(*LIKE.values()).load_weights(str(head_of(links, 2))).changes == 2).all()


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may write everywhere")
def test_a_lock_that_somebody_else_made_is_shared(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".frostleaf-lock").chmod(0o444)
    save(tmp_path, 2)
    check(tmp_path, 1, 2)


def test_what_reads_all_files_of_a_model_in_any_order_finds_none_and_is_given_others(tmp_path: Path) -> None:
    layer = fl.nn.Linear(80, 80)
    new = layer.at("bias").set(mx.ones(80))
    with fl.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, layer)
        checkpoints.save(2, new)
    (folder,) = tmp_path.glob("step-00000002-*")
    assert len([*folder.glob("*.safetensors")]) == 2
    assert not [*folder.glob("model*.safetensors")]  # as mlx_lm.utils.load_model looks for them
    fl.nn.Linear(80, 80).load_weights(head_of(tmp_path, 2)).save_weights(tmp_path / "model", max_shard_bytes=10_000)
    arrays: dict[str, mx.array] = {}
    for file in (tmp_path / "model").glob("model*.safetensors"):
        arrays.update(mx.load(str(file)))
    assert fl.tree.equal(fl.nn.Linear(80, 80).load_weights(arrays), new)
