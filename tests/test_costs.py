"""Costs are taken where they arise and read back from a run's records."""

import json
import mmap

import pytest

from regen.runtime.costs import COSTS, EVALUATED, TRAINED, PeakMemory, Stopwatch, mean_costs, read_costs


def test_records_of_a_run_are_read_together(tmp_path):
    assert read_costs(tmp_path) == {}
    (tmp_path / TRAINED).write_text(json.dumps({"costs": {"positions": 30.5, "memory_gib": 1.5}, "steps": 3}))
    (tmp_path / EVALUATED).write_text(json.dumps({"costs": {"prefill_ms": 2.0, "memory_gib": 2.5}}))
    assert read_costs(tmp_path) == {"positions": 30.5, "prefill_ms": 2.0, "memory_gib": 2.5}
    (tmp_path / EVALUATED).write_text(json.dumps({"costs": {"prefill_ms": 2.0, "memory_gib": None}}))
    assert read_costs(tmp_path)["memory_gib"] == 1.5


def test_means_are_over_the_runs_that_have_a_cost():
    assert mean_costs([{"positions": 1.0}, {"positions": 3.0, "step_ms": 5.0}]) == {"positions": 2.0, "step_ms": 5.0}
    assert mean_costs([]) == {}


def test_a_stopwatch_adds_up():
    watch = Stopwatch()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), watch.timing("prefill"):
            _ = 1 / 0
    assert watch.seconds["prefill"] > 0


def test_a_stopwatch_waits_for_the_device_before_it_is_read():
    waited = []
    with Stopwatch(lambda: waited.append(1)).timing("prefill"):
        assert waited == [1]
    assert waited == [1, 1]


def test_the_peak_of_memory_starts_anew():
    block = mmap.mmap(-1, 2**27)  # 128 MiB straight from the system: memory freed to malloc may stay with the process
    block.write(b"x" * len(block))
    high = PeakMemory().gib()
    if high is None:
        pytest.skip("this system does not tell the peak of resident memory")
    block.close()
    assert PeakMemory().gib() < high - 0.1


def test_every_cost_of_a_run_has_a_row(small_config):
    from regen.pipeline import train_and_evaluate

    folder, _ = train_and_evaluate(small_config())
    costs = read_costs(folder)
    assert set(costs) == set(COSTS)
    assert all(value > 0 for value in costs.values())
