"""Where CUDA differs from a CPU: kernels, precisions, optimizers, quantized layers, strategies, whole runs.

`pytest -m gpu -n 0 tests/test_gpu.py`; without a card all but the last tests are skipped.
"""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from dowser_pl.callbacks import Dowser
from dowser_pl.functional.selection import lowest
from dowser_pl.importance import Probe, measure, probing_mode, write_prompts
from dowser_pl.masking import CompactEntries, DenseEntries
from dowser_pl.masking.base import bits_of
from dowser_pl.methods import (
    L2SP,
    Dare,
    Full,
    Grafting,
    Layer,
    Lora,
    Magnitude,
    ModelDowser,
    ModelTailor,
    NullSpace,
    SoftDowser,
    Spider,
    Ties,
    Wise,
)
from dowser_pl.models.generation import greedy_answers
from dowser_pl.models.layers import find_layers
from dowser_pl.models.loading import load_model
from dowser_pl.models.lora import LoraSettings
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.test_sharded_steps import inputs_of
from tests.tiny_models import FAMILIES, make_processor, save_tiny_llava, tiny_llava, tiny_tokenizer
from tests.tiny_run import TinyData, build_module, build_trainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PROBE = Probe(num_prompts=8, num_probes=3, num_tokens=20, batch_size=4)
OPTIMIZERS = {
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3, fused=True),
    "plain": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3, foreach=False),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
}


def family_step(family: str, device: torch.device) -> float:
    """One masked step in bfloat16: the loss is finite, frozen entries keep their bits, others move; then an answer."""
    model = FAMILIES[family]().to(device, torch.bfloat16).eval().requires_grad_(False)
    layers = find_layers(model, None, ["attn", "mlp"])
    weights = {name: layer.weight.requires_grad_(True) for name, layer in layers.items()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    masks = {name: lowest(weight.detach().abs().float(), weight.numel() // 10) for name, weight in weights.items()}
    entries = CompactEntries(weights, masks)
    optimizer = torch.optim.AdamW(entries.parameters(), lr=0.5)
    inputs = {name: value.to(device) for name, value in inputs_of(family).items()}
    inputs |= {name: value.bfloat16() for name, value in inputs.items() if value.is_floating_point()}
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    optimizer.step()
    entries.after_step()
    assert torch.isfinite(loss)
    for name, weight in weights.items():
        same = bits_of(weight.detach()) == bits_of(before[name])
        assert bool(same[~masks[name]].all()), name
    assert entries.verify()[1].changed > 0.9 * entries.num_trainable
    entries.close()
    asked = {name: value for name, value in inputs.items() if name not in ("labels", "decoder_attention_mask")}
    assert len(greedy_answers(model, tiny_tokenizer(), asked, 4)) == len(inputs["input_ids"])
    return float(loss.detach())


def train(form, device, optimizer, dtype=torch.float32, steps=4):
    """Two matrices, a few steps."""
    random = torch.Generator().manual_seed(0)
    shapes = {"first": (96, 80), "second": (48, 96)}
    weights = {n: nn.Parameter(torch.randn(s, generator=random).div(8).to(device, dtype)) for n, s in shapes.items()}
    masks = {n: (torch.rand(s, generator=random) < 0.3).to(device) for n, s in shapes.items()}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    entries = form(weights, masks)
    built = optimizer(entries.parameters())
    for step in range(steps):
        built.zero_grad()
        inputs = torch.randn(8, 80, generator=torch.Generator().manual_seed(step)).to(device, dtype)
        (torch.tanh(inputs @ weights["first"].T) @ weights["second"].T).float().pow(2).mean().mul(30).backward()
        entries.mask_gradients()
        built.step()
        entries.after_step()
    for name, weight in weights.items():
        same = bits_of(weight.detach()) == bits_of(before[name])
        assert bool(same[~masks[name]].all()), "a frozen entry moved"
    return weights, entries


def masks_of(model, device):
    """Masks of ModelDowser, and the largest relative distance to its threshold of each matrix' scores."""
    method = ModelDowser(0.1, group_size=4)
    model = model.to(device)
    layers = find_layers(model, None, ["attn", "mlp"])
    with probing_mode(model):
        prompts = write_prompts(model, make_processor().tokenizer, PROBE, range(8))
        factors = measure(model, layers, prompts, PROBE, method.needs).grouped(method.prompts_per_row)
    given = {name: Layer(name, layer.weight.detach(), **factors.layers[name]) for name, layer in layers.items()}
    return {name: method.mask(layer).cpu() for name, layer in given.items()}, prompts


class StopAfter(Callback):
    """In the middle of an epoch, and with the schedule of the whole run."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step >= self.steps


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(model_folder, folder, method=None, module=None, ckpt_path=None, **options):
    options = {"accelerator": "gpu", "devices": 1, "max_epochs": 1, "limit_val_batches": 1} | options
    trainer = build_trainer(folder, method, **options)
    module = build_module(model_folder, **(module or {}))
    torch.manual_seed(0)
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return trainer, module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


def test_the_family_check_itself_runs_on_a_cpu():
    assert family_step("llava", torch.device("cpu")) > 0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_families_step_and_answer(family):
    family_step(family, torch.device("cuda"))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compact_equals_dense_bit_by_bit(name):
    dense, _ = train(DenseEntries, "cuda", OPTIMIZERS[name])
    compact, entries = train(CompactEntries, "cuda", OPTIMIZERS[name])
    assert all(torch.equal(bits_of(dense[key].detach()), bits_of(compact[key].detach())) for key in dense)
    assert entries.verify()[1].changed == entries.num_trainable


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("form", [DenseEntries, CompactEntries])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_frozen_bits(form, dtype):
    train(form, "cuda", OPTIMIZERS["fused"], dtype)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "Lion8bit"])
def test_eight_bit_optimizers(name):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    kind = getattr(bitsandbytes.optim, name)
    _, entries = train(CompactEntries, "cuda", lambda p: kind(p, lr=0.01, min_8bit_size=64))
    assert entries.verify()[1].changed > 0.5 * entries.num_trainable


@pytest.mark.gpu
@needs_gpu
def test_masks_are_the_same_twice_and_those_of_a_cpu():
    first, prompts = masks_of(tiny_llava(), "cuda")
    second, again = masks_of(tiny_llava(), "cuda")
    of_cpu, its_prompts = masks_of(tiny_llava(), "cpu")
    assert all(torch.equal(one.tokens, two.tokens) for one, two in zip(prompts, again, strict=True))
    assert all(torch.equal(one.tokens, two.tokens) for one, two in zip(prompts, its_prompts, strict=True))
    assert all(torch.equal(first[name], second[name]) for name in first)
    differing = sum(int((first[name] != of_cpu[name]).sum()) for name in first)
    assert differing <= 4, f"{differing} of {sum(int(mask.sum()) for mask in first.values())} entries"


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_layers_are_probed_and_answer(model_folder, quantization):
    pytest.importorskip("bitsandbytes")
    model = load_model(str(model_folder), dtype="float16", quantization=quantization)  # where bitsandbytes puts it
    assert model.device.type == "cuda"
    layers = find_layers(model, None, ["attn", "mlp"])
    with probing_mode(model):
        prompts = write_prompts(model, make_processor().tokenizer, PROBE, range(4))
        factors = measure(model, layers, prompts, replace(PROBE, num_prompts=4))
    assert factors.layers.keys() == layers.keys()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("update", ["compact", "dense"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_runs_in_every_precision(model_folder, tmp_path, precision, update):
    _, _, dowser = fit(model_folder, tmp_path, precision=precision, update=update)
    assert dowser.counts[0].changed == 0
    assert dowser.counts[1].changed > 0
    assert dowser.frozen_digest["before"] == dowser.frozen_digest["after"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "method",
    [
        Full(),
        Magnitude(0.1),
        Spider(),
        SoftDowser(),
        L2SP(),
        Dare(0.3),
        Grafting(0.1),
        Ties(0.2),
        Wise(0.4),
        ModelTailor(0.1),
        NullSpace(rank=8, tokens=64),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods(model_folder, tmp_path, method):
    _, _, dowser = fit(model_folder, tmp_path, method)
    assert dowser.counts[1].changed > 0


@pytest.mark.gpu
@needs_gpu
def test_adapters(model_folder, tmp_path):
    fit(model_folder, tmp_path, Lora(), {"lora": LoraSettings(r=4, alpha=8.0, dropout=0.1)}, export=True)
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.gpu
@needs_gpu
def test_a_resumed_run_ends_where_the_unbroken_one_does(model_folder, tmp_path):
    _, whole, _ = fit(model_folder, tmp_path / "whole", max_epochs=2)
    fit(model_folder, tmp_path / "broken", max_epochs=2, callbacks=[StopAfter(3)])
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    _, resumed, _ = fit(model_folder, tmp_path / "resumed", max_epochs=2, ckpt_path=str(last))
    for (name, one), two in zip(whole.network.named_parameters(), resumed.network.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), two.cpu(), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("options", [{}, {"cpu_offload": True}, {"param_dtype": "bfloat16"}], ids=str)
def test_fsdp2_on_one_card(model_folder, tmp_path, options):
    try:
        _, _, dowser = fit(model_folder, tmp_path, strategy=FSDP2Strategy(**options))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert dowser.counts[0].changed == 0
    assert dowser.counts[1].changed > 0


@pytest.mark.gpu
@needs_gpu
def test_a_large_matrix_selects_what_a_sort_selects():
    scores = torch.rand(4096, 11008, device="cuda").square().bfloat16().float()  # many ties
    k = scores.numel() // 10
    mask = lowest(scores, k)
    order = scores.flatten().sort(stable=True).indices[:k]
    assert int(mask.sum()) == k
    assert bool(mask.flatten()[order].all())
