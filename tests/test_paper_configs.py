"""The configurations of the papers' experiments: what they say, and that each runs on files of the official layout."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, LlamaConfig, PreTrainedModel

from dowser_pl.cli.arguments import resolve_configs
from dowser_pl.cli.main import main
from dowser_pl.models.layers import find_layers
from dowser_pl.models.nvila import NVILAConfig, NVILAForConditionalGeneration
from dowser_pl.reporting import read_report
from tests.data.benchmarks import official_files
from tests.tiny_models import (
    EOS,
    TEXT,
    build,
    make_processor_folder,
    save_tiny_instructblip,
    tiny_instructblip,
    tiny_llava,
)
from tests.tiny_nvila import TEXT as NVILA_TEXT
from tests.tiny_nvila import VISION as NVILA_VISION
from tests.tiny_nvila_processor import ENDOFTEXT, tiny_nvila_processor
from tests.tiny_nvila_processor import IMAGE as NVILA_IMAGE

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER.parent).with_suffix("")) for path in FOLDER.glob("[ms]*/*_*.yaml"))
BATCHES = {"model_dowser": 128, "spider": 128, "model_tailor_flickr30k": 64, "model_tailor_okvqa": 96}
UPSTREAM = {
    "model_dowser": ["textvqa", "mmbench", "mmbench_cn", "gqa", "ocrvqa", "okvqa"],
    "llava": ["textvqa", "gqa", "vqav2", "mmbench", "mmbench_cn", "pope", "vizwiz", "scienceqa_img"],
    "instructblip": ["coco_karpathy", "nocaps_in", "nocaps_near", "nocaps_out", "aokvqa", "gqa", "vqav2"],
}
LEARNT = ("flickr30k", "okvqa")  # by Model Tailor


def merged(name: str) -> dict:
    """The content of all files that a name stands for, later ones over earlier."""
    whole: dict = {}
    for path in resolve_configs(["-c", name])[1::2]:
        _lay(yaml.safe_load(Path(path).read_text()), whole)
    return whole


def _lay(upper: dict, lower: dict) -> None:
    for key, value in upper.items():
        if key.endswith("+"):
            lower[key[:-1]] = [*lower[key[:-1]], *value]
        elif isinstance(value, dict) and isinstance(lower.get(key), dict):
            _lay(value, lower[key])
        else:
            lower[key] = value


def test_there_is_one_for_every_model_and_task():
    assert len(EXPERIMENTS) == 20
    assert {name.split("/")[1] for name in EXPERIMENTS} == {"model_dowser", "model_tailor", "spider"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_settings_are_the_published_ones(name):
    config, (_, paper, run) = merged(name), name.split("/")
    model, data = config["model"], config["data"]["init_args"]
    task = run.split("_", 1)[1]
    rows = data["batch_size"] * config["trainer"]["accumulate_grad_batches"]
    tailor, blip, nvila = paper == "model_tailor", run.startswith("instructblip"), run.startswith("nvila")
    batch = 128 if blip else BATCHES.get(paper, BATCHES.get(f"{paper}_{task}"))
    assert rows == batch and data["split_batches"]
    assert (model["last_n_layers"], model["targets"]) == (
        (None, ["qformer"]) if blip else (12 if tailor else 20, ["attn", "mlp"])
    )
    rate = 1e-5 if blip else 1e-4 if tailor else 2e-5
    assert model["optimizer"]["init_args"] == {"lr": rate, "weight_decay": 0.05 if blip else 0.0}
    assert config["trainer"]["max_epochs"] == (1 if tailor else 5)
    assert model["path"].endswith("NVILA-Lite-2B") == nvila
    assert data["max_length"] == (416 if blip else 4096 if nvila else 2048)
    assert model["scheduler"] == "cosine" and model["warmup_ratio"] == 0.03
    upstream = UPSTREAM[run.split("_")[0] if tailor else "model_dowser"]
    assert [named(each) for each in data["tasks"] if each.get("role") != "downstream"] == [
        *upstream,
        *(each for each in LEARNT if blip and each != task),
    ]
    words = [each.get("protocol") for each in (*data["tasks"], data["train_benchmark"])]
    assert set(words) == {"instructblip" if blip else None}
    assert data.get("chat_template") == ("instructblip" if blip else None)
    (learnt,) = (each["benchmark"] for each in data["tasks"] if each.get("role") == "downstream")
    assert learnt == data["train_benchmark"]["benchmark"] == (task if tailor else f"dowser_{task}")
    assert config["trainer"]["default_root_dir"] == f"runs/{name}"
    if tailor:
        assert config["dowser"]["calibration_batches"] * data["batch_size"] == 128


def named(task: dict) -> str:
    return task.get("name", task["benchmark"])


def test_what_is_counted_as_trained_of_instructblip_is_all_that_is_not_frozen():
    """The number that stands in the release of Model Tailor, and what of it is tailored here."""
    config = InstructBlipConfig(
        vision_config={"num_hidden_layers": 1},
        qformer_config={"vocab_size": 30523},
        text_config=LlamaConfig(num_hidden_layers=1),
        num_query_tokens=32,
    )
    with torch.device("meta"):
        model = InstructBlipForConditionalGeneration(config)
    parts = (model.qformer, model.language_projection, model.vision_model.post_layernorm)
    trained = model.query_tokens.numel() + sum(each.numel() for part in parts for each in part.parameters())
    assert trained + model.qformer.config.max_position_embeddings == 188_837_888
    assert sum(layer.weight.numel() for layer in find_layers(model, None, ["qformer"]).values()) == 161_611_776


@pytest.mark.parametrize("path", sorted(FOLDER.glob("parts/*.yaml")), ids=lambda path: path.stem)
def test_every_number_of_a_recipe_has_its_source(path):
    for line in path.read_text().splitlines():
        setting, _, source = line.partition("#")
        if re.search(r": .*\d", setting) and "benchmark:" not in setting and "path:" not in setting:
            follows = setting.strip().startswith(("batch_size", "estimator"))
            assert source.strip() or follows, f"{path.name}: {line}"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All files that the experiments want, as they are downloaded, at the places that the configurations name."""
    root = tmp_path_factory.mktemp("data")
    for name in ("textvqa", "gqa", "ocrvqa", "vizwiz", "scienceqa", "mmbench", "pope"):
        getattr(official_files, name)(root / name)
    official_files.mmbench(root / "mmbench", "mmbench_dev_cn_20231003.tsv")
    official_files.nocaps(root / "nocaps", 6)
    official_files.aokvqa(root / "aokvqa", images=root / "coco" / "val2017")
    official_files.flickr30k(root / "flickr30k", "test")
    official_files.karpathy(root / "coco", "test")
    for split in ("train", "val"):
        official_files.vqa(root / "okvqa", split=split, images=root / "coco" / f"{split}2014")
    official_files.vqa(root / "vqav2", "v2_", images=root / "coco" / "val2014")
    official_files.draw(root / "coco" / "val2014" / "COCO_val2014_000000310196.jpg")
    official_files.record_files(root)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Of each family one as deep as the real one, that soon ends what it says."""
    folder = tmp_path_factory.mktemp("models")
    llava = brief(tiny_llava(num_hidden_layers=32, max_position_embeddings=2048))
    llava.save_pretrained(folder / "llava")
    text = LlamaConfig(**(TEXT | {"num_hidden_layers": 32, "max_position_embeddings": 2048}))
    deep = tiny_instructblip(text_config=text, num_hidden_layers=12, cross_attention_frequency=2)
    torch.nn.init.normal_(deep.query_tokens, std=0.5, generator=torch.Generator().manual_seed(0))
    blip = save_tiny_instructblip(folder / "instructblip", brief(deep))
    parts = {"text_config": NVILA_TEXT | {"num_hidden_layers": 28, "tie_word_embeddings": False}}
    config = NVILAConfig(**parts, vision_config=NVILA_VISION, image_token_id=NVILA_IMAGE)
    brief(build(NVILAForConditionalGeneration, config, 0), ENDOFTEXT).save_pretrained(folder / "nvila")
    tiny_nvila_processor().save_pretrained(folder / "nvila")
    return {"llava": make_processor_folder(folder / "llava"), "instructblip": blip, "nvila": folder / "nvila"}


def brief(model: PreTrainedModel, end: int = EOS) -> PreTrainedModel:
    """The model, whose every token says in its first dimension, which the layers hardly move, that the end is near."""
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 8.0
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.02)
        head = model.get_output_embeddings().weight
        head[:, 0] = 0.0
        head[end, 0] = 2.0
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps_on_official_files(name, root, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = models[name.split("/")[-1].split("_")[0]]
    changed = {"model.path": model, "trainer.max_steps": 2, "trainer.accelerator": "cpu", "data.root": root}
    main(["fit", "-c", name, *(word for key, value in changed.items() for word in (f"--{key}", str(value)))])
    report = read_report(Path("runs") / name)
    asked = [named(each) for each in merged(name)["data"]["init_args"]["tasks"]]
    assert sorted(report.tasks) == sorted(asked)
    words = "instructblip" if "instructblip" in name else "llava"
    assert all(task.protocol["name"] == words for task in report.tasks.values())
    assert report.frozen.changed == 0
