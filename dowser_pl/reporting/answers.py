"""Every question of a run with its answers before and after training: answers.jsonl, one JSON object a line.

A line has `task, id, question, images, references` and of both moments the answer and its score: `before,
before_score, after, after_score`, null where it was not asked. What a few lines show is there too, small enough to be
looked at: `pictures`, a list of data URIs.
"""

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import write_atomically
from dowser_pl.reporting.scores import Questions, TaskScore

Row = dict[str, Any]
Moment = Literal["before", "after"]
ANSWERS_NAME = "answers.jsonl"
KINDS = ("gained", "forgotten", "unchanged")
OF_A_KIND = 3
"""Samples of each task that were gained, and that were forgotten."""
_HALF_A_SCORE = 5e-5  # scores of one evaluation that are rounded in different places differ by less
_NATS = re.compile(r"(\d+\.\d+) nats over (\d+) tokens")
_MOST_NATS = 50.0  # a token, which a perplexity is cut at
_PICTURE_PIXELS = 224
_SCORES = ("before_score", "after", "after_score")  # beside "before", by which a line is known
_SHARED = ("task", "id", "question", "images", "references")


class Sample(NamedTuple):
    """A line that is worth a look: its place in the file, and whether it was "gained", "forgotten" or "unchanged"."""

    place: int
    kind: str


def write_answers(rows: Iterable[Row], folder: Path) -> None:
    """Write the file of answers atomically."""
    write_atomically(folder / ANSWERS_NAME, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_answers(folder: Path) -> list[Row]:
    """The lines of a run; none where it has no such file, as runs of earlier versions.

    Raises:
        DowserError: a line is not what `write_answers` writes; it is named.
    """
    path = folder / ANSWERS_NAME
    if not path.is_file():
        return []
    rows = []
    # not `splitlines`, which takes characters for the end of a line that may stand in a text
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            row = json.loads(line)
            rows.append(
                {"id": "", "question": "", "references": [], **dict.fromkeys(_SCORES), **row}
                | {"task": row["task"], "before": row["before"]}
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DowserError(
                f"{path}, line {number}: {error!r}, expected an object with the answers to one question. Delete the "
                "file: the report then has no samples and no intervals of changes"
            ) from error
    return rows


def with_answers(earlier: Sequence[Row], said: Sequence[Row], moment: Moment) -> list[Row]:
    """The questions of the latest evaluation, with what is known of the other moment if that asked the same ones.

    Args:
        earlier: as `read_answers` reads them.
        said: rows with `task`, `id`, `prediction` and, unless the metric says nothing of single rows, `score`, beside
            what else is told of the question.
        moment: of the latest evaluation.
    """
    other = "after" if moment == "before" else "before"
    same = moment == "after" and list(map(_asked, earlier)) == list(map(_asked, said))
    found = []
    for number, row in enumerate(said):
        known = earlier[number] if same else {}
        shared = {name: row.get(name, [] if name == "images" else "") for name in _SHARED}
        of_other = {other: known.get(other), f"{other}_score": known.get(f"{other}_score")}
        mine = {moment: row["prediction"], f"{moment}_score": row.get("score")}
        found.append(shared | ((mine | of_other) if moment == "before" else (of_other | mine)))
    return found


def _asked(row: Row) -> tuple[Any, ...]:
    return row["task"], row.get("id"), row.get("question", "")


def confirmed(rows: Sequence[Row], score: float, moment: Moment) -> bool:
    """Whether these are the answers that led to the score of a task at one moment."""
    scores = [row[f"{moment}_score"] for row in rows]
    return len(scores) > 0 and None not in scores and abs(sum(scores) / len(scores) - score) < _HALF_A_SCORE


def likelihoods(rows: Sequence[Row], task: TaskScore, moment: Moment) -> list[tuple[float, int]] | None:
    """Nats and tokens of every text, as the metric `perplexity` writes them for an answer.

    Args:
        rows: of the task.
        task: whose score they must lead to.
        moment: before or after.

    Returns:
        None where one is not known, or they lead to another perplexity than that of the task.
    """
    told = [_NATS.fullmatch(str(row[moment])) for row in rows]
    found = [(float(each[1]), int(each[2])) for each in told if each]
    if not found or len(found) < len(told):
        return None
    perplexity = math.exp(min(sum(nats for nats, _ in found) / sum(count for _, count in found), _MOST_NATS))
    return found if math.isclose(perplexity, getattr(task, moment), rel_tol=1e-5) else None


def of_tasks(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Task name -> its rows, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["task"], []).append(row)
    return found


def counted(rows: Sequence[Row], before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Questions]:
    """Task name -> how many questions were asked, gained and forgotten.

    Args:
        rows: as `read_answers` reads them.
        before: task name -> score of the base model; answers that lead to another are of another run, and not counted.
        after: task name -> score of the tuned model; a task of which the answers lead to another score is left out, as
            is one whose metric says nothing of single rows.
    """
    asked = {name: mine for name, mine in of_tasks(rows).items() if name in after}
    return {
        name: _count(mine, name in before and confirmed(mine, before[name], "before"))
        for name, mine in asked.items()
        if confirmed(mine, after[name], "after")
    }


def _count(rows: Sequence[Row], paired: bool) -> Questions:
    if not paired:
        return Questions(len(rows), unit=_unit(rows))
    changes = list(map(change_of, rows))
    gained, forgotten = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return Questions(len(rows), gained, forgotten, sum(change**2 for change in changes) / len(rows), _unit(rows))


def _unit(rows: Iterable[Row]) -> bool:
    scores = [row[name] for row in rows for name in ("before_score", "after_score") if row[name] is not None]
    return all(0 <= score <= 1 for score in scores)


def change_of(row: Row) -> float:
    """Score after less score before; 0 where one of them is not known."""
    if row["before_score"] is None or row["after_score"] is None:
        return 0.0
    return float(row["after_score"] - row["before_score"])


def samples(rows: Sequence[Row], task: str) -> list[Sample]:
    """A few of the lines of a task: the largest gains, the largest losses, and where there is neither, the first two.

    Of equal ones those that come first are taken; lines that were not asked before are all "unchanged".
    """
    mine = [place for place, row in enumerate(rows) if row["task"] == task]
    gained = sorted((place for place in mine if change_of(rows[place]) > 0), key=lambda place: -change_of(rows[place]))
    lost = sorted((place for place in mine if change_of(rows[place]) < 0), key=lambda place: change_of(rows[place]))
    chosen = [Sample(place, "gained") for place in gained[:OF_A_KIND]]
    chosen += [Sample(place, "forgotten") for place in lost[:OF_A_KIND]]
    return chosen or [Sample(place, "unchanged") for place in mine[:2]]


def data_uri(image: Any) -> str:
    """A Pillow image, no side longer than 224 pixels, as PNG or JPEG, whichever is smaller."""
    small = image.convert("RGB")
    small.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    found = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        file = io.BytesIO()
        small.save(file, kind, **options)
        found.append((file.getvalue(), kind))
    content, kind = min(found, key=lambda each: len(each[0]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
