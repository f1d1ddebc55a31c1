"""Every command of the pages is one that the program takes: verbs, options, values, names after -c, scripts."""

import importlib.util
import re
import sys
from argparse import ArgumentError
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from dowser_pl.__main__ import TRAINING_VERBS, VERBS
from dowser_pl.cli import main as command_line
from dowser_pl.cli.arguments import joined_numbers, resolve_configs
from dowser_pl.cli.spelling import check_spelling
from dowser_pl.commands import bench, chat, drift, evaluate, merge, patch, push, report
from tests.docs.pages import PAGES, ROOT, blocks, commands, inline_commands, write_files

OFFLINE = {
    "report": report,
    "patch": patch,
    "bench": bench,
    "chat": chat,
    "drift": drift,
    "evaluate": evaluate,
    "merge": merge,
    "push": push,
}
OTHERS = {"pytest", "ruff", "mypy", "mkdocs", "source", "docker", "git", "cd", "export", "hf"}


class _BuiltError(Exception):
    """Carries the parser out of the command line, before it reads anything."""


@pytest.fixture(scope="module")
def parser():
    """The parser of the training verbs, built once: that takes longer than all parsing."""

    def carry_out(cli, parser, args):
        raise _BuiltError(parser)

    patched = pytest.MonkeyPatch()
    patched.setattr(command_line.DowserCLI, "parse_arguments", carry_out)
    with pytest.raises(_BuiltError) as built:
        command_line.main([])
    patched.undo()
    return built.value.args[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the files that the pages print, whose modules can be imported as from the prompt."""
    folder = write_files(tmp_path_factory.mktemp("docs"))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def check(words: list[str], parser) -> None:
    """Parse one command with what would parse it.

    Raises:
        SystemExit: the program's own answer to a command that it does not take.
    """
    if "-m dowser_pl " in " ".join(words):  # of python, torchrun …, srun … python
        return check_verb(words[words.index("dowser_pl") + 1 :], parser)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "pip":
        text = (ROOT / "pyproject.toml").read_text()
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
            assert re.search(rf"^{extra} = \[", text, re.MULTILINE), extra
    elif words[0] == "python" and words[1] == "-m":
        assert importlib.util.find_spec(words[2]), words
    elif words[0] == "python":
        source = (ROOT / words[1]).read_text()
        for word in words[2:]:
            name = word.partition("=")[0]
            assert not word.startswith("--") or f'"{name}"' in source, f"{words[1]} has no option {name}"
    elif words[0] == "sbatch":
        script = next(index for index, word in enumerate(words) if word.endswith(".sh"))
        assert (ROOT / words[script]).is_file(), words[script]
        check_verb(["fit", *words[script + 1 :]], parser)
    else:
        assert words[0] in OTHERS, f"no test knows what to do with: {' '.join(words)}"
    return None


def check_verb(words: list[str], parser) -> None:
    verb, *rest = words
    if verb in TRAINING_VERBS:
        parser.parse_args([verb, *resolve_configs(joined_numbers(rest))])
    elif verb == "merge":
        options, rest = merge.build_parser().parse_known_args(rest)
        merge.method_options(options.method, rest)
    elif verb == "evaluate":
        options, rest = evaluate.build_parser().parse_known_args(rest)
        configs = [word for name in options.config for word in ("-c", name)]
        check_spelling("validate", resolve_configs([*configs, *rest]))
    elif verb in OFFLINE:
        options = OFFLINE[verb].build_parser().parse_args(rest)
        if verb == "bench":
            assert Path(resolve_configs(["-c", options.config])[1]).is_file()
    else:
        assert verb in ("--help", "--version"), f"expected one of {', '.join(VERBS)}"


def taken(words: list[str], parser) -> str:
    """What the program has against a command; nothing if it takes it."""
    said = StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            check(list(words), parser)
    except SystemExit as stop:
        return "" if stop.code in (0, None) else f"{stop.code} …{said.getvalue()[-400:]}"
    except (ValueError, AssertionError, OSError, ArgumentError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_parse(page, parser, folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = [words for block in blocks(page) if block.language == "sh" for words in commands(block.text)]
    found += [words for words in inline_commands(page) if words[-1] not in VERBS]  # a verb alone is its name
    for words in found:
        said = taken(words, parser)
        assert not said, f"{page.relative_to(ROOT)}: {' '.join(words)}\n{said}"


@pytest.mark.parametrize(
    "command",
    [
        "python -m dowser_pl fitt",
        "python -m dowser_pl fit -c quickstart --dowser.method ModelDowsr",
        "python -m dowser_pl fit -c quickstart --dowser.method.update_ration 0.1",
        "python -m dowser_pl fit -c qickstart",
        "python -m dowser_pl patch apply base patch.safetensors",
        "python -m dowser_pl merge --base A --tuned B --method Dare --method.ratio 0.1 --out C",
        "python benchmarks/scaling.py --rank 64",
        "pip install -e .[tests]",
        "make all",
    ],
)
def test_commands_that_are_wrong_do_not(command, parser, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (words,) = commands(command)
    assert taken(words, parser)
