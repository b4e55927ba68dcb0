"""A rank that is lost is an error for the others, and one that hangs does not keep them for ever."""

import signal
from pathlib import Path

import pytest
import ranks

import frostleaf as fl

LOOP = Path(__file__).with_name("faults.py")
WAYS = [
    "all_sum",
    "save_weights",
    *[pytest.param(way, marks=pytest.mark.long) for way in ("broadcast", "eval", "save", "shard_batch", "barrier")],
]
STATUS = {"killed": -signal.SIGKILL, "ended": 3}


def require_noticed(way, count):
    with ranks.started(LOOP, count, way, "30") as job:
        statuses = ranks.wait(job, 30, grace=30)
        said = [rank.printed() for rank in job]
    assert statuses == [0] * (count - 1) + [STATUS[way]], said
    for each in said[:-1]:
        assert "lost in step 2: a process of the job was lost while" in each
        assert each.count("a process of the job was lost before") == 3
        assert "whole True" in each


def test_a_rank_that_is_killed_is_an_error():
    require_noticed("killed", 2)


def test_a_rank_that_hangs_ends_the_others_after_a_while():
    with ranks.started(LOOP, 2, "hangs", "3") as job:
        statuses = ranks.wait(job, 30, grace=0)
        said = job[0].printed()
    assert statuses == [75, None], said
    assert "fl.distributed.eval waited for 3.0 s on rank 0 of 2" in said


@pytest.mark.parametrize("way", WAYS)
def test_a_timeout_of_the_job_is_that_of_each_evaluation(way):
    with ranks.started(LOOP, 2, way, "3") as job:
        statuses = ranks.wait(job, 30, grace=0)
        said = job[0].printed()
    assert statuses == [75, None], said
    assert "an evaluation waited for 3.0 s on rank 0 of 2" in said


@pytest.mark.long
@pytest.mark.parametrize("way", STATUS)
@pytest.mark.parametrize("count", [2, 3])
def test_every_neighbour_notices(way, count):
    require_noticed(way, count)


@pytest.mark.parametrize("timeout", [0, -1, "1", True, float("nan")])
def test_a_timeout_is_a_number_of_seconds(timeout):
    with pytest.raises(ValueError, match="timeout is a number of seconds above 0"):
        fl.distributed.eval(timeout=timeout)
    with pytest.raises(ValueError, match="timeout is a number of seconds above 0"):
        fl.distributed.init(timeout=timeout)
