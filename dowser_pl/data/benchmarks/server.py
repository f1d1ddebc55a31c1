"""Answers as the evaluation servers of the sets take them: a file a task, with one entry for each official question.

- VQAv2, OK-VQA, TextVQA: a JSON list of `{"question_id", "answer"}`; VizWiz: of `{"image", "answer"}`. Answers are
  normalised as EvalAI does it, because not all of these servers make them lower case. OK-VQA has no server; this is
  what its official script reads.
- GQA: a list of `{"questionId", "prediction"}` for the official `eval.py`, in lower case, without full stops at their
  end.
- MMBench: the table of questions as .xlsx, with a column `prediction` and without `hint, category, source, image,
  comment, l2-category`.

Keys, columns and what is done to answers are those of LLaVA's scripts `convert_*_for_submission.py` (c121f04), for
TextVQA those of lmms-eval (75571cf).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from dowser_pl.data.benchmarks.files import Files
from dowser_pl.errors import DowserError
from dowser_pl.metrics.vqa import normalise

_LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
Answers = Mapping[int | str, str]


@dataclass(frozen=True)
class ServerFile:
    """What a server takes of one task.

    Attributes:
        benchmark: its name, one of `SERVED`.
        questions: the file with the official questions.
        count: how many there are, all of which a server wants.
    """

    benchmark: str
    questions: Path
    count: int

    @property
    def ending(self) -> str:
        """The ending of the name of the file."""
        return ".xlsx" if SERVED[self.benchmark] is _mmbench else ".json"

    def check(self, asked: int) -> None:
        """Refuse before anything is asked what no server would take.

        Raises:
            DowserError: not all questions are asked, or what writes the file is not installed.
        """
        if asked != self.count:
            raise DowserError(
                f"benchmark {self.benchmark}: got {asked} of {self.count} questions, expected all of them, as the "
                "server takes no part of a set. Leave out `limit` and `skip_bad_rows`, and complete the pictures."
            )
        if self.ending == ".xlsx" and find_spec("openpyxl") is None:
            raise DowserError(
                f"benchmark {self.benchmark}: its server takes an .xlsx, which openpyxl writes, and that is not "
                'installed. Fix: pip install "dowser_pl[xlsx]".'
            )

    def content(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        """Write the file, as bytes.

        Args:
            rows: with the official `id` and the `prediction`, one for each question.

        Raises:
            DowserError: a question lacks its answer, or has two.
        """
        answers = {row["id"]: row["prediction"] for row in rows}
        if not len(rows) == len(answers) == self.count:
            raise DowserError(
                f"benchmark {self.benchmark}: got {len(rows)} answers to {len(answers)} of {self.count} questions, "
                "expected one to each, so no file for its server is written."
            )
        return SERVED[self.benchmark](self, answers)


def server_file(files: Files, count: int) -> ServerFile | None:
    """What the server of a benchmark takes; None where there is none.

    Args:
        files: of the benchmark.
        count: how many questions they have.
    """
    return ServerFile(files.name, files.paths["questions"], count) if files.name in SERVED else None


def _vqa(file: ServerFile, answers: Answers) -> bytes:
    key = "image" if file.benchmark == "vizwiz" else "question_id"
    return _json([{key: number, "answer": normalise(said)} for number, said in answers.items()])


def _gqa(_: ServerFile, answers: Answers) -> bytes:
    said = {number: answer.strip().rstrip(".").lower() for number, answer in answers.items()}
    return _json([{"questionId": number, "prediction": answer} for number, answer in said.items()])


def _json(entries: list[dict[str, Any]]) -> bytes:
    return json.dumps(entries, ensure_ascii=False).encode()


def _mmbench(file: ServerFile, answers: Answers) -> bytes:
    from openpyxl import Workbook  # noqa: PLC0415 - an extra
    from openpyxl.cell import WriteOnlyCell  # noqa: PLC0415
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE  # noqa: PLC0415

    book = Workbook(write_only=True)
    sheet = book.create_sheet()

    def text(value: str) -> Any:
        cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub(" ", value))
        cell.data_type = "s"  # "=" at the begin of an answer would make it a formula
        return cell

    with file.questions.open(encoding="utf-8-sig", newline="") as table:
        entries = csv.DictReader(table, delimiter="\t")
        columns = [name for name in entries.fieldnames or () if name not in _LEFT_OUT]
        place = 1 + max(number for number, name in enumerate(columns) if name in "ABCDE")
        sheet.append([*columns[:place], "prediction", *columns[place:]])
        for entry in entries:
            number = int(entry["index"])
            cells = [number if name == "index" else text(_shown(entry[name])) for name in columns]
            sheet.append([*cells[:place], text(answers[number]), *cells[place:]])
    written = BytesIO()
    book.save(written)
    return written.getvalue()


def _shown(value: str | None) -> str:
    """A cell of the table; nothing for "nan"."""
    return "" if value is None or value.lower() == "nan" else value


SERVED: Mapping[str, Callable[[ServerFile, Answers], bytes]] = {
    **dict.fromkeys(("vqav2", "okvqa", "textvqa", "vizwiz"), _vqa),
    "gqa": _gqa,
    **dict.fromkeys(("mmbench", "mmbench_cn"), _mmbench),
}
"""The benchmarks that have a server or an official script for a file of answers."""
