"""The README is true: its commands, its example and its YAML are the tested ones."""

import re
from pathlib import Path

import pytest
import yaml

from dowser_pl.__main__ import VERBS
from dowser_pl.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


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
    assert blocks("python") == [example]
    assert len([line for line in example.splitlines() if line.strip()]) <= 30


def test_the_users_yaml_parses_and_is_short(tmp_path, capsys):
    text = next(block for block in blocks("yaml") if "mine.yaml" in block)
    assert len(text.splitlines()) < 15
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(path), "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["tasks"][1]["metric"] == "vqa"


def test_every_verb_named_exists_and_files_are_there():
    for verb in re.findall(r"(?:python -m dowser_pl|…) ([a-z]+)", README):
        assert verb in VERBS, verb
    for path in re.findall(r"`?((?:dowser_pl|tools|benchmarks|docs|configs|tests)/[\w/.]+\.(?:py|yaml|png))`?", README):
        assert (ROOT / path).is_file(), path


def test_no_placeholder_is_left():
    assert "@@" not in README


@pytest.mark.parametrize("folder", ["benchmarks", "tools"])
def test_every_script_has_a_line_and_every_line_a_script(folder):
    lines = re.findall(r"^\| `([\w/.]+)` \|", (ROOT / folder / "README.md").read_text(), flags=re.MULTILINE)
    scripts = [path.name for path in (ROOT / folder).glob("*.py")]
    folders = [f"{path.name}/" for path in (ROOT / folder).iterdir() if path.is_dir() and path.name[0] not in "._"]
    assert sorted(lines) == sorted(scripts + folders)
