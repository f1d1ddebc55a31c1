"""Official files of a benchmark as rows: questions for an evaluation, or conversations to train on."""

from __future__ import annotations

import csv
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from dowser_pl.data.benchmarks.files import IMAGES, Files, find_files
from dowser_pl.data.benchmarks.protocols import Protocol
from dowser_pl.data.benchmarks.sets import benchmark_named
from dowser_pl.data.reading.sources import Row, Rows
from dowser_pl.errors import DowserError
from dowser_pl.metrics import by_likelihood


def spread(count: int, limit: int | None) -> Sequence[int]:
    """The numbers of so many rows at most, evenly spread over all."""
    if limit is None or limit >= count:
        return range(count)
    return [number * count // limit for number in range(limit)]


_INSIDE = "base64"
_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".gif", ".webp")
_LOOKED_AT = 100


def lying(folder: Path, image: str) -> str | None:
    """The name of a picture in a folder, which may have another ending there than the files of a benchmark say."""
    stem = image.rpartition(".")[0] or image
    return next((name for name in (image, *(stem + end for end in _ENDINGS)) if (folder / name).is_file()), None)


def _apart(row: Row, pictures: dict[str, int]) -> Row:
    """The row with the number of a picture in place of a picture in it; `pictures` gets that."""
    if not isinstance(row.get("image"), dict):
        return row
    return row | {"image": pictures.setdefault(row["image"][_INSIDE], len(pictures))}


class OfficialRows(Rows):
    """Rows of a benchmark, each kept as the text of a JSON object, a few hundred bytes.

    Pictures that lie in the files themselves, as MMBench has them (base64), are kept as text as well, once for all rows
    that show them.

    Args:
        files: that they are of; of folders of pictures the first that has any of the first rows is taken.
        rows: all of them.
        hint: what to say where pictures are missing.
        limit: keep so many rows, evenly spread; None = all.
    """

    def __init__(self, files: Files, rows: Iterator[Row], hint: str, limit: int | None = None) -> None:
        self.files, self.images, self._hint = files, files.images, hint
        pictures: dict[str, int] = {}
        lines = [json.dumps(_apart(row, pictures), ensure_ascii=False).encode() for row in rows]
        self._lines = [lines[number] for number in spread(len(lines), limit)]
        self._pictures = list(pictures)
        checksum = 0
        for line in (*self._lines, *map(str.encode, self._pictures)):
            checksum = zlib.crc32(line, checksum)
        super().__init__(torch.tensor([len(line) for line in self._lines]), f"{checksum:08x}-{len(self._lines)}")
        shown = [image for line in self._lines[:_LOOKED_AT] if isinstance(image := json.loads(line).get("image"), str)]
        holding = (folder for folder in files.folders if any(lying(folder, image) for image in shown))
        self.images = next(holding, self.images)

    def entry(self, number: int) -> tuple[str, Any]:
        """The name of the benchmark with the place of a row, and the row."""
        return f"{self.files.name} {self.files.split} row {number + 1}", self._row(number)

    def _row(self, number: int) -> Row:
        row: Row = json.loads(self._lines[number])
        if isinstance(image := row.get("image"), str):
            return row | {"image": lying(self.images, image) or image}
        return row if image is None else row | {"image": {_INSIDE: self._pictures[image]}}

    def with_pictures(self, numbers: Sequence[int], skip_bad: bool) -> Sequence[int]:
        """The rows whose pictures are there; all that are not are told in one line.

        Args:
            numbers: of the rows that are asked.
            skip_bad: whether rows may be left out.

        Raises:
            DowserError: some are not there, unless `skip_bad`; or none is.
        """
        there: dict[str, bool] = {}
        kept = [number for number in numbers if self._has_picture(number, there)]
        lost = [image for image, found in there.items() if not found]
        if not lost:
            return numbers
        told = (
            f"benchmark {self.files.name}, split {self.files.split}: {len(lost)} of {len(there)} pictures are not in "
            f"{self.images}, the first is {lost[0]}."
        )
        if skip_bad and kept:
            count = f"{len(numbers) - len(kept)} of {len(numbers)} rows"
            rank_zero_warn(f"{told} {count} are left out (skip_bad_rows).", category=UserWarning)
            return kept
        fix = self._hint or "Complete the folder; `skip_bad_rows: true` leaves such rows out and counts them."
        raise DowserError(f"{told} `paths: {{images: ...}}` names another folder. {fix}")

    def _has_picture(self, number: int, there: dict[str, bool]) -> bool:
        image = json.loads(self._lines[number]).get("image")
        if not isinstance(image, str):  # none, or in the row itself
            return True
        if image not in there:
            there[image] = lying(self.images, image) is not None
        return there[image]


@dataclass(frozen=True)
class Official:
    """What of a benchmark is read, and how it is asked.

    Attributes:
        name: of the benchmark.
        root: the folder with its files.
        split: of it; None = the one that is evaluated on, or trained on.
        protocol: how it is asked.
        metric: that answers are scored by.
        paths: instead of those of the benchmark; see `find_files`.
    """

    name: str
    root: str
    split: str | None
    protocol: Protocol
    metric: str
    paths: dict[str, str]

    def questions(self) -> OfficialRows:
        """Rows as `TaskFile` describes them, with the words of the protocol and the ids of the benchmark.

        Raises:
            MissingFileError: files are missing.
            DowserError: a file is another one than the benchmark's.
        """
        return self._rows(next(iter(benchmark_named(self.name).splits)), self._question)

    def conversations(self, limit: int | None = None) -> OfficialRows:
        """Rows to train on, as LLaVA has them; of a picture with several captions one for each.

        Args:
            limit: so many rows, evenly spread; None = all.

        Raises:
            MissingFileError: files are missing.
            DowserError: a file is another one than the benchmark's, or the benchmark has no answers to train on.
        """
        splits = benchmark_named(self.name).splits
        if self.split is None and not (known := [each for each in splits if each.startswith("train")]):
            raise DowserError(
                f"benchmark {self.name} has no split to train on; if one is meant, name it: {', '.join(splits)}."
            )
        return self._rows("" if self.split is not None else known[0], self._conversations, limit)

    def _rows(self, split: str, become: Any, limit: int | None = None) -> OfficialRows:
        benchmark = benchmark_named(self.name, self.split)
        split = self.split or split
        places = benchmark.places(split, ("ocr",) if self.protocol.reads_ocr else ())
        files = find_files(self.name, split, self.root, places, self.paths, benchmark.source, benchmark.settings)
        rows = (made for row in _in_layout(files, benchmark.layout(files)) for made in become(row))
        found = OfficialRows(files, rows, benchmark.hint, limit)
        if not len(found):
            read = ", ".join(str(path) for key, path in files.paths.items() if key != IMAGES)
            raise DowserError(f"benchmark {self.name}: got no row of split {split} in {read}, expected at least one.")
        return found

    def _question(self, row: Row) -> Iterator[Row]:
        asked = {key: row[key] for key in ("id", "image") if row.get(key) is not None}
        if by_likelihood(self.metric) and "options" in row:
            asked["question"] = self.protocol.asked(row, with_options=False)
            yield asked | {key: row[key] for key in ("options", "answer") if key in row}
            return
        right = self._grouped(row) if self.metric == "mmbench" else self.protocol.right(row)
        yield asked | {"question": self.protocol.asked(row)} | ({"references": right} if right else {})

    def _grouped(self, row: Row) -> list[str]:
        """References of the metric `mmbench`: group, letter, and all options with their letters."""
        if "answer" not in row:
            return []
        letter = ascii_uppercase[row["answer"]]
        options = [f"{name}. {text}" for name, text in zip(ascii_uppercase, row["options"], strict=False)]
        return [str(row.get("group", row["id"])), letter, *options]

    def _conversations(self, row: Row) -> Iterator[Row]:
        if "conversations" in row:
            yield row
            return
        right = self.protocol.right(row)
        if not right:
            raise DowserError(f"benchmark {self.name}: question {row['id']} has no answer to train on; name a split.")
        learnt = right if "captions" in row else [Counter(right).most_common(1)[0][0]]
        asked = self.protocol.asked(row)
        for number, answer in enumerate(learnt):
            own = f"{row['id']}" if len(learnt) == 1 else f"{row['id']}/{number}"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
            yield {"id": own, "conversations": turns} | ({"image": row["image"]} if "image" in row else {})


def _in_layout(files: Files, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of a layout; a file that has not the keys of its benchmark is refused with its name."""
    try:
        for row in rows:
            _check_options(files, row)
            yield row
    except DowserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, csv.Error) as error:
        paths = ", ".join(str(path) for key, path in files.paths.items() if key != IMAGES)
        raise DowserError(
            f"benchmark {files.name}: {paths} is not in the layout of the official files: {type(error).__name__}: "
            f"{error}. Expected the files of split {files.split} as they are downloaded."
        ) from error


def _check_options(files: Files, row: Row) -> None:
    """The right one must be among the options, and each option needs a letter."""
    if "options" not in row:
        return
    count, right = len(row["options"]), row.get("answer", 0)
    if type(right) is not int or not 0 <= right < count <= len(ascii_uppercase):
        raise DowserError(
            f"benchmark {files.name}, split {files.split}: question {row['id']} has {count} options and the right one "
            f"at place {right!r}, expected {len(ascii_uppercase)} at most and a place from 0 to {count - 1}."
        )


def folder_of(root: str | None, base: str | None, name: str) -> str:
    """The folder of a benchmark: `root`, which starts in `base`, or that itself.

    Raises:
        DowserError: neither is given.
    """
    if root is None and base is None:
        raise DowserError(f"benchmark {name}: no folder with its files is given; name it as `root`.")
    return str(Path(base or ".").expanduser() / Path(root or ".").expanduser())
