"""Evaluation sets from files: JSON lists or JSONL, with the keys that published benchmarks use.

Per row: `image` (optional; path, list, URL or base64), a question under `text`, `question` or `prompt`, and what is
right under `references`, `answers`, `captions`, `reference`, `answer` or `caption`, the first of these that is there:
a string, a number, a list of them, or a list of `{"answer": ...}` (VQAv2's ten annotators). `options` or `choices`
(list, or {"A": ...}) make it multiple choice: the options are written below the question, and the answer may be the
letter, the text or the 0-based index (a JSON number is the index, unless the options are numbers themselves). A row
may also be a conversation (`messages.py`); then its last assistant turn is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from dowser_pl.data.decoding import ON_WHITE, Decoding
from dowser_pl.data.json_rows import keep_good, read_rows
from dowser_pl.data.messages import MessageReader, image_column, read_content
from dowser_pl.data.rows import Question, Role, Task
from dowser_pl.metrics import build_metric

_QUESTION = ("question", "text", "prompt")
_REFERENCE = ("references", "answers", "captions", "reference", "answer", "caption")


@dataclass(frozen=True)
class TaskFile:
    """One evaluation set on disk.

    Attributes:
        name: in logs and in the report.
        file: JSON or JSONL.
        role: "upstream" (what the model can do already) or "downstream" (what is being learnt).
        metric: exact_match, vqa, multiple_choice or cider.
        image_folder: where image paths start; None = the folder of `file`.
        max_new_tokens: how long an answer may be.
        limit: use so many rows, evenly spread over the file; None = all.
        prompt_suffix: written on a new line below each question, e.g. "Answer with a single word."; the whole
            question where rows have none, as in files of captions.
    """

    name: str
    file: str
    role: Role = "upstream"
    metric: str = "exact_match"
    image_folder: str | None = None
    max_new_tokens: int = 16
    limit: int | None = None
    prompt_suffix: str = ""

    def __post_init__(self) -> None:
        build_metric(self.metric)  # a typo ends here and not after training
        for name, value in {"max_new_tokens": self.max_new_tokens, "limit": self.limit}.items():
            if value is not None and value < 1:
                raise ValueError(f"Task {self.name!r}: {name} must be at least 1, got {value}.")


def read_task(
    task: TaskFile, allow_urls: bool = False, skip_bad_rows: bool = False, decoding: Decoding = ON_WHITE
) -> Task:
    """Read the rows of an evaluation set; images are looked for but not decoded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is unusable (and `skip_bad_rows` is off), or none is left.
    """
    folder = Path(task.image_folder) if task.image_folder else Path(task.file).parent
    reader = MessageReader(folder.expanduser(), allow_urls, skip_bad_rows, decoding)
    metric = build_metric(task.metric)

    def parse(name: str, row: dict[str, Any]) -> Question:
        own = row.get("conversations") or row.get("messages")
        question = question_of(name, row, reader) if own else _read_question(name, row, reader, task)
        try:
            metric.update([""], [question.references])  # what cannot be scored ends here and not after the probe
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return question

    rows = read_rows(task.file)
    if task.limit is not None and task.limit < len(rows):
        rows = [rows[i * len(rows) // task.limit] for i in range(task.limit)]
    questions = keep_good(rows, parse, skip_bad_rows, task.name)
    return Task(task.name, task.role, task.metric, questions, task.max_new_tokens)


def question_of(name: str, row: dict[str, Any], reader: MessageReader) -> Question:
    """A conversation as a question: everything before its last assistant turn, which is the reference."""
    messages, images = reader.read(name, row)
    answer = "".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")
    num_asked = sum(part["type"] == "image" for message in messages[:-1] for part in message["content"])
    return Question(name, messages[:-1], images[:num_asked], [answer])


def _read_question(name: str, row: dict[str, Any], reader: MessageReader, task: TaskFile) -> Question:
    text = _first(name, row, _QUESTION, "question") if not task.prompt_suffix else _any(row, _QUESTION)
    answers = _answers(_first(name, row, _REFERENCE, "reference"))
    lines = [] if text is None else [str(text)]
    if options := row.get("options") or row.get("choices"):
        letters = _letters(name, options)
        answers = _right_option(name, answers, letters)
        lines += [f"{letter}. {option}" for letter, option in letters.items()]
    content = read_content(name, "\n".join([*lines, task.prompt_suffix]))
    placed = [part.pop("source") for part in content if part["type"] == "image"]
    messages = [{"role": "user", "content": content}]
    return Question(
        name, messages, reader.place(name, messages, placed, image_column(row)), [str(answer) for answer in answers]
    )


def _any(row: dict[str, Any], keys: Sequence[str]) -> Any:
    """What stands under the first of `keys` that is there and not empty, else None."""
    return next((row[key] for key in keys if row.get(key) not in (None, "", [])), None)


def _first(name: str, row: dict[str, Any], keys: Sequence[str], what: str) -> Any:
    value = _any(row, keys)
    if value is None:
        raise ValueError(f"{name}: no {what}: expected one of the keys {list(keys)}, got {sorted(row)}.")
    return value


def _answers(value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    return [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in values]


def _letters(name: str, options: Any) -> dict[str, Any]:
    """Letter to option."""
    if isinstance(options, dict):
        return {letter: option for letter, option in options.items() if option is not None}
    if not isinstance(options, list) or len(options) > len(ascii_uppercase):
        raise ValueError(
            f"{name}: options are a list of at most {len(ascii_uppercase)} or an object like "
            f'{{"A": ...}}, got {str(options)[:60]!r}.'
        )
    return dict(zip(ascii_uppercase, options, strict=False))


def _right_option(name: str, answers: list[Any], letters: dict[str, Any]) -> list[str]:
    """[letter, text] of the right option, given as letter, text or 0-based index."""
    by_text = {str(option).strip().casefold(): letter for letter, option in letters.items()}
    are_numbers = any(isinstance(option, int | float) for option in letters.values())
    for answer in answers:
        given = str(answer).strip()
        letter = by_text.get(given.casefold(), given.strip("(). ").upper())
        is_index = isinstance(answer, int) and not are_numbers
        if (is_index or letter not in letters) and given.isdecimal() and int(given) < len(letters):
            letter = list(letters)[int(given)]
        if letter in letters:
            return [letter, str(letters[letter])]
    raise ValueError(f"{name}: the answer {answers} is none of the options {letters}: neither letter, text nor index.")
