"""Classes of one's own by their paths, with no line of this package changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dowser_pl.__main__ import main as verb
from dowser_pl.__main__ import others_computing, wait_quietly
from dowser_pl.cli.main import main
from dowser_pl.reporting import read_report
from tests.cli.test_cli import error_of, user_yaml, write_user_folder
from tests.own_classes import write_package
from tests.tiny_models import save_tiny_llava

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a user who has data and a package; `python -m` has it on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_user_folder(tmp_path)
    write_package(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_of_ones_own_method_metric_and_schedule(folder, model_folder, capsys):
    """All in one YAML; it trains, goes on from a checkpoint, answers, and its report is read."""
    rows = [{"question": "is it red ?", "answer": answer} for answer in ("yes", "no")]
    (folder / "kept.json").write_text(json.dumps(rows))
    tasks = [
        {"name": "kept", "file": "kept.json", "metric": {"my_package.metrics.Contains": {"casefold": True}}},
        {"name": "each", "file": "kept.json", "metric": "my_package.metrics.Each", "role": "downstream"},
    ]
    config = user_yaml(
        folder,
        model_folder,
        data__init_args__tasks=tasks,
        dowser__method={"class_path": "my_package.methods.LargestMove", "init_args": {"power": 2.0}},
        model__scheduler={"class_path": "my_package.schedules.Ramp", "init_args": {"steps": 3}},
    )
    main(["fit", "--config", str(config)])
    run = folder / "runs" / "mine"
    report = read_report(run)
    assert (report.method, report.update_ratio) == ("LargestMove", 0.25)
    assert report.frozen.changed == 0 < report.trainable.changed
    assert {name: task.metric for name, task in report.tasks.items()} == {"kept": "Contains", "each": "Each"}
    header = next(run.glob("logs/version_0/metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"val/kept/Contains", "val/each/Each"} <= set(header)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["dowser"]["method"]["init_args"] == {"update_ratio": 0.25, "power": 2.0, "scope": "layer"}
    assert saved["model"]["scheduler"] == {"class_path": "my_package.schedules.Ramp", "init_args": {"steps": 3}}

    main(["fit", "--config", str(run / "config.yaml"), "--trainer.max_epochs=2", "--ckpt_path=last"])
    assert read_report(run).steps == 2 * report.steps

    main(["predict", "--config", str(run / "config.yaml")])
    answers = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert ["score" in answer for answer in answers] == [False, False, True, True]
    assert verb(["report", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "LargestMove, update ratio 0.25" in printed
    assert "Contains" in printed
    other = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path=last", "--dowser.method.power=3"]
    assert "the checkpoint was trained with {'method': 'LargestMove'" in error_of(capsys, other)


@pytest.mark.slow
def test_a_data_module_of_ones_own(folder, model_folder):
    options = ["--data=my_package.data.Colours", "--data.num_rows=4", "--dowser.method=Random"]
    trainer = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.default_root_dir=run"]
    main(["fit", f"--model.path={model_folder}", *options, *trainer])
    report = read_report(folder / "run")
    assert {name: task.metric for name, task in report.tasks.items()} == {"mine": "Contains", "kept": "exact_match"}
    assert report.steps == 1


@pytest.mark.slow
def test_a_method_begins_with_its_own_defaults(folder, model_folder, capsys):
    """Those of the default method, which has arguments of the same names, are not what anybody set."""
    base = ["fit", "--config", str(user_yaml(folder, model_folder))]

    def method(*options: str) -> dict:
        with pytest.raises(SystemExit):
            main([*base, *options, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)["dowser"]["method"]["init_args"]

    assert method("--dowser.method=my_package.methods.LargestMove") == {
        "update_ratio": 0.25,
        "power": 1.0,
        "scope": "layer",
    }
    assert method("--dowser.method=Ties")["scope"] == "model"
    assert method("-c", "method/grafting") == {"update_ratio": 0.1, "scope": "model"}
    assert method("--dowser.method.update_ratio=0.3") == method() | {"update_ratio": 0.3}
    changed = method("-c", "method/random", "--dowser.method.update_ratio=0.3", "--dowser.method=Ties")
    assert (changed["update_ratio"], changed["scope"]) == (0.3, "model")


def test_a_metric_that_does_not_exist_is_told_before_the_model_is_loaded(folder, capsys):
    tasks = [{"name": "kept", "file": "train.json", "metric": "my_package.metrics.Contians"}]
    config = user_yaml(folder, folder / "no_model_here", data__init_args__tasks=tasks)
    told = error_of(capsys, ["fit", "--config", str(config)])
    assert "my_package.metrics has no 'Contians'" in told
    assert "did you mean my_package.metrics.Contains?" in told


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("dowser.method=my_package.methods.LargestMoves", "did you mean my_package.methods.LargestMove?"),
        (
            "dowser.method=my_package.metrics.Contains",
            "is the class Contains, expected a subclass of dowser_pl's",
        ),
        ("model.scheduler=my_package.schedules.Rampe", "did you mean my_package.schedules.Ramp?"),
        ("data=my_package.date.Colours", "did you mean my_package.data?"),
        ("data=my_package.data.Colors", "did you mean my_package.data.Colours?"),
    ],
)
def test_the_nearest_of_ones_own_classes_is_told(folder, option, meant, capsys):
    error = error_of(capsys, ["fit", "--config", str(user_yaml(folder, folder)), f"--{option}"])
    assert error.startswith(f"error: --{option.partition('=')[0]}: ")
    assert meant in error
    assert error.count("\n") == 1


def test_the_installed_script_finds_the_working_folder(folder):
    """A script has its own folder on the path, and not, as `python -m`, the one it is started in."""
    script = folder / "bin" / "dowser_pl"
    script.parent.mkdir()
    script.write_text(
        "import sys\n"
        "from dowser_pl.__main__ import main\n"
        "assert not main()\n"
        "import my_package\n"
        "print('torch' in sys.modules)\n"
    )
    command = [sys.executable, str(script), "--version"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["False"]


@pytest.mark.parametrize(
    ("given", "others", "policy"),
    [(None, 0, None), (None, 64, "PASSIVE"), ("ACTIVE", 64, "ACTIVE"), ("PASSIVE", 0, "PASSIVE")],
)
def test_threads_sleep_in_waits_where_others_compute(given, others, policy, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("dowser_pl.__main__.others_computing", lambda: others)
    wait_quietly()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_who_computes_can_be_told_or_is_nobody(monkeypatch):
    assert 0 <= others_computing() < 10_000
    monkeypatch.setattr(Path, "read_text", lambda _: "0.1 0.2 0.3 5/300 1")
    assert others_computing() == 4
    monkeypatch.setattr(Path, "read_text", lambda _: "")
    assert others_computing() == 0
