"""A part of the training rows kept back, for a report when there is no evaluation file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any
from zlib import crc32

from dowser_pl.data.messages import image_column
from dowser_pl.data.reading.sources import Rows
from dowser_pl.data.rows import Question, Task, num_tokens

MAX_QUESTIONS = 500
MAX_NEW_TOKENS = 1024


def split_rows(rows: Rows, numbers: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """(training rows, rows held out) of the rows of these numbers, always the same for the same file.

    Rows with the same image stay together, or the model would be asked about pictures it was trained on. The images
    with the lowest hashes are held out until about `fraction` of all rows, at most `MAX_QUESTIONS`, is reached.

    Raises:
        ValueError: all rows share one image, so nothing can be held out.
    """
    groups: dict[str, list[int]] = {}
    for number in numbers:
        _, row = rows[number]
        shown = _images(row) or [{key: value for key, value in row.items() if key != "id"}]
        groups.setdefault(json.dumps(shown, sort_keys=True, default=_fingerprint), []).append(number)
    if len(groups) < 2:
        raise ValueError(
            f"Cannot hold out a part of {len(numbers)} training rows with {len(groups)} different images. Give an "
            "evaluation file under `tasks` with `role: downstream`, or `holdout: 0` together with other tasks."
        )
    wanted = min(max(round(fraction * len(numbers)), 1), MAX_QUESTIONS)
    held: set[int] = set()
    for key in sorted(groups, key=lambda text: (crc32(text.encode()), text))[:-1]:
        if len(held) >= wanted:
            break
        held.update(groups[key])
    return [number for number in numbers if number not in held], sorted(held)


def holdout_task(questions: Sequence[Question], tokenizer: Any = None) -> Task:
    """The held out rows as the downstream task, with room for twice the longest answer.

    Args:
        questions: the rows.
        tokenizer: what answers are counted with, as words say nothing of their tokens: Chinese has no spaces, a formula
            or a serial number a dozen tokens to the word. None = by their bytes, of which a token holds at least one.
    """
    longest = max(num_tokens(question.references[0], tokenizer) for question in questions)
    room = max(min(16 + 2 * longest, 128), min(longest + 16, MAX_NEW_TOKENS))
    return Task("holdout", "downstream", "exact_match", questions, max_new_tokens=room)


def _fingerprint(value: Any) -> str:
    """Of what JSON has no word for, as the bytes of a picture."""
    return sha256(value if isinstance(value, bytes) else str(value).encode()).hexdigest()


def _images(row: dict[str, Any]) -> list[Any]:
    """What the row shows: its image column, and message parts that bring their own image."""
    messages = row.get("messages")
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    parts = [part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]]
    own = [part for part in parts if isinstance(part, dict) and "image" in str(part.get("type")) and len(part) > 1]
    return [*image_column(row), *own]
