"""CONTRIBUTING.md is true: its tree is the package, its paths lead where it says, its example is the tested file."""

import inspect
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import dowser_pl
from dowser_pl.cli.main import main
from dowser_pl.reporting import read_report
from tests.methods.custom_method_example import QuietInputs
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = [block.partition("\n") for block in TEXT.split("```")[1::2]]
(TREE,) = (block for language, _, block in BLOCKS if not language)
STEPS = re.compile(r"^(\d)\. `([\w/.]+\.py)`: `([\w.]+)`", flags=re.MULTILINE)


def entries() -> list[str]:
    """Paths of the tree, from the indents of its lines."""
    above, found = [], []
    for line in TREE.splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 4
        above[depth:] = [name]
        found.append("".join(above))
    return found


def test_the_tree_is_one_screen_and_leaves_no_room_out():
    assert len(entries()) <= 40 and max(map(len, TREE.splitlines())) <= 120
    for path in entries():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
    package = Path(dowser_pl.__file__).parent
    rooms = {each.name + "/" * each.is_dir() for each in package.iterdir() if each.suffix in ("", ".py")}
    told = {path.removeprefix("dowser_pl/") for path in entries() if path.count("/") <= 1 + path.endswith("/")}
    assert rooms - {"__pycache__/", "__init__.py"} <= told


@pytest.mark.parametrize(
    ("heading", "most"), [("From `Dowser.on_fit_start`", 5), ("From `python -m dowser_pl fit`", 6)]
)
def test_a_path_leads_through_few_files_that_exist(heading, most):
    steps = STEPS.findall(TEXT[TEXT.index(heading) :].split("\n\n")[1])
    assert [int(number) for number, _, _ in steps] == list(range(1, len(steps) + 1))
    assert 2 <= len({path for _, path, _ in steps}) <= most
    for _, path, name in steps:
        module = import_module(path.removesuffix(".py").replace("/", "."))
        found = reduce(getattr, name.split("."), module)
        assert Path(inspect.getsourcefile(found)) == ROOT / path, f"{name} is not in {path}"


def test_every_file_that_is_named_is_there():
    named = re.findall(r"`((?:dowser_pl|tests|tools|benchmarks|docs|configs)/[\w/.-]*)`", TEXT)
    assert len(named) > 30
    for path in named:
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`([a-z_]+/[\w/]+\.py)`", TEXT):
        assert (ROOT / name).exists() or (ROOT / "dowser_pl" / name).exists(), name


def test_the_example_is_the_tested_file():
    (example,) = (block for language, _, block in BLOCKS if language == "python")
    assert example == (ROOT / "tests/methods/custom_method_example.py").read_text()
    assert len(example.splitlines()) <= 20


def test_the_example_is_a_method_by_its_class_path(capsys):
    path = "tests.methods.custom_method_example.QuietInputs"
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", "quickstart", "--dowser.method", path, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["dowser"]["method"]["class_path"] == path


def test_the_example_trains_whole_columns(tmp_path):
    trainer = build_trainer(tmp_path / "run", QuietInputs(0.25), max_epochs=1, limit_val_batches=1)
    module = build_module(save_tiny_llava(tmp_path / "model"))
    trainer.fit(module, datamodule=TinyData())
    assert read_report(tmp_path / "run").method == "QuietInputs"
    for name, weight in module.protected.weights.items():
        mask = module.protected.masks[name]
        full = mask.sum(dim=0)
        assert int(mask.sum()) == round(0.25 * weight.numel())
        assert int(((full > 0) & (full < weight.shape[0])).sum()) <= 1, "at most one input is cut"
    assert torch.isfinite(weight).all()
