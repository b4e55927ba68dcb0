"""The demonstration, run as the README says."""

import os
import re
import struct
import subprocess
import sys

import pytest


def demonstration(*arguments, compiled=False):
    command = [sys.executable, "-m", "frostleaf", *arguments]
    # As MLX reads it: thirty kernels take longer to build than the network to be trained without them.
    environment = {**os.environ} if compiled else {**os.environ, "MLX_DISABLE_COMPILE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def table(printed):
    """Return accuracy in percent, bytes and shared arrays for each row of the table that the demonstration prints."""
    rows = re.findall(r"^(.+?)\s+([\d.]+)%\s+([\d,]+)\s+(\d+) of (\d+)$", printed, re.MULTILINE)
    return {name: (float(accuracy), int(size.replace(",", "")), int(shared)) for name, accuracy, size, shared, _ in rows}


@pytest.mark.parametrize(
    "compiled", [pytest.param(False, id="plain"), pytest.param(True, id="compiled", marks=pytest.mark.long)]
)
def test_what_it_shows(compiled):  # one run of it, which takes long
    done = demonstration(compiled=compiled)
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)

    accuracy, size, shared = rows["trained in float32"]
    assert accuracy >= 97
    assert shared == 14
    for name in ("cast to bfloat16", "cast to float16"):
        assert rows[name][0] > accuracy - 2
        assert rows[name][1:] == (size // 2, 0)
    assert rows["cast to bfloat16, but for the head"][2] == 2

    # The tuned copy has learned, and shares the backbone.
    assert rows["frozen backbone, fresh head"][0] < 50 < rows["the same, tuned for an epoch"][0]
    assert rows["the same, tuned for an epoch"][2] == 12

    assert "training, epoch 1/8" in done.stderr
    assert "loss=" in done.stderr
    # A pipe is no terminal: a line an epoch, of the first training and of the second.
    lines = done.stderr.splitlines()
    assert len(lines) == 9
    assert [re.sub(r"loss=\d+\.\d{4}$", "loss=", line) for line in lines[-2:]] == [
        "training, epoch 8/8: loss=",
        "fresh head, epoch 1/1: loss=",
    ]


def test_a_terminal_has_progress_bars():
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "frostleaf", "--epochs", "0"]
    environment = {**os.environ, "MLX_DISABLE_COMPILE": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=writer) as process:
        os.close(writer)
        shown = b""
        try:
            while piece := os.read(reader, 1 << 16):
                shown += piece
        except OSError:  # Linux says so that the other end is closed
            pass
        process.communicate()
    os.close(reader)
    assert b"fresh head, epoch 1/1: 100%" in shown
    assert b"epoch 1/1: loss=" not in shown


def test_an_untrained_model_is_a_failure_that_says_so():
    done = demonstration("--epochs", "0", "--seed", "1")
    assert done.returncode == 1
    assert "95% were expected" in done.stderr


def test_help_names_every_option():
    printed = demonstration("--help").stdout
    assert all(option in printed for option in ("--epochs", "--seed", "--dtype"))
