"""What a run writes is read by transformers 4.57 as well: the same settings, the same tokens, the same logits.

That version cannot lie beside ours in one environment. Put it into a folder of its own and name that in a variable:
``pip install --target FOLDER "transformers==4.57.*"``, ``DOWSER_TRANSFORMERS4=FOLDER``; torch is the one we use.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dowser_pl.data import Conversation, Question, Task
from dowser_pl.models.loading import load_model
from tests import transformers4
from tests.patches.samples import fingerprints, load_folder, same_bits
from tests.tiny_models import FAMILIES, make_processor_folder
from tests.tiny_run import TinyData, build_module, build_trainer, turn

VARIABLE = "DOWSER_TRANSFORMERS4"
OLDER = os.environ.get(VARIABLE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OLDER, reason=f"needs transformers 4.57 in a folder that {VARIABLE} names"),
]
TEXT = torch.arange(8, 72).view(2, 32)


class WordsAlone(TinyData):
    """Without pictures, which the processors of Qwen-VL and InternVL would want torchvision for."""

    def train_conversations(self):
        words = ["red", "green", "blue"]
        return [
            Conversation(f"row {i}", [turn("user", "what colour is it ?"), turn("assistant", words[i % 3])], [])
            for i in range(self.num_rows)
        ]

    def evaluation_tasks(self):
        text = [Question(f"t {i}", [turn("user", "is it red ?")], [], ["yes", "no"]) for i in range(2)]
        return [Task(role, role, "exact_match", text, 3) for role in ("downstream", "upstream")]


def older(*words: str | Path) -> None:
    """Run our script under transformers 4.57."""
    environment = {**os.environ, "PYTHONPATH": str(OLDER), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, transformers4.__file__, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr


def fit(base: Path, run: Path, **options):
    """A run of a few steps; the tuned model."""
    module = build_module(base, lr=0.05, **options)
    precision = "bf16-true" if options.get("dtype") == "auto" else "32-true"
    trainer = build_trainer(run, export=True, max_epochs=1, limit_val_batches=1, precision=precision)
    trainer.fit(module, datamodule=WordsAlone(num_rows=6))
    return module.network


RUNS = {"4, auto": ("4", "auto"), "4, float32": ("4", "float32"), "5": ("5", "float32")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs from bases that either version wrote, and what 4.57 reads; it starts twice, which takes its time."""
    folder = tmp_path_factory.mktemp("runs")
    older("build", folder / "bases" / "4")
    for family in transformers4.FAMILIES:
        FAMILIES[family]().save_pretrained(folder / "bases" / "5" / family)
        make_processor_folder(folder / "bases" / "5" / family)
    found = {}
    for name, (version, dtype) in RUNS.items():
        for family in transformers4.FAMILIES:
            base, run = folder / "bases" / version / family, folder / name / family
            tuned = fit(base, run, dtype=dtype)
            found[name, family] = [base, run / "model", tuned]
    older("read", folder / "read.json", *{str(path) for base, out, _ in found.values() for path in (base, out)})
    read = json.loads((folder / "read.json").read_text())
    assert all(each["version"].startswith("4.57.") for each in read.values())
    return {key: [*parts, read[str(parts[0])], read[str(parts[1])]] for key, parts in found.items()}


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    model = load_model(str(folder), dtype="float32").eval()
    return model(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits


def assert_like_the_base(base: Path, out: Path, tuned, converted: bool) -> None:
    before, after = fingerprints(base), fingerprints(out)
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    allowed = {"config.json", "model.safetensors.index.json"} if converted else set()
    assert differing and differing <= allowed | {path.name for path in base.glob("*.safetensors")}
    assert load_folder(base).keys() == load_folder(out).keys()
    assert same_bits(dict(load_model(str(out)).state_dict()), dict(tuned.state_dict()))


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("family", transformers4.FAMILIES)
def test_a_base_that_it_wrote(family, dtype, runs):
    base, out, tuned, before, after = runs[f"4, {dtype}", family]
    assert_like_the_base(base, out, tuned, converted=dtype == "float32")
    assert after["ids"] == before["ids"] and len(after["ids"]) == 5
    ours = logits(out)
    torch.testing.assert_close(torch.tensor(after["logits"]), ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(torch.tensor(before["logits"]), ours, atol=1e-2), "tuning changed nothing"


@pytest.mark.parametrize("family", transformers4.FAMILIES)
def test_a_base_that_transformers_5_wrote(family, runs):
    """4.57 reads the model as it reads its base, for better or worse: it has no tokenizer class of that name, knows
    the rotary settings only where they are the defaults of their class, and cannot run Qwen2.5-VL without them."""
    base, out, tuned, before, after = runs["5", family]
    assert_like_the_base(base, out, tuned, converted=False)
    assert after["ids"] == before["ids"] and "TokenizersBackend" in before["ids"]
    if family == "qwen2_5_vl":
        assert after["logits"] == before["logits"] and before["logits"].startswith("TypeError")
        return
    torch.testing.assert_close(torch.tensor(after["logits"]), logits(out), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(torch.tensor(before["logits"]), logits(out), atol=1e-2), "tuning changed nothing"
