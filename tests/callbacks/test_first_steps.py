"""A learning rate that cannot move what is trained is said, by what the first steps did."""

import warnings

import pytest
import torch

from dowser_pl.callbacks.dowser.first_steps import _stuck
from dowser_pl.masking import CompactEntries, DenseEntries
from dowser_pl.methods import Magnitude, MoFO, Spider
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def said(model_folder, folder, lr, max_epochs=3, scheduler="constant", method=None, **options):
    """18 steps, of which 10 at the full rate are looked at."""
    options = {"precision": "bf16-true", **options}
    trainer = build_trainer(folder, method or Magnitude(0.1), limit_val_batches=1, max_epochs=max_epochs, **options)
    module = build_module(model_folder, lr=lr, weight_decay=0.0, scheduler=scheduler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=TinyData())
    return [str(each.message) for each in caught if "cannot move them" in str(each.message)]


@pytest.mark.slow
@pytest.mark.parametrize("update", ["compact", "dense"])
def test_a_rate_that_bfloat16_does_not_see_is_said_once(model_folder, tmp_path, update):
    (message,) = said(model_folder, tmp_path, 1e-9, update=update)
    assert "after 11 steps" in message and "in bfloat16" in message and "rate of 1e-09" in message
    assert "about ten times that of full fine-tuning" in message


def test_so_is_one_that_float32_does_not_see(model_folder, tmp_path):
    (message,) = said(model_folder, tmp_path, 1e-20, precision="32-true")
    assert "100% of the trained entries" in message and "in float32" in message


@pytest.mark.slow
@pytest.mark.parametrize("method", [Spider(), MoFO()])
def test_methods_that_hold_entries_back_are_not_blamed(model_folder, tmp_path, method):
    assert said(model_folder, tmp_path, 1e-2, method=method) == []


def test_one_that_moves_entries_is_not(model_folder, tmp_path):
    assert said(model_folder, tmp_path, 1e-2) == []


def test_nothing_is_said_of_a_rate_that_is_still_rising(model_folder, tmp_path):
    schedule = lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1e-6, 1.0, total_iters=18)  # noqa: E731
    assert said(model_folder, tmp_path, 1e-2, scheduler=schedule) == []


@pytest.mark.parametrize("form", [CompactEntries, DenseEntries])
def test_the_share_is_of_entries_that_would_not_leave_their_base(form):
    """Steps of bfloat16 around 1 are 2^-7 upwards and 2^-8 downwards; half of one is rounded to the even 1."""
    weight = torch.nn.Parameter(torch.ones(1, 4, dtype=torch.bfloat16))
    entries = form({"a": weight}, {"a": torch.tensor([[True, True, True, False]])})
    if form is DenseEntries:
        weight.data[0, 0] = 1 + 2**-7
        assert _stuck(entries, 100.0) == pytest.approx(2 / 3)  # what bfloat16 did not take is lost
        return
    (values,) = entries.parameters()
    values.data.copy_(torch.tensor([1 + 2**-12, 1 - 2**-12, 1.0]))
    entries.after_step()
    assert torch.equal(weight, torch.ones_like(weight))
    assert _stuck(entries, 1.0) == 1.0  # of two: the third got no gradient
    assert _stuck(entries, 9.0) == 0.5  # -9/4096 rounds to 1 - 2^-8, 9/4096 to 1
    assert _stuck(entries, 17.0) == 0.0
