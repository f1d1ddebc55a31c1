"""Parts with learning rates of their own."""

import pytest
import torch

from dowser_pl.callbacks import Dowser
from dowser_pl.errors import DowserError
from dowser_pl.methods import Magnitude
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(model_folder, folder, steps=2, ckpt_path=None, **options):
    module = build_module(model_folder, lr=1e-2, weight_decay=0.0, scheduler="linear", warmup_ratio=0.0, **options)
    module.optimizer = lambda groups: torch.optim.SGD(groups, lr=1e-2)
    trainer = build_trainer(folder, Magnitude(0.1), max_epochs=-1, max_steps=steps, limit_val_batches=1)
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.slow
def test_a_part_moves_at_its_own_rate_and_all_others_at_that_of_the_optimizer(model_folder, tmp_path):
    """SGD moves in proportion to the rate, so the first step at a tenth of it is a tenth as long."""
    parts = ["projector", "norms"]
    plain, _ = fit(model_folder, tmp_path / "plain", 1, also_train=parts)
    own, trainer = fit(model_folder, tmp_path / "own", 1, also_train=parts, part_rates={"projector": 1e-3})
    base = build_module(model_folder)
    base.configure_model()
    before, one, other = (each.model.state_dict() for each in (base, plain, own))
    slow = [key for key in before if "projector" in key]
    assert slow
    for key in slow:
        torch.testing.assert_close(other[key] - before[key], (one[key] - before[key]) / 10, atol=2e-7, rtol=1e-3)
    assert any(not torch.equal(before[key], one[key]) for key in slow)
    assert all(torch.equal(one[key], other[key]) for key in before if key not in slow)
    groups = trainer.optimizers[0].param_groups
    assert [group["initial_lr"] for group in groups] == [1e-2, 1e-3]
    dowser = next(each for each in trainer.callbacks if isinstance(each, Dowser))
    assert {id(each) for each in dowser.entries.parameters()} <= {id(each) for each in groups[0]["params"]}


@pytest.mark.slow
def test_a_run_goes_on_with_them(model_folder, tmp_path):
    options = {"also_train": ["projector"], "part_rates": {"projector": 1e-3}}
    _, trainer = fit(model_folder, tmp_path, 2, **options)
    _, again = fit(model_folder, tmp_path, 4, str(tmp_path / "checkpoints" / "last.ckpt"), **options)
    rates = [group["lr"] for group in again.optimizers[0].param_groups]
    assert rates[0] == pytest.approx(10 * rates[1])
    assert again.global_step == 4 > trainer.global_step


def test_rates_of_what_is_not_trained_are_refused(model_folder):
    with pytest.raises(DowserError, match="part_rates has vision, expected parts in model.also_train; got .'norms'."):
        build_module(model_folder, also_train=["norms"], part_rates={"vision": 1e-4})
