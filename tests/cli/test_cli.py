"""The command line as a person types it, on a tiny random LLaVA."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from transformers import AutoModelForImageTextToText

from dowser_pl.cli.main import _with_progress, main
from dowser_pl.errors import DowserError, message_of
from dowser_pl.files.atomic import write_atomically
from dowser_pl.functional.masks import num_trainable, unpack
from dowser_pl.models.generation import greedy_answers
from dowser_pl.models.loading import load_processor
from dowser_pl.patches import Patch
from dowser_pl.reporting import read_report
from dowser_pl.reporting.answers import read_answers
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import pictures

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SMALL_PROBE = "--dowser.probe.num_prompts=4 --dowser.probe.num_probes=2 --dowser.probe.num_tokens=12".split()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """What a user has: LLaVA JSON and a folder of images. The working folder is theirs too."""
    monkeypatch.chdir(tmp_path)
    write_user_folder(tmp_path)
    return tmp_path


def write_user_folder(folder: Path) -> None:
    (folder / "images").mkdir()
    rows = []
    for index, (colour, image) in enumerate(pictures(20)):
        image.save(folder / "images" / f"{index}.png")
        turns = [("human", "<image>\nwhat colour is it ?"), ("gpt", colour)]
        conversations = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": str(index), "image": f"{index}.png", "conversations": conversations})
    (folder / "train.json").write_text(json.dumps(rows))


def user_yaml(folder: Path, model_folder: Path, **changes) -> Path:
    """One YAML of under 15 lines and no code."""
    text = f"""\
model: {{path: {model_folder}, dtype: float32}}
data:
  class_path: ConversationData
  init_args: {{train_file: train.json, image_folder: images, batch_size: 4, holdout: 0.2}}
trainer: {{max_epochs: 1, accelerator: cpu, default_root_dir: runs/mine}}
"""
    assert len(text.splitlines()) < 15
    config = yaml.safe_load(text)
    config["dowser"] = {"drift": False}  # as drift has tests of its own and takes longer than the run
    for key, value in changes.items():
        node = config
        *path, last = key.split("__")
        for step in path:
            node = node.setdefault(step, {})
        node[last] = value
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    return folder / "mine.yaml"


def error_of(capsys, args: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code not in (0, None)
    return f"{stop.value.code if isinstance(stop.value.code, str) else ''}{capsys.readouterr().err}"


SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "bench")  # see tests/bench


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if "paper" in p.parts else []) for p in SHIPPED],
    ids=[str(p.relative_to(CONFIGS)) for p in SHIPPED],
)
def test_every_shipped_yaml_is_short_and_parses(path, capsys):
    assert len(path.read_text().splitlines()) <= 30
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", "base", "-c", "model/world", "-c", "data/world", "-c", str(path), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for section in ("model", "data", "dowser", "trainer"):
        assert printed[section]


def test_axes_combine_by_short_name_and_later_ones_win(capsys):
    with pytest.raises(SystemExit):
        line = (
            "fit -c base -c model/world -c data/world -c method/random --dowser.method.update_ratio 0.3 --print_config"
        )
        main(line.split())
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["path"] == "embedded:world"
    assert printed["dowser"]["method"]["class_path"].endswith("Random")
    assert printed["dowser"]["method"]["init_args"]["update_ratio"] == 0.3


def test_a_users_folder_trains_and_everything_is_written(user_folder, model_folder, capsys):
    main(["fit", "--config", str(user_yaml(user_folder, model_folder)), *SMALL_PROBE])
    out, error = capsys.readouterr()
    assert out.startswith("\nModelDowser, update ratio 0.1,") and "H-score" in out  # `fit > report.txt`
    assert "Epoch 0" not in out and "Epoch 0" in error
    run = user_folder / "runs" / "mine"
    for name in ("report.json", "report.md", "report.html", "report.png", "config.yaml", "checkpoints/last.ckpt"):
        assert (run / name).is_file(), name
    assert list(run.glob("logs/version_0/metrics.csv")) and list(run.glob("logs/version_0/events*"))
    assert list((user_folder / "runs" / "cache").glob("*.safetensors"))
    report = read_report(run)
    logged = yaml.safe_load((run / "logs" / "version_0" / "hparams.yaml").read_text())
    assert logged["model"]["path"] == str(model_folder) and logged["dowser"]["drift"] is False
    lines = [dict(each) for each in csv.DictReader((run / "logs" / "version_0" / "metrics.csv").open())]
    assert float(lines[-1]["report/frozen_changed"]) == 0
    assert float(lines[-1]["report/trainable_changed"]) == report.trainable.changed
    assert [line["step"] for line in lines if line["train/loss"]] == [str(step) for step in range(report.steps)]
    assert report.frozen.changed == 0 and report.trainable.changed > 0

    raw = json.loads((run / "report.json").read_text())
    for key in "method update_ratio seed tasks upstream downstream h_score frozen trainable seconds versions".split():
        assert key in raw
    assert raw["peak_memory_bytes"] > 0

    exported = AutoModelForImageTextToText.from_pretrained(run / "model")
    entries = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Dowser"]["entries"]
    for name, entry in entries.items():
        weight = exported.get_submodule(name).weight
        assert torch.equal(weight[unpack(entry["mask"], weight.shape)], entry["values"]), name
    with Patch.open(run / "patch.safetensors") as patch:
        assert len(patch.names) == len(entries) and patch.head["config"] == (run / "config.yaml").read_text()
    processor = load_processor(str(run / "model"))
    inputs = processor(text=["what colour is it ?"], return_tensors="pt")
    assert isinstance(greedy_answers(exported.eval(), processor.tokenizer, dict(inputs), 3)[0], str)


@pytest.mark.slow
def test_one_run_gives_the_curve_and_keeps_a_budget(user_folder, model_folder):
    for name in ("asked", "chosen"):
        rows = [{"question": f"is the {name} one red ?", "answer": "yes"}] * 3
        (user_folder / f"{name}.json").write_text(json.dumps(rows))
    path = user_yaml(
        user_folder,
        model_folder,
        curve=[0.02, 0.05],
        budget__max_upstream_drop=0.5,
        data__init_args__tasks=[{"name": "known", "file": "asked.json"}],
        data__init_args__choose_on=[{"name": "known", "file": "chosen.json"}],
    )
    main(["fit", "-c", str(path), *SMALL_PROBE])
    report = read_report("runs/mine")
    assert [point.update_ratio for point in report.curve] == [0.0, 0.02, 0.05, 0.1]
    assert all(set(point.scores) == {"known", "holdout"} for point in report.curve)
    assert (report.budget.max_upstream_drop, report.budget.update_ratio, report.budget.kept) == (0.5, 0.1, True)
    assert (user_folder / "runs/mine/curve.png").is_file()
    saved = yaml.safe_load((user_folder / "runs/mine/config.yaml").read_text())
    assert saved["curve"] == [0.02, 0.05] and saved["budget"] == {"max_upstream_drop": 0.5, "max_drift": None}


def test_a_budget_without_questions_to_choose_on_is_refused_before_the_probe(user_folder, model_folder, capsys):
    config = str(user_yaml(user_folder, model_folder, budget__max_upstream_drop=0.02))
    assert "list them under data.choose_on" in error_of(capsys, ["fit", "-c", config, *SMALL_PROBE])
    assert not list((user_folder / "runs" / "cache").glob("*.safetensors"))


@pytest.mark.slow
def test_the_saved_configuration_repeats_the_run(user_folder, model_folder):
    main(["fit", "-c", str(user_yaml(user_folder, model_folder)), *SMALL_PROBE])
    first = (user_folder / "runs/mine/report.json").read_text()
    main(["fit", "-c", "runs/mine/config.yaml", "--trainer.default_root_dir", "runs/again"])
    second = (user_folder / "runs/again/report.json").read_text()
    assert comparable(first) == comparable(second)
    assert exported(user_folder / "runs/mine") == exported(user_folder / "runs/again")


def test_probe_fills_the_cache_that_fit_finds(user_folder, model_folder, monkeypatch):
    config = str(user_yaml(user_folder, model_folder))
    main(["probe", "-c", config, *SMALL_PROBE])
    (cache,) = (user_folder / "runs" / "cache").glob("*.safetensors")
    assert not (user_folder / "runs/mine/report.json").exists()
    stamp = cache.stat().st_mtime_ns
    monkeypatch.setattr("dowser_pl.callbacks.dowser.importance.measure", lambda *_: pytest.fail("probed again"))
    main(["fit", "-c", config, *SMALL_PROBE])
    assert cache.stat().st_mtime_ns == stamp


def test_probe_needs_no_data(user_folder, model_folder):
    main(["probe", f"--model.path={model_folder}", "--trainer.accelerator=cpu", *SMALL_PROBE])
    assert list((user_folder / "runs" / "cache").glob("*.safetensors"))


@pytest.mark.slow
def test_validate_test_and_predict_on_the_tuned_model(user_folder, model_folder, capsys):
    config = str(user_yaml(user_folder, model_folder))
    main(["fit", "-c", config, "--dowser.method", "Magnitude"])
    after = read_report(user_folder / "runs/mine").downstream.after
    configuration = (user_folder / "runs/mine/config.yaml").read_text()
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=scores"]
    for verb in ("validate", "test"):
        capsys.readouterr()
        main([verb, "-c", config, "--model.path", "runs/mine/model", *logger])
        assert "downstream_mean" in capsys.readouterr().out
    (told,) = (user_folder / "scores").rglob("answers.jsonl")  # beside the scores of `validate`
    of_run = read_answers(user_folder / "runs/mine")
    names = ("task", "id", "after", "after_score")
    again = read_answers(told.parent)
    assert [[row[name] for name in names] for row in again] == [[row[name] for name in names] for row in of_run]
    main(["predict", "-c", config, "--model.path", "runs/mine/model"])
    lines = (user_folder / "runs/mine/predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    right = sum(row["prediction"] in row["references"] for row in rows)
    assert rows and right / len(rows) == pytest.approx(after, abs=1e-6)
    assert (user_folder / "runs/mine/config.yaml").read_text() == configuration


def test_a_bug_of_ours_is_not_dressed_up_as_a_mistake(tmp_path):
    with pytest.raises(DowserError) as mistake:
        num_trainable(2.0, 1)
    assert "update_ratio" in message_of(mistake.value)
    with pytest.raises(UnicodeEncodeError) as bug:  # a ValueError that Python raises in a line of ours
        write_atomically(tmp_path / "text", "\ud800")
    assert message_of(bug.value) is None


def test_a_bug_of_ours_keeps_its_traceback(user_folder, model_folder, monkeypatch):
    def bug(*_):
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr("dowser_pl.cli.main.check_numbers", bug)
    with pytest.raises(ValueError, match="zip") as caught:
        main(["fit", "-c", str(user_yaml(user_folder, model_folder))])
    assert type(caught.value) is ValueError


@pytest.mark.slow
def test_a_method_of_ones_own_by_its_class_path(tmp_path, model_folder, monkeypatch):
    """As docs/how-to/extend.md has it: a file beside, no edit of the package."""
    (example,) = re.findall(
        r"```python\n(# my_methods.py\n.*?)```", (ROOT / "docs/how-to/extend.md").read_text(), flags=re.DOTALL
    )
    (tmp_path / "my_methods.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    main([
        "fit", f"--model.path={model_folder}", "--data=tests.data.custom_data_example.ColourData",
        "--dowser.method=my_methods.RowRelative", "--dowser.method.update_ratio=0.05", "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
    ])  # fmt: skip
    report = read_report(tmp_path / "runs/default")
    assert (report.method, report.update_ratio) == ("RowRelative", 0.05)
    assert report.frozen.entries > 18 * report.trainable.entries > 0 and report.frozen.changed == 0


@pytest.mark.parametrize(
    ("options", "bars"),
    [
        ({}, ["Progress"]),
        ({"enable_progress_bar": False}, []),
        ({"barebones": True}, []),
        ({"callbacks": TQDMProgressBar()}, ["TQDMProgressBar"]),
        ({"callbacks": [LearningRateMonitor()]}, ["LearningRateMonitor", "Progress"]),
    ],
)
def test_a_progress_bar_of_ones_own_is_kept_and_none_stays_none(options, bars):
    assert [type(each).__name__ for each in _with_progress(options)] == bars


@pytest.mark.slow
def test_a_custom_data_module_by_class_path(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([
        "fit", f"--model.path={model_folder}", "--data=tests.data.custom_data_example.ColourData",
        "--dowser.method=Random", "--trainer.max_steps=2", "--trainer.accelerator=cpu",
    ])  # fmt: skip
    report = read_report(tmp_path / "runs/default")
    assert list(report.tasks) == ["colours"]
    assert report.upstream.before is None and report.h_score.after is None


MISTAKES = {
    "a configuration that is not there": (["fit", "-c", "nowhere"], "there is no configuration file 'nowhere'"),
    "an unknown option": (["--model.lr", "3"], "lr"),
    "an unknown method": (["--dowser.method", "Dowzer"], "Dowzer"),
    "update ratio": (["--dowser.method.update_ratio", "1.5"], "update_ratio .* must lie in [0, 1], got 1.5"),
    "model path": (["--model.path", "./no/such/model"], "no/such/model"),
    "checkpoint path": (["--ckpt_path", "no.ckpt"], "--ckpt_path no.ckpt does not exist"),
    "a folder as checkpoint": (["--ckpt_path", "images"], "--ckpt_path images is a folder"),
    "the best checkpoint": (["--ckpt_path", "best"], "--ckpt_path best does not exist"),
    "no checkpoint to score": (["validate", "-c", "mine.yaml", "--ckpt_path", "last"], "no checkpoint under runs/mine"),
    "training without an end": (["--trainer.max_epochs", "-1"], "how long shall it train?"),
    "nothing to probe": (["probe", "-c", "mine.yaml", "--dowser.method", "Magnitude"], "a method that measures"),
    "nowhere to probe to": (["probe", "-c", "mine.yaml", "--dowser.cache_dir", "null"], "cache_dir None"),
    "last n layers": (["--model.last_n_layers", "9"], "9"),
    "a loader setting": (["--data.batch_size", "0"], "batch_size must be at least 1, got 0"),
    "train file": (["--data.train_file", "gone.json"], "gone.json"),
    "image folder": (["--data.image_folder", "elsewhere"], "elsewhere"),
    "sanity steps": (["--trainer.num_sanity_val_steps", "2"], "--trainer.num_sanity_val_steps -1, got 2"),
    "checkpoints": (["--checkpoint.every_n_steps", "0"], "every_n_steps must be at least 1"),
    "a negative learning rate": (["--model.optimizer.lr", "-1e-3"], "--model.optimizer.lr is -0.001, expected"),
    "no learning rate": (["--model.optimizer.lr", "0"], "--model.optimizer.lr is 0.0, expected"),
    "a learning rate that is none": (["--model.optimizer.lr=.nan"], "--model.optimizer.lr is nan, expected a finite"),
    "an endless learning rate": (["--model.optimizer.lr=.inf"], "--model.optimizer.lr is inf, expected a finite"),
    "a ratio that is none": (["--dowser.method.update_ratio=.nan"], "--dowser.method.update_ratio is nan, expected"),
    "a warm-up that is none": (["--model.warmup_ratio=.nan"], "--model.warmup_ratio is nan, expected"),
    "momentum": (["--model.optimizer.betas=[1.5, 0.9]"], "the optimizer refuses its settings: Invalid beta .* Fix: "),
    "devices": (["--trainer.devices", "0"], "the Trainer cannot be set up: .* Got --trainer.accelerator cpu"),
    "fewer than no devices": (["--trainer.devices", "-2"], "the Trainer cannot be set up: .* --trainer.devices -2"),
    "a strategy": (["--trainer.strategy", "foo"], "the Trainer cannot be set up: .* --trainer.strategy foo"),
    "a run folder that is a file": (
        ["--trainer.default_root_dir", "train.json/run"],
        "cannot write into .* --trainer.",
    ),
    "a cache that is a file": (["--dowser.cache_dir", "train.json"], "cannot write into .* got --dowser.cache_dir"),
    "a slip in the path": (["--model.path", "images/model"], "images/model, which does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_words(user_folder, model_folder, capsys, mistake):
    change, message = MISTAKES[mistake]
    config = ["fit", "-c", str(user_yaml(user_folder, model_folder)), *SMALL_PROBE]
    error = error_of(capsys, config + change if change[0].startswith("--") else change)
    assert "Traceback" not in error
    for part in message.split(" .* "):
        assert part in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_told_before_the_model_is_loaded(user_folder, model_folder, capsys, monkeypatch):
    monkeypatch.setattr("dowser_pl.module.multimodal.load_model", lambda *_, **__: pytest.fail("loaded"))
    config = str(user_yaml(user_folder, model_folder, trainer__accelerator="gpu", trainer__devices=2))
    error = error_of(capsys, ["fit", "-c", config])
    assert "Got --trainer.accelerator gpu, --trainer.devices 2" in error and "this machine has 0 GPUs" in error


def test_broken_data_is_answered_in_words(user_folder, model_folder, capsys):
    config = str(user_yaml(user_folder, model_folder))
    rows = json.loads((user_folder / "train.json").read_text())

    def fit_with(text: str) -> str:
        (user_folder / "train.json").write_text(text)
        return error_of(capsys, ["fit", "-c", config, *SMALL_PROBE])

    assert "train.json:3:" in fit_with('[\n{"id": "1"},\n{"id" "2"}]')
    assert "empty" in fit_with("[]")
    no_answer = [{**rows[0], "conversations": rows[0]["conversations"][:1]}, *rows[1:]]
    assert "train.json row 1 (id 0): no assistant turn" in fit_with(json.dumps(no_answer))
    gone = [*rows[:3], {**rows[3], "image": "gone.png"}, *rows[4:]]
    error = fit_with(json.dumps(gone))
    assert "gone.png" in error and "row 4" in error
    (user_folder / "images" / "0.png").write_bytes(b"not a picture")
    error = fit_with(json.dumps(rows))
    assert "0.png" in error and "row 1" in error and "Traceback" not in error


def test_a_nan_loss_is_answered_in_words(user_folder, model_folder, capsys):
    config = str(
        user_yaml(
            user_folder, model_folder, model__optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}
        )
    )
    error = error_of(capsys, ["fit", "-c", config, "--dowser.method=Full", "--trainer.max_epochs=3"])
    assert "the loss is nan at step" in error or "the loss is inf at step" in error
    assert "rows" in error and "--model.optimizer.lr" in error


def comparable(report: str) -> dict:
    """A report without what differs between two equal runs."""
    content = json.loads(report)
    return {k: v for k, v in content.items() if k not in ("seconds", "peak_memory_bytes", "run")}


def exported(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def start(folder: Path, model_folder: Path, name: str, *more: str, **changes) -> subprocess.Popen:
    """The real program on the user's folder: 4 steps an epoch, a checkpoint after each."""
    config = user_yaml(folder, model_folder, trainer__max_epochs=2, checkpoint={"every_n_steps": 1}, **changes)
    arguments = ["fit", "-c", str(config), *SMALL_PROBE, "--trainer.default_root_dir", f"runs/{name}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "dowser_pl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow  # tests/callbacks/test_resume.py has the same in one process
@pytest.mark.parametrize("steps", [[5], [2, 5]])
def test_runs_killed_with_sigkill_end_like_one_that_was_not(tmp_path, model_folder, steps):
    """Killed in the first epoch, before anything was validated, and in the second; all runs side by side."""
    write_user_folder(tmp_path)
    whole = start(tmp_path, model_folder, "whole")
    killed = {}
    for step in steps:
        pause = ("--trainer.callbacks+=tests.slow_down.SlowDown", f"--trainer.callbacks.init_args.pause_after={step}")
        killed[f"killed_at_{step}"] = start(tmp_path, model_folder, f"killed_at_{step}", *pause)
    deadline = time.monotonic() + 200
    for name, run in killed.items():
        while not (tmp_path / "runs" / name / "paused").exists():
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    resumed = [start(tmp_path, model_folder, name, "--ckpt_path", "last") for name in killed]
    assert [run.wait(timeout=200) for run in (whole, *resumed)] == [0] * (1 + len(killed))
    one = tmp_path / "runs" / "whole"
    for other in (tmp_path / "runs" / name for name in killed):
        assert exported(one) == exported(other)
        assert comparable((one / "report.json").read_text()) == comparable((other / "report.json").read_text())


@pytest.mark.slow  # tests/distributed has the same in processes that are forked, not started
@pytest.mark.parametrize("forms", [["compact"], ["compact", "dense"]])
def test_two_processes_agree(tmp_path, model_folder, forms):
    """DDP on gloo: the same masks, weights and scores on both ranks, whoever averages the gradients."""
    write_user_folder(tmp_path)
    ddp = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.callbacks+=tests.rank_digest.RankDigest")
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02, "weight_decay": 0.1}}
    options = {"model__optimizer": optimizer, "trainer__accumulate_grad_batches": 2}
    ends = []
    for update in forms:
        run = tmp_path / "runs" / update
        assert start(tmp_path, model_folder, update, *ddp, f"--dowser.update={update}", **options).wait(200) == 0
        ends += [(run / f"rank{rank}").read_text() for rank in (0, 1)]
        report = read_report(run)
        assert report.frozen.changed == 0 and report.trainable.changed > 0
    assert len(set(ends)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["authors", "weight"])
def test_two_processes_share_the_prompts_and_measure_what_one_does(user_folder, model_folder, estimator):
    """Three batches over two processes; the files are equal byte for byte."""
    arguments = ["probe", f"--model.path={model_folder}", "--trainer.accelerator=cpu", *SMALL_PROBE]
    arguments += ["--dowser.probe.num_prompts=9", "--dowser.probe.batch_size=3"]
    arguments += [f"--dowser.method.estimator={estimator}"]
    pair = [sys.executable, "-m", "dowser_pl", *arguments, "--trainer.strategy=ddp", "--trainer.devices=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*pair, "--dowser.cache_dir=two"], env=environment, check=True, capture_output=True, timeout=200)
    main([*arguments, "--dowser.cache_dir=one"])
    (one,), (two,) = (list((user_folder / folder).iterdir()) for folder in ("one", "two"))
    assert one.name == two.name and one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_a_quantized_model_is_scored_and_not_tuned(user_folder, model_folder):
    config = str(user_yaml(user_folder, model_folder))
    main(["probe", "-c", config, *SMALL_PROBE, "--model.quantization=8bit"])
    assert len(list((user_folder / "runs" / "cache").glob("*.safetensors"))) == 1
    with pytest.raises(SystemExit, match="quantized: they can be scored and run, not tuned"):
        main(["fit", "-c", config, *SMALL_PROBE, "--model.quantization=8bit"])


@pytest.mark.slow
def test_a_named_file_serves_and_a_wrong_one_is_an_error(user_folder, model_folder, monkeypatch):
    config = str(user_yaml(user_folder, model_folder))
    main(["probe", "-c", config, *SMALL_PROBE, "--dowser.cache_dir=kept"])
    (file,) = (user_folder / "kept").iterdir()
    monkeypatch.setattr("dowser_pl.callbacks.dowser.importance.measure", lambda *_: pytest.fail("probed again"))
    named = f"--dowser.factors_file={file}"
    with pytest.raises(SystemExit, match="probe.seed: got 0, expected 1"):
        main(["fit", "-c", config, *SMALL_PROBE, named, "--dowser.probe.seed=1"])
    with pytest.raises(SystemExit, match="factors_file"):
        main(["probe", "-c", config, *SMALL_PROBE, named])
    main(["fit", "-c", config, *SMALL_PROBE, named])
    assert not list((user_folder / "runs" / "cache").glob("*.safetensors"))


def test_a_run_that_was_told_to_end_has_not_succeeded(monkeypatch):
    def told(*_, **__):
        raise SIGTERMException

    monkeypatch.setattr("dowser_pl.cli.main.DowserCLI", told)
    with pytest.raises(SystemExit) as stop:
        main(["fit"])
    assert stop.value.code == 128 + signal.SIGTERM
