"""What is to be run: learning rates on validation data first, then what was chosen on test data."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import product
from typing import Protocol

from dowser_pl.bench.cells import Cell, Group
from dowser_pl.bench.command_lines import required
from dowser_pl.bench.records import Failure, Record, Scores
from dowser_pl.bench.settings import Entry, Setting, Settings
from dowser_pl.errors import DowserError

__all__ = ["Choice", "Done", "Plan", "groups"]


class Done(Protocol):
    """What is known of cells."""

    def record(self, cell: Cell) -> Record | None:
        """What came out, if it has finished."""

    def failure(self, cell: Cell) -> Failure | None:
        """Why it did not finish, if it failed."""

    def scores(self, cell: Cell) -> dict[str, Scores] | None:
        """Task -> the score of every question, if they are known."""


@dataclass(frozen=True)
class Choice:
    """The setting of highest H-score on validation data; of equal ones the first.

    Attributes:
        setting: of the best cell.
        edges: names of it -> "lowest" or "highest", where it is the end of what was tried: there may be a better one.
        failed: how many settings could not be judged.
    """

    setting: Setting
    edges: dict[str, str]
    failed: int


def groups(settings: Settings, places: Sequence[str] = ()) -> list[Group]:
    """Every combination of world, task and depth that a bench asks for.

    Args:
        settings: of the bench.
        places: patterns of their names, such as `outlier-*-all`; none = all.

    Raises:
        DowserError: for a pattern that no name matches.
    """
    every = [Group(*each) for each in product(settings.worlds, settings.tasks, settings.depths)]
    for place in places:
        if not any(fnmatch(group.slug, place) for group in every):
            names = ", ".join(group.slug for group in every)
            raise DowserError(f"got --in {place}, expected one of: {names}, or a pattern such as '*-all'")
    return [group for group in every if not places or any(fnmatch(group.slug, place) for place in places)]


@dataclass(frozen=True)
class Plan:
    """The cells of some methods, as far as they are known.

    Args:
        settings: of the bench.
        entries: the methods; those that others come after among them.
        done: what is known of cells; asked anew each time.
        places: see `groups`.
    """

    settings: Settings
    entries: Sequence[Entry]
    done: Done
    places: Sequence[str] = ()

    def cells(self) -> list[Cell]:
        """In the order in which they are run, each once, what one requires before it."""
        found: dict[Cell, None] = {}
        for group in groups(self.settings, self.places):
            for cell in self._of_group(group):
                base = required(self.settings, cell)
                found |= dict.fromkeys([cell] if base is None else [base, cell])
        return list(found)

    def unknown(self) -> Counter[str]:
        """Name of a method -> how many cells of it depend on choices that are still to be made."""
        unknown = Counter[str]()
        for group, entry in product(groups(self.settings, self.places), self.entries):
            tuning = self.tuning(group, entry)
            if tuning is None:
                unknown[entry.name] += entry.num_settings
            if tuning is None or not all(map(self._ended, tuning)):
                unknown[entry.name] += len(self.settings.seeds) * (1 + self._is_timed(entry))
        return unknown

    def tuning(self, group: Group, entry: Entry) -> list[Cell] | None:
        """The cells on validation data; None while the method it comes after has not been chosen.

        Where the best setting is at an edge of what was tried, the next one beyond it is tried as well, as many times
        as `widen` allows.
        """
        cells = self._of_grid(group, entry)
        for _ in range(self.settings.widen if cells else 0):
            assert cells is not None
            cells = cells + self._beyond(cells, entry)
        return cells

    def _of_grid(self, group: Group, entry: Entry) -> list[Cell] | None:
        settings: Sequence[Setting] = entry.grid
        if entry.after is not None:
            base = self.settings.methods[entry.after]
            choice = self.choice(group, base)
            if choice is None:
                tuned = self.tuning(group, base) or []
                return [] if tuned and all(map(self._ended, tuned)) else None
            rates = rates_after(base, dict(choice.setting)["lr"])
            settings = [(("lr", rate), *own) for rate, own in product(rates, entry.grid)]
        seed = self.settings.tuning_seed
        return [Cell(group, entry.name, setting, seed, "validation") for setting in settings]

    def choice(self, group: Group, entry: Entry) -> Choice | None:
        """The best setting, once all have ended; None also if none has finished."""
        return self._chosen_of(self.tuning(group, entry) or [], entry)

    def _chosen_of(self, cells: Sequence[Cell], entry: Entry) -> Choice | None:
        if not all(map(self._ended, cells)):
            return None
        records = {cell: record for cell in cells if (record := self.done.record(cell))}
        if not records:
            return None
        best = max(records, key=lambda cell: records[cell].h_score)
        edges = _edges([cell.setting for cell in cells], best.setting)
        if entry.after is not None and edges.get("lr") == "lowest":
            del edges["lr"]  # lower ones were tried by the method it comes after, which chose this one
        return Choice(best.setting, edges, len(cells) - len(records))

    def _beyond(self, cells: Sequence[Cell], entry: Entry) -> list[Cell]:
        """The best of all cells with each value that is at an edge one step further out; none while one is open."""
        choice = self._chosen_of(cells, entry)
        if choice is None:
            return []
        best, more = dict(choice.setting), list[Cell]()
        for name, edge in choice.edges.items():
            tried = sorted({dict(cell.setting)[name] for cell in cells}, reverse=edge == "lowest")
            if name == "lr" and entry.after is not None:  # one that the other method has, or would have
                _, value = rates_after(self.settings.methods[entry.after], best["lr"])
            else:
                value = _next(tried[-2], tried[-1], name != "lr")
            more.append(replace(cells[0], setting=tuple((best | {name: value}).items())))
        return more

    def tests(self, group: Group, entry: Entry) -> list[Cell]:
        """The cells on test data; none before the choice."""
        choice = self.choice(group, entry)
        if choice is None:
            return []
        return [Cell(group, entry.name, choice.setting, seed, "test") for seed in self.settings.seeds]

    def costs(self, group: Group) -> list[Cell]:
        """Short runs of all that was chosen, in turn, as often as there are seeds; none where nothing is to be timed.

        What merges costs the steps of what it merges, and has none of its own.
        """
        chosen = {entry.name: self.choice(group, entry) for entry in self.entries if self._is_timed(entry)}
        return [
            Cell(group, name, choice.setting, seed, "cost")
            for seed in self.settings.seeds
            for name, choice in chosen.items()
            if choice is not None
        ]

    def needed(self, cell: Cell) -> bool:
        """Whether the tuned model of a cell may still be merged by another."""
        if cell.split == "cost":
            return False
        after = [each for each in self.entries if each.merge is not None and each.after == cell.method]
        if any(not self._chosen(cell.group, each) for each in after):
            return True
        return any(required(self.settings, other) == cell and not self._ended(other) for other in self.cells())

    def _of_group(self, group: Group) -> Iterator[Cell]:
        for entry in sorted(self.entries, key=lambda entry: entry.after is not None):
            yield from self.tuning(group, entry) or []
        for entry in self.entries:
            yield from self.tests(group, entry)
        yield from self.costs(group)

    def _is_timed(self, entry: Entry) -> bool:
        return "cost" in self.settings.splits and entry.merge is None

    def _ended(self, cell: Cell) -> bool:
        return self.done.record(cell) is not None or self.done.failure(cell) is not None

    def _chosen(self, group: Group, entry: Entry) -> bool:
        tuning = self.tuning(group, entry)
        return tuning is not None and all(map(self._ended, tuning))


def rates_after(base: Entry, best: float) -> tuple[float, float]:
    """The best learning rate and the next one of the grid; above its end, one as much higher as the last step."""
    rates = [dict(setting)["lr"] for setting in base.grid]
    higher = [rate for rate in rates if rate > best]
    if higher:
        return best, higher[0]
    step = rates[-1] / rates[-2] if len(rates) > 1 else 2.0
    return best, float(f"{best * step:.6g}")


def _next(before: float, last: float, share: bool) -> float:
    """As many times as far again; of a share at most half of the way that is left to 1."""
    value = last * last / before
    return float(f"{(last + 1) / 2 if share and last < 1 <= value else value:.6g}")


def _edges(settings: Sequence[Setting], best: Setting) -> dict[str, str]:
    edges = {}
    for name, value in best:
        tried = sorted({dict(setting)[name] for setting in settings})
        if name == "update_ratio" and value == 1:  # nothing lies beyond all entries
            continue
        if len(tried) > 1 and value in (tried[0], tried[-1]):
            edges[name] = "lowest" if value == tried[0] else "highest"
    return edges
