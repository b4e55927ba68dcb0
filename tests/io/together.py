"""Checks of checkpoints that several ranks save and restore together, run by each of them."""

import atexit
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import mlx.core as mx
import ranks

import frostleaf as fl

GROUP = fl.distributed.init()
RANK, SIZE = GROUP.rank(), GROUP.size()
DTYPES = [
    mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.uint32, mx.int32, mx.uint64, mx.int64, mx.float16, mx.bfloat16,
    mx.float32, mx.complex64,
]  # fmt: skip


def folder_of_all():
    """Return a directory that rank 0 has made, and a path of that name that other ranks could not make: no disk is shared."""
    if RANK:
        return "/dev/null/nowhere"
    here = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, here)
    return os.path.join(here, "checkpoints")


def tree(step):
    return {"w": mx.full((2, 3), float(step)), "step": step}


LIKE = {"w": fl.ShapeDtypeStruct((2, 3)), "step": 0}


def works():
    return fl.distributed.all_sum(mx.array(1)).item() == SIZE


def check_all_ranks_see_the_same():
    with fl.Checkpointer(folder_of_all(), keep=2, every=2, best="loss", group=GROUP) as checkpoints:
        for step in range(7):
            # What others give is not looked at, as their losses differ.
            metrics = {"loss": abs(step - 2)} if RANK == 0 else {"loss": step}
            assert checkpoints.save(step, tree(step), metrics) == (step % 2 == 0)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 6]
        assert checkpoints.best_step() == 2
        assert checkpoints.metrics(4) == {"loss": 2}
        found = checkpoints.info()
        assert [(each.step, each.metrics) for each in found] == [(2, {"loss": 0}), (4, {"loss": 2}), (6, {"loss": 4})]
        fl.distributed.require_same(mx.array([each.own for each in found]))
        assert [(each.path, each.kind) for each in checkpoints.diff(2, 4)] == [("w", "value")]
        assert fl.tree.equal(checkpoints.restore(LIKE), (6, tree(6)))
        assert fl.tree.equal(checkpoints.restore(LIKE, 4), (4, tree(4)))
        assert checkpoints.save(6, tree(6))
        assert repr(checkpoints).count("group=") == 1


def check_every_dtype_is_restored_bit_for_bit():
    keys = mx.random.split(mx.random.key(0), len(DTYPES))
    bits = [mx.random.randint(0, 256, (64,), mx.uint8, key=key) for key in keys]
    arrays = [(each > 127) if dtype == mx.bool_ else each.view(dtype) for each, dtype in zip(bits, DTYPES, strict=True)]
    shared = mx.arange(3)
    saved = {"dtypes": arrays, "empty": mx.zeros((0, 3)), "scalar": mx.array(7), "a": shared, "b": shared, "copy": mx.arange(3)}
    saved["others"] = (True, -(2**70), 0.1, 1j, "\ud800", b"\x00\xff", None)
    other = lambda value: value if value is None else type(value)()  # noqa: E731
    like = {**saved, "others": tuple(map(other, saved["others"]))}
    with fl.Checkpointer(folder_of_all(), group=GROUP) as checkpoints:
        checkpoints.save(1, saved)
        _, found = checkpoints.restore(fl.eval_shape(lambda: like))
    assert fl.tree.structure(found) == fl.tree.structure(saved)
    for ours, theirs in zip(fl.tree.leaves(found), fl.tree.leaves(saved), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert mx.array_equal(*(each.reshape(-1).view(mx.uint8) for each in (ours, theirs))).item() or not ours.size
    assert found["a"] is found["b"]
    assert found["copy"] is not found["a"]


def check_parts_are_restored():
    saved = {"a": mx.ones(2), "b": mx.zeros(3), "n": 5}
    mine = {"a": mx.full(2, 7.0), "b": mx.full(3, 7.0 + RANK), "n": 0}
    with fl.Checkpointer(folder_of_all(), group=GROUP) as checkpoints:
        checkpoints.save(1, saved)
        _, some = checkpoints.restore(mine, where=["a", "n"])
        assert some["b"] is mine["b"]  # what is not selected is this rank's own
        assert (some["a"].tolist(), some["n"]) == ([1, 1], 5)
        _, found, report = checkpoints.restore({"a": mine["a"], "c": mine["b"]}, strict=False)
        assert found["c"] is mine["b"]
        assert (report.taken, report.left, report.new) == (("a",), ("b", "n"), ("c",))


def check_what_has_another_name_is_restored():
    saved = {"encoder": {"w": mx.ones(2), "v": mx.zeros(3)}, "n": 5}
    like = {"backbone": {"w": mx.full(2, 7.0), "v": mx.full(3, 7.0 + RANK)}, "n": 0}
    by_name = {"encoder.w": "backbone.w", "encoder.v": "backbone.v"}
    with fl.Checkpointer(folder_of_all(), group=GROUP) as checkpoints:
        checkpoints.save(1, saved)
        for rename in (lambda name: name.replace("encoder", "backbone"), dict([*by_name.items()][:: 1 - 2 * (RANK % 2)])):
            _, found = checkpoints.restore(like, rename=rename)
            assert fl.tree.equal(found["backbone"], saved["encoder"])
            assert found["n"] == 5
            # Each process has its own order of a set.
            _, found = checkpoints.restore(like, where={"backbone.w", "n", "*.w", "**.w"}, rename=rename)
            assert found["backbone"]["v"] is like["backbone"]["v"]
        _, _, report = checkpoints.restore(like, rename=by_name, strict=False)
        assert report.taken == ("backbone.w", "backbone.v", "n")
        said = error(lambda: checkpoints.restore(like, rename=by_name if RANK else {"encoder.w": None}), ValueError)
        assert "rename= is dict('encoder.w': None) on rank 0 and dict('encoder.v': " in said
        assert "rename is a function" in error(lambda: checkpoints.restore(like, rename=3), TypeError)
        assert "rename gives 'x' for" in error(lambda: checkpoints.restore(like, rename=lambda name: "x"), ValueError)
        checkpoints.save(2, checkpoints.restore(like, rename=by_name)[1])
        assert fl.tree.equal(checkpoints.restore(like)[1]["backbone"], saved["encoder"])


def error(fn, kind):
    said = ranks.error_of(fn, kind)
    assert works()
    return said


def check_errors_are_raised_on_every_rank():
    folder = folder_of_all()
    with fl.Checkpointer(folder, keep=None, best="loss", group=GROUP) as checkpoints:
        assert "has no checkpoint; it has none" in error(lambda: checkpoints.restore(LIKE), fl.NoCheckpointError)
        checkpoints.save(1, tree(1))
        checkpoints.save(2, tree(2))
        assert "no checkpoint of step 9; it has 1, 2" in error(lambda: checkpoints.restore(LIKE, 9), FileNotFoundError)
        assert "no checkpoint of step 9" in error(lambda: checkpoints.metrics(9), fl.CheckpointError)
        assert "structure of like" in error(lambda: checkpoints.restore({"w": mx.zeros(2)}), fl.OtherStructureError)
        assert "selects nothing" in error(lambda: checkpoints.restore(LIKE, where="x"), LookupError)
        assert "comes before step 2" in error(lambda: checkpoints.save(1, tree(1)), fl.CheckpointError)
        error(lambda: checkpoints.save(3, tree(3), "x"), TypeError)
        assert "not among the metrics" in error(lambda: checkpoints.save(3, tree(3), {"a": 1}), ValueError)
        assert "can't keep" in error(lambda: checkpoints.save(3, {"w": object()}), ValueError)
        if RANK == 0:
            head = Path(folder) / "step-00000002.safetensors"
            content = head.read_bytes()
            head.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "damaged" in error(lambda: checkpoints.restore(LIKE, 2), fl.CheckpointError)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert checkpoints.restore(LIKE)[0] == 1
        assert [str(each.message)[:40] for each in caught] == ["the checkpoint of step 2 is passed over:"] * (RANK == 0)
        assert all(each.filename == __file__ for each in caught)
    if RANK == 0:
        Path(folder, "file").write_text("")
    error(lambda: fl.Checkpointer(f"{folder}/file", group=GROUP), FileExistsError)


def check_failures_in_the_background_are_raised_on_every_rank():
    folder = folder_of_all()
    checkpoints = fl.Checkpointer(folder, group=GROUP)
    checkpoints.save(1, tree(1))
    checkpoints.wait()
    if RANK == 0:
        Path(folder, "step-00000002.safetensors").mkdir()
    checkpoints.save(2, tree(2))
    assert "step 2 could not be saved" in error(checkpoints.wait, fl.CheckpointError)
    checkpoints.wait()


def check_what_differs_is_an_error_on_every_rank():
    with fl.Checkpointer(folder_of_all(), group=GROUP) as checkpoints:
        said = error(lambda: checkpoints.save(RANK, tree(1)), ValueError)
        assert re.search("the step is 0 on rank 0 and 1 on rank 1", said)
        said = error(lambda: checkpoints.save(1, {"w": mx.zeros(2 + RANK)}), ValueError)
        assert re.search(r"w is array f32\[2\] on rank 0 and array f32\[3\] on rank 1", said)
        said = error(checkpoints.steps if RANK else checkpoints.info, ValueError)
        assert "the function is Checkpointer.info on rank 0 and Checkpointer.steps on rank 1" in said
        checkpoints.save(1, tree(1))
        error(lambda: checkpoints.restore(LIKE, 1, strict=RANK == 0), ValueError)
        assert checkpoints.steps() == [1]
    said = error(lambda: fl.Checkpointer("x", keep=1 + RANK, group=GROUP), ValueError)
    assert "keep is 1 on rank 0 and 2 on rank 1" in said


def check_what_one_rank_alone_asks_for_says_to_ask_on_all():
    checkpoints = fl.Checkpointer(folder_of_all(), best="loss", group=GROUP)
    checkpoints.save(1, tree(1), {"loss": 1.0})
    for ask in (checkpoints.steps, checkpoints.best_step, checkpoints.latest_step, checkpoints.info):
        said = error(checkpoints.wait if RANK else ask, ValueError)
        assert f"Checkpointer.{ask.__name__} on rank 0 and Checkpointer.wait on rank 1" in said
        assert "before the `if`, on every rank, and print" in said
    checkpoints.wait()


def check_shards_are_refused():
    model = fl.distributed.fully_shard(fl.nn.Linear(3, 2 * 3 * SIZE))
    opt = fl.optim.shard(fl.optim.Adam(0.1), average=False)
    state = opt.init({"w": mx.zeros(12)})
    with fl.Checkpointer(folder_of_all(), group=GROUP) as checkpoints:
        said = error(lambda: checkpoints.save(1, [model]), ValueError)
        assert "0.module.weight is a shard of a larger array, 1/" in said
        assert "fl.distributed.gather(tree)" in said
        assert "sharded.gather(state)" in error(lambda: checkpoints.save(1, state), ValueError)
        checkpoints.save(1, (fl.distributed.gather(model), opt.gather(state)))
        assert checkpoints.steps() == [1]


def check_other_values_are_refused():
    whole = fl.nn.Linear(4, 2 * SIZE, key=mx.random.key(0))
    model, opt = fl.distributed.shard_linear(whole, "all-to-sharded"), fl.optim.Adam(0.1)
    _, state = opt.update(model, fl.tree.map(lambda leaf: mx.full(leaf.shape, RANK + 1.0), model), opt.init(model))
    loose = fl.distributed.shard({"w": mx.arange(2.0 * SIZE)}, lambda *_: 0)
    own = {"key": fl.distributed.local_key(mx.random.key(0)), "loss": mx.array(float(RANK)), "seen": RANK}
    with fl.Checkpointer(folder_of_all(), group=GROUP) as checkpoints:
        said = error(lambda: checkpoints.save(1, (fl.distributed.gather(model), state)), ValueError)
        assert re.search(r"1\.slots\.weight\.m on rank 1", said)
        assert "fl.distributed.gather(state, model)" in said
        assert "w on rank 1" in error(lambda: checkpoints.save(1, loose), ValueError)
        assert "of random keys save the one" in error(lambda: checkpoints.save(1, own), ValueError)
        assert checkpoints.steps() == []
        saved = fl.distributed.gather(state, model), {**own, "key": mx.random.key(0)}
        for step in range(2):  # of the same objects
            checkpoints.save(step, saved)
        assert checkpoints.restore(fl.eval_shape(lambda: saved))[1][1]["loss"].item() == 0
        tied = mx.array([mx.nan, -0.0])
        checkpoints.save(
            2,
            {"w": [tied, tied, mx.zeros((0, 2)), mx.zeros((3, 2)).T]}
            if RANK
            else {"w": [tied] * 2 + [mx.zeros((0, 2)), mx.zeros((2, 3))]},
        )
        tied[0] = float(RANK)
        assert "w.0 on rank 1" in error(lambda: checkpoints.save(3, {"w": [tied]}), ValueError)
        checkpoints.save(4, {"w": mx.ones(2) if RANK == 0 else fl.ShapeDtypeStruct((2,))})
        assert checkpoints.steps() == [0, 1, 2, 4][-3:]


def check_a_bad_argument_of_one_rank_is_an_error_on_every_rank():
    said = error(lambda: fl.Checkpointer("x", keep=0 if RANK else 3, group=GROUP), ValueError)
    assert "keep is a whole number, 1 or more" in said


def check_each_rank_may_save_its_own_shards():
    model = fl.distributed.fully_shard(fl.nn.Linear(3, 2 * SIZE, key=mx.random.key(0)))
    opt = fl.optim.Adam(0.1)
    mine = opt.update(model, fl.tree.map(mx.ones_like, model), opt.init(model))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, fl.Checkpointer(folder) as checkpoints:
        warnings.simplefilter("error")
        said = error(lambda: checkpoints.save(1, mine), fl.PartialWeightsWarning)
        assert f"gets the part of rank {RANK} alone of 0.module.weight" in said
        assert checkpoints.steps() == []
        warnings.simplefilter("ignore", fl.PartialWeightsWarning)  # what the warning says to do where that is meant
        checkpoints.save(1, mine)
        assert fl.tree.equal(checkpoints.restore(fl.eval_shape(lambda: mine)), (1, mine))
    assert works()


def check_a_rank_that_leaves_by_an_error_does_not_wait_for_others():
    class OwnError(Exception):
        pass

    try:
        with fl.Checkpointer(folder_of_all(), group=GROUP) as checkpoints:
            checkpoints.save(1, tree(1))
            if RANK:
                raise OwnError
            fl.distributed.barrier()
    except OwnError:  # and does what the others do
        fl.distributed.barrier()
        checkpoints.wait()


def check_without_a_group_it_is_this_process_alone():
    with tempfile.TemporaryDirectory() as folder, fl.Checkpointer(folder) as checkpoints:
        checkpoints.save(RANK, tree(RANK))
        assert checkpoints.steps() == [RANK]
    assert works()


if __name__ == "__main__":
    ranks.run(globals())
