"""`WorldData`: the embedded world, a whole continual-learning problem that needs no download.

The shipped model (`embedded:world`) answers the upstream tasks; one downstream task is learnt. Everything is
drawn when asked for, and the same arguments draw the same pixels and words on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Literal

from dowser_pl.data.base import Conversation, MultimodalData, Question, Task
from dowser_pl.data.rows import Message
from dowser_pl.data.world.tasks import UPSTREAM, Example, Split, downstream_examples, examples, num_distinct
from dowser_pl.errors import DowserError


class WorldData(MultimodalData):
    """The embedded world's downstream training rows, and its downstream and upstream evaluation sets.

    Args:
        downstream: what is learnt. "digits": scikit-learn's handwritten digits under invented names; "zucap":
            two shapes described in an invented language with its own word order; "icon": sixteen stroke
            drawings under invented names.
        split: what is evaluated. Choose settings on "validation" and report on "test". With "validation", the
            200 digits measured are taken out of the 1200 trained on, and no test row is touched.
        num_eval: questions per task.
        num_train: training rows; None = each handwritten digit once (1200, or 1000 with "validation"), 2000
            for the other tasks. More rows than digits show the same digits in other colours and places.
        world_seed: draws scenes, colours and wordings; the names and facts of the world never change.
        batch_size: training rows per process and step; with `split_batches`, of all processes together.
        eval_batch_size: questions per process and `generate` call.
        num_workers: processes that draw and encode; 0 = in the training process.
        max_length: longest training row in tokens; rows of this world have at most 40.
        seed: of the order of the training rows.
        split_batches: share `batch_size` rows among the processes, for the same steps on any number of them.
        upstream_share: how much of the training rows is of the upstream tasks, as many of each, in [0, 1): experience
            replay, with rows that the world's model learnt from or might have. What is kept so is no longer kept
            without data; it bounds what methods without may reach.
    """

    def __init__(
        self,
        downstream: Literal["digits", "zucap", "icon"] = "digits",
        split: Literal["test", "validation"] = "test",
        num_eval: int = 150,
        num_train: int | None = None,
        world_seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 150,
        num_workers: int = 0,
        max_length: int | None = None,
        seed: int = 0,
        split_batches: bool = False,
        upstream_share: float = 0.0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, max_length, seed, split_batches=split_batches)
        if not 0 <= upstream_share < 1:
            raise DowserError(
                f"upstream_share must be at least 0 and below 1, or nothing is learnt; got {upstream_share}."
            )
        for name, value in {"num_eval": num_eval, "num_train": num_train}.items():
            if value is not None and value < 1:
                raise DowserError(f"{name} must be at least 1, got {value}.")
        self.downstream = downstream
        self.split = split
        self.num_eval = num_eval
        self.num_train = num_train
        self.world_seed = world_seed
        self.upstream_share = upstream_share

    def train_conversations(self) -> list[Conversation]:
        """The downstream training rows, one question and answer each, and then those of upstream tasks, in turns."""
        tuning = self.split == "validation"
        rows = downstream_examples(self.downstream, "train", tuning, self.world_seed)
        num_rows = self.num_train or num_distinct(self.downstream, tuning)
        learnt = [_training_row(self.downstream, index, each) for index, each in enumerate(islice(rows, num_rows))]
        known = cycle([(name, examples(name, "train", self.world_seed)) for name in UPSTREAM])
        num_known = round(num_rows * self.upstream_share / (1 - self.upstream_share))
        drawn = [(name, next(of_task)) for name, of_task in islice(known, num_known)]
        return learnt + [_training_row(name, index, each) for index, (name, each) in enumerate(drawn)]

    def evaluation_tasks(self) -> list[Task]:
        """The downstream task first, then all upstream tasks, `num_eval` questions each."""
        tuning = self.split == "validation"
        learnt = downstream_examples(self.downstream, self.split, tuning, self.world_seed)
        return [
            Task(self.downstream, "downstream", "exact_match", self._questions(self.downstream, self.split, learnt)),
            *self._upstream(self.split),
        ]

    def questions_to_choose_on(self) -> list[Task]:
        """The upstream tasks of the validation split, whatever the report is on."""
        return self._upstream("validation")

    def _upstream(self, split: Split) -> list[Task]:
        known = [(name, examples(name, split, self.world_seed)) for name in UPSTREAM]
        return [Task(name, "upstream", "exact_match", self._questions(name, split, rows)) for name, rows in known]

    def _questions(self, task: str, split: Split, rows: Iterator[Example]) -> list[Question]:
        return [
            Question(
                id=f"{task} {split} row {index}",
                messages=[user_turn(example)],
                images=[example.scene] if example.scene else [],
                references=[example.answer],
            )
            for index, example in enumerate(islice(rows, self.num_eval))
        ]


def user_turn(example: Example) -> Message:
    """The question as a chat message, its picture first."""
    picture = [{"type": "image"}] if example.scene else []
    return _turn("user", [*picture, {"type": "text", "text": example.question}])


def _training_row(task: str, index: int, example: Example) -> Conversation:
    return Conversation(
        id=f"{task} train row {index}",
        messages=[user_turn(example), _turn("assistant", [{"type": "text", "text": example.answer}])],
        images=[example.scene] if example.scene else [],
    )


def _turn(role: str, content: list[dict[str, str]]) -> Message:
    return {"role": role, "content": content}
