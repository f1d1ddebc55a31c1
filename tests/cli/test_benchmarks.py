"""A run on the official files of published benchmarks, with nothing but their folder given."""

import json

import yaml

from dowser_pl.cli.main import main
from dowser_pl.reporting import read_report, text_table
from dowser_pl.reporting.answers import read_answers
from tests.data.benchmarks import official_files
from tests.tiny_models import save_tiny_llava


def test_train_and_evaluate_on_official_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("iconqa", "gqa", "pope"):
        getattr(official_files, name)(tmp_path / "sets" / name)
    tasks = [
        {"benchmark": "iconqa", "root": "iconqa", "role": "downstream"},
        {"benchmark": "gqa", "root": "gqa", "max_new_tokens": 4},
        {"name": "pope f1", "benchmark": "pope", "root": "pope", "metric": "pope_f1", "max_new_tokens": 4},
    ]
    data = {"root": "sets", "train_benchmark": {"benchmark": "iconqa", "root": "iconqa"}, "tasks": tasks}
    config = {
        "model": {"path": str(save_tiny_llava(tmp_path / "model")), "dtype": "float32"},
        "data": {"class_path": "ConversationData", "init_args": {**data, "batch_size": 1}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": "runs/mine"},
        "dowser": {"drift": False},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", "mine.yaml", "--dowser.method", "Magnitude", "--export.enabled", "false"])
    report = read_report("runs/mine")
    assert {name: task.metric for name, task in report.tasks.items()} == {
        "iconqa": "exact_match_strict",
        "gqa": "gqa",
        "pope f1": "pope_f1",
    }
    assert report.tasks["gqa"].protocol == {
        "name": "llava (changed)",
        "max_new_tokens": 4,
        "metric": "gqa",
        "normalisation": "full stops at the end and case",
        "scorer": "dowser_pl 1",
        "benchmark": "gqa",
        "split": "testdev",
        "prompts": ["{question}\nAnswer the question using a single word or phrase."],
        "ocr_tokens": False,
    }
    table = " ".join(text_table(report).split())
    assert "protocol llava iconqa: exact_match_strict, 128 new tokens; scored by dowser_pl 1" in table
    assert "protocol llava (changed) gqa: gqa, 4 new tokens; pope f1: pope_f1, 4 new tokens; scored by" in table
    answered = {row["task"]: row["id"] for row in read_answers(tmp_path / "runs" / "mine")}
    assert answered == {"iconqa": "68525", "gqa": "201640614", "pope f1": "adversarial/2"}
    assert (
        json.loads((tmp_path / "runs/mine/report.json").read_text())["tasks"]["iconqa"]["protocol"]["name"] == "llava"
    )


def test_validate_and_test_print_the_table_of_evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    official_files.gqa(tmp_path / "sets" / "gqa")
    model = str(save_tiny_llava(tmp_path / "model"))
    data = {"root": "sets", "tasks": [{"benchmark": "gqa", "root": "gqa", "max_new_tokens": 3}]}
    config = {"data": {"class_path": "ConversationData", "init_args": data}, "trainer": {"accelerator": "cpu"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    for verb in ("validate", "test"):
        main([verb, "-c", "mine.yaml", "--model.path", model])
        said = " ".join(capsys.readouterr().out.split())
        assert "task role metric n 1" in said and "gqa upstream gqa 2 0.000 \u00b10.000" in said
        assert "less 1" not in said
