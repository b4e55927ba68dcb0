"""A run on two ranks of which one is killed goes on from its checkpoints on any number of ranks."""

import shutil
import signal
from pathlib import Path

import pytest
import ranks
from distributed.resumed import start

import frostleaf as fl

RUN = Path(__file__).with_name("resumed.py")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    ranks.require(RUN, 2, str(folder / "checkpoints"), str(folder / "result"), "whole")
    return fl.load(folder / "result", fl.eval_shape(start))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The directory that a run has left, one rank of which was killed."""
    folder = tmp_path_factory.mktemp("killed")
    with ranks.started(RUN, 2, str(folder / "checkpoints"), str(folder / "result"), "killed") as job:
        statuses = ranks.wait(job, 60, grace=30)
        said = [rank.printed() for rank in job]
    assert statuses == [3, -signal.SIGKILL], said
    assert "lost: a process of the job was lost" in said[0]
    assert not (folder / "result").exists()
    return folder / "checkpoints"


@pytest.mark.parametrize("count", [1, 2, *(pytest.param(count, marks=pytest.mark.long) for count in (3, 4))])
def test_it_goes_on_as_if_nothing_had_happened(count, undisturbed, checkpoints, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, folder)
    assert fl.Checkpointer(folder).steps()[-1] == 20
    ranks.require(RUN, count, str(folder), str(tmp_path / "result"), "whole")
    found = fl.load(tmp_path / "result", fl.eval_shape(start))
    assert fl.tree.allclose(found, undisturbed, rtol=0, atol=1e-6), fl.tree.diff(found, undisturbed)
