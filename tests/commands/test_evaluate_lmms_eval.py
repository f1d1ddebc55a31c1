"""`evaluate --engine lmms-eval`: how lmms-eval is started and read. With the real one: `test_real_lmms_eval.py`."""

import json
import sys
from pathlib import Path
from statistics import fmean

import pytest

from dowser_pl.__main__ import main
from dowser_pl.methods import Magnitude
from dowser_pl.patches.apply import apply_patches
from tests.commands import stand_in_lmms_eval
from tests.commands.stand_in_lmms_eval import scores
from tests.tiny_models import save_text_model, save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

TASKS = ["gqa", "coco"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, another model, and the patch of a run without its model."""
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny_llava(folder / "base")
    save_tiny_llava(folder / "other", seed=1)
    trainer = build_trainer(folder / "run", Magnitude(0.5), export=True, max_epochs=1)
    trainer.fit(build_module(base, lr=3e-1), datamodule=TinyData())
    (folder / "run" / "patch.safetensors").rename(folder / "tuned.safetensors")
    return folder


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """An interpreter that has a stand-in for lmms-eval 0.7.3; the file of what that was asked."""
    package, told = tmp_path / "packages" / "lmms_eval", tmp_path / "packages" / "lmms_eval-0.7.3.dist-info"
    for folder in (package, told):
        folder.mkdir(parents=True)
    (package / "__main__.py").write_text(Path(stand_in_lmms_eval.__file__).read_text())
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: lmms_eval\nVersion: 0.7.3\n")
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{Path(__file__).parents[2]}")
    monkeypatch.setenv("STAND_IN_CALLS", str(tmp_path / "calls.jsonl"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "calls.jsonl"


def line(*models, tasks=TASKS, out="out", more=()):
    named = [word for model in models for word in ("--model", str(model))]
    return ["evaluate", "--engine", "lmms-eval", *named, "--tasks", *tasks, "--out", out, *more]


def asked(calls):
    return [json.loads(each) for each in calls.read_text().splitlines()] if calls.exists() else []


def refused(capsys, words):
    """The one line on stderr, and the status."""
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as stop:
        status, told = (1, stop.code) if isinstance(stop.code, str) else (stop.code, "")
        return [told, *capsys.readouterr().err.splitlines()][0 if told else -1].strip(), status
    return capsys.readouterr().err.splitlines()[-1], status


@pytest.mark.slow
def test_models_are_asked_and_compared(models, calls, capsys):
    base, other = models / "base", models / "other"
    more = ["--downstream", "coco", "--limit", "4", "--device", "cpu", "--model_args", "device_map=cpu,dtype=float32"]
    assert main(line(base, other, more=more)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "coco downstream exact_match 4" in said and "coco 2 less 1" in said and "scored by lmms-eval 0.7.3" in said
    first, second = asked(calls)
    assert first["model_args"] == f"pretrained={base},device_map=cpu,dtype=float32" and first["limit"] == 4
    assert (first["model"], first["tasks"], first["device"]) == ("llava_hf", "gqa,coco", "cpu")
    assert second["model_args"].startswith(f"pretrained={other},")
    found = json.loads(Path("out", "evaluation.json").read_text())
    assert {name: task["role"] for name, task in found["tasks"].items()} == {"gqa": "upstream", "coco": "downstream"}
    for model, told in zip((base, other), found["models"], strict=True):
        assert told["name"] == str(model)
        assert {name: task["score"] for name, task in told["tasks"].items()} == {
            task: pytest.approx(fmean(scores(model, task, 4))) for task in TASKS
        }
    assert found["tasks"]["gqa"]["protocol"]["scorer"] == "lmms-eval 0.7.3"
    assert main(["report", "out", "--plot", "a.png"]) == 0 and "2 less 1" in capsys.readouterr().out


def test_llava_gets_a_device_map_that_transformers_takes(models, calls):
    assert main(line(models / "base", more=["--python", sys.executable])) == 0
    assert asked(calls)[0]["model_args"] == f"pretrained={models / 'base'},device_map=auto"


def test_it_goes_on_with_the_models_that_are_missing(models, calls, capsys):
    base, other = models / "base", models / "other"
    assert main(line(base)) == 0
    assert main(line(base, other)) == 0 and len(asked(calls)) == 2
    assert main(line(base, other, more=["--downstream", "gqa"])) == 0 and len(asked(calls)) == 2, "roles ask nothing"
    assert "H-score" in capsys.readouterr().out
    told, status = refused(capsys, line(base, other, more=["--limit", "4"]))
    assert (
        status == 1 and "holds an evaluation with other settings: of how it is asked more is ['--limit', '4']" in told
    )
    told, _ = refused(capsys, line(base, other, tasks=["gqa"]))
    assert "tasks is ['gqa'], it was ['gqa', 'coco']" in told and len(asked(calls)) == 2


def test_a_patch_is_put_on_a_folder_for_as_long_as_it_is_asked(models, calls, tmp_path):
    patch = models / "tuned.safetensors"
    assert main(line(patch)) == 0
    before, after = asked(calls)
    exported = Path(after["model_args"].split(",")[0].removeprefix("pretrained="))
    assert before["model_args"].startswith(f"pretrained={models / 'base'},") and not exported.exists()
    apply_patches(models / "base", [patch], tmp_path / "applied")
    found = json.loads(Path("out", "evaluation.json").read_text())["models"][1]["tasks"]
    assert {name: task["score"] for name, task in found.items()} == {
        task: pytest.approx(fmean(scores(tmp_path / "applied", task))) for task in TASKS
    }
    assert scores(tmp_path / "applied", "gqa") != scores(models / "base", "gqa")


def test_a_run_is_asked_by_the_model_that_it_wrote(models, calls):
    assert main(line(models / "base", models / "run")) == 0
    assert asked(calls)[1]["model_args"].startswith(f"pretrained={models / 'run' / 'model'},")


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("nope", "lmms-eval left no results for base: Tasks not found: nope. Its log: out/lmms-eval/base.log"),
        ("killed", "lmms-eval ended with status -9 for base: it says nothing. Its log:"),
        ("empty", "lmms-eval scored 1 answers that it failed to generate for base: Error CUDA out of memory in gen"),
    ],
)
def test_its_failures_are_one_line(task, told, models, calls, capsys):
    Path("base").symlink_to(models / "base")
    said, status = refused(capsys, line("base", tasks=["gqa", task]))
    assert status == 1 and f"error: {told}" in said and not Path("out", "evaluation.json").exists()
    assert main(line("base")) == 0, "what failed is asked again"


def test_an_option_that_it_does_not_have(models, calls, capsys):
    said, _ = refused(capsys, line(models / "base", more=["--limmit", "4"]))
    assert "ended with status 2" in said and "__main__.py: error: unrecognized arguments: --limmit 4" in said


def test_interpreters(models, calls, capsys, monkeypatch):
    base = models / "base"
    assert "which cannot be started" in refused(capsys, line(base, more=["--python", "no/python"]))[0]
    monkeypatch.setenv("PYTHONPATH", "")
    said, status = refused(capsys, line(base))
    assert status == 1 and "has no lmms_eval (importlib.metadata.PackageNotFoundError" in said
    assert f"Fix: {sys.executable} -m pip install lmms_eval, or name" in said


def test_models_that_it_cannot_be_given(models, calls, capsys, tmp_path):
    text = save_text_model(tmp_path / "text")
    assert (
        "is of the family 'llama'. Fix: say which model of lmms-eval loads it, with --as"
        in refused(capsys, line(text))[0]
    )
    assert main(line(text, more=["--as", "huggingface"])) == 0 and asked(calls)[0]["model"] == "huggingface"
    comma = tmp_path / "a,b"
    comma.symlink_to(models / "base")
    save_tiny_llava(tmp_path / "c,d")
    assert "with a comma or an equals sign in it" in refused(capsys, line(tmp_path / "c,d", out="b"))[0]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    said, _ = refused(capsys, line(models / "base", f"{models / 'base'}+{adapter}", out="c"))
    assert "is an adapter, which lmms-eval is not given. Fix: name a folder that it is merged into" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--engine", "lmms-eval"], "--engine lmms-eval is told its tasks by --tasks, and has no -c"),
        (
            ["--engine", "lmms-eval", "--tasks", "gqa", "-c", "eval/textvqa_gqa"],
            "is told its tasks by --tasks, and has",
        ),
        (
            ["--engine", "lmms-eval", "--output_path", "a", "--tasks", "gqa"],
            "--output_path of lmms-eval is below --out",
        ),
        (["--tasks", "gqa"], "--tasks is for --engine lmms-eval"),
        (["--as", "llava_hf"], "--as is for --engine lmms-eval"),
        (["--out-of", "gqa=100"], "--out-of is for --engine lmms-eval"),
    ],
)
def test_options_that_do_not_go_together(words, told, capsys):
    said, status = refused(capsys, ["evaluate", "--model", "a", "--out", "b", *words])
    assert told in said and status == 2
