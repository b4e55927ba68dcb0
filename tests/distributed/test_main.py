"""The demonstration, run as the documentation says."""

import os
import re
import signal
import subprocess
import sys

import pytest


@pytest.fixture
def demonstration(tmp_path):
    """Return a function that runs it, and requires that it leaves no process and no file."""

    def run(*command):
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, *command], env=environment, start_new_session=True, **pipes) as process:
            try:
                said = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
        assert not [*tmp_path.iterdir()]
        return process.returncode, *said

    return run


def test_what_it_shows(demonstration):
    status, printed, errors = demonstration("-m", "frostleaf.distributed", "--epochs", "2")
    assert status == 0, errors
    alone, together, lost, again = (re.findall(r"epoch .*%", part) for part in printed.split("\n\n")[:4])
    assert [len(each) for each in (alone, together, lost, again)] == [2, 2, 1, 1]
    assert together == lost + again
    assert "PeerLostError" not in errors
    assert "rank 0: a process of the job was lost" in printed
    assert "from the checkpoint of epoch 1" in printed
    kept = [float(each) for each in re.findall(r"each rank keeps (\d+) of 48 KiB", printed)]
    assert kept == [48, 24, 24, 24]
    differences = [float(each) for each in re.findall(r": ([\d.e+-]+)$", printed, re.MULTILINE)]
    assert len(differences) == 2
    assert max(differences) < 1e-5


@pytest.mark.parametrize("module", ["frostleaf", "frostleaf.distributed"])
def test_without_the_extras_it_says_what_to_install(module, demonstration):
    code = "import runpy, sys; sys.modules['sklearn'] = None; runpy.run_module(sys.argv.pop(), run_name='__main__')"
    status, _, errors = demonstration("-c", code, module)
    assert status == 2
    assert errors.endswith("pip install 'frostleaf[demo]'\n")


def test_one_epoch_is_too_few(demonstration):
    status, _, errors = demonstration("-m", "frostleaf.distributed", "--epochs", "1")
    assert status == 2
    assert "--epochs is 2 or more" in errors
