"""The loop over cells: what is finished stays, what fails is written down, and one interruption costs one cell."""

from collections.abc import Callable, Collection, Sequence
from statistics import fmean

from dowser_pl.bench.cells import Cell, setting_text
from dowser_pl.bench.command_lines import commands, digest, required
from dowser_pl.bench.grid import Plan, groups
from dowser_pl.bench.processes import Runner
from dowser_pl.bench.records import Record, Store, discard, last_lines, of_fit, of_merge
from dowser_pl.bench.settings import Settings
from dowser_pl.files.locking import alone

__all__ = ["Bench"]


class Bench:
    """Runs what is not finished yet.

    Args:
        settings: of the bench.
        only: names of methods; none = all.
        places: patterns of names of worlds, tasks and depths, such as `outlier-digits-all`; none = all.
        tell: where lines of progress go.
    """

    def __init__(
        self,
        settings: Settings,
        only: Collection[str] = (),
        places: Sequence[str] = (),
        tell: Callable[[str], object] = print,
    ) -> None:
        self.settings = settings
        self.store = Store(settings)
        self.plan = Plan(settings, settings.with_bases(only), self.store, places)
        self._everything = Plan(settings, tuple(settings.methods.values()), self.store)
        self.tell = tell
        for cell in self.plan.cells():  # a configuration that is not there is an error now, not in an hour
            digest(settings, cell)

    def listing(self) -> list[str]:
        """Every cell that is known, and whether it has ended."""
        lines = []
        for cell in self.plan.cells():
            failed = self.store.failure(cell) is not None
            state = "failed" if failed else "finished" if self.store.record(cell) else "to run"
            lines.append(f"{state:<9} {self._name(cell)}")
        unknown = self.plan.unknown().total()
        return lines + ([f"and {unknown} that depend on what these will show"] if unknown else [])

    def run(self, runner: Runner, retry: bool = False) -> None:
        """Run all cells, what was chosen in the order of the plan.

        Args:
            runner: of the commands of one cell.
            retry: also those that failed in an earlier run.
        """
        with alone(self.settings.folder, "bench"):
            if retry:
                self._forget_failures()
            self._tidy()
            while (cell := self._next()) is not None:
                self._run(cell, runner)
                self._tidy()

    def _next(self) -> Cell | None:
        for cell in self.plan.cells():
            if self.store.record(cell) is None and self.store.failure(cell) is None:
                base = required(self.settings, cell)
                gone = base is not None and self.store.record(base) and not (self.store.run(base) / "model").is_dir()
                return base if gone else cell  # its model was deleted before another method wanted it
        return None

    def _run(self, cell: Cell, runner: Runner) -> None:
        base = required(self.settings, cell)
        tuned = None if base is None else self.store.record(base)
        place = None if base is None else str(self.store.run(base) / "model")
        lines = commands(self.settings, cell, str(self.store.run(cell)), place)
        folder = self.store.clear(cell)
        if base is not None and tuned is None:
            self.store.fail(cell, f"it merges the model of {base.text}, which failed", lines)
            return
        ended = runner(lines, folder)
        if ended.status:
            self.store.fail(cell, "\n".join(filter(None, (last_lines(folder / "log.txt"), ended.killed))), lines)
            self.tell(f"{self._counted()} {self._name(cell)}: FAILED, see {folder / 'log.txt'}")
            return
        run = self.store.run(cell)
        try:
            record = of_fit(run, ended) if tuned is None else of_merge(run, ended, tuned)
        except (ValueError, OSError) as error:
            self.store.fail(cell, str(error), lines)
            self.tell(f"{self._counted()} {self._name(cell)}: FAILED, {error}")
            return
        self.store.finish(cell, record, lines)
        self.tell(f"{self._counted()} {self._name(cell)}: {_scores(record)} ({self._times(record)})")

    def _tidy(self) -> None:
        """Delete the big files of finished cells that no later cell needs, of methods not run this time either."""
        if self.settings.keep:
            return
        for cell in self.plan.cells():
            run = self.store.run(cell)
            if run.is_dir():
                needed = self.store.record(cell) is not None and (run / "model").is_dir()
                needed = needed and self._everything.needed(cell)
                discard(run, model=not needed)

    def _forget_failures(self) -> None:
        while failed := [cell for cell in self.plan.cells() if self.store.failure(cell)]:
            for cell in failed:
                self.store.clear(cell)

    def _counted(self) -> str:
        cells = self.plan.cells()
        ended = sum(self.store.record(c) is not None or self.store.failure(c) is not None for c in cells)
        total = len(cells) + self.plan.unknown().total()
        return f"[{ended:>{len(str(total))}}/{total}]"

    def _name(self, cell: Cell) -> str:
        where = f"{cell.group.text}: " if len(groups(self.settings)) > 1 else ""
        return f"{where}{cell.method} {setting_text(cell.setting)} seed {cell.seed} {cell.split}"

    def _times(self, record: Record) -> str:
        left = self._seconds_left()
        return rough(record.seconds["wall"]) + (f", {rough(left)} left" if left else "")

    def _seconds_left(self) -> float:
        """An estimate: cells that merge take as long as others that do, and so do those that train."""
        merges = {entry.name: entry.merge is not None for entry in self.plan.entries}
        walls: dict[bool, list[float]] = {True: [], False: []}
        still = self.plan.unknown()
        for cell in self.plan.cells():
            if (record := self.store.record(cell)) is not None:
                walls[merges[cell.method]].append(record.seconds["wall"])
            elif self.store.failure(cell) is None:
                still[cell.method] += 1
        every = walls[True] + walls[False]
        return sum(count * fmean(walls[merges[name]] or every) for name, count in still.items() if every)


def rough(seconds: float) -> str:
    """`31 s`, `40 min` or `2 h 05 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _scores(record: Record) -> str:
    parts = (("D", record.mean("downstream")), ("U", record.mean("upstream")), ("H", record.h_score))
    return " ".join(f"{name} {f'{value:.2f}'.lstrip('0')}" for name, value in parts)
