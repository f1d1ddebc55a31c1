"""The report of one run as tables of strings: for the terminal (100 columns) and as Markdown.

How numbers are written is decided here, the same in the terminal, in Markdown and in plots.
"""

import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

from dowser_pl.reporting.drift import (
    DRIFT_ALIGNS,
    DRIFT_HEADER,
    NO_DRIFT,
    ReportedDrift,
    drift_note,
    drift_rows,
    drift_text,
    kl_text,
)
from dowser_pl.reporting.kept import kept_parts
from dowser_pl.reporting.protocols import protocol_facts
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scores import ROLES, BeforeAfter, BudgetChoice, TaskScore

GAP = "  "
Grid = Callable[[Sequence[str], Sequence[Sequence[str]], str], str]  # lays out header, rows and aligns
RULE: tuple[str, ...] = ()  # a row without cells: a line across the table


def width(text: str) -> int:
    """Columns a text takes in a terminal: East Asian wide characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def shorten(text: str, limit: int) -> str:
    """Cut a text to a number of columns; of one that is too long the middle gives way to "...".

    So that of names with the same start, or the same end, both stay to be told apart by the other.
    """
    if width(text) <= limit:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
        if width(short) <= limit:
            return short
    return "..."


def model_name(model: str, limit: int) -> str:
    """A hub id as it is, of a longer path the last part; of a folder of the hub's cache the id that it holds."""
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", model + "/")
    if cached:
        model = f"{cached[1]}/{cached[2]}"
    if width(model) <= limit:
        return model
    return shorten(re.split(r"[/\\]", model.rstrip("/\\"))[-1], limit)


def padded(text: str, columns: int, align: str) -> str:
    """Fill with spaces on the right ("l") or on the left ("r")."""
    space = " " * (columns - width(text))
    return text + space if align == "l" else space + text


def text_grid(header: Sequence[str], rows: Sequence[Sequence[str]], aligns: str, limit: int = 100) -> str:
    """Columns side by side under a rule; the first column gives way when the table is wider than `limit`.

    Args:
        header: one title per column.
        rows: cells, one per column; `RULE` draws a line.
        aligns: one of "l" and "r" per column.
        limit: width in columns.
    """
    cells = [header, *(row for row in rows if row)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(header))]
    others = sum(widths[1:]) + len(GAP) * (len(widths) - 1)
    widths[0] = max(min(widths[0], limit - others), 4)
    rule = "-" * (widths[0] + others)

    def line(row: Sequence[str]) -> str:
        fitted = [shorten(row[0], widths[0]), *row[1:]]
        return GAP.join(map(padded, fitted, widths, aligns)).rstrip()

    return "\n".join([line(header), rule, *(line(row) if row else rule for row in rows)])


def markdown_grid(header: Sequence[str], rows: Sequence[Sequence[str]], aligns: str) -> str:
    """A GitHub-flavoured table; rules are left out, "|" in cells is escaped."""
    marks = ["---:" if align == "r" else ":---" for align in aligns]
    lines = [header, marks, *(row for row in rows if row)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


NOTHING = "-"
SEPARATOR = "  \u00b7  "
SHORTEST_MODEL = 24
UNITS = ("KiB", "MiB", "GiB", "TiB")


def score_text(score: float | None) -> str:
    """Three decimals; "-" where there is no score."""
    return NOTHING if score is None else f"{score:.3f}"


def change_text(change: float | None) -> str:
    """Three decimals with sign; what rounds to zero has none."""
    if change is None:
        return NOTHING
    return f"{change:+.3f}" if abs(change) >= 0.0005 else "0.000"


def number_text(number: float | None) -> str:
    """Shortest form of a setting: 0.1, 6e-05, 0.003."""
    return NOTHING if number is None else f"{number:g}"


def seconds_text(seconds: float) -> str:
    """`6.1 s`, `4 min 05 s` or `2 h 03 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(num_bytes: int | None) -> str:
    """Binary units with one decimal: `512.0 MiB`."""
    if num_bytes is None:
        return NOTHING
    if num_bytes < 1024:
        return f"{num_bytes} B"
    power = min((num_bytes.bit_length() - 1) // 10, len(UNITS))
    return f"{num_bytes / 1024**power:.1f} {UNITS[power - 1]}"


def share_text(part: int, whole: int) -> str:
    """`97.2 %`; "-" of nothing."""
    return NOTHING if whole == 0 else f"{100 * part / whole:.1f} %"


def lost_text(lost: float | None) -> str:
    """What was lost, as a positive number; negative where it was gained."""
    return change_text(lost).lstrip("+")


def ratio_text(report: Report) -> str:
    """The trained update ratio, and the one that a budget kept of it: `0.1, kept 0.05`."""
    trained = number_text(report.update_ratio)
    return trained if report.budget is None else f"{trained}, kept {number_text(report.budget.update_ratio)}"


def settings(report: Report) -> list[str]:
    """The settings that a reader needs beside the numbers, for a heading."""
    parts = [f"update ratio {ratio_text(report)}"] if report.update_ratio is not None else []
    if report.learning_rate is not None:
        parts.append(f"learning rate {number_text(report.learning_rate)}")
    if report.steps is not None:
        parts.append(f"{report.steps:,} steps")
    parts.append(f"seed {report.seed}")
    if report.model is not None:
        parts.append(report.model)
    return parts


def settings_line(report: Report, limit: int) -> str:
    """The settings on one line; where it is too long the path of the model gives way first, all but its last part."""
    parts = settings(report)
    if report.model is not None:
        rest = width(SEPARATOR.join([*parts[:-1], ""]))
        parts[-1] = model_name(report.model, max(limit - rest, SHORTEST_MODEL))
    return shorten(SEPARATOR.join(parts), limit)


def facts(report: Report) -> list[tuple[str, str]]:
    """What follows the scores: counts of entries, time, memory, diagnostics."""
    frozen, trainable, seconds = report.frozen, report.trainable, report.seconds
    warning = " (WARNING: a frozen entry must not change)" if frozen.changed else ""
    stages = f"probe {seconds_text(seconds.probe)}, fit {seconds_text(seconds.fit)}"
    return [
        ("frozen entries", f"{frozen.entries:,}, changed {frozen.changed:,}{warning}"),
        (
            "trainable entries",
            f"{trainable.entries:,}, changed {trainable.changed:,}"
            f" ({share_text(trainable.changed, trainable.entries)})",
        ),
        *_digest_fact(report),
        *protocol_facts(report),
        ("time", f"{stages}, evaluate {seconds_text(seconds.evaluate)}"),
        ("peak memory", bytes_text(report.peak_memory_bytes)),
        *((name, number_text(value)) for name, value in report.diagnostics.items()),
    ]


def _digest_fact(report: Report) -> list[tuple[str, str]]:
    """The content hash of frozen entries, shortened; both if they differ."""
    values = list(dict.fromkeys(value[:16] for value in report.frozen_digest.values()))
    return [("frozen content", f"sha256 {', then '.join(values)}")] if values else []


CURVE_HEADER = ("ratio", "downstream", "upstream", "H-score", "drop")
CURVE_ALIGNS = "lrrrr"
KNEE_NOTE = (
    "Knee: of the upstream mean over the downstream mean the point farthest above the line from the base model to the "
    "trained one."
)


def curve_parts(report: Report, grid: Grid) -> list[str]:
    """The table, laid out by `grid`, and the sentences under it; empty where neither curve nor budget is there.

    Drop is the upstream mean lost on the data of the report; where a budget chose, what it looked at stands beside it.
    """
    parts = []
    if report.curve:
        apart = [name for name, _ in budget_columns(report.budget)]
        header = (*CURVE_HEADER, *apart, "")
        parts.append(grid(header, curve_rows(report), CURVE_ALIGNS + "r" * len(apart) + "l"))
        if report.knee is not None:
            parts.append(KNEE_NOTE)
    if report.budget is not None:
        parts.append(budget_text(report.budget))
    return parts


def curve_rows(report: Report) -> list[tuple[str, ...]]:
    """One row for each ratio, the base model first; the last cell marks knee and choice."""
    base, rows = report.upstream.before, []
    for means in report.curve_means:
        drop = None if means.upstream is None or base is None else base - means.upstream
        scores = map(score_text, (means.downstream, means.upstream, means.h_score))
        apart = [told(means.update_ratio) for _, told in budget_columns(report.budget)]
        ratio = number_text(means.update_ratio)
        rows.append((ratio, *scores, lost_text(drop), *apart, ", ".join(marks(report, means.update_ratio))))
    return rows


def budget_columns(budget: BudgetChoice | None) -> list[tuple[str, Callable[[float], str]]]:
    """What a budget looked at: title of a column, and its cell at a ratio."""
    if budget is None:
        return []
    drops, drifts = budget.drops, budget.drifts
    told: list[tuple[str, Callable[[float], str]]] = []
    if budget.max_upstream_drop is not None:
        told.append(("drop when choosing", lambda ratio: lost_text(drops.get(ratio))))
    if budget.max_drift is not None:
        told.append(("KL to the base", lambda ratio: kl_text(drifts[ratio]) if ratio in drifts else NOTHING))
    return told


def marks(report: Report, ratio: float) -> list[str]:
    """What one ratio of the curve is: "base model", "knee", "chosen", several of them or none."""
    found = ["base model"] if ratio == 0 else []
    if ratio == report.knee:
        found.append("knee")
    if report.budget is not None and ratio == report.budget.update_ratio:
        found.append("chosen")
    return found


def budget_text(budget: BudgetChoice) -> str:
    """What was asked, what was chosen, on which data."""
    asked, found = [], []
    if budget.max_upstream_drop is not None:
        drop = budget.drops[budget.update_ratio]
        asked.append(f"at most {number_text(budget.max_upstream_drop)} of the upstream mean may be lost")
        lost = f"{'gained' if drop < 0 else 'lost'} {score_text(abs(drop))}"
        found.append(f"{lost} on data set apart to choose on, not the data of this report")
    if budget.max_drift is not None:
        asked.append(f"KL to the base may be at most {number_text(budget.max_drift)}")
        drift = kl_text(budget.drifts[budget.update_ratio])
        found.append(f"has KL {drift} to the base on rows that the base wrote itself")
    wanted, chosen = " and ".join(asked), number_text(budget.update_ratio)
    if budget.kept:
        return f"Budget: {wanted}. Chosen: update ratio {chosen}, which {' and '.join(found)}."
    return (
        f"WARNING: the budget is not kept: {wanted}, and every measured update ratio lost more. Chosen: the smallest, "
        f"{chosen}, which {' and '.join(found)}."
    )


def drift_parts(report: Report, grid: Grid) -> list[str]:
    """What is known of forgetting beside upstream tasks: a table by source, and a sentence that is always true."""
    upstream = bool(report.of_role("upstream"))
    if report.drift is None:
        return [] if upstream else [NO_DRIFT]
    several = len(report.drift.sources) > 1
    rows = [grid(DRIFT_HEADER, drift_rows(report.drift), DRIFT_ALIGNS)] if several else []
    return [*rows, drift_note(report.drift, upstream)]


def drift_table(drift: ReportedDrift) -> str:
    """The drift in one line, and below it by what rows were written after; no newline at the end."""
    return f"{drift_text(drift)}\n\n{text_grid(DRIFT_HEADER, drift_rows(drift), DRIFT_ALIGNS)}"


HEADER = ("task", "role", "metric", "before", "after", "change")
ALIGNS = "lllrrr"
_NARROWEST, _WIDEST = 80, 100


def terminal_width() -> int:
    """The columns of the terminal, from 80 to 100; 100 where there is none, as in a file."""
    if not sys.stdout.isatty():
        return _WIDEST
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))


def numbers(score: TaskScore | BeforeAfter) -> tuple[str, str, str]:
    """The cells before, after, change."""
    return score_text(score.before), score_text(score.after), change_text(score.change)


def task_rows(report: Report) -> list[tuple[str, ...]]:
    """Downstream tasks, then upstream tasks, in the order of the run."""
    return [
        (name, task.role, task.title, *numbers(task)) for role in ROLES for name, task in report.of_role(role).items()
    ]


def mean_rows(report: Report) -> list[tuple[str, ...]]:
    """The means and the trade-off; "-" where a role has no task."""
    return [
        ("upstream mean", "", "", *numbers(report.upstream)),
        ("downstream mean", "", "", *numbers(report.downstream)),
        ("H-score", "", "", *numbers(report.h_score)),
    ]


def text_table(report: Report) -> str:
    """What a run prints at its end, no line wider than the terminal or 100 columns; no newline at the end."""
    limit = terminal_width()
    heading = textwrap.fill(", ".join([report.method, *settings(report)]), limit, subsequent_indent="  ")
    grid = text_grid(HEADER, [*task_rows(report), RULE, *mean_rows(report)], ALIGNS, limit)
    names = max(len(name) for name, _ in facts(report)) + 2
    lines = (
        textwrap.fill(f"{name:<{names}}{value}", limit, subsequent_indent=" " * names, break_long_words=False)
        for name, value in facts(report)
    )
    narrow = partial(text_grid, limit=limit)
    parts = map(wrapped, [*kept_parts(report.kept), *curve_parts(report, narrow), *drift_parts(report, narrow)])
    return "\n\n".join([heading, grid, *parts, "\n".join(lines)])


def wrapped(part: str) -> str:
    """A sentence as lines that fit the terminal; a table as it is."""
    return part if "\n" in part else textwrap.fill(part, terminal_width())


def markdown_table(report: Report) -> str:
    """The same as Markdown, without a heading."""
    means = [tuple(f"**{cell}**" if cell else "" for cell in row) for row in mean_rows(report)]
    grid = markdown_grid(HEADER, [*task_rows(report), *means], ALIGNS)
    lines = (f"- {name}: {value}" for name, value in facts(report))
    parts = [*kept_parts(report.kept), *curve_parts(report, markdown_grid), *drift_parts(report, markdown_grid)]
    return "\n\n".join([grid, *parts, "\n".join(lines)])


def markdown_page(
    report: Report, picture: str | None = None, curve_picture: str | None = None, samples: str = ""
) -> str:
    """The contents of report.md: heading, settings, pictures, tables, answers, versions.

    Args:
        report: the run.
        picture: file name of the plot beside it, if there is one.
        curve_picture: file name of the plot of the curve, if there is one.
        samples: a section with answers of the run.
    """
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts = [f"# {report.run or report.method}", ", ".join([f"**{report.method}**", *settings(report)])]
    if picture:
        parts.append(f"![before and after, task by task, and the trade-off]({picture})")
    if curve_picture:
        parts.append(f"![what is learnt and kept at every update ratio]({curve_picture})")
    parts.append(markdown_table(report))
    if samples:
        parts.append(samples)
    if versions:
        parts.append(f"Versions: {versions}")
    return "\n\n".join(parts) + "\n"
