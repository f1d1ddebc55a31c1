"""What callbacks ask of a LightningModule: anybody's that has it trains; one that has not is told all it lacks."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from dowser_pl.callbacks import Curve, Dowser, Export, Forgetting, Predictions
from dowser_pl.masking import BaseModel, ReportedModule, TunedModule, reported_module, trained_whole, tuned_module
from dowser_pl.masking.contract import _members
from dowser_pl.methods import Magnitude, ModelDowser
from dowser_pl.models.generation import Ending
from dowser_pl.models.layers import find_layers
from dowser_pl.models.weight_files import WeightFiles
from dowser_pl.module import MultimodalModule
from tests.tiny_models import EOS, TOKENS, VOCABULARY, build, make_processor, save_tiny_llava
from tests.tiny_run import SMALL_PROBE, TinyData, build_module, build_trainer


class Plain(LightningModule):
    """As Lightning's own examples have it."""

    def configure_model(self):
        raise AssertionError("nothing is to be loaded")

    def forward(self, batch):
        return batch

    training_step = predict_step = forward

    def configure_optimizers(self):
        return None


def trainer_of(folder, *callbacks, **options):
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **options}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), enable_model_summary=False, **options)


TUNED = (
    r"Plain cannot be used with the callback {0}, which expects .*dowser_pl.masking.TunedModule; it lacks"
    r"\n  protected: Protection \| None\n  reduced_elsewhere: bool\n  holds_checkpoint: bool\n  path: str\n"
    r"  files: Files\n  network: Any\n  processor: Any\n  tuned_layers\(\) -> dict\[str, Linear\]\n"
    r"  base_model\(\) -> BaseModel\n  ending\(\) -> Any\nFix: self.protectable = dowser_pl.Protectable.*, or give"
)
REPORTED = (
    r"{0}, which expects .*ReportedModule; it lacks\n  scores: dict\[str, float\]\n  answers: (?s:.*)pictures\(task"
)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: Dowser(Magnitude(0.1)), TUNED),
        (Export, TUNED),
        (Forgetting, REPORTED),
        (lambda: Curve([0.05]), REPORTED),
    ],
    ids=["Dowser", "Export", "Forgetting", "Curve"],
)
def test_one_error_lists_all_that_a_module_lacks_before_anything_is_loaded(tmp_path, callback, message):
    callback = callback()
    trainer = trainer_of(tmp_path, callback, num_sanity_val_steps=-1)
    with pytest.raises(ValueError, match=message.format(type(callback).__name__)):
        trainer.fit(Plain(), DataLoader([0]), DataLoader([0]))


def test_predictions_ask_too(tmp_path):
    with pytest.raises(ValueError, match=REPORTED.format("Predictions")):
        trainer_of(tmp_path, Predictions()).predict(Plain(), DataLoader([0]))


def test_our_module_has_it_all_without_being_loaded():
    module = MultimodalModule("nowhere")
    assert tuned_module(module, None) is reported_module(module, None) is module
    assert len(_members(TunedModule)) <= 11 and len(_members(ReportedModule)) <= 9


def test_a_property_that_raises_is_there(tmp_path):
    """As ``network`` does until the model is loaded."""
    module = build_module(save_tiny_llava(tmp_path))
    with pytest.raises(RuntimeError, match="loaded in configure_model"):
        _ = module.network
    assert tuned_module(module, None) is module


def tiny_llama():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return build(LlamaForCausalLM, LlamaConfig(vocab_size=len(VOCABULARY), **sizes, **TOKENS), seed=0)


class Foreign(LightningModule):
    """Nothing of ours but what the contract names, around a model that reads text alone."""

    def __init__(self):
        super().__init__()
        self.path, self.files, self.processor = "tiny", WeightFiles(), make_processor()
        self.protected, self.network = None, None
        self.holds_checkpoint = self.reduced_elsewhere = False

    def configure_model(self):
        if self.network is None:
            self.network = tiny_llama().requires_grad_(False)
            for layer in self.tuned_layers().values():
                layer.weight.requires_grad_(True)

    def tuned_layers(self):
        return find_layers(self.network, None, ["attn", "mlp"])

    def base_model(self):
        layers = self.tuned_layers()
        keys = {name: f"network.{name}.weight" for name in layers}
        return BaseModel.of(self.path, self.state_dict(), keys, trained_whole(self, layers), {}, {})

    def ending(self):
        return Ending((EOS,))

    def training_step(self, batch, batch_idx):
        return self.network(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        layers = self.tuned_layers().values()
        trained = [layer.weight for layer in layers] if self.protected is None else self.protected.parameters()
        return torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("update", ["compact", "dense"])
def test_a_module_of_ones_own_trains_and_every_frozen_entry_keeps_its_bits(tmp_path, update):
    module, dowser = Foreign(), Dowser(ModelDowser(0.1), SMALL_PROBE, None, update=update)
    rows = torch.randint(8, len(VOCABULARY), (6, 12), generator=torch.Generator().manual_seed(0))
    trainer_of(tmp_path, dowser, enable_checkpointing=False).fit(module, DataLoader(rows, batch_size=2))
    frozen, trained = dowser.counts
    assert frozen.changed == 0 and 0 < trained.changed <= trained.entries < 0.11 * (frozen.entries + trained.entries)
    base, masks = dict(tiny_llama().named_parameters()), dowser.entries.masks
    for name, weight in module.network.named_parameters():
        mask = masks.get(name.removesuffix(".weight"), torch.zeros_like(weight, dtype=torch.bool))
        assert torch.equal(weight[~mask], base[name][~mask]), name
        assert not mask.any() or not torch.equal(weight[mask], base[name][mask])


def test_without_the_hook_that_lets_its_optimizer_follow_it_is_refused(tmp_path):
    class Past(Foreign):
        def configure_optimizers(self):
            return torch.optim.AdamW(layer.weight for layer in self.tuned_layers().values())

    rows = torch.randint(8, len(VOCABULARY), (2, 12))
    with pytest.raises(ValueError, match="train 14 matrices past it. In your configure_optimizers"):
        trainer_of(tmp_path, Dowser(Magnitude(0.1)), enable_checkpointing=False).fit(Past(), DataLoader(rows))


def test_a_subclass_of_ours_passes(tmp_path):
    folder = save_tiny_llava(tmp_path / "model")
    trainer = build_trainer(tmp_path, Magnitude(0.1), export=True, max_steps=1, limit_val_batches=1)
    trainer.fit(build_module(folder), datamodule=TinyData())
    assert trainer.callbacks[0].counts[0].changed == 0
