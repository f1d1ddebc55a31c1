import pytest
import torch
from torch import nn

from dowser_pl.importance.recorder import live_rows_only


@pytest.mark.parametrize("live", [(), (0,), (4,), (2, 4), range(5)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_a_plain_layer(live, bias):
    torch.manual_seed(0)
    layer = nn.Linear(7, 3, bias=bias).requires_grad_(False)
    inputs = torch.randn(2, 5, 7, requires_grad=True)
    arriving = torch.zeros(2, 5, 3)
    arriving[:, list(live)] = torch.randn(2, len(live), 3)
    expected_output = layer(inputs)
    (expected,) = torch.autograd.grad(expected_output, inputs, arriving)
    with live_rows_only({"layer": layer}):
        output = layer(inputs)
        (found,) = torch.autograd.grad(output, inputs, arriving, retain_graph=True)
        (again,) = torch.autograd.grad(output, inputs, arriving)
    assert torch.equal(output, expected_output)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found, again)


def test_rows_of_zeros_are_not_multiplied(monkeypatch):
    layer = nn.Linear(7, 3).requires_grad_(False)
    inputs = torch.randn(1, 5, 7, requires_grad=True)
    arriving = torch.zeros(1, 5, 3)
    arriving[:, -1] = 1.0
    with torch.no_grad():
        layer.weight[0, 0] = float("inf")  # zero times infinity would be NaN
    with live_rows_only({"layer": layer}):
        (found,) = torch.autograd.grad(layer(inputs), inputs, arriving)
    assert bool((found[:, :-1] == 0).all()) and bool(found[:, -1].isinf().any())


def test_layers_are_left_as_they_were_and_others_alone():
    class Other(nn.Linear):
        pass

    plain, other, wrapped = nn.Linear(2, 2), Other(2, 2), nn.Linear(2, 2)
    wrapped.forward = own = lambda inputs: inputs
    with pytest.raises(KeyError), live_rows_only({"a": plain, "b": other, "c": wrapped}):
        assert "forward" in vars(plain) and "forward" not in vars(other) and wrapped.forward is own
        raise KeyError
    assert "forward" not in vars(plain) and wrapped.forward is own
    with torch.autocast("cpu", torch.bfloat16), live_rows_only({"a": plain}):
        assert "forward" not in vars(plain)
