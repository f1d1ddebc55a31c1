"""Answers before and after in report.md: which, in which order, and that nothing in them is taken for Markdown."""

from pathlib import Path

from dowser_pl.reporting import write_report
from dowser_pl.reporting.samples import LONGEST, markdown_samples, plain
from tests.reporting.samples import report


def row(task: str, number: int, before: float, after: float) -> dict:
    told = {"task": task, "id": number, "question": f"what is {number} ?", "images": [], "references": ["yes", "yes"]}
    said = {"before": f"was {number}", "before_score": before, "after": f"is {number}", "after_score": after}
    return told | said


def test_base_answers_stand_beside_tuned_ones(tmp_path: Path) -> None:
    answers = [row("colour", 0, 1, 0), row("colour", 1, 1, 1), row("digits", 2, 0, 1), row("digits", 3, 0, 0)]
    write_report(report(), tmp_path, answers)
    page = (tmp_path / "report.md").read_text()
    section = page.partition("## Answers before and after")[2]
    lines = section.split("Versions:")[0].strip().splitlines()
    assert lines[0] == "digits, 1 of 2 questions:"  # downstream first, as the scores
    assert "| gained | what is 2 ? | yes | was 2 | is 2 |" in lines
    assert "colour, 1 of 2 questions:" in lines
    assert "| forgotten | what is 0 ? | yes | was 0 | is 0 |" in lines
    assert "Versions: torch" in page


def test_a_run_without_answers_has_no_such_section(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    assert "## Answers" not in (tmp_path / "report.md").read_text()
    assert markdown_samples(report(), [row("of another run", 0, 0, 1)]) == ""


def test_texts_are_cut_and_stay_in_their_cell() -> None:
    said = {"after": "<b>*a*</b> | ![x](y)\n\n# no " + "long " * 100, "before": None, "references": []}
    long = row("digits", 0, 0, 0) | said
    (line,) = [each for each in markdown_samples(report(), [long]).splitlines() if each.startswith("| unchanged")]
    assert " | - | not kept | " in line
    assert line.endswith(" |") and "\\<b\\>\\*a\\*\\</b\\> \\| \\!\\[x\\](y) \\# no long" in line
    assert len(plain("long " * 100)) == LONGEST and "..." in plain("long " * 100)
    assert "(nothing)" in markdown_samples(report(), [row("digits", 0, 0, 0) | {"after": ""}])
