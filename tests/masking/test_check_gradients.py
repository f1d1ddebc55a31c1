"""Gradients that are no numbers stop a step; large ones, whose squares overflow, do not."""

import math

import pytest
import torch
from torch import Tensor, nn

from dowser_pl.masking import check_gradients


def weights_with(*gradients: Tensor) -> list[nn.Parameter]:
    weights = [nn.Parameter(torch.zeros_like(each)) for each in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    return weights


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 3e38), (torch.bfloat16, 3e38), (torch.float16, 6e4)])
def test_large_gradients_pass(dtype: torch.dtype, large: float) -> None:
    check_gradients(weights_with(torch.full((3, 5), large, dtype=dtype), torch.full((4,), -large, dtype=dtype)), 0)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("rest", [0.0, 3e38])
def test_one_entry_that_is_no_number_stops_the_step(odd: float, rest: float) -> None:
    last = torch.full((4, 7), rest)
    last[3, 6] = odd
    with pytest.raises(ValueError, match="a gradient is not finite at step 11"):
        check_gradients(weights_with(torch.ones(2, 2), torch.zeros(0), last), 11)


def test_weights_without_a_gradient_are_passed_over() -> None:
    check_gradients([nn.Parameter(torch.ones(2))], 0)
