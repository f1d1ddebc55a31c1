"""CONTRIBUTING.md is true: its tree is the package, its paths lead where it says."""

import inspect
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

import dowser_pl

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = [block.partition("\n") for block in TEXT.split("```")[1::2]]
(TREE,) = (block for language, _, block in BLOCKS if language == "text")
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
    for row in re.findall(r"^\| .*\|$", TEXT, re.MULTILINE):
        folders = [ROOT / path for path in re.findall(r"`(dowser_pl/[\w/]*?)(?:\w+\.py)?`", row)]
        for name in re.findall(r"`(\w+\.py)`", row):
            assert any((folder / name).exists() for folder in folders), f"{name} is in none of {folders}"
