import copy

import pytest
import torch

from dowser_pl.errors import DowserError
from dowser_pl.importance.base_outputs import record_base
from dowser_pl.importance.replay import Replay, draw_rows, replay_gradient
from tests.importance.test_base_outputs import noise_rows, text_rows
from tests.tiny_models import IMAGE, tiny_llava


def moved(network):
    tuned = copy.deepcopy(network).requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for layer in tuned.model.language_model.layers:
        weight = layer.mlp.down_proj.weight.requires_grad_()
        weight.data += 0.2 * torch.randn(weight.shape, generator=random)
    return tuned


def gradients(network):
    return {name: each.grad.double() for name, each in network.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("head_is_trained", [False, True])
def test_gradient_against_autograd_in_float64_one_row_at_a_time(head_is_trained):
    network = tiny_llava()
    rows = [*text_rows([9, 4, 7]), *noise_rows(network)]
    numbers = [4, 0, 1, 3]
    tuned = moved(network)
    kl = replay_gradient(tuned, record_base(network, rows, 2, head_is_trained), numbers, 0.7)

    base, current = network.double(), moved(network.float()).double()
    for mine, other in zip(current.parameters(), tuned.parameters(), strict=True):
        mine.data.copy_(other.data)
    base, parts = network.double(), []
    for row in (rows[number] for number in numbers):
        image = {name: value.double() for name, value in row.image.items()}
        at = [t for t in range(len(row.tokens) - 1) if row.tokens[t + 1] != IMAGE]
        with torch.no_grad():
            p = base(input_ids=row.tokens[None], **image).logits[0, at].softmax(-1)
        q = current(input_ids=row.tokens[None], **image).logits[0, at].log_softmax(-1)
        parts.append((p * (p.log() - q)).sum(-1))
    expected = torch.cat(parts).mean()
    (0.7 * expected).backward()
    torch.testing.assert_close(kl.double(), expected.detach(), rtol=1e-4, atol=1e-6)
    found, wanted = gradients(tuned), gradients(current)
    assert found.keys() == wanted.keys() and len(found) == 3
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_it_adds_to_what_the_batch_left_and_takes_gradient_checkpointing():
    network = tiny_llava()
    base = record_base(network, text_rows([9, 4, 7]), 3)
    tuned = moved(network)
    replay_gradient(tuned, base, [0, 2], 1.0)
    once = gradients(tuned)
    tuned.train()
    tuned.gradient_checkpointing_enable({"use_reentrant": False})
    replay_gradient(tuned, base, [0, 2], 2.0)
    for name, gradient in gradients(tuned).items():
        torch.testing.assert_close(gradient, 3 * once[name], rtol=1e-4, atol=1e-7)


def test_the_base_itself_is_not_pulled():
    network = tiny_llava()
    base = record_base(network, text_rows([9, 4, 7]), 3)
    network.requires_grad_(True)
    assert replay_gradient(network, base, [0, 1, 2], 1.0) == 0
    assert max(float(each.abs().max()) for each in gradients(network).values()) < 1e-5


def test_rows_depend_on_seed_step_and_process_alone_and_processes_run_equally_often():
    rows = [*text_rows([4] * 12), *noise_rows(tiny_llava())]
    drawn = draw_rows(rows, 6, 0, 3, 0)
    assert drawn == draw_rows(rows, 6, 0, 3, 0) and len(set(drawn)) == 6
    others = [draw_rows(rows, 6, *place) for place in [(1, 3, 0), (0, 4, 0), (0, 3, 1)]]
    assert all(each != drawn for each in others)
    for step in range(20):
        with_images = {sum(n >= 12 for n in draw_rows(rows, 6, 0, step, rank)) for rank in range(3)}
        assert len(with_images) == 1
    assert sorted(draw_rows(rows, 99, 0, 0, 0)) == list(range(15))
    assert {n for step in range(40) for n in draw_rows(rows, 6, 0, step, 0)} == set(range(15))


@pytest.mark.parametrize(
    "settings", [{"weight": -1.0}, {"weight": float("nan")}, {"rows": 0}, {"every": 0}, {"sources": []}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(DowserError, match="expected"):
        Replay(**settings)
