"""Scores of a loaded model on any tasks, in a script: what `python -m dowser_pl evaluate` asks, without a Trainer.

found = evaluate(model, processor, [TaskFile("mine", "my/test.jsonl", role="downstream")])
print(found)
found["mine"].score
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dowser_pl.callbacks.each_task import as_answered
from dowser_pl.data import ConversationData, Task, TaskFile
from dowser_pl.distributed.models import device_of
from dowser_pl.errors import DowserError
from dowser_pl.integrations.plain import PlainModel, left_as_it_was
from dowser_pl.models.text_only import tokenizer_of
from dowser_pl.module.evaluation import EvaluatedModule
from dowser_pl.reporting.evaluation import Answered, Evaluation
from dowser_pl.reporting.evaluation_table import evaluation_text

__all__ = ["Answers", "evaluate"]


@dataclass(frozen=True)
class Answers(Mapping[str, Answered]):
    """What a model answered: name of a task -> its `score`, `count`, `standard_error`, and `rows` of answers.

    Printed it is a table.

    Attributes:
        model: what it is called.
        tasks: name -> what was asked and answered, in the order of the tasks.
    """

    model: str
    tasks: Mapping[str, Answered]

    def __getitem__(self, task: str) -> Answered:
        return self.tasks[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __str__(self) -> str:
        return evaluation_text(Evaluation.of({self.model: self.tasks}))

    def to_json(self) -> str:
        """The text of an evaluation.json, which `python -m dowser_pl report` reads, with all `answers` beside it."""
        answers = {name: each.rows for name, each in self.tasks.items()}
        content = Evaluation.of({self.model: self.tasks}).to_dict() | {"answers": answers}
        return json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    processor: Any,
    tasks: Sequence[Task | TaskFile],
    *,
    batch_size: int = 32,
    chat_template: str | None = None,
) -> Answers:
    """Ask a model some tasks and score its answers, which are written greedily; the model is left as it was.

    For half precision under autocast, enter that around the call. Of several processes each asks all questions.

    Args:
        model: as `from_pretrained` gave it, trained or not, on any device; also inside `train_only`.
        processor: of the model; of one of text alone its tokenizer.
        tasks: files of questions, or questions themselves; `WorldData().evaluation_tasks()` are some.
        batch_size: questions that are answered together.
        chat_template: text or path, where it is not that of the processor.

    Raises:
        DowserError: if that is no plain model, or a task cannot be asked.
        FileNotFoundError: if there is no such file.
    """
    tokenizer = tokenizer_of(PlainModel(model, processor).processor)
    padding = tokenizer.pad_token
    try:
        with left_as_it_was(model):
            model.eval()
            data = _Given(tasks, processor, batch_size, chat_template)
            module = _Module(model, data)
            loaders = zip(data.tasks, data.val_dataloader(), strict=True)
            return Answers(
                str(model.name_or_path) or type(model).__name__,
                {task.name: _answered(module, place, loader) for place, (task, loader) in enumerate(loaders)},
            )
    finally:
        tokenizer.pad_token = padding


def _answered(module: "_Module", place: int, loader: Any) -> Answered:
    task, started = module.tasks()[place], time.monotonic()
    rows = [row for batch in loader for row in module.predict_step(module.moved(batch), 0, place)]
    module.row_scores(task, rows)
    return as_answered(task, rows, time.monotonic() - started)


class _Given(ConversationData):
    """Tasks in any form, encoded by a processor that is here."""

    def __init__(
        self, tasks: Sequence[Task | TaskFile], processor: Any, batch_size: int, chat_template: str | None
    ) -> None:
        super().__init__(holdout=0, eval_batch_size=batch_size, chat_template=chat_template)
        self._given, self.processor = list(tasks), processor
        odd = [each for each in self._given if not isinstance(each, Task | TaskFile)]
        if odd or not self._given:
            got = f"a {type(odd[0]).__name__} among {len(self._given)} tasks" if odd else "no task"
            raise DowserError(
                f"got {got}, expected some TaskFile or Task. Fix: such as [TaskFile('mine', 'my/test.jsonl')]"
            )
        self.setup("validate")

    def evaluation_tasks(self) -> list[Task]:
        """Files are read, tasks taken as they are."""
        return [each if isinstance(each, Task) else self._read_task(each) for each in self._given]


class _Module(EvaluatedModule):
    """What answers questions, around a model of anybody's."""

    def __init__(self, model: PreTrainedModel, data: _Given) -> None:
        super().__init__()
        self.model, self._data, self.chat_template = model, data, data.chat_template

    @property
    def network(self) -> PreTrainedModel:
        """The model."""
        return self.model

    @property
    def processor(self) -> Any:
        """That of the model."""
        return self._data.processor

    def tasks(self) -> list[Any]:
        """All that are asked."""
        return self._data.tasks

    def moved(self, value: Any) -> Any:
        """Tensors of a batch where the model computes, and in its precision."""
        if isinstance(value, Tensor):
            return value.to(device_of(self.model), self.model.dtype if value.is_floating_point() else None)
        if isinstance(value, Mapping):
            return {name: self.moved(each) for name, each in value.items()}
        return [self.moved(each) for each in value] if isinstance(value, list) else value
