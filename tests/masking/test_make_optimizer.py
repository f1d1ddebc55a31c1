"""Settings of an optimizer that cannot train, by hand and from the command line alike."""

import pytest
import torch
from torch import nn

from dowser_pl.masking import make_optimizer


def parameters():
    return [nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.SGD(p, lr=float("nan")), r"got \{'lr': nan\} for SGD, expected finite"),
        (lambda p: torch.optim.SGD(p, lr=float("inf")), r"got \{'lr': inf\} for SGD"),
        (lambda p: torch.optim.SGD(p, lr=0.0), r"got \{'lr': 0.0\} for SGD.*above 0"),
        (lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=float("inf")), r"got \{'weight_decay': inf\} for AdamW"),
        (lambda p: torch.optim.AdamW(p, lr=-1e-3), "refuses its settings: Invalid learning rate: -0.001"),
        (lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(2.0, 0.9)), "refuses its settings: Invalid beta"),
        (lambda p: torch.optim.SGD(p, lr=1e-3, speed=1), "refuses its settings: .*speed"),
        (lambda p: torch.optim.SGD([{"params": p, "lr": 0}], lr=1e-3), r"got \{'lr': 0\} for SGD"),
    ],
)
def test_settings_that_cannot_train(make, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(make, parameters())


def test_what_trains_is_built():
    made = make_optimizer(lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), capturable=False), parameters())
    assert isinstance(made, torch.optim.AdamW)
