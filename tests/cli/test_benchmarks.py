"""A run on the official files of published benchmarks, with nothing but their folder given."""

import json

import pandas
import pytest
import yaml

from dowser_pl.cli.main import main
from dowser_pl.reporting import read_report, text_table
from dowser_pl.reporting.answers import read_answers
from tests.data.benchmarks import official_files
from tests.tiny_models import save_tiny_llava


@pytest.mark.slow
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
        "iconqa": "exact_match_lower",
        "gqa": "gqa",
        "pope f1": "pope_f1",
    }
    assert report.tasks["gqa"].protocol == {
        "name": "llava (changed)",
        "max_new_tokens": 4,
        "metric": "gqa",
        "normalisation": "full stops at the end and case",
        "scorer": "dowser_pl 2",
        "benchmark": "gqa",
        "split": "testdev",
        "prompts": ["{question}\nAnswer the question using a single word or phrase."],
        "ocr_tokens": False,
        "padding": "square",
    }
    table = " ".join(text_table(report).split())
    assert (
        "protocol llava iconqa: exact_match_lower, 128 new tokens; scored by dowser_pl 2; pictures padded to squares"
        in table
    )
    assert "protocol llava (changed) gqa: gqa, 4 new tokens; pope f1: pope_f1, 4 new tokens; scored by" in table
    answered = {row["task"]: row["id"] for row in read_answers(tmp_path / "runs" / "mine")}
    assert answered == {"iconqa": "68525", "gqa": "201640614", "pope f1": "adversarial/2"}
    assert (
        json.loads((tmp_path / "runs/mine/report.json").read_text())["tasks"]["iconqa"]["protocol"]["name"] == "llava"
    )


@pytest.mark.slow
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


@pytest.mark.slow
def test_predict_writes_what_servers_take(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("gqa", "mmbench", "pope"):
        getattr(official_files, name)(tmp_path / "sets" / name)
    model = str(save_tiny_llava(tmp_path / "model"))

    def predict(*tasks, **trainer):
        data = {"root": "sets", "eval_batch_size": 2, "tasks": [{"max_new_tokens": 3, **task} for task in tasks]}
        config = {"data": {"class_path": "ConversationData", "init_args": data}, "trainer": {"accelerator": "cpu"}}
        config["trainer"] |= {"default_root_dir": "run", **trainer}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
        main(["predict", "-c", "mine.yaml", "--model.path", model, "--format", "server"])

    gqa = {"benchmark": "gqa", "root": "gqa"}
    predict({**gqa, "name": "GQA, cut"}, {"benchmark": "mmbench", "root": "mmbench"})
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    (path,) = (tmp_path / "run" / "server").glob("GQA-cut-*.json")
    said = {each["questionId"]: each["prediction"] for each in json.loads(path.read_text())}
    assert said == {row["id"]: row["prediction"].rstrip(".").lower() for row in rows[:2]} and len(rows) == 5
    table = pandas.read_excel(tmp_path / "run" / "server" / "mmbench.xlsx", keep_default_na=False)
    assert table["index"].tolist() == [241, 252, 1000241]
    assert table["prediction"].tolist() == [row["prediction"] for row in rows[2:]]
    capsys.readouterr()
    for tasks, options, told in (
        ([gqa, {"benchmark": "pope", "root": "pope"}], {}, "no evaluation server takes answers to pope. Fix: keep"),
        ([{**gqa, "limit": 1}], {}, "benchmark gqa: got 1 of 2 questions, expected all of them"),
        ([gqa], {"limit_predict_batches": 1}, "--format server takes all questions, got --trainer.limit_predict_batch"),
    ):
        with pytest.raises(SystemExit) as stop:
            predict(*tasks, **options)
        assert told in f"{stop.value}{capsys.readouterr().err}"
