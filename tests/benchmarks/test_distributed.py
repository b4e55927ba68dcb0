"""What each way costs in which ranks divide a step: memory and traffic as the documentation estimates them, and time."""

import json
import sys
from pathlib import Path

import pytest
import ranks

SCRIPT = Path(__file__).with_name("modes.py")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what was sent")
@pytest.mark.parametrize("count", [1, 2])
def test_modes(count, table):
    with ranks.started(SCRIPT, count) as job:
        assert ranks.wait(job, 120) == [0] * count, [rank.printed() for rank in job]
        said = json.loads(job[0].printed().splitlines()[-1])
    size = said["nbytes"]
    table.note(f"{count} ranks, a model of", f"{size / 2**20:.1f} MiB, activations of {said['activation'] / 2**10:.0f} KiB")
    for name, (kept, peak, sent, taken) in said["found"].items():
        shown = f"keeps {kept / size:.2f}, peak {peak / size:.2f}, sends {sent / size:.2f} models; {taken * 1e3:.1f} ms"
        table.note(f"{count} ranks, {name}", shown)
