"""`ConversationData`: your own rows, in the formats people have, without code.

Without an evaluation file a part of the training rows is kept back for the report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dowser_pl.data.base import Conversation, MultimodalData
from dowser_pl.data.benchmarks import TaskFile, question_of, read_task
from dowser_pl.data.benchmarks.official import OfficialRows, folder_of
from dowser_pl.data.benchmarks.protocols import checked_padding
from dowser_pl.data.checking import Check
from dowser_pl.data.encoders import square_colour
from dowser_pl.data.images import MAX_PIXELS, Decoding
from dowser_pl.data.messages import MessageReader, image_column
from dowser_pl.data.reading.formats import image_folder, read_rows
from dowser_pl.data.reading.sources import ParsedRows, Row, Rows, Selected, keep_good
from dowser_pl.data.reading.tables import HUB
from dowser_pl.data.row_keys import unread_keys, warn_of_unread
from dowser_pl.data.rows import Question, Task, num_tokens
from dowser_pl.errors import DowserError
from dowser_pl.models.text_only import reads_images, tokenizer_of

MAX_QUESTIONS = 500
MAX_NEW_TOKENS = 1024


def split_rows(rows: Rows, numbers: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """(training rows, rows held out) of the rows of these numbers, always the same for the same file.

    Rows that share an image stay together, also by way of other rows, or the model would be asked about pictures it was
    trained on. The images with the lowest hashes are held out until about `fraction` of all rows, at most
    `MAX_QUESTIONS`, is reached.

    Raises:
        DowserError: all rows share one image, so nothing can be held out.
    """
    joined: dict[str, str] = {}

    def first_of(image: str) -> str:
        while (lower := joined.setdefault(image, image)) != image:
            image = lower
        return image

    image_of: dict[int, str] = {}
    for number in numbers:
        _, row = rows[number]
        shown = _images(row) or [{key: value for key, value in row.items() if key != "id"}]
        firsts = [first_of(json.dumps([each], sort_keys=True, default=_digest)) for each in shown]
        image_of[number] = min(firsts)
        joined.update(dict.fromkeys(firsts, min(firsts)))
    groups: dict[str, list[int]] = {}
    for number, image in image_of.items():
        groups.setdefault(first_of(image), []).append(number)
    if len(groups) < 2:
        raise DowserError(
            f"Cannot hold out a part of {len(numbers)} training rows with {len(groups)} different images. Give an "
            "evaluation file under `tasks` with `role: downstream`, or `holdout: 0` together with other tasks."
        )
    wanted = min(max(round(fraction * len(numbers)), 1), MAX_QUESTIONS)
    held: set[int] = set()
    for key in sorted(groups, key=lambda text: (crc32(text.encode()), text))[:-1]:
        if len(held) >= wanted:
            break
        held.update(groups[key])
    return [number for number in numbers if number not in held], sorted(held)


def holdout_task(questions: Sequence[Question], tokenizer: Any = None) -> Task:
    """The held out rows as the downstream task, with room for twice the longest answer.

    Args:
        questions: the rows.
        tokenizer: what answers are counted with, as words say nothing of their tokens: Chinese has no spaces, a formula
            or a serial number a dozen tokens to the word. None = by their bytes, of which a token holds at least one.
    """
    longest = max(num_tokens(question.references[0], tokenizer) for question in questions)
    room = max(min(16 + 2 * longest, 128), min(longest + 16, MAX_NEW_TOKENS))
    told = {"max_new_tokens": "twice the longest answer"}  # which is another number for another tokenizer
    return Task("holdout", "downstream", "exact_match", questions, max_new_tokens=room, protocol=told)


def _digest(value: Any) -> str:
    """Stands for what JSON has no word for, as the bytes of a picture."""
    return sha256(value if isinstance(value, bytes) else str(value).encode()).hexdigest()


def _images(row: dict[str, Any]) -> list[Any]:
    """What the row shows: its image column, and message parts that bring their own image."""
    messages = row.get("messages")
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    parts = [part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]]
    own = [part for part in parts if isinstance(part, dict) and "image" in str(part.get("type")) and len(part) > 1]
    return [*image_column(row), *own]


class ConversationData(MultimodalData):
    """Trains on a LLaVA-style file and evaluates on any number of sets.

    If no task is downstream, `holdout` of the training rows are kept back and become the downstream task "holdout"
    (exact match of the last answer), so that a training file alone gives a report.

    Args:
        train_file: JSON list or JSONL (also .gz), a Parquet file, a folder of Parquet files or of `save_to_disk`, or
            `hub:owner/name`; see `dowser_pl.data.messages` for what a row may be. Evaluation sets with a
            downstream one, and `predict`, need none.
        image_folder: where image paths start, also those of `tasks` and `choose_on` that name no folder of their own;
            None = the folder of each file.
        tasks: evaluation sets.
        holdout: fraction of the training rows for the downstream task when `tasks` has none; at most about 500.
        allow_urls: fetch images from http(s); each time they are needed.
        skip_bad_rows: leave out unusable rows, count and name them, instead of stopping at the first. Every question is
            encoded once at the start then, and unless `check` is "none" every training image decoded; training rows
            that are found later are left out where they are found (see `TrainingBatches`).
        batch_size: training rows per process and step; with `split_batches`, of all processes together.
        eval_batch_size: questions per process and `generate` call.
        num_workers: processes that load and encode; 0 = in the training process.
        max_length: longest training row in tokens, images included; longer rows lose text at the end. "auto" = room
            for the largest image that the processor makes and 2048 tokens of text; None = no limit.
        seed: of the order of the training rows.
        chat_template: Jinja text, path, "plain" or name, instead of the model's own; see `MultimodalData`.
        evaluation_cache_mb: memory for the encoded batches of each evaluation set; 0 = encode anew every time.
        split_batches: share `batch_size` rows among the processes, for the same steps on any number of them.
        choose_on: evaluation sets of other questions, on which a run makes its choices (`budget.max_upstream_drop`);
            they are not reported.
        background: what shows through the transparent parts of images: the name of a colour or "#rrggbb".
        max_image_pixels: an image of more pixels is refused; null = no limit. The default is Pillow's own limit.
        split: of a training set that has several; None = "train", or the only one.
        check: which rows are encoded before anything long begins, to find those that cannot be: "first" (the first
            batches, and the longest rows and largest images by a cheap estimate), "all" or "none".
        min_pixels: of an image, for processors that resize to a number of pixels (Qwen-VL); None = the model's own.
        max_pixels: of an image, likewise.
        control_tokens: control tokens of the model that rows may write as such (`<|box_start|>` in answers that
            ground); all others in their words are read as words.
        root: the folder in which `root` of benchmarks starts, and which has the files of those that name none.
        train_benchmark: the published set to train on, as official files, instead of `train_file`: a benchmark with
            its `split` (None = the one to train on), `limit`, `protocol`, `paths` and `padding`, as a task has them.
        padding: of pictures for a processor that cuts out the centre (LLaVA-1.5's), in all rows: "square" pads them
            with its mean colour before, as the original LLaVA does; "processor" has them cut; None = as the protocol
            of a benchmark says, and "processor" for files of one's own.
    """

    def __init__(
        self,
        train_file: str | None = None,
        image_folder: str | None = None,
        tasks: list[TaskFile] | None = None,
        holdout: float = 0.05,
        allow_urls: bool = False,
        skip_bad_rows: bool = False,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        max_length: int | Literal["auto"] | None = "auto",
        seed: int = 0,
        chat_template: str | None = None,
        evaluation_cache_mb: int = 512,
        split_batches: bool = False,
        choose_on: list[TaskFile] | None = None,
        background: str = "white",
        max_image_pixels: int | None = MAX_PIXELS,
        split: str | None = None,
        check: Check = "first",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        control_tokens: list[str] | None = None,
        root: str | None = None,
        train_benchmark: TaskFile | None = None,
        padding: Literal["square", "processor"] | None = None,
    ) -> None:
        loading = (batch_size, eval_batch_size, num_workers, max_length, seed, chat_template, evaluation_cache_mb)
        super().__init__(*loading, split_batches, check, min_pixels, max_pixels)
        if not 0 <= holdout < 1:
            raise DowserError(
                f"holdout must be at least 0 and below 1, a fraction of the training rows; got {holdout}."
            )
        if train_benchmark is not None and (train_file is not None or train_benchmark.benchmark is None):
            raise DowserError(
                f"train_benchmark is a published set to train on, without train_file: got benchmark "
                f"{train_benchmark.benchmark} and train_file {train_file}."
            )
        if train_benchmark is not None and train_benchmark.prompt_suffix:
            raise DowserError(
                f"train_benchmark {train_benchmark.benchmark} is trained on in the words of its protocol, got "
                f"prompt_suffix {train_benchmark.prompt_suffix!r} too. Leave it out, or write a train_file of your own."
            )
        self.train_file = train_file
        self.image_folder = image_folder
        self.task_files = tasks or []
        self.choose_on = choose_on or []
        self.needs_holdout = all(task.role != "downstream" for task in self.task_files) and holdout > 0
        self.holdout = holdout
        self.allow_urls = allow_urls
        self.skip_bad_rows = skip_bad_rows
        self.decoding = Decoding(background, max_image_pixels).checked()
        self.split = split
        self.control_tokens = control_tokens or []
        self.root = root
        self.train_benchmark = train_benchmark
        self.padding: Literal["square", "processor"] | None = checked_padding(padding)  # type: ignore[assignment]

    def train_conversations(self) -> Selected[Conversation]:
        """All training rows, less those held out."""
        rows, numbers = self._source, self._split[0]
        if self.check != "none" and not self.skip_bad_rows:  # else they were looked at before
            self._look(self._reader, range(len(rows)))
        return Selected(ParsedRows(rows, partial(_conversation, self._reader)), numbers)

    def evaluation_tasks(self) -> list[Task]:
        """The sets of `tasks`, then the holdout if there is one."""
        tasks = [self._read_task(task) for task in self.task_files]
        if self.needs_holdout and not self._tasks_suffice():
            questions = Selected(ParsedRows(self._source, partial(question_of, self._reader)), self._split[1])
            task = holdout_task(questions, None if self.processor is None else tokenizer_of(self.processor))
            tasks.append(replace(task, protocol={**task.protocol, "padding": self._train_padding}))
        return tasks

    def questions_to_choose_on(self) -> list[Task]:
        """The evaluation sets that `choose_on` names."""
        return [self._read_task(task) for task in self.choose_on]

    def _read_task(self, task: TaskFile) -> Task:
        labelled = self.stage != "predict"
        task = self._completed(task)
        decoding = self._decoding(task.asked_padding)
        return read_task(
            task, self.allow_urls, self.skip_bad_rows, decoding, labelled, self.image_folder, self._words_only
        )

    def _completed(self, task: TaskFile) -> TaskFile:
        """The task with what it leaves to the data module: the folder of its benchmark, and the padding."""
        task = replace(task, padding=task.padding or self.padding)
        if task.benchmark is None:
            return task
        return replace(task, root=folder_of(task.root, self.root, task.benchmark))

    def _decoding(self, padding: str) -> Decoding:
        """How pictures are read that are padded so."""
        return self.decoding._replace(square=square_colour(self.processor) if padding == "square" else None)

    @property
    def _train_padding(self) -> str:
        if self.train_benchmark is None:
            return self.padding or "processor"
        return self._completed(self.train_benchmark).asked_padding

    def _tasks_suffice(self) -> bool:
        """Whether the sets of `tasks` are all there is to ask: for `predict`, or where training rows are not here."""
        if self.stage == "fit" or not self.task_files:
            return False
        file = self.train_file
        if self.train_benchmark is not None:
            return self.stage == "predict"
        if file is not None and (file.startswith(HUB) or Path(file).expanduser().exists()):
            return self.stage == "predict"
        rank_zero_info(f"No rows are held out as a task, because train_file {file or ''} is not there")
        return True

    @cached_property
    def _reader(self) -> MessageReader:
        rows = self._source
        folder = rows.images if isinstance(rows, OfficialRows) else image_folder(self._named_file, self.image_folder)
        decoding = self._decoding(self._train_padding)
        return MessageReader(folder, self.allow_urls, decoding=decoding, words_only=self._words_only)

    @property
    def _words_only(self) -> str:
        """The class of the tokenizer, where the model reads text alone."""
        reads = self.processor is None or reads_images(self.processor)
        return "" if reads else type(self.processor).__name__

    @cached_property
    def _source(self) -> Rows:
        if self.train_benchmark is not None:
            return self._completed(self.train_benchmark).official().conversations(self.train_benchmark.limit)
        return read_rows(self._named_file, self.split, otherwise="train")

    @property
    def _named_file(self) -> str:
        if self.train_benchmark is not None:
            return self.train_benchmark.name
        if self.train_file is None:
            raise DowserError(
                "train_file is not set: training needs rows, and so does evaluation without `tasks`. Give a JSON or "
                "JSONL file, or another source of rows, as data.init_args.train_file."
            )
        return self.train_file

    @cached_property
    def _split(self) -> tuple[Sequence[int], Sequence[int]]:
        """(training rows, rows held out); bad rows are left out before, or they could be all that is held out."""
        rows = self._source
        if not rows:
            raise DowserError(f"{self.train_file} is empty: got 0 rows, expected at least 1.")
        numbers: Sequence[int] = range(len(rows))
        if isinstance(rows, OfficialRows) and not self._words_only:
            numbers = rows.with_pictures(numbers, self.skip_bad_rows)
        if self.skip_bad_rows:
            numbers = self._look(replace(self._reader, verify=self.check != "none"), numbers)
            self.num_unreadable = len(rows) - len(numbers)
        elif self.needs_holdout:
            self._reader.read(*rows.light(0))  # what is no file of rows is called that, and not one of a single image
        return split_rows(rows, numbers, self.holdout) if self.needs_holdout else (numbers, [])

    def _look(self, reader: MessageReader, numbers: Sequence[int]) -> list[int]:
        """The numbers of the rows that are good; says which of their keys nobody reads."""
        unread: list[frozenset[str]] = []

        def look(name: str, row: Row) -> None:
            reader.read(name, row)
            unread.append(frozenset(unread_keys(row)))

        good = keep_good(self._source, look, self.skip_bad_rows, self._named_file, numbers, light=not reader.verify)
        warn_of_unread(self._named_file, unread)
        return good


def _conversation(reader: MessageReader, name: str, row: Row) -> Conversation:
    return Conversation(name, *reader.read(name, row))
