"""The curve of one run as a table, and in words what a budget chose."""

from dowser_pl.reporting.budget import BudgetChoice
from dowser_pl.reporting.grid import Grid
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.wording import lost_text, number_text, score_text

HEADER = ("ratio", "downstream", "upstream", "H-score", "drop")
ALIGNS = "lrrrr"
KNEE_NOTE = (
    "Knee: of the upstream mean over the downstream mean the point farthest above the line from the base model to the "
    "trained one."
)


def curve_parts(report: Report, grid: Grid) -> list[str]:
    """The table, laid out by `grid`, and the sentences under it; empty where neither curve nor budget is there.

    Drop is the upstream mean lost on the data of the report; where a budget chose, the last column is the same on the
    data to choose on.
    """
    parts = []
    if report.curve:
        chosen = report.budget is not None
        header = (*HEADER, "drop when choosing", "") if chosen else (*HEADER, "")
        parts.append(grid(header, curve_rows(report), ALIGNS + ("rl" if chosen else "l")))
        if report.knee is not None:
            parts.append(KNEE_NOTE)
    if report.budget is not None:
        parts.append(budget_text(report.budget))
    return parts


def curve_rows(report: Report) -> list[tuple[str, ...]]:
    """One row for each ratio, the base model first; the last cell marks knee and choice."""
    budget, base, rows = report.budget, report.upstream.before, []
    for means in report.curve_means:
        drop = None if means.upstream is None or base is None else base - means.upstream
        scores = map(score_text, (means.downstream, means.upstream, means.h_score))
        apart = [] if budget is None else [lost_text(budget.drops.get(means.update_ratio))]
        ratio = number_text(means.update_ratio)
        rows.append((ratio, *scores, lost_text(drop), *apart, ", ".join(marks(report, means.update_ratio))))
    return rows


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
    asked = f"at most {number_text(budget.max_upstream_drop)} of the upstream mean may be lost"
    lost = f"which {'gained' if budget.drop < 0 else 'lost'} {score_text(abs(budget.drop))}"
    apart = "data set apart to choose on, not the data of this report"
    if budget.kept:
        return f"Budget: {asked}. Chosen: update ratio {number_text(budget.update_ratio)}, {lost} on {apart}."
    return (
        f"WARNING: the budget is not kept: {asked}, and every measured update ratio lost more. Chosen: the smallest, "
        f"{number_text(budget.update_ratio)}, {lost} on {apart}."
    )
