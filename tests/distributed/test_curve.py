"""Updates taken back on two ranks: the curve, the choice and the model of one process."""

import pytest
import torch

from dowser_pl.callbacks import Curve
from dowser_pl.reporting import BudgetChoice
from tests.distributed.fits import UnevenData, difference, fit
from tests.distributed.harness import alone, run
from tests.tiny_models import save_tiny_llava

LAST = "{}/two/checkpoints/last.ckpt"


class UnevenDataToChooseOn(UnevenData):
    def questions_to_choose_on(self):
        return [task for task in self.evaluation_tasks() if task.role == "upstream"]


class SecondOfThree(Curve):
    """Measures as any other, then keeps the middle ratio."""

    def _choose(self, trainer, pl_module, updates, drift):
        super()._choose(trainer, pl_module, updates, drift)
        self.choice = BudgetChoice(0.0, 0.05, True, {0.05: 0.0, **self.choice.drops})
        return 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp1", "fsdp2"])
def test_the_curve_and_the_budget_are_those_of_one_process(model, tmp_path, strategy):
    options = {"optimizer": "sgd", "max_epochs": 1, "strategy": strategy}
    curve, data = SecondOfThree([0.02, 0.05], 0.02), UnevenDataToChooseOn(12)
    one = alone(fit, tmp_path / "one", model, callbacks=(curve,), data=data, **options)
    ranks = run(fit, tmp_path / "two", model, callbacks=(curve,), data=data, **options)
    assert sum(int(mask.sum()) for mask in one.masks.values()) == sum(
        round(0.05 * mask.numel()) for mask in one.masks.values()
    )
    for rank in ranks:
        assert all(torch.equal(rank.masks[name], mask) for name, mask in one.masks.items())
        assert difference(rank, one) <= 1e-5 * one.way and rank.counts == one.counts
        assert rank.frozen_digest == one.frozen_digest and rank.scores == one.scores
    assert difference(*ranks) == 0
    again = run(fit, tmp_path / "two", model, callbacks=(curve,), data=data, ckpt_path=LAST.format(tmp_path), **options)
    assert difference(again[0], ranks[0]) == 0 and again[0].report["budget"] == one.report["budget"]
    assert ranks[0].report["curve"] == one.report["curve"] and len(one.report["curve"]) == 4
    assert ranks[0].report["budget"] == one.report["budget"]
