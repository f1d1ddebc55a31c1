import inspect
from dataclasses import replace

import pytest
import torch

from dowser_pl.errors import DowserError
from dowser_pl.importance.base_outputs import record_base
from dowser_pl.importance.drift import Drift, measure_drift, pooled
from tests.importance.test_base_outputs import noise_rows, text_rows
from tests.tiny_models import IMAGE, tiny_llava


def kinds(network):
    return [*noise_rows(network), *(replace(row, kind="chat") for row in text_rows([7, 4])), *text_rows([5, 9])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_is_trained", [False, True])
def test_the_base_has_not_drifted(dtype, head_is_trained):
    network = tiny_llava().to(dtype)
    rows = kinds(network)
    found = measure_drift(network, record_base(network, rows, 2, head_is_trained), 2)
    assert list(found) == ["noise", "chat", "text"]
    assert found["chat"] == Drift(0.0, 1.0, 6 + 3) and found["text"] == Drift(0.0, 1.0, 4 + 8)
    assert found["noise"].kl == 0.0 and found["noise"].agreement == 1.0


def test_against_whole_models_one_row_at_a_time():
    network, rows = tiny_llava(), kinds(tiny_llava())
    base = record_base(network, rows, 3)
    tuned = tiny_llava()
    random = torch.Generator().manual_seed(0)
    for layer in tuned.model.language_model.layers:
        weight = layer.mlp.down_proj.weight
        weight.data += 0.2 * torch.randn(weight.shape, generator=random)
    tuned.train()
    found = measure_drift(tuned, base, 2)
    assert tuned.training
    for kind in ("noise", "chat", "text"):
        p, q = [], []
        for row in (row for row in rows if row.kind == kind):
            at = [t for t in range(len(row.tokens) - 1) if row.tokens[t + 1] != IMAGE]
            with torch.no_grad():
                p.append(network(input_ids=row.tokens[None], **row.image).logits[0, at].double().softmax(-1))
                q.append(tuned(input_ids=row.tokens[None], **row.image).logits[0, at].double().softmax(-1))
        p, q = torch.cat(p), torch.cat(q)
        kl = float((p * (p / q).log()).sum(-1).mean())
        assert found[kind].kl == pytest.approx(kl, rel=1e-4) and kl > 0.01
        same = float((p.argmax(-1) == q.argmax(-1)).double().mean())
        assert found[kind].agreement == pytest.approx(same)
        assert found[kind].positions == len(p)


def test_pooled_counts_positions_not_kinds():
    assert pooled([Drift(1.0, 0.5, 1), Drift(0.0, 1.0, 3)]) == Drift(0.25, 0.875, 4)


@pytest.mark.parametrize("head_is_trained", [False, True])
def test_a_gpu_that_is_full_reads_fewer_rows_at_a_time(head_is_trained, monkeypatch):
    network = tiny_llava().eval()
    rows = [row for row in kinds(network) if row.kind != "noise"]
    expected = record_base(network, rows, 2, head_is_trained)
    forward = type(network).forward

    def too_small(self, *args, **inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("full")
        return forward(self, *args, **inputs)

    too_small.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(type(network), "forward", too_small)
    with pytest.warns(UserWarning, match="4 prompts at a time do not fit the GPU; .*--dowser.rows.batch_size"):
        found = record_base(network, rows, 4, head_is_trained)
    for number in range(len(rows)):
        one, other = (each.of(network, [number]) for each in (found, expected))
        assert all(map(torch.equal, one, other))
    with pytest.warns(UserWarning, match="do not fit the GPU"):
        assert all(each.kl == 0 for each in measure_drift(network, expected, 4).values())


def test_what_processes_run_together_is_not_halved(monkeypatch):
    network = tiny_llava().eval()
    rows = [row for row in kinds(network) if row.kind != "noise"]
    base = record_base(network, rows, 2)

    def full(self, *args, **inputs):
        raise torch.OutOfMemoryError("full")

    full.__signature__ = inspect.signature(type(network).forward)
    monkeypatch.setattr(type(network), "forward", full)
    monkeypatch.setattr("dowser_pl.importance.drift.is_sharded_model", lambda _: True)
    with pytest.raises(DowserError, match="lower --dowser.rows.batch_size"):
        measure_drift(network, base, 2)
