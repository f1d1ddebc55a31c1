"""What a run takes beside memory: rows as long as they are, steps, hours, disk, and the command that starts it.

Hours are tokens over a rate. Where nobody states one it is what one card was measured at (docs/results/gpu.md): a model
of 6.76e9 weights, one row of 1024 tokens a step, activations recomputed. It is scaled by the number of weights, and
half of it is the slow end: loading, logging and short rows take their part.
"""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from lightning.pytorch import Trainer

from dowser_pl.planning.model import MemoryPlan

__all__ = ["Rate", "Rows", "RunPlan", "rate_of", "rows_of", "text"]

_MEASURED = {"compact": 2912.4, "compact + 8-bit": 2611.9, "dense": 2708.0, "lora": 1895.1}  # tokens per second
_WEIGHTS = 6.756e9
_SMALLEST = 1e9  # weights; below it the card waits for Python rather than computes
_MEASURES = 128  # rows that are encoded to see how long they are
_SOURCE = "half of and all that one NVIDIA H200 was measured at, scaled to this model (docs/results/gpu.md)"
_STATED = 0.1  # that a stated rate may be wrong by


@dataclass(frozen=True)
class Rows:
    """How many training rows there are, and how long.

    Attributes:
        count: of them; None = not known.
        lengths: tokens of some of them, images included.
        longest: tokens of the longest that was found.
        unknown: why they were not measured; "" = they were, or their length was stated.
    """

    count: int | None
    lengths: tuple[int, ...]
    longest: int | None
    unknown: str = ""

    def tokens(self, together: int) -> tuple[float, float]:
        """Mean of a row by itself, and where `together` rows are filled up to the longest of them."""
        longest_first = sorted(self.lengths)
        place = ceil(len(longest_first) * together / (together + 1)) - 1  # what the longest of them is expected to be
        mean = fmean(longest_first)
        return mean, max(mean, float(longest_first[place])) if together > 1 else mean


@dataclass(frozen=True)
class Rate:
    """Tokens per second of all devices.

    Attributes:
        low: the slow end.
        high: the fast end.
        source: who says so.
    """

    low: float
    high: float
    source: str


@dataclass(frozen=True)
class RunPlan:
    """A run, apart from its memory.

    Attributes:
        rows: that it trains on.
        seen: rows that it takes, over all epochs; None = not known.
        steps: of the optimizer; None = not known.
        tokens: of what it takes, without and with what rows are filled up with; None = not known.
        rates: name of a form -> its rate, where one is known.
        disk: what is written -> bytes.
        folder: where.
        learning_rate: of the optimizer.
        rate_hint: how its method's learning rates compare with others; may be empty.
        command: that starts it.
    """

    rows: Rows
    seen: int | None
    steps: int | None
    tokens: tuple[float, float] | None
    rates: Mapping[str, Rate]
    disk: Mapping[str, int]
    folder: Path
    learning_rate: float | None
    rate_hint: str
    command: Sequence[str] = field(default=())

    @classmethod
    def of(
        cls,
        trainer: Trainer,
        rows: Rows,
        plan: MemoryPlan,
        rates: Mapping[str, Rate],
        disk: Mapping[str, int],
        optimizer: Any,
        rate_hint: str,
        arguments: Sequence[str],
    ) -> "RunPlan":
        """Put it together.

        Args:
            trainer: its epochs, steps and folder.
            rows: to train on.
            plan: tells rows of a device and devices.
            rates: see above.
            disk: see above.
            optimizer: with the settings of the run.
            rate_hint: see above.
            arguments: of `plan` on the command line.
        """
        here, devices = (plan.batch.rows if plan.batch else 1), plan.placement.devices
        seen, steps = _taken(trainer, rows.count, here * devices)
        tokens = None
        if seen is not None and rows.lengths:
            alone, filled = rows.tokens(here)
            tokens = seen * alone, seen * filled
        rate = optimizer.defaults.get("lr")
        folder = Path(trainer.default_root_dir)
        return cls(rows, seen, steps, tokens, rates, disk, folder, rate, rate_hint, _fit_command(arguments))

    def seconds(self, form: str) -> tuple[float, float] | None:
        """The shortest and the longest that training takes in a form; None = not known."""
        rate = self.rates.get(form)
        if rate is None or self.tokens is None:
            return None
        return self.tokens[0] / rate.high, self.tokens[1] / rate.low


def rows_of(module: Any, datamodule: Any, tokens: int | None) -> Rows:
    """Read the training rows, where they are here, and measure some.

    Args:
        module: has the processor, where no `tokens` are stated.
        datamodule: with `row_lengths`, as those of this package; None = there is none.
        tokens: of every row, instead.
    """
    stated = () if tokens is None else (tokens,)
    if not hasattr(datamodule, "row_lengths"):
        return Rows(None, stated, tokens, "" if stated else "no data were named")
    try:
        if not stated and datamodule.processor is None:
            datamodule.processor = module.processor
        count, lengths, longest = datamodule.row_lengths(0 if stated else _MEASURES)
    except (ValueError, OSError) as error:
        return Rows(None, stated, tokens, " ".join(str(error).split()))
    return Rows(count, stated or tuple(lengths), tokens or longest)


def rate_of(name: str, weights: float, devices: int, stated: float | None, on_cpu: bool) -> Rate | None:
    """The rate of a form of training; None where none was stated or measured.

    Args:
        name: of the form, or "lora".
        weights: of the model.
        devices: that share the rows.
        stated: tokens per second of all of them.
        on_cpu: whether it will run there.
    """
    if stated is not None:
        return Rate(stated * (1 - _STATED), stated * (1 + _STATED), "as stated, give or take a tenth")
    if on_cpu or weights < _SMALLEST or name not in _MEASURED:
        return None
    fast = _MEASURED[name] * _WEIGHTS / weights * devices
    return Rate(fast / 2, fast, _SOURCE)


def text(plan: RunPlan, forms: Sequence[str]) -> list[str]:
    """Lines for people, of 79 characters; the command is not broken."""
    lines = [*_rows_text(plan), *_time_text(plan, forms), *_disk_text(plan), *_rate_text(plan)]
    broken = [fill(line, 79, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return [*broken, f"next: {shlex.join(plan.command)}"]


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _taken(trainer: Trainer, count: int | None, together: int) -> tuple[int | None, int | None]:
    """Rows that a run takes, and steps; each process takes as many batches as every other."""
    accumulated, limit = trainer.accumulate_grad_batches, trainer.max_steps
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    steps = seen = None
    if count is not None and epochs is not None:
        steps, seen = ceil(ceil(count / together) / accumulated) * epochs, count * epochs
    if limit >= 0 and (steps is None or limit < steps):
        steps, seen = limit, limit * accumulated * together
    return seen, steps


def _fit_command(arguments: Sequence[str]) -> list[str]:
    """The command of `plan`, to train with."""
    own = ("--tokens", "--tokens_per_second", "--json")
    kept: list[str] = []
    skip = False
    for word in arguments:
        if not skip and word.partition("=")[0] not in own:
            kept.append(word)
        skip = word in own and not skip
    return ["python", "-m", "dowser_pl", "fit", *kept]


def _rows_text(plan: RunPlan) -> list[str]:
    rows = plan.rows
    lines = []
    if rows.unknown:
        lines.append(f"rows: not measured: {rows.unknown}")
    elif rows.count is not None and len(rows.lengths) > 1:
        lines.append(
            f"rows: {rows.count:,}, of {min(rows.lengths):,} to {rows.longest:,} tokens, {fmean(rows.lengths):,.0f} on "
            f"average ({len(rows.lengths)} and those that look longest measured); memory is for the longest"
        )
    elif rows.count is not None:
        lines.append(f"rows: {rows.count:,}")
    if plan.steps is not None:
        tokens = "" if plan.tokens is None else f", {plan.tokens[0]:,.0f} tokens"
        lines.append(f"steps: {plan.steps:,}, which take {plan.seen:,} rows{tokens}")
    return lines


def _time_text(plan: RunPlan, forms: Sequence[str]) -> list[str]:
    known = {form: plan.rates[form] for form in forms if form in plan.rates}
    if not known:
        return ["time: no rate was measured for this model and device; state --tokens_per_second to see hours"]
    beside = "without importance, evaluation and saving"
    same = len({(rate.low, rate.high) for rate in known.values()}) == 1
    lines = []
    for form, rate in [*known.items()][: 1 if same else None]:
        seconds, pace = plan.seconds(form), f"{rate.low:,.0f} to {rate.high:,.0f} tokens a second"
        took = "" if seconds is None else f"{duration(seconds[0])} to {duration(seconds[1])} at "
        lines.append(f"time{'' if same else f', {form}'}: {took}{pace}")
    return [*lines, f"  ({next(iter(known.values())).source}; {beside})"]


def _disk_text(plan: RunPlan) -> list[str]:
    if not plan.disk:
        return []
    parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in plan.disk.items())
    folder = plan.folder.absolute()
    disk = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))
    free = f"; {_gigabytes(disk.free)} are free" if disk.total else ""
    return [f"disk: {_gigabytes(sum(plan.disk.values()))} below {plan.folder} ({parts}){free}"]


def _rate_text(plan: RunPlan) -> list[str]:
    if plan.learning_rate is None:
        return []
    hint = f"; {plan.rate_hint}" if plan.rate_hint else ""
    return [f"learning rate: {plan.learning_rate:g}{hint}"]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
