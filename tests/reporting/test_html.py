"""The report as one page: it holds everything, asks for nothing, and a browser shows it on light and dark screens."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from dowser_pl.reporting import Questions, Report, read_report, write_html, write_report
from dowser_pl.reporting.answers import data_uri, with_answers
from dowser_pl.reporting.html import POLICY, html_page
from dowser_pl.reporting.plots.style import DARK, GAIN, PAPER
from tests.reporting.samples import report, with_budget, with_curve

VOID = {"meta", "img", "br"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """The page as a reader meets it; every tag that is opened must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def answers() -> list[dict]:
    """Two questions each: of digits one was gained, of colour one forgotten, of ocr none changed."""
    scores = {"digits": ((0, 0), (1, 0)), "colour": ((1, 1), (0.5, 1)), "ocr": ((1, 0), (1, 0))}
    rows: list[dict] = []
    for moment in ("before", "after"):
        said = [
            {
                "task": task,
                "id": f"{task} {number}",
                "question": "what <b>is</b> this & that?",
                "references": ["one", "one", "<two>"],
                "prediction": f"<script>alert({number})</script> {moment}",
                "score": float(score),
            }
            for task, both in scores.items()
            for number, score in enumerate(both[moment == "after"])
        ]
        rows = with_answers(rows, said, moment)
    rows[0]["pictures"] = [data_uri(Image.new("RGB", (32, 32), "#c81e1e"))]
    return rows


def page(run: Report | None = None, **options) -> Page:
    return Page(html_page(run or report(), **options))


def test_everything_is_in_it() -> None:
    questions = {"digits": Questions(2, 1, 0, 0.5), "colour": Questions(2, 0, 1, 0.125), "ocr": Questions(2, 0, 0, 0.0)}
    shown = page(with_curve(questions=questions), answers=answers(), config="seed: 3 # <why>")
    for part in (
        "ModelDowser: downstream +0.500, upstream \u22120.250", "quickstart", "learning rate 0.006",
        "digits downstream exact_match 2 0.000 0.500 +0.500", "upstream mean 0.750 0.500 \u22120.250",
        "harmonic mean", "Agresti and Min", "Knee:", "frozen entries 900, changed 0", "torch 2.13.0", "seed: 3 # <why>",
        "of 2 questions; 1 gained, 0 forgotten", "right: one | <two>", "what <b>is</b> this & that?",
        "before: <script>alert(0)</script> before \u2717", "after: <script>alert(0)</script> after \u2713", "0.5",
    ):  # fmt: skip
        assert part in shown.text, part
    assert [each.get("aria-label") is not None for each in shown.of("svg")] == [True, True]
    kinds = [each["class"] for each in shown.of("b")]
    assert kinds == ["gained", "forgotten", "unchanged", "unchanged"]


def test_it_asks_for_nothing_and_runs_nothing() -> None:
    rows = answers()
    rows[0]["pictures"] += ["https://example.org/a.png", "javascript:alert(1)"]
    text = html_page(with_curve(), answers=rows)
    shown = Page(text)
    assert [each["content"] for each in shown.of("meta") if each.get("http-equiv")] == [POLICY]
    tags = {tag for tag, _ in shown.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    for tag, attributes in shown.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "data", "action", "srcset", "poster"):
                assert str(value).startswith(("data:image/", "#")), (tag, name, value)
    assert len(shown.of("img")) == 1
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text) and "@import" not in text
    ids = [attributes["id"] for _, attributes in shown.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)), "two pictures do not share parts"


@pytest.mark.parametrize("run", [report(tasks={}), report(method="<b>", model="a&b"), with_budget(False)])
def test_any_run_has_a_page(run: Report) -> None:
    shown = page(run)
    assert "kept no answers" in shown.text
    assert "<b>" not in shown.text or run.method == "<b>"
    assert ("WARNING: the budget is not kept" in shown.text) == (run.budget is not None)


def test_only_tasks_of_the_report_are_shown() -> None:
    kept = {name: task for name, task in report().tasks.items() if name != "ocr"}
    assert "ocr" not in page(report(tasks=kept), answers=answers()).text


def test_it_lies_beside_the_report_and_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 3\n")
    write_report(report(), tmp_path, answers())
    first = (tmp_path / "report.html").read_text()
    assert "seed_everything: 3" in first and "alert(0)" in first
    write_html(read_report(tmp_path), tmp_path, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == first


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_shows_it(tmp_path: Path, theme: str) -> None:
    rows = answers()
    write_report(with_curve(), tmp_path, rows)
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,2600",
        f"--screenshot={tmp_path / 'a.png'}",
    ]
    command += ["--blink-settings=preferredColorScheme=0"] * (theme == "dark")
    command.append((tmp_path / "report.html").as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, "nothing is blocked, and nothing is wrong"
    with Image.open(tmp_path / "a.png") as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    paper, gain = ((DARK[each] if theme == "dark" else each) for each in (PAPER, GAIN))
    count = {name: colours.get(tuple(bytes.fromhex(name.lstrip("#"))), 0) for name in (paper, gain, "#c81e1e")}
    assert count[paper] > 1_000_000, "the ground"
    assert count[gain] > 500, "the pictures have the colours of the page"
    assert count["#c81e1e"] > 500, "the image of a sample"
