"""Files that an earlier commit wrote (`tests/earlier/README.md`) are read and gone on with by today's command line."""

import csv
import json
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from dowser_pl.__main__ import main
from tests.distributed.harness import command_line, run
from tests.earlier.make import OTHERS, changed, digests

MADE = Path(__file__).parent / "earlier" / "made"
RECORDED = json.loads((MADE / "recorded.json").read_text())
WITHOUT_STRATEGY = ["--trainer.strategy=auto", "--trainer.devices=1"]
FIRST = 14  # the step that comes after those in the checkpoints
TOLERANCE = 1e-5  # a step is 5e-2; other instructions of a processor come to 1e-7


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A copy of them in the working folder."""
    shutil.copytree(MADE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def go_on(folder, resume):
    """Go on from `last.ckpt` in the folder of a run from which what came later is gone."""
    for path in (folder / "report.json", folder / "report.md", *folder.glob("*.safetensors")):
        path.unlink()
    resume("fit", "--config", f"{folder.name}/config.yaml", "--ckpt_path=last")
    earlier, report = read(MADE / folder.name / "report.json"), read(folder / "report.json")
    for key in ("frozen", "trainable", "frozen_digest", "steps", "learning_rate", "update_ratio", "method", "tasks"):
        assert holds(report[key], earlier[key]), key
    assert steps_of(folder) == list(range(FIRST, earlier["steps"]))


def check_same(found, expected):
    """Places are the same, and values as far as rounding on another machine lets them be."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE * tensor.is_floating_point())


def steps_of(folder):
    with (folder / "logs/version_0/metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


def read(path):
    return json.loads(Path(path).read_text())


def measuring_fails():
    return patch("dowser_pl.callbacks.dowser.importance.write_prompts", side_effect=RuntimeError("measured"))


def stamps(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_checkpoint_is_gone_on_with(files):
    with measuring_fails():
        go_on(files / "run", lambda *words: main(list(words)))
    check_same(load_file("run/patch.safetensors"), load_file(MADE / "run/patch.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_so_are_those_of_methods_that_keep_more_than_entries(files, name):
    with measuring_fails():
        go_on(files / name, lambda *words: main(list(words)))
    check_same(changed(f"{name}/model/model.safetensors"), load_file(f"{MADE}/{name}/end.safetensors"))


@pytest.mark.slow
def test_a_checkpoint_folder_of_two_processes_is_gone_on_with_by_one(files):
    with measuring_fails():
        go_on(files / "sharded", lambda *words: main([*words, *WITHOUT_STRATEGY]))
    check_same(load_file("sharded/patch.safetensors"), load_file(MADE / "sharded/patch.safetensors"))


@pytest.mark.slow
def test_and_by_two(files):
    go_on(files / "sharded", lambda *words: run(command_line, *words))
    check_same(load_file("sharded/patch.safetensors"), load_file(MADE / "sharded/patch.safetensors"))
    assert (files / "sharded/checkpoints/last.ckpt/__1_0.distcp").is_file()


@pytest.mark.parametrize("folder", ["run", "sharded"])
def test_a_patch_is_exported_from_a_checkpoint(files, folder):
    assert main(["patch", "export", folder, "--out", "out.safetensors"]) == 0
    assert digests("out.safetensors") == RECORDED["exported"][folder]


@pytest.mark.slow
def test_importance_comes_from_the_cache(files):
    line = ["fit", "--config", "run/config.yaml", "--trainer.default_root_dir=again", "--trainer.max_steps=1"]
    before = stamps(files / "cache")
    (cached,) = (files / "cache").iterdir()
    with measuring_fails():
        with pytest.raises(RuntimeError, match="measured"):
            main([*line, "--dowser.cache_dir=null"])
        try:
            main([*line, "--overwrite=true"])
        except RuntimeError:
            made_with = json.loads(safe_open(cached, "pt").metadata()["dowser_pl_importance"])["versions"]
            if made_with["transformers"] != transformers.__version__:
                pytest.skip("its key has every default of a configuration of transformers, which is another one by now")
            raise
    later = stamps(files / "cache")  # rows that the base writes have a file of their own now
    assert {path: stamp for path, stamp in later.items() if "-rows-" not in path.name} == before
    found, expected = load_file("again/patch.safetensors"), load_file(MADE / "run/patch.safetensors")
    places = [name for name, tensor in expected.items() if not tensor.is_floating_point()]
    assert len(places) >= 14 and all(torch.equal(found[name], expected[name]) for name in places)


def test_a_patch_is_applied(files):
    assert main(["patch", "apply", "base", "run/patch.safetensors", "--out", "now"]) == 0
    assert digests("now/model.safetensors") == RECORDED["applied"] != digests("base/model.safetensors")


def test_a_patch_is_taken_off_again(files):
    assert main(["patch", "apply", "base", "run/patch.safetensors", "--out", "now"]) == 0
    shutil.rmtree("now/dowser_patches")
    shutil.move("applied/dowser_patches", "now/dowser_patches")  # as the earlier commit put it on
    assert main(["patch", "remove", "now", "run/patch.safetensors"]) == 0
    assert (files / "now/model.safetensors").read_bytes() == (MADE / "base/model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["run", "sharded", "soft_dowser"])
def test_reports_are_drawn_and_made_a_page(files, name):
    """They say nothing of single questions, so there are neither bars nor samples."""
    assert main(["report", name, "--plot", "a.png", "--html", "a.html"]) == 0
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    page = Path("a.html").read_text()
    assert "kept no answers" in page and "seed_everything" in page and "<svg" in page


def test_reports_are_read(files, capsys):
    assert main(["report", "run", "sharded", "--json", "numbers.json"]) == 0
    table = capsys.readouterr().out
    for folder, found in zip(("run", "sharded"), read("numbers.json")["runs"], strict=True):
        expected = read(MADE / folder / "report.json")
        assert holds(found, expected)
        assert folder in table


def test_cells_of_a_bench_are_finished(files, capsys):
    before, expected = stamps(files / "bench/cells"), read("bench/bench.json")
    assert main(["bench", "-c", "bench.yaml", "--list"]) == 0
    cells = capsys.readouterr().out.splitlines()
    assert len(cells) == expected["cells"]["all"] == 9 and all(line.startswith("finished ") for line in cells)
    (files / "bench/bench.json").unlink()
    assert main(["bench", "-c", "bench.yaml"]) == 0
    assert stamps(files / "bench/cells") == before, "a cell ran again"
    found = read("bench/bench.json")
    assert all(holds(found[key], expected[key]) for key in ("settings", "cells", "methods", "groups"))


def holds(found, expected):
    """Whether all that an earlier version told is told; there may be more."""
    if isinstance(expected, dict):
        return all(key in found and holds(found[key], value) for key, value in expected.items())
    return found == expected


def test_a_configuration_may_call_a_strategy_as_it_was_called(files, capsys):
    called = "{trainer: {strategy: {class_path: dowser_pl.fsdp1_strategy.FSDP1Strategy}}}"
    (files / "strategy.yaml").write_text(called)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "run/config.yaml", "--config", "strategy.yaml", "--print_config"])
    assert stop.value.code == 0
    assert "FSDP1Strategy\n    init_args:\n      reduce_dtype: null" in capsys.readouterr().out
