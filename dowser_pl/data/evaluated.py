"""The evaluating half of a data module: tasks, the processor, one loader per task, the share of each process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, cast, get_args

from lightning.pytorch import LightningDataModule
from transformers import ProcessorMixin

from dowser_pl.data.checking import Check, rows_to_check
from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.encoding import Encoder
from dowser_pl.data.loaders import EvaluationBatches, EvaluationLoader, build_loader
from dowser_pl.data.order import EvaluationOrder
from dowser_pl.data.pixels import limit_pixels
from dowser_pl.data.reading.sources import Selected, report_left_out
from dowser_pl.data.rows import Task, checked_tasks

__all__ = ["EvaluatedData"]


class EvaluatedData(LightningDataModule):
    """Evaluation sets, encoded by the processor of the module.

    Args:
        eval_batch_size: questions per process and `generate` call.
        num_workers: processes that load and encode; 0 = in the training process.
        max_length: longest training row in tokens.
        chat_template: instead of the processor's own; see `MultimodalData`.
        evaluation_cache_mb: memory for the encoded batches of each evaluation set; 0 = encode anew every time.
        check: which rows are encoded at once to find those that cannot be; see `MultimodalData`.
        min_pixels: of an image; see `MultimodalData`.
        max_pixels: of an image; see `MultimodalData`.

    Attributes:
        tasks: of the report, once `setup` was called.
        processor: set it by hand where there is no trainer.
        stage: what the tasks are read for; `predict` alone needs no references.
        control_tokens: that rows may write as such.
    """

    skip_bad_rows = False
    control_tokens: Sequence[str] = ()
    stage: str = "fit"

    def __init__(
        self,
        eval_batch_size: int,
        num_workers: int,
        max_length: int | Literal["auto"] | None,
        chat_template: str | None,
        evaluation_cache_mb: int,
        check: Check = "first",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        super().__init__()
        if eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {eval_batch_size}.")
        if check not in get_args(Check):
            raise ValueError(f"check must be one of {list(get_args(Check))}, got {check!r}.")
        if isinstance(max_length, str) and max_length != "auto":
            raise ValueError(f'max_length must be a number of tokens, "auto" or null, got {max_length!r}.')
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.max_length = max_length
        self.chat_template = chat_template
        self.evaluation_cache_mb = evaluation_cache_mb
        self.check = check
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.tasks: list[Task] = []
        self.processor: ProcessorMixin | None = None
        self._encoder: Encoder | None = None
        self._evaluation_loaders: list[EvaluationLoader] = []

    def evaluation_tasks(self) -> list[Task]:
        """The evaluation sets; called once on every process, before `train_conversations`."""
        raise NotImplementedError

    def questions_to_choose_on(self) -> list[Task]:
        """Evaluation sets of other questions than those of the report; called only where a run chooses something."""
        return []

    @cached_property
    def selection_tasks(self) -> list[Task]:
        """What choices are made on; checked as `tasks` are."""
        tasks = checked_tasks(self.questions_to_choose_on())
        return tasks if self._encoder is None else self._without_bad(tasks, self._encoder)

    def setup(self, stage: str) -> None:
        """Read the tasks, and take the processor from the module.

        Raises:
            ValueError: a set is empty, two tasks have one name, a metric is unknown, there is no chat template, or a
                row that was checked cannot be encoded.
        """
        if self._encoder is None or (self.stage == "predict" and stage != "predict"):
            self.stage, self._evaluation_loaders = stage, []
            processor = self._find_processor()
            limit_pixels(processor, self.min_pixels, self.max_pixels)
            encoder = build_encoder(processor, self.chat_template, self.max_length, self.control_tokens)
            tasks = checked_tasks(self.evaluation_tasks(), encoder.tokenizer, stage != "predict")
            self.tasks = self._without_bad(tasks, encoder)
            self._encoder = encoder

    def val_dataloader(self) -> list[EvaluationLoader]:
        """One loader per task, in the order of `tasks`; the same objects at every call, for their caches."""
        if not self._evaluation_loaders:
            self._evaluation_loaders = self._loaders_of(self.tasks)
        return self._evaluation_loaders

    def selection_dataloader(self) -> list[EvaluationLoader]:
        """One loader per task of `selection_tasks`, in their order."""
        return self._loaders_of(self.selection_tasks)

    def test_dataloader(self) -> list[EvaluationLoader]:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[EvaluationLoader]:
        """The same as for validation."""
        return self.val_dataloader()

    def _loaders_of(self, tasks: Sequence[Task]) -> list[EvaluationLoader]:
        if self._encoder is None:
            raise ValueError('The tasks are not read yet: call setup("validate") first.')
        loaders = []
        for task in tasks:
            order = EvaluationOrder(len(task.questions), self.eval_batch_size, **self._share())
            batches = EvaluationBatches(task.questions, self._encoder, self.evaluation_cache_mb)
            loaders.append(build_loader(EvaluationLoader, batches, order, self.num_workers))
        return loaders

    def _without_bad(self, tasks: Sequence[Task], encoder: Encoder) -> list[Task]:
        """The tasks with the questions that can be encoded, as far as they are checked.

        With `skip_bad_rows` that is every one: all processes must ask the same questions, before and after.
        """
        check: Check = "all" if self.skip_bad_rows else self.check
        return [self._usable(task, check, encoder) for task in tasks]

    def _usable(self, task: Task, check: Check, encoder: Encoder) -> Task:
        bad: dict[int, str] = {}
        for number in rows_to_check(task.questions, check, range(min(len(task.questions), self.eval_batch_size, 8))):
            try:
                encoder.evaluation_batch([task.questions[number]])
            except ValueError as error:
                if not self.skip_bad_rows:
                    raise
                bad[number] = str(error)
        if not bad:
            return task
        good = [number for number in range(len(task.questions)) if number not in bad]
        report_left_out(list(bad.values()), len(good), task.name)
        return replace(task, questions=Selected(task.questions, good), left_out=task.left_out + len(bad))

    def _share(self) -> dict[str, int]:
        """`rank` and `num_replicas` among the processes that see different rows."""
        share = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return {"rank": int(share["rank"]), "num_replicas": int(share["num_replicas"])} if share else {}

    def _find_processor(self) -> ProcessorMixin:
        if self.processor is None:
            if self.trainer is None:
                raise ValueError("No processor: run under a Trainer whose module has one, or set `data.processor`.")
            self.processor = cast(ProcessorMixin, self.trainer.lightning_module.processor)
        return self.processor
