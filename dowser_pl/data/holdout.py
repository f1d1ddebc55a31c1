"""A part of the training rows kept back, for a report when there is no evaluation file."""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

from dowser_pl.data.messages import image_column
from dowser_pl.data.rows import Question, Task

MAX_QUESTIONS = 500
NamedRow = tuple[str, dict[str, Any]]


def split_rows(rows: list[NamedRow], fraction: float) -> tuple[list[NamedRow], list[NamedRow]]:
    """(training rows, rows held out), always the same for the same file.

    Rows with the same image stay together, or the model would be asked about pictures it was trained on. The images
    with the lowest hashes are held out until about `fraction` of all rows, at most `MAX_QUESTIONS`, is reached.

    Raises:
        ValueError: all rows share one image, so nothing can be held out.
    """
    groups: dict[str, list[int]] = {}
    for number, (_, row) in enumerate(rows):
        shown = _images(row) or [{key: value for key, value in row.items() if key != "id"}]
        groups.setdefault(json.dumps(shown, sort_keys=True), []).append(number)
    if len(groups) < 2:
        raise ValueError(
            f"Cannot hold out a part of {len(rows)} training rows with {len(groups)} different images. Give an "
            "evaluation file under `tasks` with `role: downstream`, or `holdout: 0` together with other tasks."
        )
    wanted = min(max(round(fraction * len(rows)), 1), MAX_QUESTIONS)
    held: set[int] = set()
    for key in sorted(groups, key=lambda text: (crc32(text.encode()), text))[:-1]:
        if len(held) >= wanted:
            break
        held.update(groups[key])
    kept = [row for number, row in enumerate(rows) if number not in held]
    return kept, [rows[number] for number in sorted(held)]


def holdout_task(questions: list[Question]) -> Task:
    """The held out rows as the downstream task; answers may be twice as long as the longest reference."""
    words = max(len(question.references[0].split()) for question in questions)
    return Task("holdout", "downstream", "exact_match", questions, max_new_tokens=min(16 + 2 * words, 128))


def _images(row: dict[str, Any]) -> list[Any]:
    """What the row shows: its image column, and message parts that bring their own image."""
    messages = row.get("messages")
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    parts = [part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]]
    own = [part for part in parts if isinstance(part, dict) and "image" in str(part.get("type")) and len(part) > 1]
    return [*image_column(row), *own]
