"""The base reads a batch of every family: labels, loss and gradient beside a second model that stayed the base."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import Precision

from dowser_pl.callbacks.dowser.base_reader import BaseReader
from dowser_pl.errors import DowserError
from dowser_pl.importance.kl_to_base import KLToBase
from dowser_pl.masking import CompactEntries
from dowser_pl.models.layers import find_layers
from dowser_pl.strategies.fsdp1 import FSDP1Strategy
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.test_sharded_steps import inputs_of
from tests.tiny_models import FAMILIES

TRAINER = SimpleNamespace(precision_plugin=Precision(), world_size=1, strategy=None)
KL = KLToBase(weight=0.8, temperature=2.0)


def batch_of(family):
    """Two rows whose questions have no label, as long as each other or not."""
    batch = {"ids": ["a", "b"], **inputs_of(family)}
    batch["labels"] = batch["labels"].clone()
    batch["labels"][0, :4] = batch["labels"][1, :6] = -100
    if family.startswith("paligemma"):
        batch["token_type_ids"] = torch.tensor([[0] * 4 + [1] * 4, [0] * 6 + [1] * 2])
    return batch


def started(family, moved=0.0):
    """A model in training, and its entries, which may have moved."""
    network = FAMILIES[family]().double().train().requires_grad_(False)
    weights = {name: layer.weight for name, layer in find_layers(network, None, ["attn", "mlp"]).items()}
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    entries = CompactEntries(weights, masks)
    with torch.no_grad():
        for each in entries.parameters():
            each.add_(torch.randn(each.shape, generator=generator), alpha=moved)
    entries.after_step()
    return network, entries


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reads_every_family(family):
    batch, base = batch_of(family), FAMILIES[family]().double().eval()
    network, entries = started(family, moved=0.02)  # last: MiniCPM-V has a module that all its models share
    before = {name: weight.detach().clone() for name, weight in network.state_dict().items()}
    first = 0 if family == "instructblip_t5" else 1  # an encoder-decoder says a label at its own place
    with torch.no_grad():
        said = base(**inputs_of(family) | {k: v for k, v in batch.items() if k != "ids"}).logits
    said = said[:, : said.shape[1] - first].softmax(-1)
    expected = batch["labels"].clone()
    answers = [
        [(1 / said[r, i - first, t].item(), i) for i, t in enumerate(row.tolist()) if t >= 0 and i >= first]
        for r, row in enumerate(expected)
    ]
    limit = sorted(p for row in answers for p, _ in row)[2]  # three tokens are not above it
    for row, found in enumerate(answers):
        for perplexity, place in found:
            if perplexity > limit and (perplexity, place) != min(found):
                expected[row, place] = -100
    reader = BaseReader(KL, limit * 1.0001)
    reader.read(TRAINER, SimpleNamespace(network=network), entries, batch)
    assert torch.equal(batch["labels"], expected)
    assert (reader.masked, reader.tokens) == ((batch_of(family)["labels"] != expected).sum(), sum(map(len, answers)))
    assert reader.masked > 0
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())
    assert all(module.training for module in network.modules())

    inputs = {key: value for key, value in batch.items() if key != "ids"}
    loss = network.eval()(**inputs, use_cache=False).loss  # without the dropout of some
    loss.backward()
    base.load_state_dict(before)  # the second model, which has what was tuned now
    second = {name: layer.weight for name, layer in find_layers(base, None, ["attn", "mlp"]).items()}
    for each in base.parameters():
        each.requires_grad_(False)
    for weight in second.values():
        weight.requires_grad_(True)
    logits = base(**inputs, use_cache=False).logits
    logits, at = logits[:, : logits.shape[1] - first], expected[:, first:] != -100
    current = logits[at].softmax(-1)
    wanted = -current.gather(1, expected[:, first:][at][:, None]).log().mean()
    p = said[at] ** (1 / KL.temperature) / (said[at] ** (1 / KL.temperature)).sum(-1, keepdim=True)
    q = current ** (1 / KL.temperature) / (current ** (1 / KL.temperature)).sum(-1, keepdim=True)
    pull = KL.temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    wanted = wanted + KL.weight * pull
    assert pull.item() > 1e-3
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    wanted.backward()
    for name, values in zip(entries.weights, entries.parameters(), strict=True):
        taken = second[name].grad[entries.masks[name]]
        torch.testing.assert_close(values.grad.double(), taken, rtol=1e-4, atol=1e-6 * float(taken.abs().max()) + 1e-9)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "blip" not in name])  # those have dropout
def test_reading_in_eval_mode_is_what_training_does(family):
    """Some make another attention mask in training; of the base itself there is no pull."""
    network, entries = started(family)
    batch = batch_of(family)
    inputs = {key: value for key, value in batch.items() if key != "ids"}
    plain = network(**inputs, use_cache=False).loss
    BaseReader(KL, None).read(TRAINER, SimpleNamespace(network=network), entries, batch)
    assert network(**inputs, use_cache=False).loss.item() == pytest.approx(plain.item(), rel=1e-9)


def test_the_pull_joins_the_loss_of_these_labels_once():
    network, entries = started("llava", moved=0.02)
    reader, module, batch = BaseReader(KL, None), SimpleNamespace(network=network), batch_of("llava")
    inputs = {key: value for key, value in batch.items() if key != "ids"}
    plain = network(**inputs).loss
    reader.read(TRAINER, module, entries, batch)
    other = network(**inputs | {"labels": inputs["labels"].clone()}).loss
    joined, again = network(**inputs).loss, network(**inputs).loss
    assert other == plain == again != joined
    reader.read(TRAINER, module, entries, batch)
    reader.unhook()
    assert network(**inputs).loss == plain and not network._forward_hooks


@pytest.mark.parametrize("strategy", [FSDP1Strategy(), FSDP2Strategy()])
def test_sharded_weights_are_refused(strategy):
    for reader, got in [(BaseReader(KL, None), "kl_to_base"), (BaseReader(None, 2.5), "max_perplexity")]:
        with pytest.raises(DowserError, match=f"got dowser.{got} with weights that are sharded.*--dowser.{got} null"):
            reader.check(SimpleNamespace(strategy=strategy))
    BaseReader(KLToBase(weight=0.0), None).check(SimpleNamespace(strategy=strategy))


@pytest.mark.parametrize(
    "wrong", [{"weight": -1.0}, {"weight": float("nan")}, {"temperature": 0.0}, {"temperature": float("inf")}]
)
def test_a_pull_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(DowserError, match="expected finite numbers, the weight at least 0"):
        KLToBase(**wrong)


@pytest.mark.parametrize("wrong", [0.99, -2.5, float("nan"), float("inf")])
def test_a_perplexity_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(DowserError, match="expected a finite number of at least 1.*such as 2.5"):
        BaseReader(None, wrong)


def test_a_batch_of_another_kind_is_refused():
    network, entries = started("llava")
    for batch in ([torch.zeros(1)], {"input_ids": torch.zeros(1)}):
        with pytest.raises(DowserError, match=f"got a training batch of {type(batch).__name__} without labels"):
            BaseReader(KL, None).read(TRAINER, SimpleNamespace(network=network), entries, batch)
