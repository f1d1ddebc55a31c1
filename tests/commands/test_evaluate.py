"""The verb `evaluate`: any models on official files, compared with the first, killed and gone on with."""

import json
import math
import shutil
import statistics
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml

from dowser_pl.__main__ import main
from dowser_pl.callbacks.each_task import EachTask
from dowser_pl.methods import Magnitude
from dowser_pl.patches.apply import apply_patches
from tests.data.benchmarks import official_files
from tests.tiny_models import save_text_model, save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

TASKS = [
    {"benchmark": "textvqa", "root": "textvqa", "max_new_tokens": 3},
    {"benchmark": "gqa", "root": "gqa", "role": "downstream", "max_new_tokens": 3},
]
LIKELY = {"name": "likely", "file": "sets/likely.json", "metric": "perplexity"}  # no score of which is 0 by chance


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, another model, and a run that tuned the base."""
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny_llava(folder / "base")
    save_tiny_llava(folder / "other", seed=1)
    trainer = build_trainer(folder / "run", Magnitude(0.5), export=True, max_epochs=1)
    trainer.fit(build_module(base, lr=3e-1), datamodule=TinyData())
    return folder


def files(folder):
    """The official files of two sets, a file of questions, and a preset of the sets."""
    for name in ("textvqa", "gqa"):
        getattr(official_files, name)(folder / "sets" / name)
    rows = [{"id": str(i), "question": "is it red ?", "answer": answer} for i, answer in enumerate(["yes", "no"])]
    (folder / "sets" / "likely.json").write_text(json.dumps(rows))
    preset({"tasks": TASKS})


@pytest.fixture(scope="module")
def two(models, tmp_path_factory):
    """The folder in which two models were evaluated, and what was printed."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(StringIO()) as said:
        patched.chdir(folder)
        files(folder)
        evaluated(models / "base", models / "other")
    return folder, said.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with the same files."""
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    return tmp_path


@pytest.fixture
def again(two, here):
    """The same, with the evaluation of two models."""
    shutil.copytree(two[0] / "out", here / "out")
    return here


def preset(data, **trainer):
    settings = {"accelerator": "cpu", "enable_progress_bar": False, **trainer}
    content = {"trainer": settings, "data": {"class_path": "ConversationData", "init_args": {"root": "sets", **data}}}
    Path("mine.yaml").write_text(yaml.safe_dump(content))


def line(*models, out="out", options=()):
    named = [word for model in models for word in ("--model", str(model))]
    return ["evaluate", *named, "-c", "mine.yaml", "--out", out, *options]


def evaluated(*models, out="out", options=()):
    assert main(line(*models, out=out, options=options)) == 0
    return json.loads(Path(out, "evaluation.json").read_text())


def refused(capsys, *models, **options):
    capsys.readouterr()
    try:
        status = main(line(*models, **options))
    except SystemExit as stop:
        status = stop.code  # a text is told by Python, with status 1
    said = f"{capsys.readouterr().err}\n{status}"
    assert status != 0
    (told,) = [each for each in said.splitlines() if each.startswith("error: ")]
    return told


def scores(model):
    return {name: each["score"] for name, each in model["tasks"].items()}


def answers(out="out"):
    found = {}
    for path in sorted(Path(out, "tasks").glob("*/*.json")):
        found.setdefault(path.parent.name, {})[path.stem] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_two_folders_are_scored_and_compared(models, two, again):
    found = json.loads(Path("out", "evaluation.json").read_text())
    first, second = found["models"]
    assert [first["name"], second["name"]] == [str(models / "base"), str(models / "other")]
    assert list(first["tasks"]) == ["textvqa", "gqa"] and found["tasks"]["gqa"]["role"] == "downstream"
    kept = answers()
    assert len(kept) == 2
    for tasks in kept.values():
        for task in tasks.values():
            of_rows = [row["score"] for row in task["rows"]]
            assert task["score"] == pytest.approx(statistics.fmean(of_rows)) and len(of_rows) == 2
    assert set(second["differences"]) == {"textvqa", "gqa", "upstream mean", "downstream mean"}
    said = " ".join(two[1].split())
    assert "task role metric n 1 2" in said and "2 less 1" in said and "protocol llava (changed):" in said
    assert Path("out", "evaluation.md").read_text().startswith("# Evaluation\n\n1. ")


@pytest.mark.slow
def test_a_run_alone_is_before_and_after_by_one_load(models, here, monkeypatch):
    loaded = []
    configure = "dowser_pl.module.multimodal.load_model"
    from dowser_pl.module import multimodal  # noqa: PLC0415

    preset({"tasks": [*TASKS, LIKELY]})
    load = multimodal.load_model
    monkeypatch.setattr(configure, lambda path, **options: loaded.append(path) or load(path, **options))
    before, after = evaluated(models / "run")["models"]
    assert [before["name"], after["name"]] == [str(models / "base"), str(models / "run")]
    assert loaded == [str(models / "base")]
    patch = models / "run" / "patch.safetensors"
    apply_patches(models / "base", [patch], here / "applied")
    same = evaluated(models / "run" / "model", here / "applied", f"{models / 'base'}+{patch}", models / "base", out="b")
    exported, applied, put_on, base = same["models"]
    assert scores(before)["likely"] != scores(after)["likely"] and "likely" not in after["differences"]
    assert after["tasks"]["likely"]["standard_error"] is None
    assert scores(exported) == scores(applied) == scores(put_on) == scores(after) and scores(base) == scores(before)
    assert said_by("model", "b") == said_by("run", "out")


def said_by(model, out):
    """Task -> the answers of the model whose name ends so."""
    (found,) = [tasks for name, tasks in answers(out).items() if name.rpartition("-")[0].endswith(model)]
    return {name: [row["prediction"] for row in task["rows"]] for name, task in found.items()}


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_the_tasks_that_are_missing(models, two, here, monkeypatch):
    keep, asked = EachTask.on_validation_batch_end, []

    def killed(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        task = module.tasks()[dataloader_idx].name
        asked.append(task)
        if task == "gqa" and len(asked) == 2:
            raise KeyboardInterrupt
        keep(self, trainer, module, outputs, batch, batch_idx, dataloader_idx)

    monkeypatch.setattr(EachTask, "on_validation_batch_end", killed)
    with pytest.raises(SystemExit):
        main(line(models / "base"))
    assert not Path("out", "evaluation.json").exists()
    (kept,) = answers().values()
    assert set(kept) == {"textvqa"}
    preset({"tasks": TASKS, "eval_batch_size": 1})  # which changes no question
    (resumed,) = evaluated(models / "base")["models"]
    assert asked[:2] == ["textvqa", "gqa"] and set(asked[2:]) == {"gqa"}
    whole = json.loads((two[0] / "out" / "evaluation.json").read_text())["models"][0]
    assert scores(resumed) == scores(whole) and said_by("base", "out") == said_by("base", two[0] / "out")


@pytest.mark.slow
def test_other_settings_and_other_files_are_refused(models, again, capsys):
    preset({"tasks": [TASKS[0], {**TASKS[1], "max_new_tokens": 5}]})
    told = refused(capsys, models / "base")
    assert "of the task gqa max_new_tokens is 5, it was 3. Fix: set what it was, give another --out, or delete" in told
    preset({"tasks": TASKS}, limit_val_batches=1)
    assert "of the task textvqa trainer.limit_val_batches is 1, it was None" in refused(capsys, models / "base")
    preset({"tasks": TASKS})
    for path in Path("out", "tasks").glob("*/gqa.json"):
        path.write_text(path.read_text().replace('"files": "', '"files": "0'))
    assert "of the model" in refused(capsys, models / "base")


@pytest.mark.slow
def test_standard_errors_and_differences_are_those_of_the_answers(models, again):
    names = [str(models / "base"), str(models / "other")]
    folders = {}
    for path in Path("out", "tasks").glob("*/gqa.json"):  # as if the models had answered so
        content = json.loads(path.read_text())
        right = [True, False] if content["model"]["base"] == names[0] else [True, True]
        for row, is_right in zip(content["rows"], right, strict=True):
            row["prediction"], row["score"] = (row["references"][0], 1.0) if is_right else ("nothing", 0.0)
        content["score"] = sum(right) / 2
        path.write_text(json.dumps(content))
        folders[content["model"]["base"]] = path
    assert set(folders) == set(names)
    first, second = evaluated(*names)["models"]
    assert first["tasks"]["gqa"]["standard_error"] == pytest.approx(math.sqrt(0.5 / 2))
    assert second["tasks"]["gqa"]["standard_error"] == 0.0
    difference = second["differences"]["gqa"]
    assert difference["value"] == 0.5 and (difference["low"], difference["high"]) == (0.0, 1.0)
    assert second["questions"]["gqa"]["gained"] == 1 and second["questions"]["gqa"]["forgotten"] == 0


@pytest.mark.slow
def test_reports_read_compare_and_draw_it(models, again, capsys):
    base, other = (str(models / name) for name in ("base", "other"))
    content = json.loads(Path("out", "evaluation.json").read_text())
    assert main(["report", "out"]) == 0
    assert "2 less 1" in capsys.readouterr().out
    assert main(["report", "out", "--plot", "one.png", "--markdown"]) == 0
    assert "| task | role |" in capsys.readouterr().out and Path("one.png").stat().st_size > 5_000
    Path("second").mkdir()
    second = Path("second", "evaluation.json")
    tuned = {**content["models"][1], "name": "tuned"}
    second.write_text(json.dumps(content | {"models": [tuned]}))
    assert main(["report", "out", str(second), "--plot", "both.png", "--json", "both.json"]) == 0
    assert "0 base" in capsys.readouterr().out and Path("both.png").stat().st_size > 5_000
    runs = json.loads(Path("both.json").read_text())["runs"]
    assert [(run["model"], run["run"]) for run in runs] == [(base, other), (base, "tuned")]
    changed = content["tasks"]["textvqa"]["protocol"] | {"ocr_tokens": False}
    asked = content["tasks"] | {"textvqa": content["tasks"]["textvqa"] | {"protocol": changed}}
    second.write_text(json.dumps(content | {"tasks": asked, "models": [tuned]}))
    assert main(["report", "out", "second"]) == 1
    assert "Task 'textvqa' was not measured in the same way" in capsys.readouterr().err
    del tuned["tasks"]["gqa"]
    second.write_text(json.dumps(content | {"models": [tuned]}))
    assert main(["report", "second"]) == 1
    assert "models[0] has no score of task 'gqa'" in capsys.readouterr().err


def test_evaluations_of_one_model_each_are_compared_with_the_first(models, again, capsys):
    content = json.loads(Path("out", "evaluation.json").read_text())
    for name, model in zip("ab", content["models"], strict=True):
        Path(name).mkdir()
        Path(name, "evaluation.json").write_text(json.dumps(content | {"models": [model]}))
    assert main(["report", "a"]) == 0 and "2 less 1" not in capsys.readouterr().out
    assert main(["report", "a", "b"]) == 0 and "0 base" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_of_text_alone(here):
    model = save_text_model(here / "text")
    rows = [{"id": str(i), "question": "is it red ?", "answer": "yes"} for i in range(3)]
    Path("sets", "asked.json").write_text(json.dumps(rows))
    preset({"tasks": [{"name": "asked", "file": "sets/asked.json", "max_new_tokens": 2}]})
    (found,) = evaluated(model)["models"]
    assert found["tasks"]["asked"]["count"] == 3


@pytest.mark.slow
def test_what_cannot_be_evaluated_is_told_in_one_line(models, here, capsys, monkeypatch):
    base = models / "base"
    assert "twice" in refused(capsys, base, base)
    assert "which does not exist" in refused(capsys, models / "gone")
    assert "is neither a patch nor an adapter" in refused(capsys, f"{base}+{models / 'other'}")
    assert "did you mean data.eval_batch_size" in refused(
        capsys, base, options=["--data.eval_batch_sice", "3"]
    ).replace("--", "")
    patch = models / "run" / "patch.safetensors"
    assert "it is not the base of" in refused(capsys, f"{models / 'other'}+{patch}", out="a")
    Path("sets", "gqa", "testdev_balanced_questions.json").unlink()
    assert "testdev_balanced_questions.json" in refused(capsys, base, out="b")
    Path("mine.yaml").write_text("trainer: {accelerator: cpu}\n")
    assert "there is no data" in refused(capsys, base, out="c")


@pytest.mark.slow
def test_a_run_whose_base_is_gone_is_told(models, here, capsys):
    run = here / "run"
    run.mkdir()
    report = json.loads((models / "run" / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"model": str(here / "gone")}))
    (run / "model").symlink_to(models / "run" / "model")
    assert "which is not there. Fix: name the base" in refused(capsys, run)
    first, second = evaluated(models / "base", run)["models"]
    assert second["name"] == str(run) and first["name"] == str(models / "base")
