"""`python -m dowser_pl bench`: every method, tuned on validation data and measured over seeds."""

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from dowser_pl.bench import Bench, Settings, read_settings, write_outputs
from dowser_pl.bench.grid import Plan
from dowser_pl.bench.processes import Processes
from dowser_pl.cli.arguments import resolve_configs
from dowser_pl.cli.ending import FAILED, INTERRUPTED
from dowser_pl.cli.parser import LineParser
from dowser_pl.commands.merge import METHODS
from dowser_pl.commands.output import answer
from dowser_pl.errors import DowserError, nearest_of
from dowser_pl.files.class_path import class_named
from dowser_pl.reporting.provenance import provenance


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = LineParser(
        prog="python -m dowser_pl bench",
        description="Compare methods: each chooses its setting on validation data and is then measured over seeds on "
        "test data. What has finished is not run again; on a finished folder the tables are written anew.",
        epilog="example: python -m dowser_pl bench -c bench/quick",
    )
    parser.add_argument("-c", "--config", metavar="FILE", required=True, help="what to compare, such as bench/world")
    parser.add_argument("--json", metavar="PATH", type=Path, help="also write bench.json there")
    parser.add_argument(
        "--only", metavar="METHOD", nargs="+", default=[], help="run these (and what they come after) alone"
    )
    parser.add_argument(
        "--in",
        metavar="PLACE",
        nargs="+",
        default=[],
        dest="places",
        help="run these worlds, tasks and depths alone, such as outlier-digits-all or '*-zucap-*'",
    )
    parser.add_argument("--retry", action="store_true", help="also what failed before")
    parser.add_argument("--list", action="store_true", help="show what would be run, and run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Returns:
        The exit status: 0; 1 with one line on stderr if something is not as it should be, or if a cell failed; 130
        when interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(argv)
    failed: list[str] = []

    def run() -> str:
        file = Path(resolve_configs(["-c", options.config])[-1])
        settings = read_settings(file, METHODS)
        _check_classes(settings, file.name)
        bench = Bench(settings, options.only, options.places, _tell)
        if options.list:
            return "\n".join(bench.listing())
        bench.run(Processes(), options.retry)
        everything = Plan(bench.settings, tuple(bench.settings.methods.values()), bench.store)
        written = write_outputs(everything, provenance("bench", argv), options.json)
        failed.extend(cell.text for cell in bench.plan.cells() if bench.store.failure(cell))
        return f"Written: {', '.join(map(str, written))}"

    try:
        status = answer(run)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    if failed:
        print(f"{len(failed)} cells failed; see bench.md, and --retry", file=sys.stderr)
    return FAILED if failed else status


def _check_classes(settings: Settings, file: str) -> None:
    """Refuse a class that does not exist, or a grid over what it does not take, before anything runs."""
    entries = [entry for entry in settings.methods.values() if entry.method is not None]
    if not entries:
        return
    from dowser_pl import methods  # noqa: PLC0415 - the bench itself starts without torch

    known = {name: getattr(methods, name) for name in methods.__all__ if isinstance(getattr(methods, name), type)}
    for entry in entries:
        where = f"{file}: methods.{entry.name}"
        cls = class_named(str(entry.method), methods.Method, f"{where}.method", known)
        taken = inspect.signature(cls).parameters
        for name in dict(entry.grid[0]):
            if name != "lr" and name not in taken:
                raise DowserError(
                    f"{where}.grid: {entry.method} takes no {name!r}, expected one of: {', '.join(taken)}"
                    f"{nearest_of(name, {each: each for each in taken})}"
                )


def _tell(line: str) -> None:
    print(line, flush=True)
