"""The quickstart in small: three steps of the embedded world, its patch, and what the check says of it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import check_quickstart
from check_quickstart import BASE, problems
from dowser_pl.cli.main import main
from dowser_pl.commands.patch import main as patch
from dowser_pl.models.loading import load_processor
from dowser_pl.patches.patch import Patch, save_patch
from dowser_pl.patches.safetensors_file import read_slots
from tests.tiny_run import pictures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOT_LEARNT = {"downstream gain >= 0.30", "base upstream mean >= 0.90", "upstream drop <= 0.30"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "small"
    main([
        "fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), f"--trainer.default_root_dir={run}",
        "--trainer.max_steps=3", "--data.num_eval=2", "--data.eval_batch_size=2", "--data.num_train=96",
        "--dowser.method=Magnitude", "--dowser.method.update_ratio=0.1",
    ])  # fmt: skip
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.slow
def test_all_is_well_but_what_three_steps_cannot_learn(finished):
    assert set(problems(finished)) <= NOT_LEARNT


def test_what_is_missing_is_named(run):
    (run / "patch.safetensors").unlink()
    (run / "model" / "model.safetensors").unlink()
    assert problems(run) == [f"{run} lacks patch.safetensors, model/model.safetensors"]


def change_report(run: Path, **changes) -> None:
    content = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(content | changes))


def change_model(run: Path) -> None:
    """One bit of one entry."""
    file = run / "model" / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(torch.int32).view(-1)[-1] ^= 1
    save_file(tensors, file, {"format": "pt"})


def change_patch(run: Path) -> None:
    """One bit of one tuned value, in a patch that is whole."""
    with Patch.open(run / "patch.safetensors") as patch:
        changes = {name: patch.change(name) for name in patch.names}
        head = {key: patch.head[key] for key in ("base", "config", "created_by", "method", "scores", "versions")}
    changes[patch.names[0]].values.view(torch.int32).view(-1)[0] ^= 1
    save_patch(run / "patch.safetensors", changes, head)


def flip_patch(run: Path) -> None:
    """One bit of one tuned value, as on a failing disk."""
    file = run / "patch.safetensors"
    slot = next(slot for name, slot in read_slots(file).items() if name.endswith(".values"))
    content = bytearray(file.read_bytes())
    content[slot.start] ^= 1
    file.write_bytes(content)


def truncate_patch(run: Path) -> None:
    with (run / "patch.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 1)


def pad_patch(run: Path) -> None:
    """The header, by a seventh of the file."""
    file = run / "patch.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    spaces = len(content) // 7 // 8 * 8
    file.write_bytes(
        (length + spaces).to_bytes(8, "little") + content[8 : 8 + length] + b" " * spaces + content[8 + length :]
    )


WRONG = {
    "the digest of the frozen entries stays": lambda run: change_report(
        run, frozen_digest={"before": "a", "after": "b"}
    ),
    "only what is trainable was trained": lambda run: change_report(run, update="dense"),
    "the base with the patch is the exported model, bit for bit": change_model,
    "the base with the patch is the exported model, bit for bit.": change_patch,
    "the patch is bits and values, and at most a tenth more": pad_patch,
    "the patch can be applied and removed (": truncate_patch,
    "the patch can be applied and removed (.": flip_patch,
}


@pytest.mark.parametrize("promise", WRONG)
def test_one_thing_wrong_is_told(run, promise):
    WRONG[promise](run)
    found = [problem for problem in problems(run) if problem not in NOT_LEARNT]
    assert len(found) == 1 and found[0].startswith(promise.rstrip(".")), found


def test_a_base_that_does_not_come_back_is_told(finished, monkeypatch):
    monkeypatch.setattr(check_quickstart, "remove_patch", lambda _: None)
    assert set(problems(finished)) - NOT_LEARNT == {"without the patch it is the base again, bit for bit"}


def test_the_patched_folder_answers_like_the_exported_one_in_plain_transformers(finished, tmp_path):
    assert patch(["apply", "embedded:world", str(finished / "patch.safetensors"), "--out", str(tmp_path / "out")]) == 0
    processor = load_processor(str(tmp_path / "out"))
    question = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour is it ?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(text=[question] * 3, images=[image for _, image in pictures(3)], return_tensors="pt")
    logits = {}
    for folder in (tmp_path / "out", finished / "model", BASE):
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        assert model.dtype == torch.float32
        with torch.no_grad():
            logits[folder] = model(**inputs).logits
    patched, exported, base = logits.values()
    assert patched.isfinite().all() and torch.equal(patched, exported)
    assert not torch.equal(patched, base)
