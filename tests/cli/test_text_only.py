"""Verbs on a model of text alone, as a person types it, with the rows that people have."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GPT2Config

from dowser_pl.__main__ import main
from tests.cli.test_cli import SMALL_PROBE, error_of
from tests.tiny_models import save_text_model
from tests.tiny_run import TinyTextData

FEW = ["--dowser.rows.per_source=20", "--dowser.rows.num_tokens=8"]


def words(row):
    return ["".join(part["text"] for part in message["content"]) for message in row.messages]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture
def here(tmp_path, monkeypatch, model_folder):
    """A folder of a user: JSONL and a YAML."""
    monkeypatch.chdir(tmp_path)
    rows = [words(row) for row in TinyTextData(20).train_conversations()]
    train = [
        {"messages": [{"role": r, "content": t} for r, t in zip(("user", "assistant"), row, strict=True)]}
        for row in rows
    ]
    task = [{"question": question, "answer": answer} for question, answer in rows[:4]]
    for name, content in {"train": train, "task": task}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    tasks = [{"name": "kept", "file": "task.jsonl"}]
    config = {
        "model": {"path": str(model_folder), "dtype": "float32"},
        "data": {
            "class_path": "ConversationData",
            "init_args": {"train_file": "train.jsonl", "batch_size": 4, "holdout": 0.2, "tasks": tasks},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": "runs/mine"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.slow
def test_every_verb(here, model_folder, capsys):
    main(["plan", "-c", "mine.yaml", "--json", "plan.json"])
    assert "rows: 16, of " in capsys.readouterr().out
    main(["probe", "-c", "mine.yaml", *SMALL_PROBE, "--dowser.cache_dir=kept"])
    assert len(list((here / "kept").glob("*.safetensors"))) == 1
    main(["fit", "-c", "mine.yaml", *SMALL_PROBE, *FEW, "--dowser.cache_dir=kept"])
    report = json.loads((here / "runs/mine/report.json").read_text())
    assert set(report["tasks"]) == {"holdout", "kept"} and report["frozen"]["changed"] == 0
    assert set(report["drift"]["sources"]) == {"text", "chat", "turn"}
    assert len(list((here / "kept").glob("*.safetensors"))) == 1, "what `probe` measured was used"
    main(["validate", "-c", "mine.yaml", "--model.path", "runs/mine/model"])
    main(["predict", "-c", "mine.yaml", "--model.path", "runs/mine/model"])
    assert main(["report", "runs/mine"]) == 0
    base, run = str(model_folder), "runs/mine/patch.safetensors"
    assert main(["patch", "apply", base, run, "--out", "applied"]) == 0
    assert main(["drift", base, "runs/mine", "applied", "--per-source", "4", "--json", "drift.json"]) == 0
    first, second = json.loads((here / "drift.json").read_text())["drift"].values()
    assert first == second and first["kl"] > 0 and set(first["sources"]) == {"text", "chat", "turn"}
    assert main(["merge", "--base", base, "--tuned", "runs/mine/model", "--method", "Dare", "--out", "merged"]) == 0
    state = AutoModelForCausalLM.from_pretrained("merged").state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())


def test_pictures_are_refused_before_anything_long(here, capsys):
    rows = (here / "train.jsonl").read_text().splitlines()
    rows[13] = json.dumps(json.loads(rows[13]) | {"image": "a.png"})
    (here / "train.jsonl").write_text("\n".join(rows))
    said = error_of(capsys, ["fit", "-c", "mine.yaml"])
    assert "train.jsonl line 14: got 1 image or <image> in the text, expected none: the model reads text alone" in said


@pytest.mark.parametrize("verb", ["fit", "probe", "plan", "validate"])
def test_transposed_matrices_are_refused_before_a_weight_is_read(here, capsys, verb):
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    save_text_model(here / "gpt2")
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(here / "gpt2")
    (here / "gpt2" / "model.safetensors").write_bytes(b"no weights")
    said = error_of(capsys, [verb, "-c", "mine.yaml", "--model.path", "gpt2"])
    assert "got the matrix transformer.h.0.attn.c_attn.weight in a Conv1D, expected every matrix" in said
    assert "Fix: use a model whose decoder is built from nn.Linear" in said
