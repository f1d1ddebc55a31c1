"""What `bench_train.py --strategy` counts, against what a person counts."""

import tests.benchmarks.conftest  # noqa: F401 - ranks import this file without pytest
from tests.distributed.harness import alone, run

from train.strategy import measured_here, share, strategy_lines  # isort: skip - a script, found by the line above

H, F, LAYERS = 96, 256, 3  # of the preset tiny
SHAPES = [(H, H)] * 4 + [(F, H)] * 2 + [(H, F)]
TRAINABLE = LAYERS * sum(round(0.1 * o * i) for o, i in SHAPES)


def measure():
    return measured_here("tiny")


def test_two_ranks_hold_half_each_of_what_one_process_holds():
    one, two = alone(measure), run(measure)
    for kind in ("entries", "indices"):
        assert one["bytes"][kind] == sum(each["bytes"][kind] for each in two) == 4 * TRAINABLE
    assert one["bytes"]["weights"] == sum(each["bytes"]["weights"] for each in two)
    steps = 4 * LAYERS * len(SHAPES)  # torch's AdamW counts steps of each parameter in a float32
    assert one["bytes"]["moments"] == 8 * TRAINABLE + steps
    assert sum(each["bytes"]["moments"] for each in two) == 8 * TRAINABLE + 2 * steps
    assert 0.5 <= share(one, two) <= 0.6
    gathered = two[0]["collectives"]
    # forward and backward pass of each layer, and of the rest; the last layer's backward pass finds it gathered
    assert sum(gathered.values()) >= 3 * LAYERS
    content = {"strategy": "fsdp2", "alone": one, "ranks": two, "counted": ["weights"], "memory_share": share(one, two)}
    assert any("rank 1" in line for line in strategy_lines(content))
