"""What is kept of a cell: `cell.json` when it has finished, `failed.json` when it could not.

It is read from what the process of the cell left behind: scores, seconds, sizes; the rest of that can go.
"""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from dowser_pl.bench.cells import Cell
from dowser_pl.bench.command_lines import digest
from dowser_pl.bench.processes import Ended
from dowser_pl.bench.settings import Settings
from dowser_pl.errors import DowserError, MissingFileError
from dowser_pl.files.atomic import write_atomically
from dowser_pl.reporting import LOWER_IS_BETTER, TaskScore, h_score, read_report
from dowser_pl.reporting.answers import Row, confirmed, likelihoods, of_tasks, read_answers

__all__ = ["Failure", "Record", "Scores", "Store", "discard", "last_lines", "of_fit", "of_merge"]


@dataclass(frozen=True)
class Record:
    """A finished cell and what it measured.

    Attributes:
        tasks: name -> scores before and after.
        seconds: of the stages "probe", "fit" (of the tuned model, where that is merged), "merge", "evaluate", and of
            the whole process, "wall".
        peak_memory_bytes: highest of all processes that it took; None if unknown.
        trainable_share: of the entries of the tuned matrices; after a merge the share that differs from the base.
        file_bytes: of the smallest file that gives the tuned model: patch, adapter or weights; None if there is none.
        steps: optimizer steps.
        drift: KL of the final model to its base on rows that the base wrote itself; None where that is not known, as of
            what is merged after training.
    """

    tasks: Mapping[str, TaskScore]
    seconds: Mapping[str, float]
    peak_memory_bytes: int | None
    trainable_share: float
    file_bytes: int | None
    steps: int | None
    drift: float | None = None

    def mean(self, role: str, moment: str = "after") -> float:
        """Mean score over the tasks of a role, as `TaskScore.comparable` has them; 0 where it has none."""
        scores = [task.comparable(getattr(task, moment)) for task in self.tasks.values() if task.role == role]
        return fmean(scores) if scores else 0.0

    @cached_property
    def h_score(self) -> float:
        """Harmonic mean of upstream and downstream after training."""
        return h_score(self.mean("upstream"), self.mean("downstream"))

    @property
    def arithmetic_mean(self) -> float:
        """The mean of upstream and downstream scores after training."""
        return (self.mean("upstream") + self.mean("downstream")) / 2

    @property
    def upstream_lost(self) -> float:
        """What was lost of the upstream mean; negative where it was gained."""
        return self.mean("upstream", "before") - self.mean("upstream")

    @property
    def training_seconds(self) -> float:
        """What it takes to get the tuned model, without evaluation."""
        return sum(self.seconds.get(stage, 0.0) for stage in ("probe", "fit", "merge"))


@dataclass(frozen=True)
class Scores:
    """What every question of a task came to.

    Attributes:
        values: its score; of a perplexity the nats by which its text got likelier than under the base.
        tokens: of a perplexity, of each text.
    """

    values: list[float]
    tokens: list[int] | None = None


@dataclass(frozen=True)
class Failure:
    """A cell that could not be finished, and what its log said last."""

    reason: str


@dataclass
class Store:
    """The cells of a bench on disk; one whose options are others by now counts as not there.

    Args:
        settings: of the bench.
    """

    settings: Settings
    _known: dict[Cell, Record | Failure | None] = field(default_factory=dict)

    def path(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.settings.folder / "cells" / cell.slug

    def run(self, cell: Cell) -> Path:
        """What its commands write to."""
        return self.path(cell) / "run"

    def record(self, cell: Cell) -> Record | None:
        """What came out, if it has finished."""
        found = self._find(cell)
        return found if isinstance(found, Record) else None

    def failure(self, cell: Cell) -> Failure | None:
        """Why it did not finish, if it failed."""
        found = self._find(cell)
        return found if isinstance(found, Failure) else None

    def scores(self, cell: Cell) -> dict[str, Scores] | None:
        """Task -> what every question came to after training; None unless that is kept, and leads to what came out."""
        record, run = self.record(cell), self.run(cell)
        if record is None:
            return None
        of_merge = sorted(run.glob("scores/version_*"))
        answers = of_tasks(read_answers(of_merge[-1] if of_merge else run))
        found = {name: _scores(answers.get(name, []), task) for name, task in record.tasks.items()}
        known = {name: scores for name, scores in found.items() if scores is not None}
        return known if len(known) == len(found) else None

    def finish(self, cell: Cell, record: Record, lines: list[list[str]]) -> None:
        """Write `cell.json`: from now on the cell is finished."""
        tasks = {name: vars(task) for name, task in record.tasks.items()}
        means = {role: record.mean(role) for role in ("downstream", "upstream")}
        content = {**self._head(cell, lines), **vars(record), "tasks": tasks}
        content |= means | {"h_score": record.h_score, "arithmetic_mean": record.arithmetic_mean}
        self._write(self.path(cell) / "cell.json", content)
        self._known[cell] = record

    def fail(self, cell: Cell, reason: str, lines: list[list[str]]) -> None:
        """Write `failed.json`, which says why a cell could not be finished."""
        self._write(self.path(cell) / "failed.json", {**self._head(cell, lines), "reason": reason})
        self._known[cell] = Failure(reason)

    def clear(self, cell: Cell) -> Path:
        """An empty folder for it."""
        path = self.path(cell)
        if path.is_dir():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        self._known[cell] = None
        return path

    def _head(self, cell: Cell, lines: list[list[str]]) -> dict[str, Any]:
        return {"cell": cell.to_dict(), "digest": digest(self.settings, cell), "commands": lines}

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _find(self, cell: Cell) -> Record | Failure | None:
        if cell not in self._known:
            self._known[cell] = self._read(cell)
        return self._known[cell]

    def _read(self, cell: Cell) -> Record | Failure | None:
        wanted = digest(self.settings, cell)  # a configuration that is not there says nothing of the file
        for name in ("cell.json", "failed.json"):
            file = self.path(cell) / name
            if not file.is_file():
                continue
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                if content["digest"] == wanted:
                    return Failure(content["reason"]) if name == "failed.json" else _record(content)
            except (ValueError, KeyError, TypeError) as error:
                raise DowserError(
                    f"{file} is damaged ({error!r}), expected what the bench wrote; delete its folder"
                ) from error
        return None


def _record(content: Mapping[str, Any]) -> Record:
    tasks = {name: TaskScore(**task) for name, task in content["tasks"].items()}
    names = ("seconds", "peak_memory_bytes", "trainable_share", "file_bytes", "steps")
    return Record(tasks, **{name: content[name] for name in names}, drift=content.get("drift"))


_LAST = 12  # lines of a log
_BIG = ("checkpoints", "adapter", "patch.safetensors")


def of_fit(run: Path, ended: Ended) -> Record:
    """The record of a cell that trained.

    Raises:
        FileNotFoundError: if there is no report.
        DowserError: if it is damaged.
    """
    report = read_report(run)
    adapter = next((run / "adapter").glob("*.safetensors"), None)
    tuned = report.trainable.entries + report.frozen.entries
    entries = tuned if adapter is None else _adapted_entries(adapter)
    return Record(
        tasks=report.tasks,
        seconds={**vars(report.seconds), "wall": ended.wall},
        peak_memory_bytes=report.peak_memory_bytes or ended.peak_memory_bytes,
        trainable_share=report.trainable.entries / entries if entries else 0.0,
        file_bytes=_smallest_file(run),
        steps=report.steps,
        drift=None if report.drift is None else report.drift.all.kl,
    )


def of_merge(run: Path, ended: Ended, tuned: Record) -> Record:
    """The record of a cell that merged a tuned model and measured what came out.

    Args:
        run: its folder.
        ended: its process: merge, merge again as a patch, validate.
        tuned: of the cell that trained the model; it tells the scores before, and what training took.

    Raises:
        FileNotFoundError: if there are no scores.
        DowserError: if a task is missing among them.
    """
    scores = _logged(run)
    missing = [name for name, task in tuned.tasks.items() if f"val/{name}/{task.metric}" not in scores]
    if missing:
        raise DowserError(f"{run}: the log of scores has none of {', '.join(missing)}, got {', '.join(scores)}")
    tasks = {
        name: replace(task, after=round(scores[f"val/{name}/{task.metric}"], 6)) for name, task in tuned.tasks.items()
    }
    merged = json.loads((run / "merge.json").read_text(encoding="utf-8"))["merge"]["tensors"]["matrices, merged"]
    stages = {stage: tuned.seconds.get(stage, 0.0) for stage in ("probe", "fit")}
    stages |= {"merge": ended.seconds[0], "evaluate": ended.seconds[-1], "wall": ended.wall}
    return Record(
        tasks=tasks,
        seconds=stages,
        peak_memory_bytes=max(tuned.peak_memory_bytes or 0, ended.peak_memory_bytes or 0) or None,
        trainable_share=merged["changed"] / max(merged["entries"], 1),
        file_bytes=_smallest_file(run),
        steps=tuned.steps,
    )


def last_lines(log: Path) -> str:
    """The end of a log."""
    if not log.is_file():
        return "there is no log: the process could not be started"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-_LAST:]) or "the log is empty"


def discard(run: Path, model: bool) -> None:
    """Delete the big files of a run; the model as well, or not."""
    for name in (*_BIG, "model") if model else _BIG:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _adapted_entries(file: Path) -> int:
    """Entries of the matrices that low-rank adapters stand beside: O I for A (r, I) and B (O, r)."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    pairs = [
        (name.replace("lora_B", "lora_A"), entry["shape"][0]) for name, entry in header.items() if "lora_B" in name
    ]
    return sum(rows * header[name]["shape"][1] for name, rows in pairs)


def _smallest_file(run: Path) -> int | None:
    """Bytes of the smallest of patch, adapter and weights that is there."""
    sizes = [(run / "patch.safetensors").stat().st_size] if (run / "patch.safetensors").is_file() else []
    for folder in ("adapter", "model"):
        weights = [file.stat().st_size for file in (run / folder).glob("*.safetensors")]
        sizes += [sum(weights)] if weights else []
    return min(sizes, default=None)


def _logged(run: Path) -> dict[str, float]:
    """The last value of every column of the log of scores."""
    files = sorted(run.glob("scores/version_*/metrics.csv"))
    if not files:
        raise MissingFileError(f"{run} has no scores/version_*/metrics.csv, which validate writes")
    found: dict[str, float] = {}
    with files[-1].open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found |= {name: float(value) for name, value in row.items() if value}
    return found


def _scores(rows: Sequence[Row], task: TaskScore) -> Scores | None:
    """Those of one task, of a perplexity the nats that each text gained."""
    if task.metric not in LOWER_IS_BETTER:
        return Scores([row["after_score"] for row in rows]) if confirmed(rows, task.after, "after") else None
    before, after = (likelihoods(rows, task, moment) for moment in ("before", "after"))
    if before is None or after is None:
        return None
    gained = [base - tuned for (base, _), (tuned, _) in zip(before, after, strict=True)]
    return Scores(gained, [tokens for _, tokens in after])
