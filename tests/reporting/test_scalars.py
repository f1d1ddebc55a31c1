"""The numbers that loggers get of a report."""

import pytest

from dowser_pl.reporting import scalars
from tests.reporting.samples import drift, report


def test_every_score_has_a_name():
    found = scalars(report(drift=drift()))
    assert (found["report/digits/before"], found["report/digits/after"]) == (0.0, 0.5)
    assert (found["report/upstream/before"], found["report/upstream/after"]) == (0.75, 0.5)
    assert found["hp_metric"] == found["report/h_score/after"] == 0.5
    assert (found["report/frozen_changed"], found["report/trainable_changed"]) == (0, 97)
    assert found["report/overlap with magnitude"] == 0.81
    assert found["report/drift_kl"] == pytest.approx(0.004)
    assert all(type(each) is float for each in found.values())


def test_what_is_not_known_is_left_out_and_one_role_is_enough():
    tasks = report().of_role("downstream")
    found = scalars(report(tasks=tasks, peak_memory_bytes=None))
    assert found["hp_metric"] == 0.5
    assert not {"report/drift_kl", "report/peak_memory_bytes", "report/h_score/after"} & set(found)
