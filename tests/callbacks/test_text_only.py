"""Models of text alone through whole runs: what is frozen, files, resuming, and equality with a multimodal model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dowser_pl.__main__ import main
from dowser_pl.importance import Probe
from dowser_pl.importance.replay import Replay
from dowser_pl.methods import Lora, ModelDowser, NullSpace
from dowser_pl.models.lora import LoraSettings
from tests.tiny_models import TEXT_FAMILIES, make_processor_folder, save_text_model, tiny_llama, tiny_llava
from tests.tiny_run import KillAt, Killed, TinyTextData, build_module, build_trainer

QUICK = "llama"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("base"))


def fit(model, folder, method=None, ckpt_path=None, module=None, **options):
    trainer = build_trainer(folder, method, **{"export": True, **options})
    tuned = build_module(model, **(module or {}))
    trainer.fit(tuned, datamodule=TinyTextData(), ckpt_path=ckpt_path)
    return tuned


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "family", [QUICK, *(pytest.param(f, marks=pytest.mark.slow) for f in TEXT_FAMILIES if f != QUICK)]
)
def test_a_run_leaves_all_but_a_tenth_as_it_was(family, tmp_path, capsys):
    base = save_text_model(tmp_path / "base", family)
    fit(base, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    before, after = loaded(base), loaded(tmp_path / "run" / "model")
    moved = {name: int((before[name] != after[name]).sum()) for name in before}
    matrices = {name for name in before if any(part in name for part in ("self_attn", "mlp")) and "norm" not in name}
    matrices = {name for name in matrices if name.endswith("weight")}
    assert {name for name, count in moved.items() if count} == matrices
    assert all(moved[name] <= round(before[name].numel() * 0.1) for name in matrices)
    assert sum(moved.values()) == report["trainable"]["changed"] and report["frozen"]["changed"] == 0
    texts = ["red dog", "what colour is the sky ?"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert tokenizer(texts)["input_ids"] == AutoTokenizer.from_pretrained(base)(texts)["input_ids"]
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template
    patch = tmp_path / "run" / "patch.safetensors"
    assert main(["patch", "apply", str(base), str(patch), "--out", str(tmp_path / "patched")]) == 0
    assert same(loaded(tmp_path / "patched"), after)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["with generation", "plain"])
def test_a_killed_run_ends_like_an_unbroken_one(template, base, tmp_path):
    folder = base if template == "with generation" else save_text_model(tmp_path / "base", chat_template=None)

    def data():
        found = TinyTextData()
        found.chat_template = None if template == "with generation" else "plain"
        return found

    def run(folder_of_run, callbacks=(), ckpt_path=None):
        trainer = build_trainer(folder_of_run, export=True, callbacks=callbacks)
        trainer.fit(build_module(folder), datamodule=data(), ckpt_path=ckpt_path)

    run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", [KillAt(5)])
    run(tmp_path / "cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_it_is_tuned_as_the_decoder_of_a_multimodal_model_is(tmp_path):
    """Of the same weights and words: the same masks and the same tuned numbers, bit for bit."""
    multimodal, text = tiny_llava(), tiny_llama(seed=1)
    inside = {name: weight for name, weight in multimodal.state_dict().items() if "vision" not in name}
    inside = {name.replace("language_model.", ""): each for name, each in inside.items() if "multi_modal" not in name}
    text.load_state_dict(inside)
    save_text_model(tmp_path / "text")
    text.save_pretrained(tmp_path / "text")
    multimodal.save_pretrained(tmp_path / "both")
    make_processor_folder(tmp_path / "both")
    runs = {}
    for name in ("text", "both"):
        tuned = fit(tmp_path / name, tmp_path / name / "run", method=ModelDowser(0.1))
        entries = tuned.protected
        masks = {key.replace("language_model.", ""): mask for key, mask in entries.masks.items()}
        weights = {key.replace("language_model.", ""): each.detach() for key, each in entries.weights.items()}
        report = json.loads((tmp_path / name / "run" / "report.json").read_text())
        runs[name] = masks, weights, report["tasks"]
    (masks, weights, scores), (its_masks, its_weights, its_scores) = runs.values()
    assert len(masks) == 21 and same(masks, its_masks) and same(weights, its_weights) and scores == its_scores


@pytest.mark.slow
def test_rows_of_its_own_need_no_pictures(base, tmp_path, capsys):
    """Null space, replay and drift write text, chats and turns."""
    fit(base, tmp_path / "run", NullSpace(), replay=Replay(), drift=True)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["drift"]["sources"]) == {"text", "chat", "turn"}


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", pytest.param("4bit", marks=pytest.mark.slow)])
def test_adapters(quantization, base, tmp_path):
    module = {"lora": LoraSettings(r=2), "quantization": quantization, "dtype": "float32"}
    fit(base, tmp_path / "run", Lora(), module=module)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 2
    if quantization == "none":
        assert not same(loaded(base), loaded(tmp_path / "run" / "model"))


def test_noise_images_are_refused(base, tmp_path):
    probe = Probe(num_prompts=4, num_probes=2, num_tokens=12, noise_images=True)
    with pytest.raises(ValueError, match=r"has no image token, .* set --dowser.probe.noise_images false"):
        fit(base, tmp_path / "run", probe=probe)
