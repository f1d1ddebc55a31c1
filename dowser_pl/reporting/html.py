"""The report of one run as one HTML file: tables, pictures, answers before and after, and the configuration.

It needs nothing beside it and no network, and says so to the browser; there are no scripts. Light or dark is as the
reader's system has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dowser_pl.files.atomic import write_atomically
from dowser_pl.reporting.answers import Row, of_tasks, read_answers, samples
from dowser_pl.reporting.intervals import Interval
from dowser_pl.reporting.kept import kept_parts
from dowser_pl.reporting.plots.curve import draw_curve_page, has_picture
from dowser_pl.reporting.plots.run import draw_report, headline
from dowser_pl.reporting.plots.style import DARK, GAIN, INK, LOSS, MUTED, PAPER, VARIABLES, inline_svg, page_colours
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import ROLES, Role
from dowser_pl.reporting.table import (
    NOTHING,
    Grid,
    change_text,
    curve_parts,
    drift_parts,
    facts,
    number_text,
    score_text,
    settings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HTML_NAME, CONFIG_NAME = "report.html", "config.yaml"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
RIGHT, WRONG = "\u2713", "\u2717"
NO_ANSWERS = (
    "This run kept no answers to single questions (answers.jsonl), as runs of earlier versions: there are no samples "
    "and no intervals."
)
HEADER = ("task", "role", "metric", "questions", "before", "after", "change", "95 % interval", "gained", "forgotten")
NOTES = """\
Higher is better. The H-score is the harmonic mean of the upstream mean (what the base model could do already) and the
downstream mean (what was to be learnt), 2 / (1 / upstream + 1 / downstream): high only if both are. Intervals hold the
true change in 95 of 100 evaluation sets of so many questions, which are the same before and after (Agresti and Min,
2005; of means over tasks Zou and Donner, 2008); bars in pictures are the same of a score (Wilson, 1927). They say
nothing of other seeds of training. Gained and forgotten: questions that score higher, or lower, after training."""
STYLE = f"""\
:root {{ color-scheme: light dark; {page_colours({})} }}
@media (prefers-color-scheme: dark) {{ :root {{ {page_colours(DARK)} }} }}
body {{ margin: 0 auto; max-width: 72rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif;
  background: var({VARIABLES[PAPER]}); color: var({VARIABLES[INK]}); }}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }} h2 {{ font-size: 1.25rem; margin: 2.2rem 0 .6rem; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .5rem; }}
.muted, figcaption, th {{ color: var({VARIABLES[MUTED]}); }} .small {{ font-size: .875rem; }}
.gained {{ color: var({VARIABLES[GAIN]}); }} .forgotten {{ color: var({VARIABLES[LOSS]}); }}
.scroll {{ overflow-x: auto; }} figure {{ margin: 1rem 0; overflow-x: auto; }}
svg {{ display: block; width: 100%; min-width: 40rem; height: auto; stroke-linejoin: round; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }}
th {{ font-weight: 600; }} .left {{ text-align: left; }} tr.mean td {{ font-weight: 600; }}
.samples {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .8rem; }}
.sample {{ border: 1px solid #8884; border-radius: .4rem; padding: .7rem; overflow-wrap: anywhere; }}
.sample img {{ display: block; max-width: 100%; min-height: 4.5rem; max-height: 10rem; margin: .3rem 0;
  image-rendering: auto; }} .sample p {{ margin: .25rem 0; white-space: pre-wrap; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; margin: 0; }}
dd {{ margin: 0; overflow-wrap: anywhere; }} dt {{ color: var({VARIABLES[MUTED]}); }}
pre {{ overflow-x: auto; font-size: .8rem; padding: .8rem; border: 1px solid #8884; border-radius: .4rem; }}
"""


def write_html(report: Report, folder: Path, path: Path | None = None) -> None:
    """Write the page, atomically.

    Args:
        report: the run.
        folder: of the run, where its answers and its configuration are, if it has them.
        path: of the page; None = in the folder.

    Raises:
        DowserError: the answers are damaged.
    """
    config = folder / CONFIG_NAME
    text = config.read_text(encoding="utf-8") if config.is_file() else None
    write_atomically(path or folder / HTML_NAME, html_page(report, read_answers(folder), text))


def html_page(report: Report, answers: Sequence[Row] = (), config: str | None = None) -> str:
    """The whole file.

    Args:
        report: the run.
        answers: to every question, before and after; none for runs of earlier versions.
        config: the text of config.yaml; None where it is not there.
    """
    title = escape(f"{report.run or report.method}: {headline(report)}")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts = [
        f"<h1>{escape(headline(report))}</h1>",
        f'<p class="muted">{escape(", ".join([*([report.run] if report.run else []), *settings(report)]))}</p>',
        picture(draw_report(report), "run", "Every task before and after, and the trade-off"),
        "<h2>Scores</h2>",
        score_table(report),
        f'<p class="muted small">{escape(NOTES)}</p>',
        *(f"<p>{escape(part)}</p>" for part in kept_parts(report.kept)),
        *curve_section(report),
        *drift_section(report),
        "<h2>Answers before and after</h2>",
        *(answer_sections(report, answers) if answers else [f'<p class="muted">{escape(NO_ANSWERS)}</p>']),
        "<h2>The run</h2>",
        definitions([*facts(report), *([("versions", versions)] if versions else [])]),
    ]
    if config is not None:
        parts.append(
            f"<h2>Configuration</h2>\n<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>"
        )
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def picture(figure: Figure, name: str, caption: str) -> str:
    """A figure as part of the page, with a text for those who do not see it."""
    svg = inline_svg(figure, name).replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    return f"<figure>{svg}</figure>"


def table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], num_left: int) -> str:
    """A table; each row is a class and cells in HTML, the first `num_left` columns are words."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=left' if place < num_left else ''}>{cell}</{tag}>" for place, cell in enumerate(row)
        )

    lines = [f"<tr{f' class={kind}' if kind else ''}>{cells('td', row)}</tr>" for kind, row in rows]
    return (
        f'<div class="scroll"><table>\n<thead><tr>{cells("th", list(map(escape, header)))}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody>\n</table></div>"
    )


def score_table(report: Report) -> str:
    """All tasks, downstream first, then the means and the H-score."""
    rows: list[tuple[str, Sequence[str]]] = []
    for role in ROLES:
        for name, task in report.of_role(role).items():
            asked = report.questions.get(name)
            counts = (None, None, None) if asked is None else (asked.count, asked.gained, asked.forgotten)
            number, gained, forgotten = (NOTHING if count is None else f"{count:,}" for count in counts)
            scores = (score_text(task.before), score_text(task.after), change_cell(task.change, task.gain))
            interval = interval_cell(report.interval(name, "change"))
            cells = (escape(name), role, escape(task.title), number, *scores, interval, gained, forgotten)
            rows.append(("", cells))
    means: tuple[tuple[str, Role | None], ...] = (
        ("upstream mean", "upstream"),
        ("downstream mean", "downstream"),
        ("H-score", None),
    )
    for name, one in means:
        mean = report.h_score if one is None else getattr(report, one)
        interval = NOTHING if one is None else interval_cell(report.role_interval(one, "change"))
        scores = (score_text(mean.before), score_text(mean.after), change_cell(mean.change))
        rows.append(("mean", (name, "", "", "", *scores, interval, "", "")))
    return table(HEADER, rows, 3)


def change_cell(change: float | None, gain: float | None = None) -> str:
    """A change in the colour of what it is: a gain where it is positive, or where `gain` is."""
    better = change if gain is None else gain
    kind = "" if better is None or abs(better) < 0.0005 else "gained" if better > 0 else "forgotten"
    text = change_text(change).replace("-", "\u2212") if change is not None else NOTHING
    return f'<span class="{kind}">{text}</span>' if kind else text


def interval_cell(interval: Interval | None) -> str:
    """The ends of an interval, as a cell."""
    if interval is None:
        return NOTHING
    return f"{interval.low:+.3f} \u2026 {interval.high:+.3f}".replace("-", "\u2212")


def curve_section(report: Report) -> list[str]:
    """The picture and the table of a curve, where there is one, and what a budget chose."""
    found: list[str] = []
    if has_picture(report):
        found.append("<h2>At every update ratio</h2>")
        found.append(picture(draw_curve_page(report), "curve", "What is learnt and kept at every update ratio"))
    return found + laid_out(partial(curve_parts, report))


def drift_section(report: Report) -> list[str]:
    """What is known of forgetting without upstream data."""
    parts = laid_out(partial(drift_parts, report))
    return ["<h2>Drift from the base, without data</h2>", *parts] if parts else []


def laid_out(parts: Callable[[Grid], list[str]]) -> list[str]:
    """Tables and sentences as parts of the page."""

    def grid(header: Sequence[str], rows: Sequence[Sequence[str]], aligns: str) -> str:
        return table(header, [("", list(map(escape, row))) for row in rows], aligns.index("r"))

    return [part if part.startswith("<") else f'<p class="small">{escape(part)}</p>' for part in parts(grid)]


def answer_sections(report: Report, answers: Sequence[Row]) -> list[str]:
    """A few answers of each task, in the order of the table."""
    found, by_task = [], of_tasks(answers)
    for name in (name for role in ROLES for name in report.of_role(role)):
        if name not in by_task:
            continue
        asked = report.questions.get(name)
        counts = (
            "" if asked is None or asked.gained is None else f"; {asked.gained} gained, {asked.forgotten} forgotten"
        )
        of = f"of {len(by_task[name])} questions{counts}"
        cards = [sample_card(answers[sample.place], sample.kind) for sample in samples(answers, name)]
        found.append(f'<h3>{escape(name)} <span class="muted small">{of}</span></h3>')
        found.append(f'<div class="samples">{"".join(cards)}</div>')
    return found


def sample_card(row: Row, kind: str) -> str:
    """One question with its pictures, what was right, and what was said before and after."""
    images = "".join(f'<img src="{escape(uri)}" alt="the image that was asked about">' for uri in pictures_of(row))
    accepted = " | ".join(dict.fromkeys(map(str, row["references"] or [NOTHING])))
    lines = [
        f'<p class="small"><b class="{kind}">{kind}</b> <span class="muted">{escape(str(row["id"]))}</span></p>',
        images,
        f"<p>{escape(str(row['question']))}</p>",
        f'<p class="small muted">right: {escape(accepted)}</p>',
        *(said(row, moment) for moment in ("before", "after")),
    ]
    return f'<div class="sample">{"".join(lines)}</div>'


def pictures_of(row: Row) -> list[str]:
    """The images of a line; nothing but data, whatever the file says."""
    found = row.get("pictures") or []
    return [uri for uri in found if isinstance(uri, str) and uri.startswith("data:image/")]


def said(row: Row, moment: str) -> str:
    """The answer at one moment, and whether it was right."""
    answer, score = row[moment], row.get(f"{moment}_score")
    if answer is None:
        return f'<p><span class="muted small">{moment}:</span> <span class="muted">not kept</span></p>'
    mark = "" if score is None else {1.0: RIGHT, 0.0: WRONG}.get(float(score), number_text(score))
    return f'<p><span class="muted small">{moment}:</span> {escape(str(answer)) or "(nothing)"} {mark}</p>'


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in entries)}</dl>"
