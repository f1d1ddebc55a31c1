"""Every block of the pages is of a kind that a test looks at, or says why none runs it."""

import ast
import re

import pytest
import yaml

from dowser_pl.cli.main import main
from tests.docs.pages import PAGES, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]
KINDS = {
    "sh": "parsed, and run where nothing says why not",
    "python": "run, or a file that a test runs",
    "yaml": "parsed as a configuration, or read where it is part of one",
    "text": "what a program prints, or a drawing",
    "bibtex": "",
    "json": "read",
}
REASONS = re.compile(r"(parsed only|not run|part of a file): \w.{3,}")


def of(language):
    found = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", found, ids=[str(block) for block in found])


def test_every_block_names_its_language_and_fences_are_closed():
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(blocks(page)), page
    assert {block.language for block in BLOCKS} <= set(KINDS)


def test_marks_are_reasons():
    for block in BLOCKS:
        assert block.mark is None or REASONS.fullmatch(block.mark), f"{block}: <!-- {block.mark} -->"


@of("yaml")
def test_yaml_is_a_configuration(block, tmp_path, capsys):
    settings = yaml.safe_load(block.text)
    if block.mark is None:
        path = tmp_path / "printed.yaml"
        path.write_text(block.text)
        with pytest.raises(SystemExit) as stop:
            main(["fit", "-c", str(path), "--print_config"])
        assert stop.value.code == 0
        assert set(settings) <= set(yaml.safe_load(capsys.readouterr().out))


@of("json")
def test_json_is_json(block):
    for line in block.text.splitlines():
        yaml.safe_load(line)


@of("python")
def test_python_is_python(block):
    assert ast.parse(block.text).body


@pytest.mark.slow
def test_the_script_without_the_command_line_runs(tmp_path, monkeypatch):
    (script,) = (each for each in BLOCKS if each.language == "python" and each.page.name == "lightning_trainer.md")
    monkeypatch.chdir(tmp_path)
    exec(compile(script.text, str(script.page), "exec"), {})
    assert {"model", "patch.safetensors", "report.json"} <= {path.name for path in (tmp_path / "runs/plain").iterdir()}
