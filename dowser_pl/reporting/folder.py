"""A report on disk: report.json, .md, .html and .png in the folder of a run, its answers.jsonl, and its curve.png."""

from collections.abc import Sequence
from pathlib import Path

from dowser_pl.errors import DowserError, MissingFileError, nearest_path
from dowser_pl.files.atomic import write_atomically
from dowser_pl.reporting.answers import ANSWERS_NAME, Row, write_answers
from dowser_pl.reporting.html import write_html
from dowser_pl.reporting.plots.curve import has_picture, plot_curve
from dowser_pl.reporting.plots.run import plot_report
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.samples import markdown_samples
from dowser_pl.reporting.table import markdown_page

JSON_NAME, PAGE_NAME, PICTURE_NAME, CURVE_NAME = "report.json", "report.md", "report.png", "curve.png"


def write_report(report: Report, folder: str | Path, answers: Sequence[Row] = ()) -> None:
    """Write the files, each atomically, the numbers first; call it on one rank.

    Without a curve no picture of one is left there, and without answers no answers: an earlier run's would be taken for
    this one's.

    Args:
        report: the run.
        folder: its folder.
        answers: to every question, before and after.

    Raises:
        OSError: a file cannot be written; what was written before it stays.
    """
    folder = Path(folder)
    write_atomically(folder / JSON_NAME, report.to_json())
    if answers:
        write_answers(answers, folder)
    else:
        (folder / ANSWERS_NAME).unlink(missing_ok=True)
    curve = CURVE_NAME if has_picture(report) else None
    page = markdown_page(report, PICTURE_NAME, curve, markdown_samples(report, answers))
    write_atomically(folder / PAGE_NAME, page)
    plot_report(report, folder / PICTURE_NAME)
    if curve:
        plot_curve(report, folder / CURVE_NAME)
    else:
        (folder / CURVE_NAME).unlink(missing_ok=True)
    write_html(report, folder)


def read_report(path: str | Path) -> Report:
    """Read a report from its folder or from the JSON file itself.

    Raises:
        FileNotFoundError: nothing is there, or the folder has no report.json.
        DowserError: the file is not a report; the field is named.
    """
    path = Path(path)
    file = path / JSON_NAME if path.is_dir() else path
    if not file.is_file():
        raise MissingFileError(missing(path))
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DowserError(f"{file} is not a text file in UTF-8 (byte {error.start}).") from error
    return Report.from_json(text, str(file))


def missing(path: Path) -> str:
    """The message for a path without a report, with the nearest reports below it."""
    if not path.is_dir():
        return f"There is no file or folder {path}{nearest_path(path)}. Give the folder of a run, or its {JSON_NAME}."
    below = sorted(str(file.parent) for file in path.glob(f"*/{JSON_NAME}"))
    found = f" Reports below it: {', '.join(below)}." if below else ""
    return f"The folder {path} has no {JSON_NAME}; a run writes it when fit ends.{found}"
