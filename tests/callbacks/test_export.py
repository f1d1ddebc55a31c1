"""What a run writes as `model/`: the folder of its base with the tuned weights in it."""

import json
import shutil

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, GenerationConfig

from dowser_pl.callbacks import Curve, Dowser
from dowser_pl.commands.patch import main as main_patch
from dowser_pl.methods import Dare, Full, Lora, ModelDowser
from dowser_pl.models.lora import LoraSettings
from dowser_pl.patches.apply import apply_patches
from tests.patches.samples import fingerprints, load_folder, same_bits, save_base
from tests.tiny_models import CHAT_TEMPLATE, EOS, make_processor_folder, save_text_model, tiny_paligemma
from tests.tiny_run import TinyData, TinyTextData, build_module, build_trainer
from tests.tiny_sizes import UNK


@pytest.fixture
def base(tmp_path):
    """In shards, with files that no class of transformers writes."""
    folder = save_base(tmp_path / "base", torch.float32, "100KB")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("{", '{"somebody": 1e-05,\n', 1).replace("\n  ", "\n\t"))
    (folder / "LICENSE").write_text("do what you like")
    return folder


def fit(base, run, method=None, callbacks=(), data=None, ckpt_path=None, **options):
    module = build_module(base, **options.pop("module", {}))
    trainer = build_trainer(run, method, callbacks, export=True, **{"max_epochs": 1, "limit_val_batches": 1, **options})
    trainer.fit(module, datamodule=data or TinyData(num_rows=6), ckpt_path=ckpt_path)
    return module, next(each for each in trainer.callbacks if isinstance(each, Dowser))


def differing(base, out):
    before, after = fingerprints(base), fingerprints(out)
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def changed(base, out):
    before, after = load_folder(base), load_folder(out)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


RUNS = {
    "masks": (lambda: ModelDowser(0.1), {}),
    "dense": (lambda: ModelDowser(0.1), {"update": "dense"}),
    "full": (Full, {}),
    "merged": (lambda: Dare(0.3), {}),
    "adapters": (Lora, {"module": {"lora": LoraSettings(r=4)}}),
    "a part as a whole": (lambda: ModelDowser(0.1), {"module": {"also_train": ["norms", "lm_head"]}}),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_file_is_that_of_the_base_but_for_what_was_tuned(base, tmp_path, name):
    method, options = RUNS[name]
    before = fingerprints(base)
    module, _ = fit(base, tmp_path / "run", method(), **options)
    out = tmp_path / "run" / "model"
    assert fingerprints(base) == before
    shards = {path.name for path in base.glob("*.safetensors")}
    assert len(shards) == 2 and differing(base, out) <= shards
    tuned = {layer.removeprefix("model.") for layer in module.tuned_layers()}
    found = {name.replace("language_model.model.", "language_model.") for name in changed(base, out)}
    if name == "adapters":
        tuned = {layer.partition(".lora_")[0] for layer in tuned}
    if name == "a part as a whole":
        extra = {each for each in found if "norm" in each or "lm_head" in each}
        assert len(extra) == 8
        found -= extra
    assert found and found <= {f"{layer}.weight" for layer in tuned}
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
    plain = module.network.state_dict()
    if name == "adapters":
        plain = module.adapters.plain_state()
    assert same_bits(dict(loaded.state_dict()), {key: tensor.detach() for key, tensor in plain.items()})


def test_the_model_that_keeps_a_budget_is_written(base, tmp_path):
    data = TinyData(num_rows=6)
    data.selection_tasks = [task for task in data.evaluation_tasks() if task.role == "upstream"]
    module, _ = fit(base, tmp_path / "run", ModelDowser(0.1), [Curve((0.05,), 0.0)], data)
    assert differing(base, tmp_path / "run" / "model") <= {path.name for path in base.glob("*.safetensors")}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert same_bits(dict(loaded.state_dict()), dict(module.network.state_dict()))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", "bfloat16"), ("32-true", "float32")])
def test_the_dtype_is_that_of_the_run(base, tmp_path, precision, dtype):
    module, _ = fit(base, tmp_path / "run", precision=precision)
    out = tmp_path / "run" / "model"
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
    assert same_bits(dict(loaded.named_buffers()), dict(module.network.named_buffers())), "rotary frequencies"
    before = (base / "config.json").read_text()
    assert (out / "config.json").read_text() == before.replace('"dtype": "float32"', f'"dtype": "{dtype}"')
    assert {str(tensor.dtype) for tensor in load_folder(out).values()} == {f"torch.{dtype}"}
    names = {"config.json", "model.safetensors.index.json"} if dtype == "bfloat16" else set()
    assert differing(base, out) - {path.name for path in base.glob("*.safetensors")} == names


def test_a_model_of_the_hub_is_written_like_its_folder_in_the_cache(base, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "models--somebody--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots").mkdir()
    (cache / "blobs").mkdir()
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir()
    for path in base.iterdir():
        shutil.copy(path, cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download", "huggingface_hub._snapshot_download"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    fit("somebody/tiny", tmp_path / "run")
    out = tmp_path / "run" / "model"
    assert changed(base, out) and differing(base, out) <= {path.name for path in base.glob("*.safetensors")}
    assert not any(path.is_symlink() for path in out.iterdir())


def test_runs_that_lie_in_the_folder_of_their_base_are_no_part_of_it(base):
    before = set(fingerprints(base))
    fit(base, base / "runs" / "mine")
    assert set(fingerprints(base / "runs" / "mine" / "model")) == before


def test_the_model_stops_where_its_answers_end(base, tmp_path):
    """The template closes turns with another token than the base's generation config names."""
    data = TinyData(num_rows=6)
    data.chat_template = CHAT_TEMPLATE.replace("' </s>'", "' <unk>'")
    module, _ = fit(base, tmp_path / "run", data=data)
    out = tmp_path / "run" / "model"
    assert module.ending().ids == (EOS, UNK)
    before = (base / "generation_config.json").read_text()
    after = before.replace(f'"eos_token_id": {EOS}', f'"eos_token_id": [{EOS}, {UNK}]')
    assert (out / "generation_config.json").read_text() == after != before
    assert differing(base, out) - {path.name for path in base.glob("*.safetensors")} == {"generation_config.json"}
    patches = {"of the run": tmp_path / "run" / "patch.safetensors"}
    assert main_patch(["export", str(tmp_path / "run"), "--out", str(tmp_path / "c.safetensors")]) == 0
    assert main_patch(["diff", str(base), str(out), "--out", str(tmp_path / "d.safetensors")]) == 0
    patches |= {"of its checkpoint": tmp_path / "c.safetensors", "of its folder": tmp_path / "d.safetensors"}
    for name, patch in patches.items():
        apply_patches(base, [patch], tmp_path / name)
        undone = {"dowser_patches/applied.json", "dowser_patches/01.undo.safetensors"}
        assert differing(out, tmp_path / name) == undone, name


LLAVA = {"image_token_index", "vision_feature_layer", "vision_feature_select_strategy", "text_config", "vision_config"}


@pytest.mark.parametrize("kind", ["llava", "text"])
def test_what_a_server_such_as_vllm_looks_for_is_in_the_folder(tmp_path, kind):
    """By its names, as docs/how-to/patches.md lists them."""
    base = tmp_path / "base"
    save_text_model(base) if kind == "text" else save_base(base, torch.float32, "100KB")
    (base / "consolidated.safetensors").write_bytes(b"the base in another layout")
    data = TinyTextData(6) if kind == "text" else TinyData(6)
    data.chat_template = CHAT_TEMPLATE.replace("' </s>'", "' <unk>'")
    module, _ = fit(base, tmp_path / "run", data=data)
    out = tmp_path / "run" / "model"
    config = json.loads((out / "config.json").read_text())
    assert {"architectures", "model_type", "dtype"} <= set(config)
    assert config["architectures"] == [type(module.network).__name__]
    weights = {path.name for path in out.glob("*.safetensors")}
    named = {"model.safetensors"}
    if kind == "llava":
        assert set(config) >= LLAVA and AutoProcessor.from_pretrained(out).chat_template == CHAT_TEMPLATE
        assert set(config["vision_config"]) >= {"image_size", "patch_size", "num_hidden_layers"}
        named = set(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert weights == named and not [*out.glob("*.bin"), *out.glob("*.pt")]
    assert AutoTokenizer.from_pretrained(out).get_chat_template() == CHAT_TEMPLATE
    ends = GenerationConfig.from_pretrained(out).to_diff_dict()["eos_token_id"]
    assert set(ends) == set(module.ending().ids) == {EOS, UNK}


class Between(Callback):
    """Does something while the model is tuned."""

    def __init__(self, act):
        self.act = act

    def on_train_epoch_start(self, trainer, pl_module):
        self.act()


def test_a_base_that_goes_away_is_named_and_a_resumed_run_writes_the_model(base, tmp_path):
    with pytest.raises(
        ValueError, match="the files of .*base changed while the model was tuned, expected them as .*resume"
    ):
        fit(base, tmp_path / "run", callbacks=[Between(lambda: base.rename(tmp_path / "away"))])
    assert not (tmp_path / "run" / "model").exists()
    (tmp_path / "away").rename(base)
    fit(base, tmp_path / "run", ckpt_path=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert changed(base, tmp_path / "run" / "model")


def test_a_model_without_a_folder_is_written_by_transformers_and_that_is_said_first(base, tmp_path):
    module = build_module(base)
    module.configure_model()
    module.processor  # noqa: B018 - read while the folder is there
    module.path = "made by code"
    said = []

    def act():
        said.append(True)

    with pytest.warns(UserWarning, match="will not be written like the files of its base, but by save_pretrained"):
        trainer = build_trainer(tmp_path / "run", callbacks=[Between(act)], export=True, max_epochs=1)
        trainer.fit(module, datamodule=TinyData(num_rows=6))
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert "somebody" not in config or "transformers_version" in config
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert same_bits(dict(loaded.state_dict()), dict(module.network.state_dict()))


def test_a_model_that_is_not_that_of_its_folder_is_written_by_transformers(base, tmp_path):
    module = build_module(base)
    module.configure_model()
    module.network.resize_token_embeddings(104)
    with pytest.warns(UserWarning, match=r"save_pretrained .*lm_head.weight has shape \(104, 32\) in the loaded"):
        trainer = build_trainer(tmp_path / "run", export=True, max_epochs=1)
        trainer.fit(module, datamodule=TinyData(num_rows=6))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert loaded.config.text_config.vocab_size == 104


def test_tied_embeddings_are_written_once(tmp_path):
    tiny_paligemma().save_pretrained(tmp_path / "base")
    base = make_processor_folder(tmp_path / "base")
    fit(base, tmp_path / "run", module={"also_train": ["embeddings"]})
    assert "language_model.model.embed_tokens.weight" in changed(base, tmp_path / "run" / "model")
