"""Layouts of questions with options: MMBench, IconQA and ScienceQA, ImageNet-R, POPE.

Rows have `options` and, as `answer`, the place of the right one, counted from 0; see `questions.py`.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import takewhile

from dowser_pl.data.benchmarks.files import Files
from dowser_pl.data.benchmarks.questions import json_lines
from dowser_pl.data.reading.sources import Row

_LETTERS = "ABCDE"
_MISSING = {"", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "n/a", "null"}  # to the pandas of the scripts
_CIRCULAR = 1_000_000
_INDEX = 64  # characters: a picture has more; what has not is the index of the row that has the picture


def mmbench(files: Files) -> Iterator[Row]:
    """MMBench: a table with tabs, `index, question, hint, A, B, C, D, answer, image` (base64) and others.

    The options end at the first that is empty or "nan". A row whose index is 1,000,000 or more asks the question of the
    index modulo that with its options turned round: `group` is the same for all of them.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with files.paths["questions"].open(encoding="utf-8-sig", newline="") as table:
        entries = list(csv.DictReader(table, delimiter="\t"))
    images = {entry["index"]: entry["image"] for entry in entries if len(entry["image"]) > _INDEX}
    for entry in entries:
        index, image = int(entry["index"]), entry["image"]
        options = list(takewhile(bool, (_text(entry.get(letter)) for letter in _LETTERS)))
        row = {"id": index, "group": str(index % _CIRCULAR), "image": {"base64": images.get(image.strip(), image)}}
        row |= {"question": entry["question"], "hint": _text(entry.get("hint")), "options": options}
        answer = _text(entry.get("answer")).strip()
        if answer and answer not in [*_LETTERS]:
            raise files.wrong("questions", f"the answer {answer!r} in row {index}", f"a letter of {_LETTERS}")
        yield row | ({"answer": _LETTERS.index(answer)} if answer else {})


def problems(files: Files) -> Iterator[Row]:
    """IconQA and ScienceQA: `problems.json`, an object by id, and `pid_splits.json`, the ids of each split.

    The setting `image` names the picture of a problem; that of ScienceQA's that have none is null. With the setting
    `pictures` those are left out.
    """
    known, splits = files.json("problems"), files.json("splits")
    for number in splits[files.settings.get("split", "{split}").format(split=files.split)]:
        entry = known[str(number)]
        row = {"id": str(number), "question": entry["question"], "hint": entry.get("hint") or ""}
        if entry.get("image", "image.png"):
            row["image"] = files.settings["image"].format(split=files.split, id=number)
        elif files.settings.get("pictures"):
            continue
        yield row | {"options": entry["choices"], "answer": entry["answer"]}


def classes(files: Files) -> Iterator[Row]:
    """ImageNet-R: a folder of pictures for each class, and their names in README.txt, `n01443537 goldfish` a line.

    Lines that do not begin with the name of a folder are passed over; underscores in names stand for spaces.
    """
    lines = files.paths["names"].read_text(encoding="utf-8-sig").splitlines()
    names = dict(line.strip().split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
    for folder in sorted(place for place in files.images.glob("n????????") if place.is_dir()):
        if folder.name not in names:
            raise files.wrong("names", f"no line for the folder {folder.name}", "one for each folder of pictures")
        for image in sorted(folder.glob("[!.]*")):  # not .DS_Store
            place = f"{folder.name}/{image.name}"
            yield {"id": place, "image": place, "answers": [names[folder.name].strip().replace("_", " ")]}


def pope(files: Files) -> Iterator[Row]:
    """POPE: lines with `question_id, image, text, label`; where all three kinds are asked, ids begin with the kind."""
    kinds = [key for key in files.paths if key != "images"]
    for kind in kinds:
        for entry in json_lines(files, kind):
            number = entry["question_id"]
            row = {"id": number if len(kinds) == 1 else f"{kind}/{number}", "image": entry["image"]}
            yield row | {"question": entry["text"], "answers": [entry["label"]]}


def records(files: Files) -> Iterator[Row]:
    """Rows that papers publish as they asked them: `text` with its instruction, and `reference` or `answer`."""
    for entry in json_lines(files, "rows"):
        if "conversations" in entry:
            yield entry
            continue
        right = entry.get("reference", entry.get("answer"))
        row = {"id": entry.get("id", entry.get("question_id")), "image": entry["image"], "question": entry["text"]}
        yield row | ({} if right is None else {"answers": right if isinstance(right, list) else [right]})


def _text(value: str | None) -> str:
    """A cell of a table; nothing for what stands there instead."""
    text = "" if value is None else value.strip()
    return "" if text in _MISSING or text.lower() in ("nan", "-nan", "none") else str(value)
