"""The README is short and true: its commands, its YAML and what it promises are the tested ones."""

import re
from pathlib import Path

import pytest
import yaml

from dowser_pl.__main__ import VERBS
from dowser_pl.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorials" / "own_data.md").read_text()
EXTEND = (ROOT / "docs" / "how-to" / "extend.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_it_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 170
    assert len(README.encode()) <= 14 * 1024


def test_the_two_commands_stand_first_and_ci_runs_them_from_here():
    first = blocks("sh")[0].splitlines()
    assert first == [
        "pip install -e . && python -m dowser_pl fit --config configs/quickstart.yaml",
        'pip install -e ".[test]" && pytest',
    ]
    script = (ROOT / ".ci" / "run").read_text()
    assert "readme_line 'pip install -e \\. && python -m dowser_pl fit'" in script
    assert "readme_line 'pip install -e \"\\.\\[test\\]\" && pytest'" in script


def test_the_custom_data_module_is_the_tested_file():
    example = (ROOT / "tests" / "data" / "custom_data_example.py").read_text()
    assert example in blocks("python", EXTEND)
    assert len([line for line in example.splitlines() if line.strip()]) <= 30


def test_the_users_yaml_parses_and_is_short(tmp_path, capsys):
    text = next(block for block in blocks("yaml") if "mine.yaml" in block)
    assert text in blocks("yaml", TUTORIAL)  # which tests/docs/test_run.py trains with
    assert len(text.splitlines()) < 20
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(path), "--print_config"])
    assert stop.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["data"]["init_args"]["tasks"][1]["metric"] == "vqa"
    assert settings["model"]["optimizer"]["init_args"]["lr"] == 2e-4


def test_every_verb_named_exists():
    pages = [README, *(path.read_text() for path in (ROOT / "docs").rglob("*.md"))]
    for verb in re.findall(r"`(?:python -m dowser_pl|…) ([a-z]+)", "\n".join(pages)):
        assert verb in VERBS, verb
