"""What `evaluate` does; loads torch, so `--help` does without this file."""

import gc
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dowser_pl.bench.differences import compared
from dowser_pl.cli.evaluation import Evaluator
from dowser_pl.cli.main import ended_in_words
from dowser_pl.commands.evaluated_tasks import EvaluatedTasks, model_identity
from dowser_pl.commands.tuned import Candidate, candidates, put_on
from dowser_pl.files.atomic import write_atomically
from dowser_pl.files.locking import alone
from dowser_pl.reporting.evaluation import EVALUATION_NAME, Answered, Evaluation
from dowser_pl.reporting.evaluation_table import evaluation_page, evaluation_text
from dowser_pl.reporting.provenance import provenance

__all__ = ["run", "written"]

_PAGE = "evaluation.md"


def run(options: Namespace, arguments: Sequence[str], argv: Sequence[str]) -> str:
    """Evaluate and write; returns what to print, on processes but the first nothing.

    Args:
        options: of the verb.
        arguments: of `validate`, with paths of configurations.
        argv: what followed the verb.
    """
    found, out = candidates(options.model), Path(options.out)
    first = all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "RANK"))
    with alone(out, "evaluation") if first else nullcontext(), ended_in_words(["validate", *arguments]):
        answers = _Answers(out)
        for base, group in _by_load(found).items():
            answers.of(base, group, arguments)
        if not answers.is_first:
            return ""
        return written(out, compared(answers.in_order([each.name for each in found])), argv)


def written(out: Path, evaluation: Evaluation, argv: Sequence[str]) -> str:
    """Write an evaluation into its folder; returns what to print."""
    write_atomically(out / EVALUATION_NAME, evaluation.to_json(provenance("evaluate", argv)))
    write_atomically(out / _PAGE, evaluation_page(evaluation))
    return f"{evaluation_text(evaluation)}\n\nWritten to {out / EVALUATION_NAME} and {_PAGE}."


def _by_load(found: Sequence[Candidate]) -> dict[tuple[str, str | None], list[Candidate]]:
    """Base and dtype -> the models that one load of it serves."""
    groups: dict[tuple[str, str | None], list[Candidate]] = {}
    needed = {each.base: dtype for each in reversed(found) if (dtype := each.dtype()) is not None}
    for each in found:
        groups.setdefault((each.base, each.dtype() or needed.get(each.base)), []).append(each)
    return groups


@dataclass
class _Answers:
    """Of all models, as far as they are known."""

    out: Path
    tasks: list[str] = field(default_factory=list)
    models: dict[str, dict[str, Answered]] = field(default_factory=dict)
    is_first: bool = True

    def of(self, base: tuple[str, str | None], group: Sequence[Candidate], arguments: Sequence[str]) -> None:
        """Ask the models of one load what they have not answered yet."""
        path, dtype = base
        evaluator = Evaluator([*arguments, "--model.path", path], dtype)
        self.is_first = evaluator.is_first
        every = evaluator.tasks
        self.tasks = [task.name for task in every]
        for candidate in group:
            kept = EvaluatedTasks(self.out, candidate.name, model_identity(candidate))
            settings = {task.name: evaluator.settings(task) for task in every}
            known = {task.name: kept.find(task.name, settings[task.name]) for task in every}
            answered = self.models[candidate.name] = {name: each for name, each in known.items() if each is not None}
            missing = [task for task in every if task.name not in answered]
            if missing:
                evaluator.ask(missing, partial(_keep, kept, settings, answered), _on(candidate))
        del evaluator
        gc.collect()

    def in_order(self, names: Sequence[str]) -> dict[str, dict[str, Answered]]:
        """Models and tasks as the command line has them."""
        return {name: {task: self.models[name][task] for task in self.tasks} for name in names}


def _keep(
    kept: EvaluatedTasks, settings: Mapping[str, Any], answered: dict[str, Answered], task: str, found: Answered
) -> None:
    answered[task] = found
    kept.keep(task, settings[task], found)


def _on(candidate: Candidate) -> Callable[[Any], AbstractContextManager[None]] | None:
    return None if candidate.added is None else partial(put_on, added=candidate.added)
