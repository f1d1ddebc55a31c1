import torch

from dowser_pl.functional.merges import penalty_gradient, shrunk_move

BASE = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
TUNED = torch.tensor([[2.0, -2.0], [0.0, 4.0]])


def test_by_hand():
    assert penalty_gradient(BASE, TUNED, 0.5).tolist() == [[0.5, 0.0], [-0.25, 2.0]]
    assert shrunk_move(BASE, TUNED, 0.75).tolist() == [[1.75, -2.0], [0.125, 3.0]]


def test_the_penalty_is_the_gradient_of_half_the_squared_distance():
    weight = TUNED.clone().requires_grad_()
    (0.3 / 2 * (weight - BASE).square().sum()).backward()
    torch.testing.assert_close(penalty_gradient(BASE, TUNED, 0.3), weight.grad)


def test_the_ends_are_exact():
    base, tuned = torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shrunk_move(base, tuned, 1.0), tuned)
    assert torch.equal(shrunk_move(base, tuned, 0.0), base)
