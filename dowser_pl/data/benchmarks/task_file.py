"""A task as one writes it: a file, or a published benchmark and the folder with its official files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dowser_pl.data.benchmarks.official import Official, folder_of
from dowser_pl.data.benchmarks.protocols import DEFAULT, Protocol, checked_padding, protocol_named
from dowser_pl.data.benchmarks.sets import benchmark_named
from dowser_pl.data.rows import Role
from dowser_pl.errors import DowserError
from dowser_pl.metrics import build_metric, metric_name


@dataclass(frozen=True)
class TaskFile:
    """One evaluation set on disk: a file, or a benchmark.

    Attributes:
        name: in logs and in the report; a benchmark may do without.
        file: JSON or JSONL (also .gz), Parquet, a folder of `datasets`, or `hub:owner/name`.
        role: "upstream" (what the model can do already) or "downstream" (what is being learnt).
        metric: exact_match, vqa, multiple_choice or cider; `{exact_match: {strict: true}}` where marks count;
            choice_likelihood (the likeliest of the options is the answer; `{choice_likelihood: {per_token: true}}` by
            the mean over its tokens) or perplexity (of the references); or the path of a `torchmetrics.Metric`, also of
            your own (`my_package.Contains`), with options likewise. None = exact_match, or that of the benchmark.
        image_folder: where image paths start; None = that of the data module, and for what is not there, or if it has
            none, the folder of `file`.
        max_new_tokens: how long an answer may be; None = 128 for captions, 16 for all others, or that of the benchmark.
        limit: use so many rows, evenly spread over the file (of MMBench whole questions with all their turns, so that
            it may be some more or fewer); None = all.
        prompt_suffix: written on a new line below each question, e.g. "Answer with a single word."; the whole
            question where rows have none, as in files of captions.
        split: of a data set that has several; None = of a benchmark the one that results are published on.
        benchmark: the published set whose official files are read, such as textvqa or gqa, instead of `file`.
        root: the folder with the files of the benchmark; None = `root` of the data module, in which it starts.
        protocol: whose words, metric and `max_new_tokens` the benchmark is asked with: "llava", "instructblip" or
            "lmms-eval".
        paths: of files of the benchmark that lie elsewhere, below `root` or absolute: what it holds -> path.
        padding: of pictures for a processor that cuts out the centre (LLaVA-1.5's): "square" pads them with its mean
            colour before, as the original LLaVA; "processor" has them cut; None = that of the data module, or if it has
            none, of the protocol, which for a file is "processor".
    """

    name: str = ""
    file: str | None = None
    role: Role = "upstream"
    metric: str | dict[str, dict[str, Any]] | None = None
    image_folder: str | None = None
    max_new_tokens: int | None = None
    limit: int | None = None
    prompt_suffix: str = ""
    split: str | None = None
    benchmark: str | None = None
    root: str | None = None
    protocol: str | None = None
    paths: dict[str, str] | None = None
    padding: Literal["square", "processor"] | None = None

    def __post_init__(self) -> None:
        asked = self._checked_protocol()
        checked_padding(self.padding)
        object.__setattr__(self, "name", self.name or self.benchmark)
        metric = "exact_match" if asked is None else asked.metric
        object.__setattr__(self, "metric", metric_name(metric if self.metric is None else self.metric))
        build_metric(str(self.metric))  # a typo ends here and not after training
        if self.max_new_tokens is None and asked is not None:
            object.__setattr__(self, "max_new_tokens", asked.max_new_tokens)
        for name, value in {"max_new_tokens": self.max_new_tokens, "limit": self.limit}.items():
            if value is not None and value < 1:
                raise DowserError(f"Task {self.name!r}: {name} must be at least 1, got {value}.")

    def _checked_protocol(self) -> Protocol | None:
        """How the benchmark is asked, if it is one."""
        if self.benchmark is None:
            stray = [key for key in ("root", "protocol", "paths") if getattr(self, key) is not None]
            if stray or not self.name or self.file is None:
                raise DowserError(
                    f"A task has a name and a file, or a benchmark; got name {self.name!r}, file {self.file!r}, no "
                    f"benchmark{', but ' + ' and '.join(stray) if stray else ''}."
                )
            return None
        if self.file is not None or self.image_folder is not None:
            given = "file" if self.file is not None else "image_folder"
            raise DowserError(
                f"benchmark {self.benchmark}: got {given} as well. Name files that lie elsewhere as `paths`, as in "
                "`paths: {images: /data/val2014}`."
            )
        benchmark_named(self.benchmark, self.split)
        return protocol_named(self.protocol or DEFAULT, self.benchmark)

    def told_protocol(self) -> dict[str, Any]:
        """What a report tells of how the set is asked; see `Task`."""
        suffix = {"prompt_suffix": self.prompt_suffix} if self.prompt_suffix else {}
        padding = {"padding": self.asked_padding}
        if self.benchmark is None:
            return suffix | padding
        name = self.protocol or DEFAULT
        asked = protocol_named(name, self.benchmark)
        split = self.split or next(iter(benchmark_named(self.benchmark).splits))
        mine = (self.metric, self.max_new_tokens, self.asked_padding)
        kept = mine == (asked.metric, asked.max_new_tokens, asked.padding) and not suffix
        told = {"name": name if kept else f"{name} (changed)", "benchmark": self.benchmark, "split": split}
        answer = {"answer": asked.answer} if asked.answer else {}
        return told | {"prompts": list(asked.prompts)} | suffix | answer | {"ocr_tokens": asked.reads_ocr} | padding

    @property
    def asked_padding(self) -> str:
        """What becomes of pictures: `padding`, or what the protocol says."""
        if self.padding is not None or self.benchmark is None:
            return self.padding or "processor"
        return protocol_named(self.protocol or DEFAULT, self.benchmark).padding

    def official(self) -> Official:
        """What of the benchmark is read, and how it is asked."""
        assert self.benchmark is not None
        protocol = protocol_named(self.protocol or DEFAULT, self.benchmark)
        root = folder_of(self.root, None, self.benchmark)
        return Official(self.benchmark, root, self.split, protocol, str(self.metric), dict(self.paths or {}))
