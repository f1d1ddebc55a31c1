"""The settings of a bench: one small YAML file, refused key by key where it is not as it should be.

It is read key by key, so that an error says where it is, what was got and what was expected.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from dowser_pl.errors import DowserError, nearest_of

__all__ = ["NOTHING", "Entry", "Section", "Setting", "Settings", "option_text", "read_settings", "shown"]


NOTHING: Any = object()
"""The default of a key that must be there."""
_LONGEST = 80
_NAME = re.compile(r"[A-Za-z0-9_.]+")


def shown(value: Any) -> str:
    """A value for an error message."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def option_text(value: Any) -> str:
    """A value as it stands on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


class Section:
    """One mapping of the file.

    Args:
        value: what stands there.
        where: its place, for errors ("world.yaml: methods.Dare").
        keys: the keys there are; None = any.

    Raises:
        DowserError: if it is no mapping, or has a key that does not exist.
    """

    def __init__(self, value: Any, where: str, keys: Sequence[str] | None = None) -> None:
        if not isinstance(value, Mapping):
            expected = f"the keys {', '.join(keys)}" if keys else "names with their values"
            raise DowserError(f"{where}: got {shown(value)}, expected {expected}")
        for key in value:
            if not isinstance(key, str):
                raise DowserError(f"{where}: got the key {key!r}, expected a text; put it in quotes")
            if keys is not None and key not in keys:
                near = get_close_matches(key, keys, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DowserError(f"{where}: unknown key {key!r}, expected one of: {', '.join(keys)}{hint}")
        self.value, self.where = value, where

    def get(self, key: str, default: Any = NOTHING) -> Any:
        """The value of a key.

        Raises:
            DowserError: if it is not there and has no default.
        """
        if key in self.value:
            return self.value[key]
        if default is NOTHING:
            raise DowserError(f"{self.where}: the key {key!r} is missing")
        return default

    def wrong(self, key: str, expected: str) -> DowserError:
        """The error for a value that is not what it should be."""
        return DowserError(f"{self.where}.{key}: got {shown(self.value.get(key))}, expected {expected}")

    def text(self, key: str, default: Any = NOTHING) -> str:
        """A text that is not empty."""
        value = self.get(key, default)
        if key in self.value and not (isinstance(value, str) and value.strip()):
            raise self.wrong(key, "a text")
        return str(value)

    def optional_text(self, key: str) -> str | None:
        """A text, or None where there is none."""
        return self.text(key) if self.value.get(key) is not None else None

    def flag(self, key: str, default: bool) -> bool:
        """Read a value that is true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def count(self, key: str, default: Any = NOTHING, least: int = 0) -> int:
        """Read a value that is a whole number."""
        value = self.get(key, default)
        if not _is_count(value, least):
            raise self.wrong(key, f"a whole number of at least {least}")
        return int(value)

    def counts(self, key: str) -> tuple[int, ...]:
        """Different whole numbers, at least one."""
        values = self.get(key)
        if not isinstance(values, list) or not values or not all(_is_count(value, 0) for value in values):
            raise self.wrong(key, "a list of whole numbers such as [1, 2, 3]")
        return self._different(key, values)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or one text; none by default."""
        values = self.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.wrong(key, "a list of texts")
        return self._different(key, values)

    def options(self, key: str, default: Any = NOTHING) -> dict[str, Any]:
        """Options of a command by their names, without the leading dashes."""
        section = Section(self.get(key, default), f"{self.where}.{key}")
        for name in section.value:
            if name.startswith("-"):
                raise DowserError(f"{section.where}: got the option {name!r}, expected its name without dashes")
        return dict(section.value)

    def named(self, key: str, default: Any = NOTHING) -> dict[str, Any]:
        """Anything by names that can be part of a file name, at least one."""
        section = Section(self.get(key, default), f"{self.where}.{key}")
        for name in section.value:
            if not _NAME.fullmatch(name):
                raise DowserError(
                    f"{section.where}: got the name {name!r}, expected letters, digits, '_' and '.' alone"
                )
        if not section.value:
            raise self.wrong(key, "at least one name")
        return dict(section.value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Different numbers in rising order, at least one; YAML takes 1e-3 for a text, and so do we not."""
        values = self.get(key)
        if not isinstance(values, list) or not values:
            raise self.wrong(key, "a list of numbers")
        try:
            numbers = [float("x" if isinstance(value, bool) else value) for value in values]
        except (TypeError, ValueError) as error:
            raise self.wrong(key, "a list of numbers") from error
        if sorted(numbers) != numbers:
            raise self.wrong(key, "numbers in rising order")
        return self._different(key, numbers)

    def _different(self, key: str, values: Sequence[Any]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise self.wrong(key, "each value once")
        return tuple(values)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


Setting = tuple[tuple[str, float], ...]
"""What is tuned: (name, value) pairs; "lr" is the learning rate, other names are options of the method."""

_KEYS = (
    *("folder", "fit", "set", "seeded", "validation", "test", "cost", "seeds", "tuning_seed"),
    *("worlds", "tasks", "depths", "methods", "smallest_grid", "widen", "keep"),
)
_METHOD_KEYS = ("method", "config", "options", "seeded", "grid", "after", "merge")


@dataclass(frozen=True)
class Entry:
    """One method of a bench.

    Attributes:
        name: in tables.
        config: configurations given to its runs.
        options: of its runs, dotted; with `merge` options of the method.
        seeded: options that are set to the seed, as `options`.
        grid: what is tried: learning rates, with values of the method's own options; the latter alone with `after`.
        after: the entry whose learning rate, and with `merge` whose tuned models, this one takes.
        merge: the method that `python -m dowser_pl merge` applies to these; None = it is applied inside `fit`.
        method: class of the method, such as `my_package.Mine`; None = as `config` says.
    """

    name: str
    config: tuple[str, ...]
    options: Mapping[str, Any]
    seeded: tuple[str, ...]
    grid: tuple[Setting, ...]
    after: str | None = None
    merge: str | None = None
    method: str | None = None

    @property
    def num_settings(self) -> int:
        """How many are tried on validation data; after another method each value at two learning rates."""
        return len(self.grid) * (1 if self.after is None else 2)


@dataclass(frozen=True)
class Settings:
    """The settings of a bench, as its YAML file has them.

    Attributes:
        folder: where everything is written.
        fit: configurations of every run.
        options: of every run, dotted.
        seeded: options of every run that are set to the seed: `seed_everything` where the file names none, which does
            not change the order of the training rows (`data.seed`), the prompts of the importance pass
            (`dowser.probe.seed`) and the rows that the base writes (`dowser.rows.seed`).
        splits: "validation" and "test" -> options that choose the split; "cost" -> of short runs in which what was
            chosen takes turns, one of each method and then the next of each, so that what else the machine does falls
            on all alike; without it steps are not timed.
        seeds: of the runs on the test split, and of those that are timed.
        tuning_seed: of those on the validation split.
        worlds: name -> path of the base model.
        tasks: name -> options.
        depths: how many of the last decoder layers are tuned; None = all.
        methods: name -> entry.
        widen: how many times a grid may be widened by one step where the best setting is at its edge.
        keep: whether checkpoints and models of finished cells stay.
    """

    folder: Path
    fit: tuple[str, ...]
    options: Mapping[str, Any]
    seeded: tuple[str, ...]
    splits: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    tuning_seed: int
    worlds: Mapping[str, str]
    tasks: Mapping[str, Mapping[str, Any]]
    depths: tuple[int | None, ...]
    methods: Mapping[str, Entry]
    widen: int
    keep: bool

    def with_bases(self, names: Collection[str]) -> tuple[Entry, ...]:
        """The entries of these names and those they come after, in the order of the file; all for none.

        Raises:
            DowserError: for a name that is not there.
        """
        for name in names:
            if name not in self.methods:
                hint = nearest_of(name, {each: each for each in self.methods})
                raise DowserError(f"got --only {name}, expected one of: {', '.join(self.methods)}{hint}")
        wanted = set(names or self.methods)
        wanted |= {base for name in wanted if (base := self.methods[name].after)}
        return tuple(entry for name, entry in self.methods.items() if name in wanted)


def read_settings(path: Path, merges: Collection[str]) -> Settings:
    """Read and check the file of a bench.

    Args:
        path: of the YAML file.
        merges: names of the methods that can be merged offline.

    Raises:
        DowserError: if it is not YAML, or something in it is not as it should be; the key is named.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DowserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    file = Section(content, path.name, _KEYS)
    splits = {split: file.options(split) for split in ("validation", "test")}
    if splits["validation"] == splits["test"]:
        raise DowserError(
            f"{path.name}: validation and test are both {shown(splits['test'])}, expected options that differ: "
            "settings chosen on the data they are judged by look better than they are"
        )
    if file.value.get("cost") is not None:
        splits["cost"] = file.options("cost")
    return Settings(
        folder=Path(file.text("folder")).expanduser(),
        fit=file.texts("fit"),
        options=file.options("set", {}),
        seeded=file.texts("seeded") or ("seed_everything",),
        splits=splits,
        seeds=file.counts("seeds"),
        tuning_seed=file.count("tuning_seed", 0),
        worlds=_worlds(file),
        tasks=_tasks(file),
        depths=_depths(file),
        methods=_methods(file, merges),
        widen=file.count("widen", 0),
        keep=file.flag("keep", False),
    )


def _worlds(file: Section) -> dict[str, str]:
    worlds = Section(file.named("worlds"), f"{file.where}: worlds")
    return {name: worlds.text(name) for name in worlds.value}


def _tasks(file: Section) -> dict[str, dict[str, Any]]:
    tasks = Section(file.named("tasks"), f"{file.where}: tasks")
    return {name: tasks.options(name) for name in tasks.value}


def _depths(file: Section) -> tuple[int | None, ...]:
    depths = file.get("depths", [None])
    kinds = isinstance(depths, list) and all(depth is None or (type(depth) is int and depth > 0) for depth in depths)
    if not kinds or not depths or len(set(depths)) != len(depths):
        raise file.wrong("depths", "numbers of decoder layers, null for all, such as [null, 3]")
    return tuple(depths)


def _methods(file: Section, merges: Collection[str]) -> dict[str, Entry]:
    smallest = file.count("smallest_grid", 4, least=1)
    where = f"{file.where}: methods"
    entries = {
        name: _entry(name, Section(value, f"{where}.{name}", _METHOD_KEYS), merges)
        for name, value in file.named("methods").items()
    }
    for entry in entries.values():
        if len(entry.grid) < smallest:
            raise DowserError(
                f"{where}.{entry.name}.grid: got {len(entry.grid)} settings, expected at least {smallest} "
                "(smallest_grid); a method that is not tuned looks worse than it is"
            )
        plain = [each.name for each in entries.values() if each.after is None and _rates_alone(each.grid)]
        if entry.after is not None and entry.after not in plain:
            raise DowserError(f"{where}.{entry.name}.after: got {entry.after!r}, expected one of: {', '.join(plain)}")
    sizes = {entry.name: len(entry.grid) for entry in entries.values()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DowserError(f"{where}: got grids of different sizes ({told}), expected as many settings for each method")
    return entries


def _rates_alone(grid: Sequence[Setting]) -> bool:
    return all([key for key, _ in setting] == ["lr"] for setting in grid)


def _entry(name: str, section: Section, merges: Collection[str]) -> Entry:
    after, merge = section.optional_text("after"), section.optional_text("merge")
    method = section.optional_text("method")
    if merge is not None and merge not in merges:
        raise section.wrong("merge", f"one of: {', '.join(merges)}; others are applied inside fit (config)")
    if merge is not None and (after is None or section.value.get("config") or method):
        raise DowserError(
            f"{section.where}: got merge: {merge} {'without after' if after is None else 'and config or method'}, "
            "expected after (whose tuned models are merged) and neither of these (nothing is trained)"
        )
    options = section.options("options", {})
    if after is not None or isinstance(section.get("grid"), Mapping):
        grid = _own_grid(section, with_rates=after is None)
    else:
        grid = tuple((("lr", rate),) for rate in section.numbers("grid"))
    return Entry(name, section.texts("config"), options, section.texts("seeded"), grid, after, merge, method)


def _own_grid(section: Section, with_rates: bool) -> tuple[Setting, ...]:
    """All combinations of the values of the method's own options, and of learning rates where it is trained."""
    if not isinstance(section.get("grid"), Mapping) or not section.value["grid"]:
        raise section.wrong("grid", "values of an option of the method such as {update_ratio: [0.1, 0.2]}")
    if with_rates != ("lr" in section.value["grid"]):
        rates = "learning rates too (lr: [1e-3, 2e-3])" if with_rates else "no lr: that of the method it comes after"
        raise section.wrong("grid", rates)
    values = Section(section.value["grid"], f"{section.where}.grid")
    axes = [[(name, value) for value in values.numbers(name)] for name in values.value]
    return tuple(product(*axes))
