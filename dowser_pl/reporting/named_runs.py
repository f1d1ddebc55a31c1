"""The reports behind what a person names: folders of runs, and evaluations with any number of models."""

from collections.abc import Sequence
from pathlib import Path

from dowser_pl.reporting.evaluation import EVALUATION_NAME, Evaluation
from dowser_pl.reporting.folder import JSON_NAME, read_report
from dowser_pl.reporting.report import Report

__all__ = ["read_evaluation", "read_runs"]


def read_evaluation(path: str | Path) -> Evaluation | None:
    """Read an evaluation from its folder or its file; None where it is none.

    Raises:
        DowserError: it is damaged; the field is named.
    """
    path = Path(path)
    file = path / EVALUATION_NAME if path.is_dir() and not (path / JSON_NAME).is_file() else path
    if file.name != EVALUATION_NAME or not file.is_file():
        return None
    return Evaluation.from_json(file.read_text(encoding="utf-8", errors="replace"), str(file))


def read_runs(paths: Sequence[str]) -> list[tuple[str, Report]]:
    """Each report with the path that has it.

    Of evaluations every model is one, compared with the first model of the first evaluation; that itself is none,
    unless it is the only one.

    Raises:
        FileNotFoundError: nothing is there.
        DowserError: it is damaged, or evaluations asked different tasks.
    """
    found: list[tuple[str, Report]] = []
    base: Evaluation | None = None
    for path in paths:
        evaluation = read_evaluation(path)
        if evaluation is None:
            found.append((path, read_report(path)))
            continue
        base = base or evaluation
        names = [name for name in evaluation.models if name != base.first]
        found += [(path, evaluation.report(name, base)) for name in names]
    if base is not None and not found:
        found = [(paths[0], base.report(base.first))]
    return found
