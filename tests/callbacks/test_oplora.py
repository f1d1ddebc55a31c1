"""OPLoRA: its steps are those of autograd through both projections; triples stay; resumed bit by bit."""

import numpy as np
import pytest
import torch
from torch import nn

from dowser_pl.callbacks import Dowser
from dowser_pl.distributed.limits import no_training
from dowser_pl.functional.singular import singular_directions
from dowser_pl.masking import ProjectedEntries
from dowser_pl.methods import Lora, NullSpaceSettings
from dowser_pl.models.loading import load_model
from dowser_pl.models.lora import LoraSettings
from dowser_pl.models.quantized import base_weight
from tests.callbacks.test_lora import wide_folder  # noqa: F401 - a fixture
from tests.callbacks.test_lora_null_space import adapter_of, projection, same_bits
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import KillAt, Killed, TinyData, build_module, build_trainer

LORA = LoraSettings(r=4, alpha=8.0)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(folder, run, preserve=3, ckpt_path=None, module_options=None, **options):
    trainer = build_trainer(run, Lora(preserve=preserve), limit_val_batches=1, **{"max_epochs": 1, **options})
    module = build_module(folder, **{"lora": LORA, **(module_options or {})})
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


@pytest.fixture
def pair():
    """W0 (5, 6), and A and B beside it; r = O - 1, so that a side taken for the other would be refused or wrong."""
    generator = torch.Generator().manual_seed(0)
    base, first, second = (nn.Linear(i, o, bias=False) for i, o in ((6, 5), (6, 4), (4, 5)))
    for part in (base, first, second):
        part.weight.data.normal_(generator=generator)
    return base.weight.detach(), first, second, generator


def test_an_optimizer_trains_what_is_behind_both_projections(pair):
    """AdamW with decay, two backward passes a step, against autograd through P_L R_B R_A P_R in float64."""
    weight, first, second, generator = pair
    left, right = singular_directions(weight, 2)
    entries = ProjectedEntries({"a": first.weight, "b": second.weight}, {"a": right, "b": left})
    raw = [nn.Parameter(entries.beside(name)["raw"].double()) for name in ("a", "b")]
    ours = torch.optim.AdamW(entries.parameters(), lr=0.1, weight_decay=0.1)
    theirs = torch.optim.AdamW(raw, lr=0.1, weight_decay=0.1)
    for _ in range(5):
        held = (raw[0] @ projection(right)).detach(), (projection(left) @ raw[1]).detach()
        torch.testing.assert_close(first.weight.detach().double(), held[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(second.weight.detach().double(), held[1], rtol=1e-4, atol=1e-5)
        for _ in range(2):
            inputs, wanted = torch.randn(7, 6, generator=generator), torch.randn(7, 5, generator=generator)
            (inputs @ weight.T + second(first(inputs)) - wanted).square().sum().backward()
            delta = projection(left) @ raw[1] @ raw[0] @ projection(right)
            (inputs.double() @ (weight.double() + delta).T - wanted.double()).square().sum().backward()
        entries.mask_gradients()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        entries.after_step()
    tuned = (weight + second.weight @ first.weight).detach().double().numpy()
    outer, values, inner = np.linalg.svd(weight.double().numpy())
    for u, s, v in zip(outer.T[:2], values[:2], inner[:2], strict=True):
        assert np.abs(tuned @ v - s * u).max() < 1e-5 and np.abs(u @ tuned - s * v).max() < 1e-5
    assert np.abs(tuned - weight.numpy()).max() > 0.1
    assert entries.verify()[1].changed == 44


def test_directions_of_another_side_are_refused(pair):
    weight, first, second, _ = pair
    left, right = singular_directions(weight, 2)
    with pytest.raises(ValueError, match="directions of 5 outputs for a of shape .4, 6.*its own outputs"):
        ProjectedEntries({"a": first.weight, "b": second.weight}, {"a": left})
    with pytest.raises(ValueError, match="directions of 6 inputs for b of shape .5, 4."):
        ProjectedEntries({"a": first.weight, "b": second.weight}, {"b": right})


@pytest.mark.slow
def test_the_leading_triples_of_every_matrix_are_triples_of_the_tuned_one(model_folder, tmp_path):
    module, dowser = fit(model_folder, tmp_path)
    base, plain = load_model(str(model_folder), dtype="float32"), fit(model_folder, tmp_path / "plain", None)[0]
    names = [name.partition(".lora_A.")[0] for name in module.adapters.sources]
    assert len(names) == 21 and len(dowser.entries.directions) == 42
    errors = {"preserved": [], "plain": []}
    for name in names:
        outer, values, inner = np.linalg.svd(base.get_submodule(name).weight.detach().double().numpy())
        for kind, run in (("preserved", module), ("plain", plain)):
            tuned = run.network.get_submodule(name).base_layer.weight.detach().double().numpy()  # merged
            assert np.abs(tuned - base.get_submodule(name).weight.detach().numpy()).max() > 1e-3
            u, s, v = outer[:, :3], values[:3], inner[:3].T
            errors[kind].append(max(np.abs(tuned @ v - u * s).max(), np.abs(tuned.T @ u - v * s).max()))
    assert max(errors["preserved"]) < 1e-5 < 1e-3 < min(errors["plain"])


RUNS = {
    "32-true": {},
    "bf16-true": {"precision": "bf16-true"},
    "4bit": {"module_options": {"quantization": "4bit", "dtype": "float32"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "4bit")) for name in RUNS])
def test_a_resumed_run_ends_like_an_unbroken_one(model_folder, wide_folder, tmp_path, name):  # noqa: F811
    folder, options = wide_folder if name == "4bit" else model_folder, {"export": True, **RUNS[name]}
    module, dowser = fit(folder, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        fit(folder, tmp_path / "cut", callbacks=[KillAt(4)], **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    _, again = fit(folder, tmp_path / "cut", ckpt_path=last, **options)
    same_bits(adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "cut"))
    assert again.counts == dowser.counts and again.frozen_digest == dowser.frozen_digest
    for key, each in dowser.entries.directions.items():
        kept = again.entries.directions[key]
        assert torch.equal(each.vectors, kept.vectors) and each.left == kept.left == (".lora_B." in key)
    for source, sink in zip(module.adapters.sources.items(), module.adapters.sinks, strict=True):
        left, right = singular_directions(base_weight(source[1]), 3) if name == "4bit" else (None, None)
        if left is not None:
            assert torch.equal(dowser.entries.directions[source[0]].vectors, right.vectors)
            assert torch.equal(dowser.entries.directions[sink].vectors, left.vectors)
    with pytest.raises(ValueError, match="trained with .*'preserve': 3.* this run asks for .*'preserve': 2"):
        fit(folder, tmp_path / "cut", 2, ckpt_path=last, **options)


def test_what_it_cannot_do_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="at least 1, or null; got 0"):
        Lora(preserve=0)
    with pytest.raises(ValueError, match="got null_space and preserve, expected one of them"):
        Lora(NullSpaceSettings(), preserve=4)
    with pytest.raises(ValueError, match="Lora with preserve and update 'dense'"):
        fit(model_folder, tmp_path, update="dense")
    with pytest.raises(ValueError, match="got 1000 singular directions to preserve .*--dowser.method.preserve"):
        fit(model_folder, tmp_path, 1000)
    assert "preserve 4 with weights that are sharded" in no_training(Lora(preserve=4), False, False, "compact")
    assert no_training(Lora(), False, False, "compact") is None
