"""`MultimodalData`: rows and tasks in, encoded batches out, and an exact place to go on after a kill.

What any data module (this one or your own plain `LightningDataModule`) owes the rest of the package:

- `train_dataloader()` yields dicts of tensors that the Hugging Face model's `forward` takes, with `labels`
  (B, T; -100 = no loss). The one key that is no tensor, `ids` (list of str, for error messages), is taken out before.
- `tasks`: a list of objects with `name`, `role`, `metric` and `max_new_tokens`, and `val_dataloader()`: a list of
  loaders in that order, each yielding `{"inputs": left-padded generation inputs (dict of tensors),
  "references": list of list of str, "ids": list of str}`.
- `calibration_dataloader()`, optional: training batches that are the same whenever it is asked, for methods that
  measure the tuned model on data. Without it the first batches of `train_dataloader()` are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import ProcessorMixin

from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.encoding import Encoder
from dowser_pl.data.images import ImageSource
from dowser_pl.data.loaders import (
    EvaluationBatches,
    EvaluationLoader,
    TrainingBatches,
    TrainingLoader,
    build_loader,
)
from dowser_pl.data.order import EvaluationOrder, TrainingOrder, per_process
from dowser_pl.data.rows import Conversation, Question, Role, Task, check_tasks

__all__ = ["Conversation", "ImageSource", "MultimodalData", "Question", "Role", "Task"]


class MultimodalData(LightningDataModule):
    """Base class of the data modules shipped; a subclass says what the rows and the tasks are.

    Args:
        batch_size: training rows per process and step; with `split_batches`, of all processes together.
        eval_batch_size: questions per process and `generate` call.
        num_workers: processes that load and encode; 0 = in the training process.
        max_length: longest training row in tokens, images included. Longer rows lose text at the end, never image
            tokens; None = no limit.
        seed: of the order of the training rows, which is a pure function of this and the epoch.
        chat_template: Jinja text, a path to a file with it, or "plain", instead of the processor's own; needed for
            models that come without (InstructBLIP, base models).
        evaluation_cache_mb: memory for the encoded batches of each evaluation set, so that images are decoded once
            and not once per epoch; a larger set is not kept at all. 0 = never.
        split_batches: share `batch_size` rows among the processes, so that training takes the same steps on any
            number of them.
    """

    skip_bad_rows = False

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        max_length: int | None = 2048,
        seed: int = 0,
        chat_template: str | None = None,
        evaluation_cache_mb: int = 512,
        split_batches: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.max_length = max_length
        self.seed = seed
        self.chat_template = chat_template
        self.evaluation_cache_mb = evaluation_cache_mb
        self.split_batches = split_batches
        self.tasks: list[Task] = []
        self.processor: ProcessorMixin | None = None  # set by hand where there is no trainer
        self._encoder: Encoder | None = None
        self._rows: Sequence[Conversation] | None = None
        self._cut = torch.zeros(0, dtype=torch.uint8)
        self._order: TrainingOrder | None = None
        self._evaluation_loaders: list[EvaluationLoader] = []
        self._position: dict[str, int] = {}

    def train_conversations(self) -> Sequence[Conversation]:
        """The training rows; called once on every process."""
        raise NotImplementedError

    def evaluation_tasks(self) -> list[Task]:
        """The evaluation sets; called once on every process, before `train_conversations`."""
        raise NotImplementedError

    @property
    def num_truncated(self) -> int:
        """How many different training rows were longer than `max_length` so far, on this process."""
        return int((self._cut > 0).sum())

    def setup(self, stage: str) -> None:
        """Read the tasks, for `fit` also the training rows, and take the processor from the module.

        Raises:
            ValueError: a set is empty, two tasks have one name, a metric is unknown, or there is no chat template.
        """
        if self._encoder is None:
            processor = self._find_processor()
            encoder = build_encoder(processor, self.chat_template, self.max_length, self.skip_bad_rows)
            self.tasks = self.evaluation_tasks()
            check_tasks(self.tasks)
            self._encoder = encoder
        if stage == "fit":
            self._order, self._position = None, {}  # a second fit starts afresh
        if stage == "fit" and self._rows is None:
            self._rows = self.train_conversations()
            if not self._rows:
                raise ValueError("The training set is empty: got 0 rows, expected at least 1.")
            self._cut = torch.zeros(len(self._rows), dtype=torch.uint8).share_memory_()  # workers write here too

    def train_dataloader(self) -> TrainingLoader:
        """Batches of encoded conversations; after a resume in mid epoch, first the rest of that epoch."""
        if self._rows is None or self._encoder is None:
            raise ValueError('The training rows are not read yet: call setup("fit") first.')
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set in its __init__
            raise ValueError(
                "Trainer(overfit_batches=...) would replace the order of the rows, on which exact resuming rests. "
                "Use limit_train_batches, or a small training file."
            )
        clock = None if self.trainer is None else partial(getattr, self.trainer, "current_epoch")
        self._order = self._training_order(len(self._rows), clock)
        self._resume()
        batches = TrainingBatches(self._rows, self._encoder, self._cut)
        return build_loader(TrainingLoader, batches, self._order, self.num_workers)

    def calibration_dataloader(self) -> TrainingLoader:
        """Training batches in an order that knows nothing of how far training got: those of the first epoch."""
        if self._rows is None or self._encoder is None:
            raise ValueError('The training rows are not read yet: call setup("fit") first.')
        order = self._training_order(len(self._rows), None)
        return build_loader(TrainingLoader, TrainingBatches(self._rows, self._encoder, self._cut), order, 0)

    def val_dataloader(self) -> list[EvaluationLoader]:
        """One loader per task, in the order of `tasks`; the same objects at every call, for their caches."""
        if self._encoder is None:
            raise ValueError('The tasks are not read yet: call setup("validate") first.')
        if not self._evaluation_loaders:
            for task in self.tasks:
                order = EvaluationOrder(len(task.questions), self.eval_batch_size, **self._share())
                batches = EvaluationBatches(task.questions, self._encoder)
                loader = build_loader(EvaluationLoader, batches, order, self.num_workers)
                loader.cache_bytes = self.evaluation_cache_mb * 2**20
                self._evaluation_loaders.append(loader)
        return self._evaluation_loaders

    def test_dataloader(self) -> list[EvaluationLoader]:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[EvaluationLoader]:
        """The same as for validation."""
        return self.val_dataloader()

    def teardown(self, stage: str) -> None:
        """Say how many rows were cut."""
        if stage == "fit" and self.num_truncated:
            rank_zero_info(f"{self.num_truncated} training rows were longer than max_length={self.max_length}.")

    def state_dict(self) -> dict[str, Any]:
        """The epoch, how many of its batches are done, and what these numbers depend on."""
        if self._order is None or self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epoch: Any = loop.epoch_progress.current
        batches: Any = loop.epoch_loop.batch_progress.current
        inside = epoch.ready == epoch.started > epoch.completed  # otherwise `batches` is still about the last epoch
        return {"epoch": epoch.completed, "num_done": batches.processed if inside else 0, **self._order.layout()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Sharded strategies restore after Lightning has asked for the training loader, all others before.
        """
        self._position = dict(state_dict)
        self._resume()

    def _resume(self) -> None:
        if self._order is not None and self._position:
            self._order.resume(**self._position)

    def _training_order(self, num_rows: int, clock: Callable[[], int] | None) -> TrainingOrder:
        share = self._share()
        rows = per_process(self.batch_size, share.get("num_replicas", 1)) if self.split_batches else self.batch_size
        return TrainingOrder(num_rows, rows, self.seed, **share, clock=clock)

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
