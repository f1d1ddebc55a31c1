"""The rows and tasks that a data module hands over: plain dataclasses, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image

from dowser_pl.data.images import ImageSource, open_image
from dowser_pl.errors import DowserError
from dowser_pl.metrics import build_metric, by_likelihood, check_references

Role = Literal["upstream", "downstream"]
Message = dict[str, Any]


def is_learnt(message: Message) -> bool:
    """Whether the message is an answer that carries loss."""
    return bool(message["role"] == "assistant" and message.get("loss", True))


@dataclass(frozen=True)
class Conversation:
    """One training row.

    Attributes:
        id: for error messages, e.g. "train.json row 12 (id 000123)".
        messages: HF chat format, `{"role": "system" | "user" | "assistant", "content": [part, ...]}` with the parts
            `{"type": "text", "text": ...}` and `{"type": "image"}`. An answer with `"loss": False` is not learnt.
        images: one source per `{"type": "image"}` part, in their order.
    """

    id: str
    messages: list[Message]
    images: list[ImageSource] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """One evaluation row.

    Attributes:
        id: for error messages.
        messages: as in `Conversation`, ending with a user turn; none where `candidates` are texts without a question.
        images: one source per `{"type": "image"}` part, in their order.
        references: the accepted answers, the captions, or the letter of a multiple choice question; empty where
            nobody has answered yet, which `predict` alone allows.
        given: what a prediction repeats of its row, as the file has it: `id` and `images`.
        candidates: for metrics of likelihood: the texts whose likelihood as the answer is measured, instead of having
            the model write one. For `choice_likelihood` the options, for `perplexity` the references.
    """

    id: str
    messages: list[Message]
    images: list[ImageSource]
    references: list[str]
    given: dict[str, Any] = field(default_factory=dict)
    candidates: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """What `predictions.jsonl` says of the question: its row's own id, the words asked, and the images."""
        words = [part["text"] for said in self.messages[-1:] for part in said["content"] if part["type"] == "text"]
        return {"id": self.id, "question": "".join(words), "images": [], **self.given}


@dataclass(frozen=True)
class Task:
    """One evaluation set = one validation loader = one line of the report.

    Attributes:
        name: used in the log keys `val/<name>/<metric>`.
        role: "downstream" (the task being learnt) or "upstream" (what the pretrained model already does).
        metric: key of `dowser_pl.metrics.METRICS`, or the path of a `torchmetrics.Metric` of anybody's.
        questions: the rows.
        max_new_tokens: how many tokens the model may answer with.
        left_out: how many rows of the set are not among the questions, because they are unusable.
        protocol: what a report tells of how the set is asked: `name` of the protocol, and what belongs to it.
        server: for `predict --format server`, what checks and writes the file that an evaluation server takes: its
            `ending`, `check(asked)` and `content(rows)`; None = the set has no server.
    """

    name: str
    role: Role
    metric: str
    questions: Sequence[Question]
    max_new_tokens: int = 16
    left_out: int = 0
    protocol: dict[str, Any] = field(default_factory=dict)
    server: Any = None


def answered(question: Question, text: str) -> Conversation:
    """The question with `text` for its answer, which alone is learnt or measured."""
    asked = [{**message, "loss": False} if message["role"] == "assistant" else message for message in question.messages]
    said = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    return Conversation(question.id, [*asked, said], list(question.images))


def no_images(count: int, reader: str) -> str:
    """What is wrong with images in a row for a model of text alone, and the way out.

    Args:
        count: of the images, or of places for one.
        reader: class of the tokenizer that reads the row.
    """
    return (
        f"got {count} image{'s' if count > 1 else ''} or <image> in the text, expected none: the model reads text "
        f"alone ({reader}). Remove what is shown, leave such rows out with `skip_bad_rows: true`, or name a model that "
        "takes images."
    )


def some_pictures(rows: Sequence[Conversation], number: int, seed: int) -> list[Image.Image]:
    """Up to so many pictures of training rows, all different, upright and RGB, in an order that the seed decides.

    Rows that cannot be read are passed over, and so are all but the first picture of a row. Of many rows without a new
    picture no more are looked at than it takes to tell.

    Args:
        rows: of the training set.
        number: the most pictures.
        seed: of the order.

    Raises:
        FileError: if the disk fails, which is no fault of a row: another start would find other pictures.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    found: dict[tuple[tuple[int, int], bytes], Image.Image] = {}
    for place in order[: _LOOKED_AT * number]:
        with suppress(DowserError):
            row = rows[place]
            for picture in (open_image(source, row.id) for source in row.images[:1]):
                found.setdefault((picture.size, sha256(picture.tobytes()).digest()), picture)
        if len(found) == number:
            break
    return list(found.values())


_LOOKED_AT = 20  # rows for each picture that is wanted


def checked_tasks(tasks: list[Task], tokenizer: Any = None, labelled: bool = True) -> list[Task]:
    """The tasks, if they can be asked and scored: that is found before training, not after it.

    Args:
        tasks: of a data module.
        tokenizer: tells which answers are longer than a task allows; None = that is not looked at.
        labelled: whether every question needs a reference.

    Raises:
        DowserError: an empty set, a name used twice, an unknown metric, a question without a reference, or without
            candidates that its metric measures, or a set in which a metric finds nothing to count.
    """
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise DowserError(f"Two evaluation tasks are called {task.name!r}: give each its own name, got {names}.")
        if not task.questions:
            raise DowserError(f"Task {task.name!r} is empty: got 0 questions, expected at least 1.")
        build_metric(task.metric)
        references = [_references(task, question, labelled) for question in task.questions]
        if labelled:
            check_references(task.metric, references)
            if tokenizer is not None:
                warn_of_short_answers(task, references, tokenizer)
    return tasks


def _references(task: Task, question: Question, labelled: bool) -> list[str]:
    if labelled and not question.references:
        raise DowserError(
            f"{question.id}: no reference to score answers of task {task.name!r} by. Add what is right under `answer`; "
            "`predict` alone needs none."
        )
    if bool(question.candidates) != by_likelihood(task.metric):
        raise DowserError(
            f"{question.id}: got {len(question.candidates)} candidates in task {task.name!r}, expected "
            f"{'at least one, whose likelihood' if by_likelihood(task.metric) else 'none, as an answer is what'} "
            f"{task.metric} measures. Give every question of such a task `candidates`, and no other one"
        )
    return question.references


def num_tokens(text: str, tokenizer: Any = None) -> int:
    """How many tokens an answer takes; without a tokenizer its UTF-8 bytes."""
    if tokenizer is None:
        return len(text.encode())
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def warn_of_short_answers(task: Task, references: list[list[str]], tokenizer: Any) -> None:
    """Say which questions no answer of `max_new_tokens` can get right, because every reference is longer."""
    if task.metric not in ("exact_match", "exact_match_strict", "exact_match_lower", "vqa"):
        return
    least = [min(_counted(each, task.max_new_tokens, tokenizer)) for each in references]
    if too_long := [(length, text) for length, text in least if length > task.max_new_tokens]:
        length, text = max(too_long)
        rank_zero_warn(
            f"Task {task.name!r}: {len(too_long)} of {len(least)} questions have no reference of at most "
            f"max_new_tokens={task.max_new_tokens} tokens, so that no answer can be right; the longest has {length} "
            f"({text[:60]!r}). Set max_new_tokens of the task to {length + 16}.",
            category=UserWarning,
        )


def _counted(references: list[str], enough: int, tokenizer: Any) -> list[tuple[int, str]]:
    """Tokens of each; of short ones only their bytes, which are more and cost nothing to count."""
    sizes = [(num_tokens(text), text) for text in references]
    return [(size if size < enough else num_tokens(text, tokenizer), text) for size, text in sizes]
