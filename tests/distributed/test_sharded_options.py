"""Settings under FSDP2 on two ranks: what is refused in every verb, and what the strategy's own options change."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import bitsandbytes
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule

from dowser_pl.distributed.tensors import to_local
from dowser_pl.importance import measure, probing_mode, write_prompts
from dowser_pl.methods import Layer, Lora, ModelDowser
from dowser_pl.models.layers import text_model
from dowser_pl.models.lora import LoraSettings
from dowser_pl.strategies.fsdp2 import FSDP2Strategy
from tests.distributed.fits import OPTIMIZERS, difference, fit
from tests.distributed.harness import RankError, alone, outcomes, run
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import SMALL_PROBE, TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


NEVER = {
    "quantized": ({"quantization": "8bit"}, None, (), "got model.quantization 8bit, expected none"),
}
RUNS = {
    "an estimator that fit refuses": ({}, ModelDowser(0.1, estimator="weight"), ()),
    "adapters": ({"lora": LoraSettings(r=2)}, Lora(), ()),
}


def said_by_verbs(folder, model):
    """What every verb that does not train says of every case; "" where it ran."""
    said = {}
    for name, (module, method, callbacks, *_) in (NEVER | RUNS).items():
        for verb in ("validate", "test") if name in NEVER else ("validate",):
            trainer = build_trainer(Path(folder), method, callbacks, devices=2, strategy="fsdp2")
            try:
                getattr(trainer, verb)(build_module(Path(model), **module), TinyData(), verbose=False)
                said[name, verb] = ""
            except ValueError as error:
                said[name, verb] = str(error)
    return said


@pytest.mark.slow
def test_a_model_that_cannot_be_spread_is_refused_by_verbs_that_do_not_train(model_folder, tmp_path):
    for said in run(said_by_verbs, tmp_path, model_folder):
        assert len(said) == 4
        for (name, verb), message in said.items():
            expected = NEVER[name][-1] if name in NEVER else ""
            assert message.startswith(expected) and bool(message) == bool(expected), (name, verb, message)


def said_by_a_strategy_of_lightning(folder, model):
    trainer = build_trainer(Path(folder), devices=2, strategy=ModelParallelStrategy())
    trainer.validate(build_module(Path(model)), TinyData(), verbose=False)


def test_a_strategy_of_lightning_itself_is_refused_by_validate(model_folder, tmp_path):
    """It would let every process have the whole model, and fail where a checkpoint is to be read."""
    for outcome in outcomes(said_by_a_strategy_of_lightning, tmp_path, model_folder):
        assert "ModelParallelStrategy is not supported" in outcome.message


def eight_bit(parameters):
    return bitsandbytes.optim.AdamW8bit(parameters)


def fit_in_blocks(folder, model):
    with patch.dict(OPTIMIZERS, {"8bit": eight_bit}):
        fit(folder, model, strategy="fsdp2", optimizer="8bit")


def fit_scaled(folder, model):
    """As `16-mixed` on a GPU; on the CPU Lightning makes bf16-mixed of it."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    fit(folder, model, strategy="fsdp2", plugins=[plugin])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (fit_in_blocks, "AdamW8bit keeps its states in blocks, .* use torch.optim.AdamW"),
        (fit_scaled, "got trainer.precision 16-mixed, expected 32-true, bf16-true or bf16-mixed"),
    ],
)
def test_what_cannot_be_done_sharded_is_refused(model_folder, tmp_path, function, said):
    with pytest.raises(RankError, match=said):
        run(function, tmp_path, model_folder)


def fit_with(folder, model, *, strategy, **options):
    return fit(folder, model, strategy=FSDP2Strategy(**strategy), max_epochs=1, num_rows=16, **options)


@pytest.mark.slow
def test_shares_in_host_memory_end_where_one_process_does(model_folder, tmp_path):
    options = {"optimizer": "sgd", "gradient_clip_val": 0.05, "strategy": {"cpu_offload": True}}
    one = alone(fit_with, tmp_path / "one", model_folder, **options)
    for rank, kept, used, offloaded in run(fit_looking, tmp_path / "two", model_folder, **options):
        assert (kept, used, offloaded) == ({torch.float32}, {torch.float32}, {True})
        for name, mask in one.masks.items():
            assert torch.equal(mask, rank.masks[name]), name
        assert rank.frozen_digest == one.frozen_digest and rank.counts[0] == one.counts[0]
        assert rank.steps == one.steps == 4 and rank.before == one.before
        assert difference(rank, one) <= 1e-5 * one.way


class Looks(Callback):
    """Dtype of every weight between steps, of every matrix while it computes, and FSDP2's own settings."""

    def __init__(self) -> None:
        self.kept: set[torch.dtype] = set()
        self.used: set[torch.dtype] = set()
        self.offloaded: set[bool] = set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.kept |= {to_local(weight.detach()).dtype for weight in pl_module.network.parameters()}
        for layer in pl_module.network.modules():
            if isinstance(layer, torch.nn.Linear) and not batch_idx:
                layer.register_forward_pre_hook(lambda layer, _: self.used.add(layer.weight.dtype))
            if isinstance(layer, FSDPModule):
                policy = layer._get_fsdp_state()._fsdp_param_group.offload_policy
                self.offloaded.add(isinstance(policy, CPUOffloadPolicy))


def fit_looking(folder, model, **options):
    looks = Looks()
    return fit_with(folder, model, callbacks=(looks,), **options), looks.kept, looks.used, looks.offloaded


def masks_measured_in(folder, model, dtype, method):
    """By one process: factors of a model in that precision, scores with the weights as they are kept."""
    module = build_module(Path(model))
    module.configure_model()
    kept = {name: layer.weight.detach().clone() for name, layer in module.tuned_layers().items()}
    for weight in module.parameters():
        weight.data = weight.data.to(dtype)
    probe = replace(SMALL_PROBE, batch_size=2)
    with probing_mode(text_model(module.network)):
        prompts = write_prompts(text_model(module.network), module.processor.tokenizer, probe, range(probe.num_prompts))
        factors = measure(text_model(module.network), module.tuned_layers(), prompts, probe).grouped(
            method.prompts_per_row
        )
    return {name: method.mask(Layer(name, weight, **factors.layers[name])) for name, weight in kept.items()}


@pytest.mark.slow
def test_weights_are_gathered_in_another_precision_than_they_are_kept_in(model_folder, tmp_path):
    options = {"optimizer": "sgd", "strategy": {"param_dtype": "bfloat16"}, "cache_dir": tmp_path / "cache"}
    expected = alone(masks_measured_in, tmp_path, model_folder, torch.bfloat16, ModelDowser(0.1))
    for rank, kept, used, offloaded in run(fit_looking, tmp_path / "two", model_folder, **options):
        assert (kept, used, offloaded) == ({torch.float32}, {torch.bfloat16}, {False})
        for name, mask in expected.items():
            assert torch.equal(mask, rank.masks[name]), name
        assert rank.counts[0].changed == 0 < rank.counts[1].changed
        values = torch.cat([weight.flatten() for weight in rank.weights.values()])
        assert (values != values.bfloat16()).any()
    alone(fit, tmp_path / "one", model_folder, max_epochs=1, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2, "what was measured in bfloat16 must not serve float32"
