"""What `bench_checkpoint.py` saves in either form is the same, and its numbers are those of the files."""

from unittest.mock import patch

import pytest
import torch

import tests.benchmarks.conftest  # noqa: F401 - ranks import this file without pytest
from dowser_pl.distributed.checkpoint import read_folder
from tests.distributed.harness import run

from bench_checkpoint import lines, measured_here, ratios  # isort: skip - a script, found by the line above


def measured(folder):
    with patch("bench_checkpoint.ROUNDS", 1):
        return measured_here("tiny", folder)


@pytest.mark.slow
def test_file_and_folder_hold_the_same(tmp_path):
    rows, _ = run(measured, tmp_path)
    assert list(rows) == ["compact file", "compact folder", "full file", "full folder"]
    for content in ("compact", "full"):
        one = torch.load(tmp_path / f"{content}_file.ckpt", weights_only=True)
        other = read_folder(tmp_path / f"{content}_folder.ckpt")
        assert bool(one["state_dict"]) == (content == "full")
        for part in ("entries", "state_dict"):
            torch.testing.assert_close(other[part], one[part], rtol=0, atol=0)
        torch.testing.assert_close(other["optimizer_states"], one["optimizer_states"], rtol=0, atol=0)
        assert rows[f"{content} file"]["disk_bytes"] == (tmp_path / f"{content}_file.ckpt").stat().st_size
    for row in rows.values():
        row["median_seconds"] = row["seconds"][0]
    rows["compact folder"]["median_seconds"], rows["compact file"]["median_seconds"] = 1.0, 4.0
    ratio = ratios(rows)
    assert ratio["compact_median_seconds"] == 0.25 and 0.9 < ratio["full_disk_bytes"] < 2
    assert ratios(rows | {"full file": rows["full file"] | {"peak_bytes": 0}})["full_peak_bytes"] is None
    assert any(line.endswith("compact_median_seconds: 0.250") for line in lines({"rows": rows, "ratio": ratio}))
