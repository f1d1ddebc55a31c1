"""What a batch weighs among those of an optimizer step."""

import pytest
import torch

from dowser_pl.models.layers import text_inputs, text_model
from dowser_pl.module.window import Window, count_targets
from tests.tiny_models import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_times_targets_adds_up_in_every_family(family: str) -> None:
    """Every token is one to learn, the first of a row included, as a data module of one's own may have it."""
    model = FAMILIES[family]()
    shifted, text = not model.config.get_text_config().is_encoder_decoder, text_model(model)

    def summed(rows: list[list[int]]) -> float:
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        labels = tokens.masked_fill(mask == 0, -100)
        loss = text(**text_inputs(text, tokens, mask), labels=labels).loss
        return float(loss) * int(count_targets(labels, shifted))

    short, long = [20, 30, 40], [21, 31, 41, 51, 61, 71, 81]
    assert summed([short, long]) == pytest.approx(summed([short]) + summed([long]), rel=1e-5)


def weighed(counts: list[int], divided_by: int, units: float = 1.0) -> tuple[float, float]:
    """Gradient and mean after a window; token t of all has the loss w * t."""
    window, weight, start = Window(), torch.ones((), requires_grad=True), 0
    for number, count in enumerate(counts):
        loss = weight * torch.arange(start, start + count, dtype=torch.float32).mean() * units
        (loss * window.add(loss, torch.tensor(count), number == 0) / divided_by).backward()
        start += count
    mean = window.mean
    window.end([weight], divided_by)
    return float(weight.grad), mean


@pytest.mark.parametrize("divided_by", [4, 7])
@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [1, 1000, 3, 2], [500, 1, 1, 1], [5], [2, 9]])
def test_gradient_and_mean_are_those_of_one_batch(counts: list[int], divided_by: int) -> None:
    expected = (sum(counts) - 1) / 2
    assert weighed(counts, divided_by) == (pytest.approx(expected, rel=1e-6), pytest.approx(expected, rel=1e-6))


def test_a_batch_alone_keeps_its_bits() -> None:
    window, loss = Window(), torch.tensor(0.1) / 3
    assert window.add(loss, torch.tensor(7), True) == 1.0
    assert torch.tensor(window.mean) == loss


def test_a_token_never_weighs_more_than_in_the_first_batch_alone() -> None:
    """Or gradients of float16 would overflow where a batch of few tokens comes before one of many."""
    window = Window()
    weights = [window.add(torch.tensor(1.0), torch.tensor(n), k == 0) / n for k, n in enumerate([2, 1000, 1])]
    assert weights == [pytest.approx(0.5)] * 3


def test_a_window_that_was_broken_off_is_forgotten() -> None:
    window, weight = Window(), torch.ones((), requires_grad=True)
    window.add(torch.tensor(3.0), torch.tensor(100), True)
    loss = weight * 2.0
    (loss * window.add(loss, torch.tensor(5), True)).backward()
    assert window.mean == 2.0
    window.end([weight], 1)
    assert float(weight.grad) == 2.0


def test_gradients_that_no_batch_was_added_for_stay_as_they_are() -> None:
    weight = torch.ones((), requires_grad=True)
    weight.grad = torch.tensor(3.0)
    Window().end([weight], 4)
    assert float(weight.grad) == 3.0
