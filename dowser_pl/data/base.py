"""`MultimodalData`: rows and tasks in, encoded batches out, and an exact place to go on after a kill.

What any data module (this one or your own plain `LightningDataModule`) owes the rest of the package:

- `train_dataloader()` yields dicts of tensors that the Hugging Face model's `forward` takes, with `labels`
  (B, T; -100 = no loss). The one key that is no tensor, `ids` (list of str, for error messages), is taken out before.
- `tasks`: a list of objects with `name`, `role`, `metric`, `max_new_tokens` and, if reports are to tell it, a dict
  `protocol`; and `val_dataloader()`: a list of loaders in that order, each yielding `{"inputs": left-padded generation
  inputs (dict of tensors), "references": list of list of str, "ids": list of str}`, and if predictions shall tell more
  than its id, `"told"`: per row a dict for JSON. For metrics of likelihood `"candidates"`: list of list of str, and as
  `"inputs"` training batches that have each candidate behind its question, in order.
- `chat_template`, optional: Jinja text, path or name, if not that of the processor: answers end as it closes turns.
- `calibration_dataloader()`, optional: training batches that are the same whenever it is asked, for methods that
  measure the tuned model on data. Without it the first batches of `train_dataloader()` are taken.
- `training_pictures(number, seed)`, optional: Pillow images of training rows, the same on every process, for own rows.
- `selection_tasks` and `selection_dataloader()`, optional: as `tasks` and `val_dataloader()`, of other questions: what
  a run chooses by itself, such as how much of an update to keep, is chosen on these and not on those of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image

from dowser_pl.data.checking import Check, rows_to_check
from dowser_pl.data.encoders import build_encoder, limit_pixels
from dowser_pl.data.encoding import Encoder
from dowser_pl.data.images import ImageSource
from dowser_pl.data.lengths import row_lengths
from dowser_pl.data.loaders import (
    CUT,
    LEFT_OUT,
    EvaluationBatches,
    EvaluationLoader,
    EvaluationSampler,
    ResumableSampler,
    TrainingBatches,
    TrainingLoader,
    build_loader,
    per_process,
    refusals,
)
from dowser_pl.data.reading.sources import Selected, report_left_out
from dowser_pl.data.rows import Conversation, Question, Role, Task, checked_tasks, some_pictures
from dowser_pl.errors import DowserError
from dowser_pl.models.text_only import Processor

__all__ = ["Conversation", "EvaluatedData", "ImageSource", "MultimodalData", "Question", "Role", "Task"]


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
            raise DowserError(f"eval_batch_size must be at least 1, got {eval_batch_size}.")
        if num_workers < 0:
            raise DowserError(f"num_workers must be at least 0, got {num_workers}.")
        if check not in get_args(Check):
            raise DowserError(f"check must be one of {list(get_args(Check))}, got {check!r}.")
        if isinstance(max_length, str) and max_length != "auto":
            raise DowserError(f'max_length must be a number of tokens, "auto" or null, got {max_length!r}.')
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.max_length = max_length
        self.chat_template = chat_template
        self.evaluation_cache_mb = evaluation_cache_mb
        self.check = check
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.tasks: list[Task] = []
        self.processor: Processor | None = None
        self._encoder: Encoder | None = None
        self._evaluation_loaders: dict[str, EvaluationLoader] = {}

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
            DowserError: a set is empty, two tasks have one name, a metric is unknown, there is no chat template, or a
                row that was checked cannot be encoded.
        """
        if self._encoder is None or (self.stage == "predict" and stage != "predict"):
            self.stage, self._evaluation_loaders = stage, {}
            encoder = self._new_encoder()
            tasks = checked_tasks(self.evaluation_tasks(), encoder.tokenizer, stage != "predict")
            self.tasks = self._without_bad(tasks, encoder)
            self._encoder = encoder

    def val_dataloader(self) -> list[EvaluationLoader]:
        """One loader per task, in the order of `tasks`; the same objects at every call, for their caches."""
        new = [task for task in self.tasks if task.name not in self._evaluation_loaders]
        self._evaluation_loaders.update(zip((task.name for task in new), self._loaders_of(new), strict=True))
        return [self._evaluation_loaders[task.name] for task in self.tasks]

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
            raise DowserError('The tasks are not read yet: call setup("validate") first.')
        loaders = []
        for task in tasks:
            order = EvaluationSampler(len(task.questions), self.eval_batch_size, **self._share())
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

    def _new_encoder(self) -> Encoder:
        processor = self._find_processor()
        limit_pixels(processor, self.min_pixels, self.max_pixels)
        return build_encoder(processor, self.chat_template, self.max_length, self.control_tokens)

    def _share(self) -> dict[str, int]:
        """`rank` and `num_replicas` among the processes that see different rows."""
        share = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return {"rank": int(share["rank"]), "num_replicas": int(share["num_replicas"])} if share else {}

    def _find_processor(self) -> Processor:
        if self.processor is None:
            if self.trainer is None:
                raise DowserError("No processor: run under a Trainer whose module has one, or set `data.processor`.")
            self.processor = cast(Processor, self.trainer.lightning_module.processor)
        return self.processor


_FIRST = 16  # rows of the first two batches that are checked at most


class MultimodalData(EvaluatedData):
    """Base class of the data modules shipped; a subclass says what the rows and the tasks are.

    Args:
        batch_size: training rows per process and step; with `split_batches`, of all processes together.
        eval_batch_size: questions per process and `generate` call.
        num_workers: processes that load and encode; 0 = in the training process.
        max_length: longest training row in tokens, images included. Longer rows lose text at the end, never image
            tokens: a row whose image tokens do not fit is refused. "auto" = as many as the largest image takes that
            the processor makes of any, and 2048 for text; None = no limit.
        seed: of the order of the training rows, which is a pure function of this and the epoch.
        chat_template: Jinja text, a path to a file with it, "plain", "instructblip", or a name among several of the
            processor; needed for models that come without (InstructBLIP, base models).
        evaluation_cache_mb: memory for the encoded batches of each evaluation set, so that images are decoded once
            and not once per epoch; a larger set is not kept at all. 0 = never.
        split_batches: share `batch_size` rows among the processes, so that training takes the same steps on any
            number of them.
        check: which rows are encoded in `setup`, before anything long begins, to find those that cannot be: "first"
            (the first batches, and those with most text, most images, the largest image and the longest strip, by an
            estimate that opens at most some hundred image heads), "all", or "none". Evaluation rows likewise.
        min_pixels: of an image, for processors that resize to a number of pixels (Qwen-VL); None = the model's own.
        max_pixels: of an image, likewise.
    """

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        max_length: int | Literal["auto"] | None = "auto",
        seed: int = 0,
        chat_template: str | None = None,
        evaluation_cache_mb: int = 512,
        split_batches: bool = False,
        check: Check = "first",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        evaluation = (eval_batch_size, num_workers, max_length, chat_template, evaluation_cache_mb)
        super().__init__(*evaluation, check, min_pixels, max_pixels)
        if batch_size < 1:
            raise DowserError(f"batch_size must be at least 1, got {batch_size}.")
        self.batch_size = batch_size
        self.seed = seed
        self.split_batches = split_batches
        self._rows: Sequence[Conversation] | None = None
        self.num_unreadable = 0
        """How many rows of the training file were left out before there were training rows."""
        self._marks = torch.zeros(0, dtype=torch.uint8)
        self._order: ResumableSampler | None = None
        self._position: dict[str, int] = {}

    def train_conversations(self) -> Sequence[Conversation]:
        """The training rows; called once on every process."""
        raise NotImplementedError

    @property
    def num_truncated(self) -> int:
        """How many different training rows were longer than `max_length` so far, on this process."""
        return int((self._marks == CUT).sum())

    @property
    def left_out(self) -> list[int]:
        """Numbers of the training rows that could not be encoded and were left out so far, on this process."""
        return (self._marks == LEFT_OUT).nonzero().flatten().tolist()

    def setup(self, stage: str) -> None:
        """Read the tasks, for `fit` also the training rows, and take the processor from the module.

        Raises:
            DowserError: a set is empty, two tasks have one name, a metric is unknown, there is no chat template, or a
                row that was checked cannot be encoded.
        """
        super().setup(stage)
        if stage == "fit":
            self._order, self._position = None, {}  # a second fit starts afresh
        if stage == "fit" and self._rows is None:
            rows = self.train_conversations()
            if not rows:
                raise DowserError("The training set is empty: got 0 rows, expected at least 1.")
            self._marks = torch.zeros(len(rows), dtype=torch.uint8).share_memory_()  # workers write here too
            self._check_rows(rows)
            self._rows = rows

    def train_dataloader(self) -> TrainingLoader:
        """Batches of encoded conversations; after a resume in mid epoch, first the rest of that epoch."""
        batches = self._training_batches()
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set in its __init__
            raise DowserError(
                "Trainer(overfit_batches=...) would replace the order of the rows, on which exact resuming rests. "
                "Use limit_train_batches, or a small training file."
            )
        clock = None if self.trainer is None else partial(getattr, self.trainer, "current_epoch")
        self._order = self._training_order(len(batches), clock)
        self._resume()
        return build_loader(TrainingLoader, batches, self._order, self.num_workers)

    def calibration_dataloader(self) -> TrainingLoader:
        """Training batches in an order that knows nothing of how far training got: those of the first epoch."""
        batches = self._training_batches()
        return build_loader(TrainingLoader, batches, self._training_order(len(batches), None), 0)

    def training_pictures(self, number: int, seed: int) -> list[Image.Image]:
        """Up to so many pictures of the training rows, the same on every process, for rows that the model writes."""
        return some_pictures(self.train_conversations() if self._rows is None else self._rows, number, seed)

    def row_lengths(self, most: int) -> tuple[int, list[int], int]:
        """How many training rows there are, tokens of up to `most` and of the longest; no evaluation set is read."""
        rows = self.train_conversations()
        return row_lengths(rows, self._new_encoder(), most, self.skip_bad_rows) if most else (len(rows), [], 0)

    def teardown(self, stage: str) -> None:
        """Say how many rows were cut or left out."""
        if stage == "fit" and self.num_truncated and self._encoder is not None:
            limit = self._encoder.max_length
            rank_zero_info(f"{self.num_truncated} training rows were longer than max_length={limit}.")
        if stage == "fit" and self.left_out:
            seen = " by this process; the report counts those of all" if self._share() else ""
            rank_zero_info(f"{len(self.left_out)} training rows were left out of batches (skip_bad_rows){seen}.")

    def state_dict(self) -> dict[str, Any]:
        """The epoch, how many of its batches are done, and what these numbers depend on."""
        if self._order is None or self.trainer is None:
            return {}
        loop, begun = self.trainer.fit_loop, self._order.begun
        if begun is None and self._position:  # nothing was trained on since
            return {**self._position, **self._order.layout(), **self._content()}
        epoch: int = loop.epoch_progress.current.completed
        batches: Any = loop.epoch_loop.batch_progress.current
        # before its first batch `batches` is still about the last epoch; what epoch_progress says of that is not so
        # after a resume at the end of an epoch (Lightning 2.6)
        done = batches.processed if begun == epoch else 0
        return {"epoch": epoch, "num_done": done, **self._order.layout(), **self._content()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Sharded strategies restore after Lightning has asked for the training loader, all others before.
        """
        state = dict(state_dict)
        left_out, content = state.pop("left_out", []), state.pop("content", None)
        known = self._content()["content"]
        if state.get("num_done") and content is not None and known is not None and content != known:
            raise DowserError(
                f"The checkpoint was written in the middle of an epoch of other training rows: got {known}, expected "
                f"{content} (checksum and number of rows). Use the same data, or resume from a checkpoint written at "
                "the end of an epoch."
            )
        if content == known:
            self._marks[[row for row in left_out if row < len(self._marks)]] = LEFT_OUT
        self._position = state
        self._resume()

    def _content(self) -> dict[str, Any]:
        """What the rows are, where that is known, and which were found to be unusable."""
        return {"content": getattr(self._rows, "digest", None), "left_out": self.left_out}

    def _resume(self) -> None:
        if self._order is not None and self._position:
            self._order.resume(**self._position)

    def _training_batches(self) -> TrainingBatches:
        if self._rows is None or self._encoder is None:
            raise DowserError('The training rows are not read yet: call setup("fit") first.')
        return TrainingBatches(self._rows, self._encoder, self._marks, self.skip_bad_rows)

    def _check_rows(self, rows: Sequence[Conversation]) -> None:
        """Encode some rows or all; of all, each process and each of its workers takes a share.

        Raises:
            DowserError: one cannot be encoded, and `skip_bad_rows` is off; or none can be.
        """
        assert self._encoder is not None
        batches, share = TrainingBatches(rows, self._encoder, self._marks, self.skip_bad_rows), self._share()
        order = self._training_order(len(batches), None)
        first = [row for batch in order.batches(0)[:2] for row in batch][:_FIRST]
        numbers = rows_to_check(rows, self.check, first)
        if self.check == "all":
            numbers = numbers[share.get("rank", 0) :: share.get("num_replicas", 1)]
        refused = refusals(batches, numbers, self.num_workers if self.check == "all" else 0)
        report_left_out(refused, len(numbers) - len(refused), "training rows that were checked")

    def _training_order(self, num_rows: int, clock: Callable[[], int] | None) -> ResumableSampler:
        share = self._share()
        rows = per_process(self.batch_size, share.get("num_replicas", 1)) if self.split_batches else self.batch_size
        return ResumableSampler(num_rows, rows, self.seed, **share, clock=clock)
