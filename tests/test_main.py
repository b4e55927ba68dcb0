"""The demonstration, run as the README says."""

import re
import subprocess
import sys

import pytest


def demonstration(*arguments):
    command = [sys.executable, "-m", "frostleaf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def table(printed):
    """Return accuracy in percent, bytes and shared arrays for each row of the table that the demonstration prints."""
    rows = re.findall(r"^(.+?)\s+([\d.]+)%\s+([\d,]+)\s+(\d+) of (\d+)$", printed, re.MULTILINE)
    return {name: (float(accuracy), int(size.replace(",", "")), int(shared)) for name, accuracy, size, shared, _ in rows}


@pytest.fixture(scope="module")
def done():
    return demonstration()


def test_it_succeeds_and_says_how_well(done):
    assert done.returncode == 0, done.stderr
    assert table(done.stdout)["trained in float32"][0] >= 97


def test_the_casts_are_as_good_and_half_as_large(done):
    rows = table(done.stdout)
    accuracy, size, shared = rows["trained in float32"]
    assert shared == 14
    for name in ("cast to bfloat16", "cast to float16"):
        assert rows[name][0] > accuracy - 2
        assert rows[name][1:] == (size // 2, 0)
    assert rows["cast to bfloat16, but for the head"][2] == 2


def test_the_tuned_copy_has_learned_and_shares_the_backbone(done):
    rows = table(done.stdout)
    assert rows["frozen backbone, fresh head"][0] < 50 < rows["the same, tuned for an epoch"][0]
    assert rows["the same, tuned for an epoch"][2] == 12


def test_it_shows_progress(done):
    assert "training, epoch 1/8" in done.stderr
    assert "loss=" in done.stderr


def test_an_untrained_model_is_a_failure_that_says_so():
    done = demonstration("--epochs", "0", "--seed", "1")
    assert done.returncode == 1
    assert "95% were expected" in done.stderr


def test_help_names_every_option():
    printed = demonstration("--help").stdout
    assert all(option in printed for option in ("--epochs", "--seed", "--dtype"))
