"""``--help`` in one screen, ``--help-all``; what they say of defaults is true."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dowser_pl.__main__ import TRAINING_VERBS, main
from dowser_pl.cli.arguments import resolve_configs
from dowser_pl.cli.ending import STATUSES
from dowser_pl.cli.help import EXAMPLES, MATTERS, default_of
from dowser_pl.cli.options import GROUPS, ROOMS, VERBS, table, usable, verb_and_rest
from dowser_pl.cli.spelling import check_model, check_spelling
from tests.cli.test_options import parsers  # noqa: F401 - a fixture


def shown(capsys, *arguments: str) -> list[str]:
    assert main(arguments) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out.splitlines()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_one_screen(verb, word, capsys):
    lines = shown(capsys, verb, word)
    assert lines[:2] == [f"python -m dowser_pl {verb} [options]", f"  {TRAINING_VERBS[verb]}"]
    assert len(lines) <= 42 and max(map(len, lines)) <= 80
    known = set(table(verb).options)
    for name in MATTERS:
        there = name in known or name.rpartition(".")[0] in ROOMS
        assert there == any(line.startswith(f"  --{name} ") for line in lines), name


def test_the_twenty_options_that_matter(capsys):
    assert len(MATTERS) == 20
    assert all(f"--{name}" in "\n".join(shown(capsys, "fit", "--help")) for name in MATTERS)


def test_help_all_is_all(capsys):
    lines = shown(capsys, "fit", "-c", "quickstart", "--help-all")
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    for name in table("fit").options:
        assert f"\n  --{name}" in text, name
    for owner in ("dowser.method", "data"):
        for each in usable(owner):
            assert f"\n{each.name}: " in text, each
    assert all(
        f"\n{group}:\n" in text for group in GROUPS if any(n.startswith(f"{group}.") for n in table("fit").options)
    )
    assert "--model.lora.r int" in text and "--dowser.method.group_size int (default 4)" in text
    assert not any(noise in text for noise in ("<class", "typing.", "CONFIG", "Namespace", "::"))


def test_defaults_are_true(parsers):  # noqa: F811
    config = parsers["fit"].parse_args(["--model.path=x", "--data=ConversationData"])
    compared = 0
    for name in MATTERS:
        node = config
        for part in name.split("."):
            node = node.get("init_args", node)[part]
        if name == "dowser.method":
            node = node["class_path"].rpartition(".")[2]
        if default_of(name) is not None and name != "data":  # which this line sets
            said = yaml.safe_load(default_of(name))
            assert said == node or str(said) == str(node), name
            compared += 1
    assert compared >= 17


@pytest.mark.parametrize(("verb", "example"), [(verb, line) for verb in VERBS for _, line in EXAMPLES[verb]])
def test_examples_are_right(verb, example):
    found, rest = verb_and_rest(resolve_configs(example.split()))
    assert found == verb
    check_spelling(verb, rest)
    check_model(rest)


def test_exit_statuses_are_written_down(capsys):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text()
    overview = "\n".join(shown(capsys, "--help"))
    for status, meaning in STATUSES.items():
        assert f"| {status} | {meaning} |" in page and f"  {status:<5}{meaning}" in overview


@pytest.mark.parametrize("line", ["fit --help", "fit --help-all", "fit -c quickstrat", "fit --model.pth x", "fti"])
def test_nothing_heavy_is_loaded_for_help_or_a_typo(line):
    code = (
        "import sys; from dowser_pl.__main__ import main\n"
        f"main({line.split()!r})\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
