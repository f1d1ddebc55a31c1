"""The command lines of a cell, and a digest of everything in them that decides its result."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from dowser_pl.bench.cells import Cell
from dowser_pl.bench.settings import Entry, Settings, option_text
from dowser_pl.cli.arguments import resolve_configs

__all__ = ["RATE", "commands", "digest", "folder_digest", "required"]

RATE = "model.optimizer.lr"
_LOGGER = "lightning.pytorch.loggers.CSVLogger"


def required(settings: Settings, cell: Cell) -> Cell | None:
    """The cell whose tuned model this one merges: same learning rate, seed and split; None if it trains one."""
    entry = settings.methods[cell.method]
    if entry.merge is None or entry.after is None:
        return None
    return Cell(cell.group, entry.after, (("lr", cell.rate),), cell.seed, cell.split)


def commands(settings: Settings, cell: Cell, run: str, tuned: str | None) -> list[list[str]]:
    """What is run one after the other.

    Args:
        settings: of the bench.
        cell: which of it.
        run: folder that is written to.
        tuned: the model folder of the required cell, if one is.

    Returns:
        Arguments of `python -m dowser_pl`: one `fit`; or `merge` into a model and into a patch, then
        `validate`.

    Raises:
        DowserError: if a configuration does not exist.
    """
    entry = settings.methods[cell.method]
    if entry.merge is None:
        return [_fit(settings, cell, entry, run)]
    merged = _merge(settings, cell, entry, str(tuned))
    scored = _configs(settings.fit) + _words(_common(settings, cell) | {"model.path": f"{run}/model"})
    scored += _words({"trainer.default_root_dir": run, "trainer.logger": _LOGGER})
    scored += _words({"trainer.logger.save_dir": run, "trainer.logger.name": "scores"})
    return [
        [*merged, "--out", f"{run}/model", "--json", f"{run}/merge.json"],
        [*merged, "--out", f"{run}/patch.safetensors"],
        ["validate", *scored],
    ]


def digest(settings: Settings, cell: Cell) -> str:
    """Differs where a command line does, or what its configurations say; not where the bench's folder lies.

    A world that is a folder counts by the content of its files, a method that is named by its class path by the source
    of its package, unless that is ours. A cell that merges the model of another has that one's
    digest in its own.
    """
    base = required(settings, cell)
    lines = commands(settings, cell, "RUN", None if base is None else digest(settings, base))
    lines = [[word for word in line if word != "--cast"] for line in lines]  # decides whether a merge fails, no result
    told = [
        [_content(word) if before == "-c" else word for before, word in zip(["", *line], line, strict=False)]
        for line in lines
    ]
    method = settings.methods[cell.method].method
    if method is not None and (source := _source(method)) is not None:
        told.append(["source of the method", source])
    world = Path(settings.worlds[cell.group.world])
    if world.is_dir():
        told.append([folder_digest(world)])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@cache
def folder_digest(folder: Path, pattern: str = "*") -> str:
    """A digest of the names and contents of all files below a folder; they are read once."""
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob(pattern) if path.is_file()):
        content = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                content.update(piece)
        whole.update(f"{file.relative_to(folder).as_posix()} {content.hexdigest()}\n".encode())
    return whole.hexdigest()


def _source(class_path: str) -> str | None:
    """Of the package or file in which a class of anybody's lies; nothing is imported."""
    package, dot, _ = class_path.partition(".")
    found = find_spec(package) if dot and package != "dowser_pl" else None
    if found is None:
        return None
    if folders := found.submodule_search_locations:
        return " ".join(folder_digest(Path(folder), "*.py") for folder in folders)
    return hashlib.sha256(Path(str(found.origin)).read_bytes()).hexdigest()


def _fit(settings: Settings, cell: Cell, entry: Entry, run: str) -> list[str]:
    named = {} if entry.method is None else {"dowser.method": entry.method}
    options = _common(settings, cell) | named | dict(entry.options) | {RATE: cell.rate}
    options |= {f"dowser.method.{name}": value for name, value in cell.setting if name != "lr"}
    if cell.split == "cost":  # as long for one as for all
        options |= settings.splits["cost"]
    options |= dict.fromkeys(entry.seeded, cell.seed) | {"export.enabled": True, "trainer.default_root_dir": run}
    return ["fit", *_configs((*settings.fit, *entry.config)), *_words(options)]


def _merge(settings: Settings, cell: Cell, entry: Entry, tuned: str) -> list[str]:
    own = dict(entry.options) | {name: value for name, value in cell.setting if name != "lr"}
    own |= dict.fromkeys(entry.seeded, cell.seed)
    words = _words({f"method.{name}": value for name, value in own.items()})
    base = settings.worlds[cell.group.world]
    # --cast: a world may be kept in float32 and trained in bfloat16
    return ["merge", "--base", base, "--tuned", tuned, "--method", str(entry.merge), "--cast", *words]


def _common(settings: Settings, cell: Cell) -> dict[str, Any]:
    """Options of every run; what is more special comes later and wins."""
    group = cell.group
    return {
        **settings.options,
        "model.path": settings.worlds[group.world],
        "model.last_n_layers": group.depth,
        **settings.splits[cell.split],
        **settings.tasks[group.task],
        **dict.fromkeys(settings.seeded, cell.seed),
    }


def _configs(names: tuple[str, ...]) -> list[str]:
    return resolve_configs([word for name in names for word in ("-c", name)])


def _words(options: Mapping[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", _text(value))]


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else option_text(value)


def _content(path: str) -> Any:
    """What a configuration says, without its comments."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
