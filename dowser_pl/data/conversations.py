"""`ConversationData`: your own rows, in the formats people have, without code."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dowser_pl.data.base import Conversation, MultimodalData, Task
from dowser_pl.data.benchmarks import TaskFile, question_of, read_task
from dowser_pl.data.decoding import MAX_PIXELS, Decoding
from dowser_pl.data.holdout import NamedRow, holdout_task, split_rows
from dowser_pl.data.json_rows import keep_good, read_rows
from dowser_pl.data.messages import MessageReader
from dowser_pl.data.packed import PackedRows, pack
from dowser_pl.data.row_keys import unread_keys, warn_of_unread


class ConversationData(MultimodalData):
    """Trains on a LLaVA-style file and evaluates on any number of sets.

    If no task is downstream, `holdout` of the training rows are kept back and become the downstream task "holdout"
    (exact match of the last answer), so that a training file alone gives a report.

    Args:
        train_file: JSON list or JSONL; see `dowser_pl.data.messages` for the formats.
        image_folder: where image paths start; None = the folder of `train_file`.
        tasks: evaluation sets.
        holdout: fraction of the training rows for the downstream task when `tasks` has none; at most about 500.
        allow_urls: fetch images from http(s); each time they are needed.
        skip_bad_rows: leave out unusable rows, count and name them, instead of stopping at the first. Decodes every
            image once at the start to find broken ones.
        batch_size: training rows per process and step; with `split_batches`, of all processes together.
        eval_batch_size: questions per process and `generate` call.
        num_workers: processes that load and encode; 0 = in the training process.
        max_length: longest training row in tokens, images included; longer rows lose text at the end.
        seed: of the order of the training rows.
        chat_template: Jinja text, path or "plain", instead of the model's own; see `MultimodalData`.
        evaluation_cache_mb: memory for the encoded batches of each evaluation set; 0 = encode anew every time.
        split_batches: share `batch_size` rows among the processes, for the same steps on any number of them.
        choose_on: evaluation sets of other questions, on which a run makes its choices (`budget.max_upstream_drop`);
            they are not reported.
        background: what shows through the transparent parts of images: the name of a colour or "#rrggbb".
        max_image_pixels: an image of more pixels is refused; null = no limit. The default is Pillow's own limit.
    """

    def __init__(
        self,
        train_file: str,
        image_folder: str | None = None,
        tasks: list[TaskFile] | None = None,
        holdout: float = 0.05,
        allow_urls: bool = False,
        skip_bad_rows: bool = False,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        max_length: int | None = 2048,
        seed: int = 0,
        chat_template: str | None = None,
        evaluation_cache_mb: int = 512,
        split_batches: bool = False,
        choose_on: list[TaskFile] | None = None,
        background: str = "white",
        max_image_pixels: int | None = MAX_PIXELS,
    ) -> None:
        loading = (batch_size, eval_batch_size, num_workers, max_length, seed, chat_template, evaluation_cache_mb)
        super().__init__(*loading, split_batches)
        if not 0 <= holdout < 1:
            raise ValueError(f"holdout must be at least 0 and below 1, a fraction of the training rows; got {holdout}.")
        self.train_file = train_file
        self.image_folder = image_folder
        self.task_files = tasks or []
        self.choose_on = choose_on or []
        self.needs_holdout = all(task.role != "downstream" for task in self.task_files) and holdout > 0
        self.holdout = holdout
        self.allow_urls = allow_urls
        self.skip_bad_rows = skip_bad_rows
        self.decoding = Decoding(background, max_image_pixels).checked()

    def train_conversations(self) -> PackedRows:
        """All rows, less those held out."""
        packed = [pack(Conversation(name, *self._reader.read(name, row))) for name, row in self._split[0]]
        del self._split  # the raw rows, a multiple of their file in memory
        return PackedRows(packed)

    def evaluation_tasks(self) -> list[Task]:
        """The sets of `tasks`, then the holdout if there is one."""
        tasks = [self._read_task(task) for task in self.task_files]
        if self.needs_holdout:
            questions = [question_of(name, row, self._reader) for name, row in self._split[1]]
            tasks.append(holdout_task(questions, None if self.processor is None else self.processor.tokenizer))
        return tasks

    def questions_to_choose_on(self) -> list[Task]:
        """The sets of `choose_on`."""
        return [self._read_task(task) for task in self.choose_on]

    def _read_task(self, task: TaskFile) -> Task:
        return read_task(task, self.allow_urls, self.skip_bad_rows, self.decoding)

    @cached_property
    def _reader(self) -> MessageReader:
        folder = Path(self.image_folder) if self.image_folder else Path(self.train_file).parent
        return MessageReader(folder.expanduser(), self.allow_urls, decoding=self.decoding)

    @cached_property
    def _split(self) -> tuple[list[NamedRow], list[NamedRow]]:
        """(training rows, rows held out); bad rows are left out before, or they could be all that is held out."""
        rows = read_rows(self.train_file)
        if not rows:
            raise ValueError(f"{self.train_file} is empty: got 0 rows, expected at least 1.")
        if self.skip_bad_rows:
            rows = keep_good(rows, self._check, skip_bad=True, what=self.train_file)
        warn_of_unread(self.train_file, (unread_keys(row) for _, row in rows))
        return split_rows(rows, self.holdout) if self.needs_holdout else (rows, [])

    def _check(self, name: str, row: dict[str, Any]) -> NamedRow:
        replace(self._reader, verify=True).read(name, row)
        return name, row
