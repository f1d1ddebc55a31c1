"""The answers to every question of the report, before and after training.

They are what samples are chosen from, and what tells how uncertain a change is.
"""

import json
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from dowser_pl.callbacks.predictions import in_turns
from dowser_pl.distributed import collectives
from dowser_pl.masking import ReportedModule
from dowser_pl.reporting.answers import Moment, Row, data_uri, of_tasks, samples, with_answers

__all__ = ["add_pictures", "answers_of", "latest_answers"]


def latest_answers(pl_module: ReportedModule, earlier: Sequence[Row], moment: Moment) -> list[Row]:
    """The answers of the evaluation that has just ended, of all processes, on every process; all of them must call it.

    Args:
        pl_module: that has just been evaluated.
        earlier: what it gave for the other moment.
        moment: "before" is the base model, "after" the model as it is now.
    """
    rows = [row for task in pl_module.tasks() for row in answers_of(pl_module, task)]
    plain: list[Row] = json.loads(json.dumps(with_answers(earlier, rows, moment), default=str))  # ids may be anything
    return plain


def answers_of(pl_module: ReportedModule, task: Any) -> list[Row]:
    """The rows of `predict_step` of a task that was answered, of all processes, with scores; all must call it."""
    shares = collectives.all_gather_numbered(lambda: {collectives.rank(): pl_module.answers[task.name]})
    rows = in_turns(shares)
    pl_module.row_scores(task, rows)
    return rows


def add_pictures(rows: Sequence[Row], pl_module: ReportedModule) -> None:
    """Write the images of the questions that are worth a look into their rows."""
    tasks = {task.name: task for task in pl_module.tasks()}
    start = 0
    for name, mine in of_tasks(rows).items():
        for place in (sample.place for sample in samples(rows, name)):
            try:
                images = pl_module.pictures(tasks[name], rows[place], place - start)
                rows[place]["pictures"] = list(map(data_uri, images))
            except (OSError, ValueError) as error:  # a report without a picture is better than none
                rank_zero_warn(f"the page shows no picture of {name} {rows[place]['id']}: {error}")
        start += len(mine)
