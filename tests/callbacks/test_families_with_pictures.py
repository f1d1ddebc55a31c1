"""Whole runs on pictures of families whose processors work with Pillow alone: a tenth moves, a patch takes it along."""

from dataclasses import replace

import pytest
import torch
from transformers import Gemma3Processor, MllamaProcessor, PaliGemmaProcessor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dowser_pl.__main__ import main
from dowser_pl.methods import ModelDowser, NullSpace
from dowser_pl.models.loading import load_model
from dowser_pl.reporting import read_report
from tests.tiny_models import CHAT_TEMPLATE, FAMILIES, make_processor, tiny_tokenizer
from tests.tiny_run import FEW_ROWS, SMALL_PROBE, TinyData, build_module, build_trainer

SIZE = {"height": 16, "width": 16}
PICTURES = replace(SMALL_PROBE, noise_images=True)


def gemma3():
    tokenizer = tiny_tokenizer()
    names = {"image_token": "<image>", "boi_token": "<vision_start>", "eoi_token": "<vision_end>"}
    tokenizer._set_model_specific_special_tokens(special_tokens=names)
    template = CHAT_TEMPLATE.replace("<image>", "<vision_start>")
    return Gemma3Processor(Gemma3ImageProcessorPil(size=SIZE), tokenizer, template, image_seq_length=4)


def mllama():
    images = MllamaImageProcessorPil(size=SIZE, max_image_tiles=2)
    return MllamaProcessor(images, tiny_tokenizer(), chat_template=CHAT_TEMPLATE)


def paligemma2():
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = 4
    return PaliGemmaProcessor(images, tiny_tokenizer(), chat_template=CHAT_TEMPLATE)


PROCESSORS = {
    "mllama": mllama,
    "gemma3_vl": gemma3,
    "paligemma2": paligemma2,
    "llava_phi3": make_processor,
}
SLOW = [family for family in PROCESSORS if family != "mllama"]


@pytest.fixture
def folder(family, tmp_path):
    model, processor = FAMILIES[family](), PROCESSORS[family]()
    if len(processor.tokenizer) > 96:  # PaliGemma's has places and shapes
        model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


class Seen(TinyData):
    """Questions about pictures alone, as PaliGemma takes no other."""

    def evaluation_tasks(self):
        return super().evaluation_tasks()[:1]


def fit(folder, out, method, **options):
    trainer = build_trainer(out, method, **{"export": True, "max_epochs": 1, "probe": PICTURES, **options})
    module = build_module(folder, lr=2e-2)
    trainer.fit(module, datamodule=Seen() if "paligemma" in module.processor.__class__.__name__.lower() else TinyData())
    return module


@pytest.mark.parametrize("family", ["mllama", *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_tenth_is_trained_on_pictures_and_a_patch_has_it(folder, tmp_path):
    tuned = fit(folder, tmp_path / "run", ModelDowser(0.1)).tuned_layers()
    base, after = (load_model(str(each)).state_dict() for each in (folder, tmp_path / "run" / "model"))
    report = read_report(tmp_path / "run")
    moved = {name: int((base[name] != after[name]).sum()) for name in base}
    matrices = {f"{name}.weight" for name in tuned}
    assert {name for name, count in moved.items() if count} == matrices
    assert all(moved[name] <= round(base[name].numel() * 0.1) for name in matrices)
    assert sum(moved.values()) == report.trainable.changed and report.frozen.changed == 0
    patch = tmp_path / "run" / "patch.safetensors"
    main(["patch", "apply", str(folder), str(patch), "--out", str(tmp_path / "patched")])
    patched = load_model(str(tmp_path / "patched")).state_dict()
    assert all(torch.equal(patched[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("family", ["mllama"])
def test_layers_that_read_pictures_are_refused_without(folder, tmp_path):
    expected = r"7 matrices of layers that read the picture .* first model.*layers.1.cross_attn.*noise_images true"
    with pytest.raises(ValueError, match=expected):
        fit(folder, tmp_path / "run", ModelDowser(0.1), probe=SMALL_PROBE)


@pytest.mark.slow
@pytest.mark.parametrize("family", PROCESSORS)
def test_the_null_space_of_rows_with_pictures(folder, tmp_path):
    fit(folder, tmp_path / "run", NullSpace(rank=8), rows=FEW_ROWS)
    assert read_report(tmp_path / "run").frozen.changed == 0
