"""The verb `plan`, and the plan at the start of a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from dowser_pl.cli.main import main
from dowser_pl.methods import Full, Random
from dowser_pl.planning.memory import Placement
from dowser_pl.planning.model import plan_of
from dowser_pl.planning.text import lines
from dowser_pl.planning.verb import placement_of
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

RATIO = 0.1
PER_LAYER = 4 * 4096 * 4096 + 3 * 4096 * 11008  # entries of the matrices of a layer of LLaVA-1.5-7B


@pytest.fixture(scope="module")
def folder_of_7b(tmp_path_factory):
    """The config of LLaVA-1.5-7B, no weights."""
    folder = tmp_path_factory.mktemp("llava")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=4096),
        dtype="float16",
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_7b_is_planned_from_its_config_alone(folder_of_7b, tmp_path):
    """In a process of its own: quick, small, and no weight file anywhere."""
    path = tmp_path / "plan.json"
    code = (
        "import sys\n"
        "from dowser_pl.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "from dowser_pl.callbacks.memory import peak_memory_bytes\n"
        "print('peak bytes', peak_memory_bytes())\n"
    )
    options = f"plan -c base -c model/llava_1_5_7b --model.path {folder_of_7b} --tokens 1024 --json {path}"
    command = [sys.executable, "-c", code, *options.split(), "--model.last_n_layers", "null"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 2**28 < int(done.stdout.split("peak bytes")[1]) < 1.5 * 2**30
    assert "13.16 GiB bfloat16" in done.stdout and "80 GB card" in done.stdout
    content = json.loads(path.read_text())
    assert {"command", "machine", "versions"} <= set(content)
    rows = content["rows"]
    entries = 32 * PER_LAYER
    dense, compact, small = (rows[name] for name in ("dense", "compact", "compact + 8-bit"))
    assert dense["tuned_entries"] == entries and dense["trainable_entries"] == pytest.approx(RATIO * entries, rel=1e-6)
    assert dense["bytes"]["weights"] == pytest.approx(2 * 7.06e9, rel=0.01)  # bf16-true, whatever the config says
    assert dense["bytes"]["moments"] == pytest.approx(2 * 2 * entries, rel=1e-4)
    assert dense["bytes"]["base"] == 2 * entries and dense["bytes"]["masks"] == entries
    assert compact["bytes"]["moments"] == pytest.approx(8 * RATIO * entries, rel=1e-4)
    assert small["bytes"]["moments"] == pytest.approx(2 * RATIO * entries * (1 + 4 / 256), rel=1e-3)
    assert dense["smallest_card"] == 141 and "dense with --model.optimizer.fused true: " in done.stdout
    assert compact["smallest_card"] == 40 and small["smallest_card"] == 24 and not small["fits"]["16"]
    assert dense["batch"] == {"rows": 1, "tokens": 1024, "gradient_checkpointing": True, "positions": None}


@pytest.mark.slow
def test_the_world_is_planned_with_its_data_and_its_optimizer(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "plan -c base -c model/world -c data/world -c method/random --data.batch_size 5"
    options += " --trainer.devices 2 --trainer.strategy ddp"
    main([*options.split(), "--trainer.accelerator=gpu", "--model.also_train=[projector]", "--json=plan.json"])
    out = capsys.readouterr().out
    assert "2 device(s), ddp" in out and "more without a mask" in out and "rows: 1,200, of 22 to 22 tokens" in out
    dense = json.loads(Path("plan.json").read_text())["rows"]["dense"]
    assert dense["bytes"]["buckets"] == 4 * (dense["tuned_entries"] + dense["whole_entries"])
    assert dense["batch"]["rows"] == 5 and dense["optimizer"]["states"] == 2
    assert not list(tmp_path.glob("runs/*")), "planning leaves nothing behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.quantization=8bit"], "quantized weights cannot be tuned"),
        (["--tokens=0"], "at least 1; got 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(["plan", "-c", "model/world", *arguments])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("auto", 1, 1), Placement("auto", 1)),
        (("ddp", "4", 2), Placement("ddp", 8)),
        (("fsdp", [0, 1], 1), Placement("fsdp", 2)),
        (("ddp", "0,1,2", 1), Placement("ddp", 3)),
    ],
)
def test_devices_as_people_write_them(asked, expected):
    assert placement_of(*asked) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spider", "soft_dowser", "anchor"])
def test_what_a_method_keeps_beside_the_matrices_is_planned(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(f"plan -c base -c model/world -c data/world -c method/{name} --json plan.json".split())
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert set(rows) == {"compact", "compact + 8-bit"}, "there is no dense form"
    entries, kinds = rows["compact"]["tuned_entries"], rows["compact"]["bytes"]
    assert rows["compact"]["trainable_entries"] == entries
    assert kinds["base"] == 4 * entries
    assert kinds["kept"] == {"spider": 4, "soft_dowser": 8, "anchor": 0}[name] * entries
    assert ("kept by method" in capsys.readouterr().out) == (name != "anchor")


@pytest.mark.slow
def test_adapters_are_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main("plan -c base -c model/world -c data/world -c method/lora --model.lora.r 4 --json plan.json".split())
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    sides = 6 * (4 * (128 + 128) + 3 * (128 + 352))  # inputs and outputs of the matrices of six layers
    assert rows["compact"]["tuned_entries"] == rows["compact"]["trainable_entries"] == 4 * sides
    assert rows["compact"]["bytes"]["moments"] == pytest.approx(8 * 4 * sides, rel=0.01)


def test_directions_of_adapters_are_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "plan -c base -c model/world -c data/world -c method/lora_null_space --json plan.json"
    main([*command.split(), "--dowser.method.init_args.null_space.rank", "8"])
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert set(rows) == {"compact", "compact + 8-bit"}, "there is no dense form"
    inputs = 6 * (3 * 128 + 352)
    kinds = rows["compact"]["bytes"]
    assert kinds["kept"] == 8 * (4 * inputs + 4 * 6 * 4), "q, k and v share an input, gate and up another"
    assert kinds["entries"] == 4 * 16 * 6 * (6 * 128 + 352), "of every A what is trained is not what it holds"


class PlanAtStart(Callback):
    """Takes the plan where the method callback would, and what is really there when training ends."""

    def on_train_start(self, trainer, pl_module):
        dowser = next(each for each in trainer.callbacks if hasattr(each, "method"))
        tuned = [layer.weight for layer in pl_module.tuned_layers().values()]
        entries, optimizer = dowser.entries.num_trainable, trainer.optimizers[0]
        self.plan = plan_of(trainer, pl_module.network, tuned, entries, dowser.update, optimizer)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        self.gradients = sum(each.nbytes for each in gradients)
        states = [value for state in optimizer.state.values() for value in state.values()]
        self.moments = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))


@pytest.mark.slow
@pytest.mark.parametrize("update", ["compact", "dense"])
@pytest.mark.parametrize("method", [Random(RATIO), Full()])
def test_a_real_run_holds_what_was_planned(method, update, tmp_path):
    seen = PlanAtStart()
    trainer = build_trainer(tmp_path, method, [seen], update=update, max_epochs=1, limit_val_batches=1)
    module = build_module(save_tiny_llava(tmp_path / "model"), also_train=["projector"], last_n_layers=2)
    trainer.fit(module, datamodule=TinyData(num_rows=6))
    held = seen.plan.held
    assert held.weights == sum(each.nbytes for each in (*module.network.parameters(), *module.network.buffers()))
    assert held.moments == pytest.approx(seen.moments, rel=0.15)
    largest = max(layer.weight.nbytes for layer in module.tuned_layers().values())
    on_the_way = largest if update == "compact" and method.update_ratio < 1 else 0
    assert held.gradients == pytest.approx(seen.gradients + on_the_way, rel=0.15)
    assert seen.plan.batch.rows == 2 and seen.plan.decoder.layers == 3  # the projector comes before all of them
    assert any(f"{update}, AdamW" in line for line in lines(seen.plan))
