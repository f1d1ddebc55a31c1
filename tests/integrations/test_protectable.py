"""A LightningModule that is not ours: it says where its model is, and the callback does all else."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from dowser_pl.callbacks import Dowser, PatchFile
from dowser_pl.errors import DowserError
from dowser_pl.integrations import Protectable, choose_masks, measure_importance
from dowser_pl.methods import Magnitude, ModelDowser, NullSpace
from dowser_pl.models import load_processor
from dowser_pl.patches import Patch
from dowser_pl.patches.loaded import apply_to_model
from tests.tiny_models import VOCABULARY, save_tiny_llava, tiny_llava
from tests.tiny_run import FEW_ROWS, SMALL_PROBE

ROWS = torch.randint(8, len(VOCABULARY), (6, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return load_processor(str(save_tiny_llava(tmp_path_factory.mktemp("model"))))


class Own(LightningModule):
    """A module as people have them, and one line more."""

    def __init__(self, processor, **options):
        super().__init__()
        self.llm = tiny_llava()
        self.beside = torch.nn.Linear(2, 2)  # not of the model
        self.protectable = Protectable(self.llm, processor, **options)

    def training_step(self, batch, batch_idx):
        return self.llm(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.protectable.parameters(), lr=1e-2, weight_decay=0.1)


def fit(folder, module, *callbacks, ckpt_path=None, **options):
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **options}
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), enable_model_summary=False, **options)
    trainer.fit(module, DataLoader(ROWS, batch_size=2), ckpt_path=ckpt_path)
    return trainer


def dowser(method=None, **options):
    return Dowser(method or ModelDowser(0.1), SMALL_PROBE, None, checkpoint="full", rows=FEW_ROWS, **options)


@pytest.mark.parametrize("update", ["compact", "dense"])
def test_every_frozen_entry_keeps_its_bits_and_masks_are_those_of_a_script(tmp_path, processor, update):
    module, callback = Own(processor), dowser(update=update)
    beside = copy.deepcopy(module.beside.state_dict())
    fit(tmp_path, module, callback, enable_checkpointing=False)
    frozen, trained = callback.counts
    assert frozen.changed == 0 and 0 < trained.changed <= trained.entries
    assert callback.frozen_digest["before"] == callback.frozen_digest["after"]
    base = tiny_llava()
    masks = choose_masks(measure_importance(base, processor, probe=SMALL_PROBE), ModelDowser(0.1))
    assert all(torch.equal(callback.entries.masks[name], mask) for name, mask in masks.items())
    for name, weight in module.llm.named_parameters():
        mask = masks.get(name.removesuffix(".weight"), torch.zeros_like(weight, dtype=torch.bool))
        assert torch.equal(weight[~mask], base.get_parameter(name)[~mask]), name
    assert all(torch.equal(each, module.beside.state_dict()[name]) for name, each in beside.items())


def test_its_patch_makes_the_tuned_model_of_the_base(tmp_path, processor):
    module = Own(processor)
    fit(tmp_path, module, dowser(), PatchFile(), enable_checkpointing=False)
    base = tiny_llava()
    with Patch.open(tmp_path / "patch.safetensors") as patch:
        apply_to_model(base, patch)
    assert all(torch.equal(each, module.llm.state_dict()[name]) for name, each in base.state_dict().items())


def test_other_methods_hold_as_well(tmp_path, processor):
    module, callback = Own(processor), dowser(NullSpace(tokens=200))
    fit(tmp_path, module, callback, enable_checkpointing=False)
    assert callback.counts[1].changed > 0


@pytest.mark.slow
def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path, processor):
    whole = Own(processor)
    fit(tmp_path / "whole", whole, dowser(), max_epochs=2)
    trainer = fit(tmp_path / "half", Own(processor), dowser(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = Own(processor)
    fit(tmp_path / "half", again, dowser(), max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(each, again.llm.state_dict()[name]) for name, each in whole.llm.state_dict().items())


def test_parts_are_trained_whole_where_that_is_said(tmp_path, processor):
    module, callback = Own(processor, also_train=["norms"], targets=["q_proj"], last_n_layers=1), dowser()
    before = copy.deepcopy(module.llm.state_dict())
    fit(tmp_path, module, callback, enable_checkpointing=False)
    moved = {name for name, each in module.llm.state_dict().items() if not torch.equal(each, before[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "input_layernorm", "post_attention_layernorm", "norm"}
    assert all(key.startswith("llm.") for key in callback.base.whole)


def test_wrong_orders_are_told_in_setup(tmp_path, processor):
    class Elsewhere(Own):
        def __init__(self, processor):
            super().__init__(processor)
            self.protectable = Protectable(tiny_llava(), processor)

    class Past(Own):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.llm.parameters())

    with pytest.raises(DowserError, match="is no part of it, .*Fix: self.model = model, before"):
        fit(tmp_path, Elsewhere(processor), dowser())
    with pytest.raises(DowserError, match=r"got checkpoint 'compact' with Own, .*Fix: Dowser\(..., checkpoint='full'"):
        fit(tmp_path, Own(processor), Dowser(Magnitude(0.1)))
    with pytest.raises(DowserError, match="past it. In your configure_optimizers"):
        fit(tmp_path, Past(processor), dowser(Magnitude(0.1)), enable_checkpointing=False)

    class Looking(Own):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.protectable.parameters())

    with pytest.raises(DowserError, match="got LBFGS, which asks for several losses within a step"):
        fit(tmp_path, Looking(processor), dowser(Magnitude(0.1)), enable_checkpointing=False)
    two = Own(processor)
    two.second = Protectable(two.llm, processor)
    with pytest.raises(DowserError, match="Own holds 2 Protectables, expected one"):
        fit(tmp_path, two, dowser())
    with pytest.raises(DowserError, match="got no processor"):
        fit(tmp_path, Own(None), dowser(), enable_checkpointing=False)
