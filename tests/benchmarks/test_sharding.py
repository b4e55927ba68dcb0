"""Peak memory of a step whose optimizer's state is divided among ranks, beside one whose state is whole: 60 layers, AdamW."""

import json
from pathlib import Path

import pytest
import ranks

SCRIPT = Path(__file__).with_name("sharding.py")


def measured(name, count):
    with ranks.started(SCRIPT, count, name) as job:
        assert not any(ranks.wait(job, 300))
        return json.loads(job[0].printed())


@pytest.mark.parametrize("count", [2, 3])
def test_peak_memory_of_a_sharded_step(table, count):
    peak, state = measured("whole", count)
    for name in ("shard", "shard, average=True"):
        ours, part = measured(name, count)
        table.add(f"peak of a step on {count} ranks, {name} / whole, in sizes of the model", [ours], [peak], "")
        table.add(f"state on {count} ranks, {name} / whole, in sizes of the model", [part], [state], "")
