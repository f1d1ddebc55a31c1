"""The quickstart's command on two ranks, shortened: the masks of one process and its report."""

from pathlib import Path

import pytest
import torch

from dowser_pl.reporting import read_report
from tests.distributed.harness import alone, command_line, run

ROOT = Path(__file__).parents[2]
SHORT = ["--data.num_train=96", "--data.num_eval=15", "--trainer.max_epochs=2", "--dowser.probe.num_prompts=16"]


def quickstart(name: str, *more: str) -> list[str]:
    command = ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), *more, *SHORT]
    return [*command, f"--trainer.default_root_dir=runs/{name}", f"--dowser.cache_dir=cache/{name}"]


def ended(folder: Path, name: str):
    """Masks, values and report of a run."""
    state = torch.load(folder / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
    return state["callbacks"]["Dowser"]["entries"], read_report(folder / "runs" / name)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        alone(command_line, *quickstart("single", "-c", "strategy/single"))
    return ended(folder, "single")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp1", "fsdp2"])
def test_the_quickstart_on_two_ranks_ends_as_on_one(tmp_path, monkeypatch, single, strategy):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "configs" / "strategy" / f"{strategy}.yaml"
    run(command_line, *quickstart(strategy, "-c", str(path), "--trainer.devices=2"))
    (one, report), (two, other) = single, ended(tmp_path, strategy)
    assert one.keys() == two.keys() and report.steps == other.steps == 6
    for name, entry in one.items():
        assert torch.equal(entry["mask"], two[name]["mask"]), name
        torch.testing.assert_close(two[name]["values"], entry["values"], rtol=0, atol=1e-5)
    assert report.frozen_digest == other.frozen_digest and other.frozen.changed == 0
    assert report.trainable == other.trainable
    for task, score in report.tasks.items():  # one answer of 15
        assert other.tasks[task].before == pytest.approx(score.before, abs=1e-6)
        assert other.tasks[task].after == pytest.approx(score.after, abs=1 / 15 + 1e-6)
