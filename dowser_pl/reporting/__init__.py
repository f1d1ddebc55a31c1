"""What a run learnt and forgot: report.json, tables and pictures. Needs neither torch nor lightning."""

from dowser_pl.reporting.comparison import markdown_comparison, text_comparison
from dowser_pl.reporting.curve import CurvePoint, knee
from dowser_pl.reporting.drift import DriftScore, ReportedDrift
from dowser_pl.reporting.folder import read_report, write_report
from dowser_pl.reporting.html import write_html
from dowser_pl.reporting.kept import KeptModel, Validated
from dowser_pl.reporting.plots.curve import plot_curve
from dowser_pl.reporting.plots.run import plot_report
from dowser_pl.reporting.plots.runs import plot_comparison
from dowser_pl.reporting.protocols import check_protocols
from dowser_pl.reporting.report import Report
from dowser_pl.reporting.scalars import scalars
from dowser_pl.reporting.scores import (
    LOWER_IS_BETTER,
    BeforeAfter,
    BudgetChoice,
    Counts,
    Questions,
    Seconds,
    TaskScore,
    comparable,
    h_score,
    role_means,
)
from dowser_pl.reporting.table import markdown_page, markdown_table, text_table

__all__ = [
    "LOWER_IS_BETTER",
    "BeforeAfter",
    "BudgetChoice",
    "Counts",
    "CurvePoint",
    "DriftScore",
    "KeptModel",
    "Questions",
    "Report",
    "ReportedDrift",
    "Seconds",
    "TaskScore",
    "Validated",
    "check_protocols",
    "comparable",
    "h_score",
    "knee",
    "markdown_comparison",
    "markdown_page",
    "markdown_table",
    "plot_comparison",
    "plot_curve",
    "plot_report",
    "read_report",
    "role_means",
    "scalars",
    "text_comparison",
    "text_table",
    "write_html",
    "write_report",
]
