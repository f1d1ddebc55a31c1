"""The rows and tasks that a data module hands over: plain dataclasses, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dowser_pl.data.images import ImageSource
from dowser_pl.metrics import build_metric, check_references

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
        messages: as in `Conversation`, ending with a user turn.
        images: one source per `{"type": "image"}` part, in their order.
        references: the accepted answers, the captions, or the letter of a multiple choice question.
    """

    id: str
    messages: list[Message]
    images: list[ImageSource]
    references: list[str]


@dataclass(frozen=True)
class Task:
    """One evaluation set = one validation loader = one line of the report.

    Attributes:
        name: used in the log keys `val/<name>/<metric>`.
        role: "downstream" (the task being learnt) or "upstream" (what the pretrained model already does).
        metric: key of `dowser_pl.metrics.METRICS`.
        questions: the rows.
        max_new_tokens: how many tokens the model may answer with.
        left_out: how many rows of the set are not among the questions, because they are unusable.
    """

    name: str
    role: Role
    metric: str
    questions: Sequence[Question]
    max_new_tokens: int = 16
    left_out: int = 0


def checked_tasks(tasks: list[Task]) -> list[Task]:
    """The tasks; ValueError for an empty set, a name used twice or an unknown metric: before training, not after it."""
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise ValueError(f"Two evaluation tasks are called {task.name!r}: give each its own name, got {names}.")
        if not task.questions:
            raise ValueError(f"Task {task.name!r} is empty: got 0 questions, expected at least 1.")
        build_metric(task.metric)
        check_references(task.metric, [question.references for question in task.questions])
    return tasks
