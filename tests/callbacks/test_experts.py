"""Whole runs of models with experts: what moved, what did not a bit, in memory and in the files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dowser_pl.__main__ import main
from dowser_pl.importance import Rows
from dowser_pl.importance.kl_to_base import KLToBase
from dowser_pl.importance.replay import Replay
from dowser_pl.methods import OSF, Grafting, Lora, NullSpace
from dowser_pl.models import load_model
from dowser_pl.models.lora import LoraSettings
from tests.tiny_experts import EXPERT_FAMILIES
from tests.tiny_models import make_processor_folder, save_text_model
from tests.tiny_run import KillAt, Killed, TinyData, TinyTextData, build_module, build_trainer

TARGETS = {"qwen2_moe": ["attn", "shared_expert.up_proj"]}


def save(folder: Path, family: str) -> Path:
    if "v" not in family:
        return save_text_model(folder, family)
    EXPERT_FAMILIES[family]().save_pretrained(folder)
    return make_processor_folder(folder)


def fit(family, base, folder, method=None, ckpt_path=None, module=None, **options):
    data = TinyData() if family == "llava_mixtral" else TinyTextData()
    tuned = build_module(base, **{"targets": TARGETS.get(family, ["attn"]), **(module or {})})
    trainer = build_trainer(folder, method, **{"export": True, **options})
    trainer.fit(tuned, datamodule=data, ckpt_path=ckpt_path)
    return tuned


def in_files(folder):
    return {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}


def changed(first, second):
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize(
    "family",
    ["qwen2_moe", *(pytest.param(f, marks=pytest.mark.slow) for f in EXPERT_FAMILIES if f != "qwen2_moe")],
)
def test_a_run_moves_nothing_of_experts_and_routers(family, tmp_path, capsys):
    base, out = save(tmp_path / "base", family), tmp_path / "run"
    tuned = fit(family, base, out)
    report = json.loads((out / "report.json").read_text())
    assert report["frozen"]["changed"] == 0 and report["trainable"]["changed"] == report["trainable"]["entries"]
    masked = {f"{name}.weight" for name in tuned.tuned_layers()}
    assert changed(load_model(str(base)).state_dict(), load_model(str(out / "model")).state_dict()) == masked
    assert len(masked) == (14 if family == "qwen2_moe" else 12)
    before, after = in_files(base), in_files(out / "model")
    assert len(changed(before, after)) == len(masked) and any("expert" in name for name in before)
    patch = out / "patch.safetensors"
    assert main(["patch", "apply", str(base), str(patch), "--out", str(tmp_path / "patched")]) == 0
    assert not changed(in_files(tmp_path / "patched"), after)
    assert main(["patch", "remove", str(tmp_path / "patched")]) == 0
    assert not changed(in_files(tmp_path / "patched"), before)
    merge = ["merge", "--base", str(base), "--tuned", str(out / "model"), "--method", "Ties"]
    assert main([*merge, "--out", str(tmp_path / "merged")]) == 0
    assert changed(before, in_files(tmp_path / "merged")) <= changed(before, after)


@pytest.mark.slow
def test_a_killed_run_ends_like_an_unbroken_one(tmp_path):
    base = save(tmp_path / "base", "qwen3_moe")
    fit("qwen3_moe", base, tmp_path / "whole")
    with pytest.raises(Killed):
        fit("qwen3_moe", base, tmp_path / "cut", callbacks=[KillAt(5)])
    fit("qwen3_moe", base, tmp_path / "cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_the_dense_form_and_the_reader_of_the_base_leave_experts_alone(tmp_path):
    base = save(tmp_path / "base", "qwen2_moe")
    held = {"update": "dense", "drift": True, "kl_to_base": KLToBase()}
    fit("qwen2_moe", base, tmp_path / "run", **held)
    moved = changed(in_files(base), in_files(tmp_path / "run" / "model"))
    assert len(moved) == 14 and all(".self_attn." in name or ".shared_expert.up_proj" in name for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "method",
    [NullSpace(), OSF(), Grafting(), Lora()],
    ids=lambda method: type(method).__name__,
)
def test_other_methods_leave_experts_alone(method, checkpointing, tmp_path, capsys):
    base = save(tmp_path / "base", "qwen3_moe")
    options = {"replay": Replay(), "rows": Rows(per_source=20, num_tokens=8)} if type(method) is NullSpace else {}
    lora = {"lora": LoraSettings(r=2)} if isinstance(method, Lora) else {}
    fit("qwen3_moe", base, tmp_path / "run", method, module=lora | {"gradient_checkpointing": checkpointing}, **options)
    moved = changed(in_files(base), in_files(tmp_path / "run" / "model"))
    assert moved and all(".self_attn." in name for name in moved)


def test_targets_that_reach_experts_are_refused_before_weights_are_read(tmp_path):
    base = save(tmp_path / "base", "qwen3_moe")
    (base / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"reach the mixture of experts .* Fix: --model.targets '\[attn\]'"):
        fit("qwen3_moe", base, tmp_path / "run", module={"targets": ["attn", "mlp"]})
