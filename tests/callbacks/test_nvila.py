"""A whole run on NVILA from every published layout: scored, trained, exported in it or the other, and patched."""

import pytest
import torch
from lightning.pytorch import Callback

from dowser_pl.callbacks import Export
from dowser_pl.data.encoders import build_encoder
from dowser_pl.errors import DowserError
from dowser_pl.models.generation import greedy_answers
from dowser_pl.models.loading import load_model, load_processor
from dowser_pl.patches.apply import apply_patches
from tests.patches.samples import fingerprints, same_bits, save_base
from tests.patches.test_layouts import tensors
from tests.tiny_nvila import save_nvila
from tests.tiny_nvila_processor import LAYOUTS
from tests.tiny_run import TinyData, build_module, build_trainer


def fit(base, run, layout=None, **options):
    module = build_module(base, **options)
    trainer = build_trainer(run, export=True, max_epochs=1, limit_val_batches=1)
    next(each for each in trainer.callbacks if isinstance(each, Export)).layout = layout
    trainer.fit(module, datamodule=TinyData(num_rows=4))
    return module


def answers(folder):
    model, processor = load_model(str(folder)), load_processor(str(folder))
    inputs = build_encoder(processor).evaluation_batch(TinyData().evaluation_tasks()[0].questions[:2])["inputs"]
    return greedy_answers(model, processor.tokenizer, inputs, 4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_writes_its_base_with_other_numbers(layout, tmp_path):
    save_nvila(tmp_path / "base", layout, shards=2, dtype=torch.float32)
    module = fit(tmp_path / "base", tmp_path / "run", also_train=["projector"])
    before, after = fingerprints(tmp_path / "base"), fingerprints(tmp_path / "run" / "model")
    changed = {name for name in before if before[name] != after.get(name)}
    assert before.keys() == after.keys() and all("vision" not in name for name in changed)
    settings = {name for name in changed if not name.endswith(".safetensors")}
    assert settings <= {"generation_config.json", "llm/generation_config.json"}  # what ends an answer
    loaded = load_model(str(tmp_path / "run" / "model"))
    assert same_bits(dict(loaded.state_dict()), dict(module.network.state_dict()))
    apply_patches(tmp_path / "base", [tmp_path / "run" / "patch.safetensors"], tmp_path / "patched")
    assert same_bits(tensors(tmp_path / "patched"), tensors(tmp_path / "run" / "model"))
    assert answers(tmp_path / "patched") == answers(tmp_path / "run" / "model")


@pytest.mark.parametrize(("layout", "other"), [("original", "hf"), ("hf", "original")])
def test_a_run_writes_the_other_layout_if_asked_to(layout, other, tmp_path):
    save_nvila(tmp_path / "base", layout, dtype=torch.float32)
    module = fit(tmp_path / "base", tmp_path / "run", other)
    assert (tmp_path / "run" / "model" / "llm").is_dir() == (other == "original")
    loaded = load_model(str(tmp_path / "run" / "model"))
    assert same_bits(dict(loaded.state_dict()), dict(module.network.state_dict()))
    answers(tmp_path / "run" / "model")


def test_a_run_in_another_dtype_says_so_in_every_part(tmp_path):
    save_nvila(tmp_path / "base")
    fit(tmp_path / "base", tmp_path / "run", dtype="float32")
    for name in ("config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json"):
        text = (tmp_path / "run" / "model" / name).read_text()
        assert "float32" in text and "bfloat16" not in text
    assert load_model(str(tmp_path / "run" / "model")).dtype == torch.float32


def test_a_layout_that_a_model_does_not_have_is_refused_before_training(tmp_path):
    class Began(Callback):
        def on_train_batch_start(self, *_):
            pytest.fail("training began")

    module = build_module(save_base(tmp_path / "base"))
    trainer = build_trainer(tmp_path / "run", export=True, callbacks=[Began()])
    next(each for each in trainer.callbacks if isinstance(each, Export)).layout = "hf"
    with pytest.raises(DowserError, match="got the layout 'hf' for a model of type 'llava'"):
        trainer.fit(module, datamodule=TinyData(num_rows=4))
