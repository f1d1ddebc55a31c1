"""`python -m dowser_pl report`: print the table of one run, compare several, or what other programs measured."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dowser_pl.cli.parser import LineParser
from dowser_pl.commands.harness import TERMS, add_terms, files_compared, terms_of
from dowser_pl.commands.output import answer
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import write_atomically
from dowser_pl.reporting import (
    Report,
    check_protocols,
    markdown_comparison,
    markdown_page,
    plot_comparison,
    plot_curve,
    plot_report,
    text_comparison,
    text_table,
    write_html,
)
from dowser_pl.reporting.evaluation import Evaluation
from dowser_pl.reporting.evaluation_table import evaluation_page, evaluation_text
from dowser_pl.reporting.named_runs import read_evaluation, read_runs
from dowser_pl.reporting.provenance import provenance


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = LineParser(
        prog="python -m dowser_pl report",
        description="Show what a run learnt and forgot, or compare several runs.",
        epilog="example: python -m dowser_pl report runs/quickstart runs/full --plot comparison.png",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run or of an evaluation, or its JSON file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown instead of plain text")
    parser.add_argument("--json", metavar="PATH", help="also write the numbers, with versions and machine")
    parser.add_argument("--plot", metavar="PATH", help="also draw the picture (.png, .pdf or .svg)")
    parser.add_argument(
        "--plot-curve", metavar="PATH", help="also draw what one run learnt and kept at every update ratio"
    )
    parser.add_argument("--dark", action="store_true", help="draw for dark slides")
    parser.add_argument(
        "--html", metavar="PATH", help="also write one run as a page: tables, pictures, answers before and after"
    )
    group = add_terms(parser, "what lmms-eval or VLMEvalKit measured")
    group.add_argument(
        "--base", nargs="+", metavar="FILE", help="their result files of the base model, or the folder that has them"
    )
    group.add_argument(
        "--tuned", nargs="+", action="append", metavar="FILE", help="those of a tuned model; again for more models"
    )
    return parser


def measured_elsewhere(options: argparse.Namespace) -> Evaluation | None:
    """The evaluation that result files of other programs give; None where runs are named.

    Raises:
        DowserError: both are named, or neither, or the files cannot be compared.
    """
    if not (options.base or options.tuned):
        if given := [name for name in TERMS if getattr(options, name)]:
            raise DowserError(
                f"--{given[0].replace('_', '-')} is for files of other programs: --base and --tuned name them"
            )
        if not options.runs:
            raise DowserError("there is nothing to report. Fix: name a run, or files by --base and --tuned")
        return None
    if options.runs or not (options.base and options.tuned) or options.html:
        raise DowserError("--base and --tuned go together, without runs and without --html")
    return files_compared(options.base, options.tuned, terms_of(options))


def table(evaluation: Evaluation | None, runs: Sequence[str], reports: Sequence[Report], markdown: bool) -> str:
    """One run or evaluation in full, several side by side."""
    if evaluation is not None:
        return evaluation_page(evaluation).rstrip() if markdown else evaluation_text(evaluation)
    if len(runs) == 1:
        return markdown_page(reports[0]).rstrip() if markdown else text_table(reports[0])
    return markdown_comparison(reports) if markdown else text_comparison(reports)


def write_json(path: str, argv: Sequence[str], found: Sequence[tuple[str, Report]]) -> None:
    """The printed numbers and where they come from."""
    entries = [{"path": run, **report.to_dict()} for run, report in found]
    content = provenance("report", argv) | {"runs": entries}
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def draw(path: str, reports: Sequence[Report], dark: bool) -> None:
    """The picture of one run, or of several on the trade-off plane."""
    if len(reports) == 1:
        plot_report(reports[0], path, dark)
    else:
        plot_comparison(reports, path, dark)


def draw_curve(path: str, reports: Sequence[Report], dark: bool) -> None:
    """The picture of the curve of one run.

    Raises:
        DowserError: several runs, or one without a curve.
    """
    if len(reports) > 1:
        raise DowserError(f"--plot-curve draws the curve of one run, got {len(reports)} runs; use --plot to compare.")
    plot_curve(reports[0], path, dark)


def write_page(path: str, runs: Sequence[str], reports: Sequence[Report]) -> None:
    """One run as a page, with the answers and the configuration that lie beside its report.json.

    Raises:
        DowserError: several runs, or damaged answers.
    """
    if len(reports) > 1:
        raise DowserError(f"--html writes the page of one run, got {len(reports)} runs; use --plot to compare.")
    run = Path(runs[0])
    write_html(reports[0], run if run.is_dir() else run.parent, Path(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status: 0, or 1 with one line on stderr if a file is not as it should be."""
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(argv)

    def run() -> str:
        evaluation = measured_elsewhere(options)
        if evaluation is None:
            found = read_runs(options.runs)
            evaluation = read_evaluation(options.runs[0]) if len(options.runs) == 1 else None
        else:
            found = [(each.run or "", each) for each in evaluation.reports()]
        reports = [report for _, report in found]
        check_protocols(reports)
        if options.json:
            write_json(options.json, argv, found)
        if options.plot:
            draw(options.plot, reports, options.dark)
        if options.plot_curve:
            draw_curve(options.plot_curve, reports, options.dark)
        if options.html:
            write_page(options.html, options.runs, reports)
        return table(evaluation, options.runs, reports, options.markdown)

    return answer(run)
