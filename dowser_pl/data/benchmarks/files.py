"""Where the official files of a benchmark lie below its folder, and what is said of one that is not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dowser_pl.errors import DowserError, MissingFileError, nearest_names

IMAGES = "images"


@dataclass(frozen=True)
class Files:
    """The files of one split of a benchmark, all of which are there.

    Attributes:
        name: of the benchmark.
        split: of it.
        paths: by what they hold: `images` is the folder of the pictures.
        settings: of the layout, where sets of one layout differ.
        folders: that may hold the pictures; `images` is the first of them.
    """

    name: str
    split: str
    paths: Mapping[str, Path]
    settings: Mapping[str, str] = field(default_factory=dict)
    folders: Sequence[Path] = ()

    @property
    def images(self) -> Path:
        """The folder at which the image paths of rows start."""
        return self.paths.get(IMAGES, Path())

    def json(self, key: str) -> Any:
        """The content of a JSON file.

        Raises:
            DowserError: it is not JSON, as a download that broke off, or a page of an error saved in its place.
        """
        path = self.paths[key]
        try:
            return json.loads(path.read_text(encoding="utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise self.wrong(key, f"no JSON: {error}", "the official file; download it again") from error

    def check(self, key: str, got: Any, expected: str, what: str) -> None:
        """Refuse another version of a file than the one expected; files that do not tell theirs pass.

        Args:
            key: of the file.
            got: what it says of itself; None = nothing.
            expected: what it is to say.
            what: it tells, for the message.
        """
        if got is not None and str(got) != expected:
            raise self.wrong(key, f"{what} {str(got)!r}", f"{what} {expected!r}")

    def wrong(self, key: str, got: str, expected: str) -> DowserError:
        """The error of a file that is there, but is not what the benchmark wants."""
        return DowserError(
            f"benchmark {self.name}: {self.paths[key]} has {got}, expected {expected}. Give the path of the right one "
            f"as `paths: {{{key}: ...}}`."
        )


def find_files(
    name: str,
    split: str,
    root: str | Path,
    wanted: Mapping[str, str],
    given: Mapping[str, str],
    source: str,
    settings: Mapping[str, str],
) -> Files:
    """The files of a benchmark; all that are missing are named at once, a line each.

    Args:
        name: of the benchmark.
        split: of it.
        root: the folder in which paths start.
        wanted: what a file holds -> where it lies below `root`; of several places, with "|" between them, the first
            that is there. Failing these, a file of that name right below `root` will do.
        given: paths that replace these; absolute ones as they are.
        source: where the benchmark is to be had, for messages.
        settings: see `Files`.

    Raises:
        MissingFileError: something is not there.
        DowserError: a path is given for what this benchmark does not have.
    """
    if odd := sorted(set(given) - set(wanted)):
        raise DowserError(
            f"benchmark {name}: got paths of {', '.join(odd)}, expected some of {', '.join(wanted)} (split {split})."
        )
    start = Path(root).expanduser()
    found: dict[str, Path] = {}
    folders: list[Path] = []
    lines = []
    for key in wanted:
        places = [start / given[key]] if key in given else _places(start, wanted[key])
        there = [place for place in places if place.is_dir() == (key == IMAGES) and place.exists()]
        if there:
            found[key] = there[0]
            folders = there if key == IMAGES else folders
        else:
            kind = "folder" if key == IMAGES else "file"
            others = ", ".join(os.path.relpath(place, start) for place in places[1:])
            nor = f", nor as {others} below {start}" if others else ""
            near = _similar(places)
            lines.append(f"no {kind} of {key} at {places[0]}{nor} (`paths: {{{key}: ...}}` overrides){near}")
    if lines:
        raise MissingFileError(f"benchmark {name}, split {split}, of {source}: " + "\n  ".join(lines))
    return Files(name, split, found, settings, folders)


def _similar(places: list[Path]) -> str:
    """What lies beside a place under a similar name, as another version of a file does."""
    for place in places:
        if place.parent.is_dir() and (
            near := nearest_names(place.name, [each.name for each in place.parent.iterdir()])
        ):
            return near
    return ""


def _places(start: Path, wanted: str) -> list[Path]:
    named = [start / each for each in wanted.split("|")]
    return list(dict.fromkeys([*named, *(start / place.name for place in named)]))
