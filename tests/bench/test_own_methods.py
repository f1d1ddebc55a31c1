"""A method that is named by its class path: its grid, its commands, and when it is run anew."""

import re

import pytest
import yaml

from dowser_pl.bench import Bench
from dowser_pl.bench.command_lines import _source, commands, digest, folder_digest
from dowser_pl.bench.processes import Ended
from dowser_pl.bench.records import of_fit
from dowser_pl.cli.main import main as training
from dowser_pl.commands.bench import main
from tests.bench.fakes import FakeRunner, settings_of, write_settings
from tests.own_classes import write_package
from tests.tiny_models import save_tiny_llava

CLASS = "my_package.methods.LargestMove"
GRID = {"lr": [1e-3, 2e-3], "power": [1, 2]}
QUICK = {"data": "my_package.data.Colours", "trainer.max_epochs": 1, "trainer.accelerator": "cpu"}


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return write_package(tmp_path)


def test_its_own_grid_is_tuned_with_learning_rates(tmp_path):
    settings = settings_of(tmp_path, methods__Mine={"method": CLASS, "grid": GRID})
    assert settings.methods["Mine"].grid == tuple(
        (("lr", rate), ("power", power)) for rate in GRID["lr"] for power in GRID["power"]
    )
    runner = FakeRunner()
    bench = Bench(settings, ["Mine"])
    bench.run(runner)
    assert len(runner.ran) == 4 + len(settings.seeds)
    (line,) = runner.lines[next(name for name in runner.ran if "lr_0.002-power_1-" in name)]
    assert line.index("--dowser.method") < line.index("--dowser.method.power")
    options = dict(zip(line[1::2], line[2::2], strict=False))
    assert (options["--dowser.method"], options["--dowser.method.power"]) == (CLASS, "1")
    assert options["--model.optimizer.lr"] == "0.002"


@pytest.mark.slow
def test_a_cell_of_it_trains_from_its_command_line(tmp_path):
    model = save_tiny_llava(tmp_path / "model")
    settings = settings_of(
        tmp_path,
        fit=[],
        set=QUICK,
        seeded=["seed_everything"],
        validation={"data.num_rows": 8},
        test={"data.num_rows": 4},
        worlds={"tiny": str(model)},
        tasks={"colours": {}},
        methods={"Mine": {"method": CLASS, "options": {"dowser.method.update_ratio": 0.5}, "grid": GRID}},
    )
    cell = Bench(settings, []).plan.cells()[-1]
    (line,) = commands(settings, cell, str(tmp_path / "run"), None)
    training(line)
    record = of_fit(tmp_path / "run", Ended(0, [1.0], 1.0, 1))
    assert record.trainable_share == pytest.approx(0.5, abs=0.01)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["dowser"]["method"]
    assert saved == {"class_path": CLASS, "init_args": {"update_ratio": 0.5, "power": 2.0, "scope": "layer"}}


def test_another_source_of_it_is_run_anew(tmp_path, package):
    settings = settings_of(tmp_path, methods__Mine={"method": CLASS, "grid": GRID})
    cells = {cell.method: cell for cell in Bench(settings, []).plan.cells()}
    before = {name: digest(settings, cell) for name, cell in cells.items()}
    (package / "methods.py").write_text("# another line\n" + (package / "methods.py").read_text())
    folder_digest.cache_clear()
    after = {name: digest(settings, cell) for name, cell in cells.items()}
    assert {name for name in cells if before[name] != after[name]} == {"Mine"}


def test_what_counts_as_its_source(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "inner.py").write_text("class Mine: ...")
    (tmp_path / "single.py").write_text("class Mine: ...")
    assert _source("bare.inner.Mine")
    assert _source("single.Mine")
    assert _source("dowser_pl.methods.Random") is _source("Random") is _source("nowhere.Mine") is None


@pytest.mark.parametrize(
    ("method", "grid", "message"),
    [
        ("my_package.methods.LargestMoves", GRID, "methods.Mine.method: my_package.methods has no 'LargestMoves'"),
        ("my_package.metrics.Contains", GRID, "my_package.metrics.Contains is the class Contains, expected a subclass"),
        ("Randum", GRID, "bench.yaml: methods.Mine.method: got 'Randum', expected one of: .*did you mean"),
        (CLASS, {"lr": [1, 2], "powr": [1, 2]}, "methods.Mine.grid: .* takes no 'powr', expected .*did you mean power"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(tmp_path, capsys, method, grid, message):
    path = write_settings(tmp_path, methods__Mine={"method": method, "grid": grid})
    assert main(["-c", str(path)]) == 1
    assert not list(tmp_path.glob("out/cells/*"))
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.splitlines()) == 1


def test_a_class_that_exists_is_listed(tmp_path, capsys):
    path = write_settings(tmp_path, methods__Mine={"method": "Random", "grid": {"lr": [1, 2], "seed": [1, 2]}})
    assert main(["-c", str(path), "--list", "--only", "Mine"]) == 0
    assert "Mine" in capsys.readouterr().out
