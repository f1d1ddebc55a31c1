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
from tests.patches.samples import fingerprints, load_folder
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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def read_by_older(folder: Path) -> dict:
    out = folder.with_suffix(".json")
    older("read", folder, out)
    found = json.loads(out.read_text())
    assert found["version"].startswith("4.57.")
    return found


def fit(base: Path, run: Path, precision: str = "32-true", dtype: str = "auto"):
    """A run of a few steps; the tuned model in float32, and the folder that was written."""
    module = build_module(base, lr=0.05, dtype=dtype)
    trainer = build_trainer(run, export=True, max_epochs=1, limit_val_batches=1, precision=precision)
    trainer.fit(module, datamodule=WordsAlone(num_rows=6))
    return module.network.float().eval(), run / "model"


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits


def assert_like_the_base(base: Path, out: Path, converted: bool) -> None:
    before, after = fingerprints(base), fingerprints(out)
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    allowed = {"config.json", "model.safetensors.index.json"} if converted else set()
    assert differing and differing <= allowed | {path.name for path in base.glob("*.safetensors")}
    assert load_folder(base).keys() == load_folder(out).keys()


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("family", transformers4.FAMILIES)
def test_a_base_that_it_wrote(family, dtype, tmp_path):
    base = tmp_path / "base"
    older("build", family, base)
    tuned, out = fit(base, tmp_path / "run", dtype=dtype, precision="bf16-true" if dtype == "auto" else "32-true")
    assert_like_the_base(base, out, converted=dtype == "float32")
    before, after = read_by_older(base), read_by_older(out)
    assert after["ids"] == before["ids"] and len(after["ids"]) == 5
    torch.testing.assert_close(torch.tensor(after["logits"]), logits(tuned), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(torch.tensor(before["logits"]), logits(tuned), atol=1e-2), "tuning changed nothing"
    assert torch.equal(logits(load_model(str(out), dtype="float32").eval()), logits(tuned))


@pytest.mark.parametrize("family", transformers4.FAMILIES)
def test_a_base_that_transformers_5_wrote(family, tmp_path):
    """4.57 reads the model as it reads its base, for better or worse: it has no tokenizer class of that name, knows
    the rotary settings only where they are the defaults of their class, and cannot run Qwen2.5-VL without them."""
    base = tmp_path / "base"
    FAMILIES[family]().save_pretrained(base)
    make_processor_folder(base)
    tuned, out = fit(base, tmp_path / "run")
    assert_like_the_base(base, out, converted=False)
    before, after = read_by_older(base), read_by_older(out)
    assert after["ids"] == before["ids"] and "TokenizersBackend" in before["ids"]
    if family == "qwen2_5_vl":
        assert after["logits"] == before["logits"] and before["logits"].startswith("TypeError")
    else:
        torch.testing.assert_close(torch.tensor(after["logits"]), logits(tuned), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(load_model(str(out), dtype="float32").eval()), logits(tuned))
