"""What is said on the command line of tasks that another program measured, and the evaluation that comes of it."""

import argparse
from collections.abc import Mapping, Sequence

from dowser_pl.errors import DowserError
from dowser_pl.reporting.evaluation import Evaluation
from dowser_pl.reporting.harnesses import Measured, Terms, comparable_answers, read_results

__all__ = ["TERMS", "add_terms", "evaluation_of", "files_compared", "terms_of"]

TERMS = ("downstream", "upstream", "metric", "out_of")


def add_terms(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Add the options to a parser, under a title; returns their group."""
    group = parser.add_argument_group(title)
    group.add_argument("--downstream", nargs="+", metavar="TASK", help="what the model was tuned for")
    group.add_argument(
        "--upstream", nargs="+", metavar="TASK", help="what it should still do; without this option, all other tasks"
    )
    group.add_argument(
        "--metric", nargs="+", metavar="TASK=NAME", help="which score of a task counts, where there are several"
    )
    group.add_argument(
        "--out-of", nargs="+", metavar="TASK=NUMBER", help="the best score of a task that is not 1: 100 for percent"
    )
    return group


def terms_of(options: argparse.Namespace) -> Terms:
    """What was said.

    Raises:
        DowserError: something that is to be a pair is none.
    """
    return Terms(
        tuple(options.downstream or ()),
        None if options.upstream is None else tuple(options.upstream),
        dict(_pair("--metric", word) for word in options.metric or ()),
        {task: _number(task, number) for task, number in (_pair("--out-of", word) for word in options.out_of or ())},
    )


def _pair(option: str, word: str) -> tuple[str, str]:
    task, equals, value = word.partition("=")
    if not (task and equals and value):
        raise DowserError(f"got {option} {word}, expected the name of a task, an equals sign and a value")
    return task, value


def _number(task: str, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise DowserError(f"got --out-of {task}={word}, expected a number above 0")
    return number


def evaluation_of(models: Mapping[str, Mapping[str, Measured]], terms: Terms) -> Evaluation:
    """Every model compared with the first.

    Args:
        models: name -> task -> what was measured.
        terms: what was said of the tasks.

    Raises:
        DowserError: they cannot be compared.
    """
    from dowser_pl.bench.differences import compared  # noqa: PLC0415 - numpy, which a report of runs does without

    return compared(comparable_answers(models, terms))


def files_compared(base: Sequence[str], tuned: Sequence[Sequence[str]], terms: Terms) -> Evaluation:
    """Tuned models compared with their base, by the result files of other programs.

    Args:
        base: its files or folders.
        tuned: those of every tuned model.
        terms: what was said of the tasks.

    Raises:
        FileNotFoundError: one is not there.
        DowserError: one is damaged, or they cannot be compared.
    """
    models: dict[str, Mapping[str, Measured]] = {}
    for paths in (base, *tuned):
        name, tasks = read_results(paths)
        models[f"{name} ({paths[0]})" if name in models else name] = tasks
    return evaluation_of(models, terms)
