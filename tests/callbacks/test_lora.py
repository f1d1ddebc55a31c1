"""LoRA and QLoRA: only adapters train, runs resume bit by bit, and what is exported is the merged model."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from dowser_pl.callbacks import Dowser
from dowser_pl.methods import Full, Lora, Magnitude
from dowser_pl.models.layers import find_layers
from dowser_pl.models.loading import load_model
from dowser_pl.models.lora import Adapters, LoraSettings
from dowser_pl.reporting import read_report
from tests.tiny_models import IMAGE, TEXT, VISION, build, make_processor, save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

LORA = LoraSettings(r=4, alpha=8.0, dropout=0.1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """4-bit weights come in blocks of 64."""
    path = tmp_path_factory.mktemp("wide")
    vision = CLIPVisionConfig(**VISION | {"hidden_size": 64, "intermediate_size": 128})
    text = LlamaConfig(**TEXT | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    build(LlavaForConditionalGeneration, config, 0).save_pretrained(path)
    make_processor().save_pretrained(path)
    return path


def fit(folder, run, ckpt_path=None, module_options=None, method=None, **options):
    trainer = build_trainer(run, method or Lora(), limit_val_batches=1, **{"max_epochs": 1, **options})
    module = build_module(folder, **{"lora": LORA, **(module_options or {})})
    torch.manual_seed(0 if ckpt_path is None else 1)  # of dropout; a checkpoint brings its own
    trainer.fit(module, datamodule=TinyData(), ckpt_path=ckpt_path)
    return trainer, module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


def naive_merge(base, folder):
    """By hand: W + alpha / r B A, from the files."""
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    merged = {key: value.clone() for key, value in base.state_dict().items()}
    for key, first in adapter.items():
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").partition(".lora_A.")[0]
            merged[f"{name}.weight"] += 2.0 * adapter[key.replace("lora_A", "lora_B")] @ first
    return merged


def test_only_adapters_train_and_the_export_is_their_merge(model_folder, tmp_path):
    trainer, _, dowser = fit(model_folder, tmp_path, export=True)
    base = load_model(str(model_folder), dtype="float32")
    merged = load_model(str(tmp_path / "model"), dtype="float32").state_dict()
    expected, adapted = naive_merge(base, tmp_path), 0
    for key, value in base.state_dict().items():
        torch.testing.assert_close(merged[key], expected[key], rtol=1e-5, atol=1e-6)
        adapted += not torch.equal(value, merged[key])
    assert adapted == len(dowser.entries.weights) / 2 == 21, "all matrices of three layers, and nothing else"
    frozen, trainable = dowser.counts
    assert frozen.entries == 0 and trainable.changed > 0.9 * trainable.entries
    optimizer = trainer.optimizers[0]
    assert sum(each.numel() for group in optimizer.param_groups for each in group["params"]) == trainable.entries
    report = read_report(tmp_path)
    assert report.update_ratio is None and report.trainable.entries == trainable.entries
    assert report.frozen_digest["before"] == report.frozen_digest["after"]
    assert {"tuned_upstream", "tuned_downstream"} <= set(report.diagnostics)
    assert not (tmp_path / "patch.safetensors").exists()


def test_peft_reads_the_adapters(model_folder, tmp_path):
    _, module, _ = fit(model_folder, tmp_path, export=True)
    loaded = PeftModel.from_pretrained(load_model(str(model_folder), dtype="float32"), tmp_path / "adapter").eval()
    tokens = torch.randint(8, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, ours = loaded(input_ids=tokens).logits, module.network.eval()(input_ids=tokens).logits
        plain = load_model(str(model_folder), dtype="float32").eval()(input_ids=tokens).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(plain, ours, atol=1e-3), "the adapters do something"


def test_adapters_begin_as_published_and_from_their_seed(model_folder):
    parts = []
    for seed in (0, 0, 1):
        model = load_model(str(model_folder), dtype="float32")
        layers = find_layers(model, None, ["attn", "mlp"])
        parts.append(Adapters(model, layers, LoraSettings(r=64, seed=seed)).parts)
    for name, part in parts[0].items():
        weight = part.weight.detach()
        if ".lora_B." in name:
            assert not bool(weight.any())
            continue
        bound = part.in_features**-0.5  # Kaiming's for a slope of the square root of 5
        assert 0.95 * bound < float(weight.max()) <= bound and -bound <= float(weight.min()) < -0.95 * bound
        assert torch.equal(weight, parts[1][name].weight) and not torch.equal(weight, parts[2][name].weight)


def test_adapters_begin_from_the_same_numbers_in_every_precision(model_folder):
    """Lightning makes a model of bf16-true with bfloat16 as the default type; 32-true reads its checkpoints."""
    parts = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(str(model_folder), dtype="bfloat16")
        layers, before = find_layers(model, None, ["attn", "mlp"]), torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            parts.append(Adapters(model, layers, LORA).parts)
        finally:
            torch.set_default_dtype(before)
    for name, part in parts[0].items():
        assert torch.equal(part.weight.bfloat16(), parts[1][name].weight.bfloat16()), name


class Kill(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4:
            raise KeyError("killed")


RUNS = {
    "32-true": {"precision": "32-true"},
    "bf16-true": {"precision": "bf16-true"},
    "checkpointing": {"module_options": {"gradient_checkpointing": True}},
    "4bit": {"module_options": {"quantization": "4bit", "dtype": "float32"}},
}
QUICK = {"bf16-true", "4bit"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in RUNS])
def test_a_resumed_run_ends_like_an_unbroken_one(model_folder, wide_folder, tmp_path, name):
    """With dropout."""
    options = {"export": True, **RUNS[name]}
    folder, files = model_folder, ["adapter/adapter_model.safetensors", "model/model.safetensors"]
    if name == "4bit":
        folder, files = wide_folder, files[:1]
    _, _, dowser = fit(folder, tmp_path / "whole", **options)
    with pytest.raises(KeyError, match="killed"):
        fit(folder, tmp_path / "cut", callbacks=[Kill()], **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    assert not checkpoint["state_dict"], "the base is left out"
    _, _, again = fit(folder, tmp_path / "cut", last, **options)
    for file in files:
        whole, cut = load_file(tmp_path / "whole" / file), load_file(tmp_path / "cut" / file)
        assert whole.keys() == cut.keys() and all(torch.equal(value, cut[key]) for key, value in whole.items())
    assert again.counts == dowser.counts and again.frozen_digest == dowser.frozen_digest


@pytest.mark.slow
def test_a_run_goes_on_where_adapters_are_drawn_otherwise_but_not_beside_another_base(model_folder, tmp_path):
    """Another processor rounds what is drawn otherwise."""
    options, last = {"export": True}, tmp_path / "cut" / "checkpoints" / "last.ckpt"
    fit(model_folder, tmp_path / "whole", **options)
    with pytest.raises(KeyError, match="killed"):
        fit(model_folder, tmp_path / "cut", callbacks=[Kill()], **options)
    other = {"module_options": {"lora": replace(LORA, seed=1)}, **options}
    with pytest.raises(ValueError, match=r"is not its base: model\..* differs"):
        fit(save_tiny_llava(tmp_path / "other", seed=1), tmp_path / "cut", last, **other)
    fit(model_folder, tmp_path / "cut", last, **other)
    whole, cut = (load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(value, cut[key]) for key, value in whole.items())


def test_a_checkpoint_scores_like_the_run(model_folder, tmp_path):
    """Weights of a checkpoint after the merge are those before it."""
    _, module, _ = fit(model_folder, tmp_path)
    trainer = build_trainer(tmp_path / "again", Lora(), limit_val_batches=1)
    fresh = build_module(model_folder, lora=LORA)
    trainer.validate(fresh, datamodule=TinyData(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", verbose=False)
    assert fresh.scores == module.scores
    for name, layer in fresh.tuned_layers().items():
        assert torch.equal(layer.weight, module.tuned_layers()[name].weight)


def test_parts_beside_the_adapters_train_too(model_folder, tmp_path):
    _, module, _ = fit(model_folder, tmp_path, module_options={"also_train": ["lm_head"]})
    base = load_model(str(model_folder), dtype="float32")
    assert not torch.equal(module.network.lm_head.weight, base.lm_head.weight)
    assert read_report(tmp_path).diagnostics["entries_trained_without_a_mask"] == base.lm_head.weight.numel()


def test_qlora_trains_adapters_beside_4_bits_and_exports_them_alone(wide_folder, tmp_path):
    options = {"quantization": "4bit", "dtype": "float32"}
    _, module, dowser = fit(wide_folder, tmp_path, module_options=options, export=True)
    assert dowser.counts[1].changed > 0.9 * dowser.counts[1].entries
    assert dowser.frozen_digest["before"] == dowser.frozen_digest["after"]
    assert not (tmp_path / "model").exists()
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == len(dowser.entries.weights)
    assert "tuned_upstream" not in read_report(tmp_path).diagnostics
    with pytest.raises(ValueError, match="the matrices are quantized"):
        module.adapters.merge()


@pytest.mark.parametrize(
    ("method", "lora", "got"),
    [(Magnitude(0.1), LORA, "dowser.method Magnitude"), (Full(), LORA, "Full"), (Lora(), None, "model.lora None")],
)
def test_masks_and_adapters_exclude_each_other(model_folder, tmp_path, method, lora, got):
    with pytest.raises(ValueError, match=f"{got}.*adapters touch every entry.*set both"):
        fit(model_folder, tmp_path, method=method, module_options={"lora": lora})


def test_a_full_checkpoint_of_adapters_is_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="got checkpoint 'full'; set --dowser.checkpoint compact"):
        fit(model_folder, tmp_path, checkpoint="full")


@pytest.mark.parametrize("wrong", [{"r": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": float("nan")}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="model.lora needs a rank"):
        LoraSettings(**wrong)
