"""How much more one model scores than another on the same questions, and whether that is more than chance.

Questions are drawn with replacement, B = 4000 times, and the same ones for both models; a draw's difference is the mean
over its questions of score less score. As that depends only on how often each difference was drawn, it is these that
are drawn, with as many chances as questions have them. Of a mean over tasks every task is drawn by itself. p-values are
those of `dowser_pl.bench.paired`, not adjusted for how many are looked at.

Legend: B draws, Q questions, U different differences.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dowser_pl.bench.paired import DRAWS, p_value
from dowser_pl.reporting.answers import Row, change_of, confirmed, of_tasks
from dowser_pl.reporting.evaluation import Answered, Difference, Evaluation, paired_rows
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import LOWER_IS_BETTER, ROLES

__all__ = ["compared", "differences", "drawn_means"]

Floats = NDArray[np.float64]
_AT_ONCE = 2**22  # counts that are held


def compared(answers: Mapping[str, Mapping[str, Answered]]) -> Evaluation:
    """What every model scored, and how far each is from the first.

    Args:
        answers: name of a model -> task -> how it answered; the same tasks of all.
    """
    first, *others = answers
    evaluation = Evaluation.of(answers)
    for name in others:
        rows, evaluation.questions[name] = paired_rows(answers[first], answers[name])
        evaluation.differences[name] = differences(evaluation.report(name), rows)
    return evaluation


def differences(report: Report, rows: Sequence[Row]) -> dict[str, Difference]:
    """Task, "upstream mean" and "downstream mean" -> difference; those are left out that no single questions lead to.

    Args:
        report: the first model as "before", the other as "after".
        rows: of all questions, with the scores of both.
    """
    known = of_tasks(rows)
    draws = {
        name: drawn_means([change_of(row) for row in known[name]], seed)
        for seed, (name, task) in enumerate(report.tasks.items())
        if name in known and _tells(known[name], task.before, task.after) and task.metric not in LOWER_IS_BETTER
    }
    found = {name: _difference(report.tasks[name].change, drawn) for name, drawn in draws.items()}
    for role in ROLES:
        names = list(report.of_role(role))
        change = getattr(report, role).change
        if change is not None and set(names) <= set(draws):
            mean: Floats = np.mean([draws[name] for name in names], axis=0)
            found[f"{role} mean"] = _difference(change, mean)
    return found


def _tells(rows: Sequence[Row], before: float, after: float) -> bool:
    return confirmed(rows, before, "before") and confirmed(rows, after, "after")


def drawn_means(changes: Sequence[float], seed: int = 0, draws: int = DRAWS) -> Floats:
    """(B,) means of draws of Q out of Q changes.

    Args:
        changes: one a question.
        seed: of the draws.
        draws: how many.
    """
    random = np.random.default_rng(seed)
    values, counts = np.unique(np.asarray(changes, dtype=np.float64), return_counts=True)
    total = int(counts.sum())
    step = max(1, _AT_ONCE // len(values))
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    return np.concatenate([random.multinomial(total, counts / total, size=size) @ values / total for size in sizes])


def _difference(value: float, draws: Floats) -> Difference:
    low, high = (float(np.quantile(draws, share)) for share in (0.025, 0.975))
    return Difference(value, low, high, p_value(draws))
