"""The settings file: what is read, and how mistakes are answered."""

from pathlib import Path

import pytest

from dowser_pl import methods
from dowser_pl.bench import Bench, read_settings
from dowser_pl.bench.cells import Cell, Group
from dowser_pl.bench.command_lines import commands
from dowser_pl.cli.main import main
from dowser_pl.commands.merge import METHODS
from tests.bench.fakes import MERGES, settings_of, write_settings

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "bench").glob("*.yaml"))


def test_what_is_read(tmp_path):
    settings = settings_of(tmp_path)
    assert settings.seeds == (1, 2) and settings.depths == (None,) and settings.keep is False
    assert settings.methods["ModelDowser"].grid[1] == (("lr", 0.002),)  # YAML takes 2e-3 for a text
    dare = settings.methods["Dare"]
    assert dare.after == "Full" and dare.merge == "Dare" and dare.grid[0] == (("update_ratio", 0.1),)
    assert dare.num_settings == 8


def test_only_brings_what_a_method_comes_after(tmp_path):
    settings = settings_of(tmp_path)
    assert [entry.name for entry in settings.with_bases(["Dare"])] == ["Full", "Dare"]
    assert len(settings.with_bases([])) == 4
    with pytest.raises(ValueError, match=r"got --only Dear, expected one of: ModelDowser, Full, Dare, ModelTailor"):
        settings.with_bases(["Dear"])


MISTAKES = {
    "an unknown key": ({"seedz": [1]}, "unknown key 'seedz', expected one of: .* did you mean 'seeds'"),
    "an unknown key of a method": ({"methods__Full__gird": [1]}, "methods.Full: unknown key 'gird'.*'grid'"),
    "a missing key": ({"seeds": None}, "bench.yaml: the key 'seeds' is missing"),
    "no text": ({"folder": 3}, "folder: got 3, expected a text"),
    "seeds that are no numbers": ({"seeds": ["a"]}, r"seeds: got \['a'\], expected a list of whole numbers"),
    "a seed twice": ({"seeds": [1, 1]}, r"seeds: got \[1, 1\], expected each value once"),
    "no world": ({"worlds": {}}, "worlds: got {}, expected at least one name"),
    "a name that is no file name": ({"tasks": {"a/b": {}}}, "got the name 'a/b', expected letters, digits"),
    "tests on the tuning data": ({"test": {"data.split": "validation"}}, "validation and test are both"),
    "dashes": ({"set": {"--trainer.max_epochs": 1}}, "expected its name without dashes"),
    "a small grid": ({"methods__Full__grid": [1e-3]}, "methods.Full.grid: got 1 settings, expected at least 4"),
    "unequal grids": ({"methods__Full__grid": [1, 2, 3, 4, 5]}, "grids of different sizes .*Full 5"),
    "a grid without order": ({"methods__Full__grid": [2, 1, 3, 4]}, "rising order"),
    "a grid of texts": ({"methods__Full__grid": ["high"]}, "expected a list of numbers"),
    "learning rates after another": ({"methods__Dare__grid": [1, 2, 3, 4]}, "values of an option of the method"),
    "after nothing": ({"methods__Dare__after": "Fool"}, "after: got 'Fool', expected one of: ModelDowser, Full"),
    "a method that cannot be merged": ({"methods__Dare__merge": "Dear"}, "merge: got 'Dear', expected one of: Dare"),
    "a grid without learning rates": (
        {"methods__Full__grid": {"power": [1, 2, 3, 4]}},
        r"Full.grid: got {'power': .*, expected learning rates too \(lr:",
    ),
    "learning rates of what comes after": (
        {"methods__Dare__grid": {"lr": [1, 2, 3, 4]}},
        "Dare.grid: .*expected no lr",
    ),
    "after a grid of more than learning rates": (
        {"methods__Full__grid": {"lr": [1, 2], "power": [1, 2]}},
        "after: got 'Full', expected one of: ModelDowser$",
    ),
    "merged and of a class": ({"methods__Dare__method": "my_package.Mine"}, "merge: Dare and config or method"),
    "merged and trained": ({"methods__Dare__config": ["method/full"]}, "merge: Dare and config"),
    "depths": ({"depths": [0]}, r"depths: got \[0\], expected numbers of decoder layers"),
    "keep": ({"keep": "no"}, "keep: got 'no', expected true or false"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_words(tmp_path, mistake):
    changes, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        settings_of(tmp_path, **changes)


def test_a_file_that_is_no_yaml(tmp_path):
    (tmp_path / "bench.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="bench.yaml is not YAML"):
        read_settings(tmp_path / "bench.yaml", MERGES)
    (tmp_path / "bench.yaml").write_text("- a")
    with pytest.raises(ValueError, match=r"got \['a'\], expected the keys folder, fit"):
        read_settings(tmp_path / "bench.yaml", MERGES)


def test_a_configuration_that_is_not_there_is_an_error_at_once(tmp_path):
    path = write_settings(tmp_path, methods__Full__config=["method/fool"])
    with pytest.raises(ValueError, match="no configuration file 'method/fool'"):
        Bench(read_settings(path, MERGES))


LONG = {"world-full": pytest.mark.slow}


@pytest.mark.parametrize("path", [pytest.param(each, id=each.stem, marks=LONG.get(each.stem, ())) for each in SHIPPED])
def test_every_shipped_bench_is_read(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    bench = Bench(read_settings(path, METHODS))
    assert "ModelDowser" in bench.settings.methods and len(bench.listing()) > 8


@pytest.mark.parametrize("name", ["quick", "world", "world-full"])
def test_every_method_is_in_every_bench_of_the_world(name):
    (path,) = (path for path in SHIPPED if path.stem == name)
    known = [name for name in methods.__all__ if hasattr(getattr(methods, name), "reference")]
    read = read_settings(path, METHODS).methods
    assert set(known) <= {class_of(name) for name in read} and set(METHODS) <= set(read)


def class_of(name):
    """The public name of the class behind an entry: some have the same."""
    if name.startswith("Full") or name in ("SelfAttention", "GateUp", "KLToBase", "TokenMasking"):
        return "Full"
    if name in ("OPLoRA", "LoraNullSpace", "LoRANull", "CorDA"):
        return "Lora"
    return name.removesuffix("HalfRate").removesuffix("Replay").removesuffix("Rows")


WORLD = read_settings(next(path for path in SHIPPED if path.stem == "world"), METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in WORLD.methods.items() if entry.merge is None])
def test_the_options_of_a_shipped_bench_exist(name, capsys):
    setting = (("lr", 0.001), *(WORLD.methods[name].grid[0] if WORLD.methods[name].after else ()))
    cell = Cell(Group("shipped", "digits", 2), name, setting, 3, "test")
    (fit,) = commands(WORLD, cell, "there", None)
    with pytest.raises(SystemExit) as stop:
        main([*fit, "--print_config"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"class_path: dowser_pl.{class_of(name)}\n" in shown  # its public name
    assert ("Replay" in name) == ("replay: null" not in shown)
    assert (name == "KLToBase") == ("kl_to_base: null" not in shown)
    assert (name == "TokenMasking") == ("max_perplexity: null" not in shown)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_seeds_of_shipped_benches_vary_all_that_draws(path):
    """Also the order of the rows, without which three seeds of full fine-tuning are one run."""
    assert read_settings(path, METHODS).seeded == (
        "seed_everything",
        "data.seed",
        "dowser.probe.seed",
        "dowser.rows.seed",
    )
