"""Evaluation sets from files (any that `formats.py` reads), with the keys that published benchmarks use.

A task names a file of one's own, or one of the benchmarks of `sets.py` and the folder with its official files. Per row
of a file: `image` (optional; path, list, URL or base64), a question under `text`, `question` or `prompt`, and what is
right under `references`, `answers`, `captions`, `reference`, `answer` or `caption`, the first of these that is there:
a text, a number (3.0 is written "3"), a list of them, or a list of `{"answer": ...}` (VQAv2's ten annotators). Null,
NaN, true and false are refused, because nobody has written "None". `hint` comes before the question. `options` or
`choices` (list, or {"A": ...}), or columns `A`, `B`, ... or `option_a`, `choice_a`, ... make it multiple choice: the
options are written below the question, and the answer may be the letter, the text or the 0-based index (a JSON number
is the index, unless the options are numbers themselves). For `choice_likelihood` the options are not written: each is
tried as the answer. For `perplexity` a row without a question is a text that is measured by itself, outside the chat
template. A row may also be a conversation (`messages.py`); then its last assistant turn is the reference. For `predict`
a row may lack what is right, and a conversation may end with a question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dowser_pl.data.benchmarks.official import OfficialRows, spread
from dowser_pl.data.benchmarks.server import server_file
from dowser_pl.data.benchmarks.task_file import TaskFile
from dowser_pl.data.images import ON_WHITE, Decoding, ImageFile, ImageSource
from dowser_pl.data.messages import MessageReader, image_column, read_content, with_system
from dowser_pl.data.options import as_text, option_keys, read_options, right_option
from dowser_pl.data.reading.formats import image_folder, read_rows
from dowser_pl.data.reading.sources import ParsedRows, Row, Rows, Selected, keep_good
from dowser_pl.data.row_keys import absent, refuse_media, unread_keys, warn_of_unread
from dowser_pl.data.rows import Question, Task, is_learnt
from dowser_pl.errors import DowserError
from dowser_pl.metrics import add_rows, build_metric, by_likelihood

_MAX_NEW_TOKENS = {
    "cider": 128,
    "bleu4": 128,
    "rouge_l": 128,
    "meteor": 128,
}  # as in the papers; a caption cut short scores as a wrong one
_QUESTION = ("question", "text", "prompt")
_OWN_ID = ("id", "question_id", "uid", "index", "idx", "sample_id", "data_id")
_REFERENCE = ("references", "answers", "captions", "reference", "answer", "caption")


def read_task(
    task: TaskFile,
    allow_urls: bool = False,
    skip_bad_rows: bool = False,
    decoding: Decoding = ON_WHITE,
    labelled: bool = True,
    folder: str | None = None,
    words_only: str = "",
) -> Task:
    """Read the rows of an evaluation set; images are looked for but not decoded.

    Args:
        task: which file, and how it is asked.
        allow_urls: whether http(s) images are fetched.
        skip_bad_rows: leave out unusable rows, count and name them.
        decoding: how the bytes of images become pictures.
        labelled: whether every row must say what is right.
        folder: `image_folder` of the data module, for a task that names none.
        words_only: as in `MessageReader`.

    Raises:
        FileNotFoundError: there is no such file.
        DowserError: a row is unusable (and `skip_bad_rows` is off), or none is left.
    """
    rows, images, beside = _found(task, folder)
    reader = MessageReader(images, allow_urls, decoding=decoding, beside=beside, words_only=words_only)
    looking = replace(reader, verify=skip_bad_rows)
    metric_key = str(task.metric)
    metric = build_metric(metric_key)
    unread: list[frozenset[str]] = []

    def look(name: str, row: Row) -> None:
        question = _read_row(looking, task, labelled, name, row)
        try:  # what cannot be scored ends here and not after the probe
            if question.references:
                add_rows(metric, [""], [question.references])
        except ValueError as error:
            raise DowserError(f"{name}: {error}") from error
        unread.append(frozenset(_unread(row)))

    asked = numbers = _asked(rows, task)
    if isinstance(rows, OfficialRows) and not words_only:
        numbers = rows.with_pictures(asked, skip_bad_rows)
    good = keep_good(rows, look, skip_bad_rows, task.name, numbers, light=not skip_bad_rows)
    warn_of_unread(f"Task {task.name!r}", unread)
    questions = Selected(ParsedRows(rows, partial(_read_row, reader, task, labelled)), good)
    longest = task.max_new_tokens or _MAX_NEW_TOKENS.get(metric_key, 16)
    told, server = task.told_protocol(), server_file(rows.files, len(rows)) if isinstance(rows, OfficialRows) else None
    return Task(task.name, task.role, metric_key, questions, longest, len(asked) - len(good), told, server)


def _asked(rows: Rows, task: TaskFile) -> Sequence[int]:
    """The numbers of the rows that a limit leaves; where a question counts by all of its turns, whole questions."""
    if task.limit is None or task.metric != "mmbench":
        return spread(len(rows), task.limit)
    turns: dict[str, list[int]] = {}
    for number, (_, row) in enumerate(rows):
        turns.setdefault(str((row.get("references") or [number])[0]), []).append(number)
    questions = list(turns.values())
    chosen = spread(len(questions), max(1, task.limit * len(questions) // len(rows)))
    return sorted(number for place in chosen for number in questions[place])


def _found(task: TaskFile, folder: str | None) -> tuple[Rows, Path, Path | None]:
    """The rows of a task, where their images start, and where those lie that are not there."""
    if task.benchmark is not None:
        rows = task.official().questions()
        return rows, rows.images, None
    file = str(task.file)
    beside = image_folder(file, None) if task.image_folder is None else None
    return read_rows(file, task.split), image_folder(file, task.image_folder or folder), beside


def _read_row(reader: MessageReader, task: TaskFile, labelled: bool, name: str, row: Row) -> Question:
    if not _any(row, ("conversations", "messages")):
        return _read_question(reader, task, labelled, name, row)
    question = question_of(reader, name, row, labelled)
    if not by_likelihood(str(task.metric)):
        return question
    if task.metric != "perplexity":
        raise DowserError(f"{name}: choice_likelihood takes a row with a question and `options`, got a conversation.")
    return replace(question, candidates=question.references)


def question_of(reader: MessageReader, name: str, row: Row, labelled: bool = True) -> Question:
    """A conversation as a question: everything before its last answer that carries loss, which is the reference.

    One that ends with a question, which only `labelled` forbids, is asked as it stands and has no reference.
    """
    messages, images = reader.read(name, row, labelled)
    answers = [number for number, message in enumerate(messages) if is_learnt(message)]
    is_open = not answers or messages[-1]["role"] == "user"
    last = len(messages) if is_open else answers[-1]
    asked = [{"role": message["role"], "content": message["content"]} for message in messages[:last]]
    num_asked = sum(part["type"] == "image" for message in asked for part in message["content"])
    references = [] if is_open else ["".join(part["text"] for part in messages[last]["content"])]
    return Question(name, asked, images[:num_asked], references, _given(row, images[:num_asked], reader))


def _read_question(reader: MessageReader, task: TaskFile, labelled: bool, name: str, row: Row) -> Question:
    refuse_media(name, row)
    lines = _question_lines(name, row, bool(task.prompt_suffix) or task.metric == "perplexity")
    key = _first(name, row, _REFERENCE, "reference") if labelled else _any(row, _REFERENCE)
    answers = [] if key is None else _answers(row[key])
    options, has_labels = read_options(name, row)
    texts = {letter: as_text(f"{name}: option {letter}", option) for letter, option in options.items()}
    if options and answers:
        references = right_option(name, answers, options, has_labels)
    else:
        references = [as_text(f"{name}: the answer", answer) for answer in answers]
    measured = by_likelihood(str(task.metric))
    if not measured:
        lines += [f"{letter}. {text}" for letter, text in texts.items()]
    asked = "\n".join([*lines, task.prompt_suffix])
    is_text = task.metric == "perplexity" and not asked and not image_column(row)
    user = [] if is_text else [{"role": "user", "content": read_content(name, asked)}]
    messages = with_system(name, row, user)
    images = reader.sources(name, row, messages)
    question = Question(name, messages, images, references, _given(row, images, reader))
    return _measured(task, question, list(texts.values())) if measured else question


def _measured(task: TaskFile, question: Question, options: list[str]) -> Question:
    """The question with what is measured: its references, or its options, of which the right one is the reference."""
    if task.metric == "perplexity":
        return replace(question, candidates=question.references)
    if len(options) > len(set(options)) or not options:
        raise DowserError(
            f"{question.id}: choice_likelihood chooses among the `options` of a row, got {options or 'none'}, expected "
            "at least two that differ."
        )
    return replace(question, references=question.references[1:], candidates=options)


def _given(row: dict[str, Any], images: Sequence[ImageSource], reader: MessageReader) -> dict[str, Any]:
    """The row's own id, if it has one, and where its images lie, as the file says it."""
    own = next((row[key] for key in _OWN_ID if not absent(row.get(key))), None)
    shown = [Path(str(image)) if isinstance(image, ImageFile) else str(image) for image in images]
    inside = [_as_written(path, reader) if isinstance(path, Path) else path for path in shown]
    return {"images": inside} | ({} if own is None else {"id": own if isinstance(own, str | int) else str(own)})


def _as_written(path: Path, reader: MessageReader) -> str:
    starts = [start for start in (reader.folder, reader.beside) if start is not None and path.is_relative_to(start)]
    return str(path.relative_to(starts[0]) if starts else path)


def _question_lines(name: str, row: dict[str, Any], may_lack: bool) -> list[str]:
    """The hint of MMBench, if there is one, and the question."""
    key = _any(row, _QUESTION) if may_lack else _first(name, row, _QUESTION, "question")
    given = [one for one in (_any(row, ("hint",)), key) if one]
    for one in given:
        if not isinstance(row[one], str):
            raise DowserError(f"{name}: `{one}` must be text, got {str(row[one])[:60]!r}.")
    return [row[one] for one in given]


def _any(row: dict[str, Any], keys: Sequence[str]) -> str | None:
    """The first of `keys` under which there is something."""
    return next((key for key in keys if not absent(row.get(key))), None)


def _first(name: str, row: dict[str, Any], keys: Sequence[str], what: str) -> str:
    key = _any(row, keys)
    if key is None:
        empty = [one for one in keys if one in row]
        got = f"nothing under {empty}" if empty else f"{sorted(row)}"
        raise DowserError(f"{name}: no {what}: expected one of the keys {list(keys)}, got {got}.")
    return key


def _answers(value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    return [one["answer"] if isinstance(one, dict) and "answer" in one else one for one in values]


def _unread(row: dict[str, Any]) -> Iterator[str]:
    """The keys of a row that nobody reads."""
    if _any(row, ("conversations", "messages")):
        return unread_keys(row)
    return unread_keys(row, {"hint", _any(row, _QUESTION) or "", *_REFERENCE, *option_keys(row)})
