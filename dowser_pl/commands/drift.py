"""`python -m dowser_pl drift`: how far tuned models are from their base, on rows that the base writes itself."""

import argparse
import sys
from collections.abc import Sequence

from dowser_pl.cli.parser import LineParser
from dowser_pl.commands.output import answer


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = LineParser(
        prog="python -m dowser_pl drift",
        description="Measure without any data how far tuned models are from their base: the base writes rows, and the "
        "next tokens that both expect there are compared.",
        epilog="example: python -m dowser_pl drift embedded:world runs/quickstart",
    )
    parser.add_argument("base", metavar="BASE", help="model folder, hub id, or embedded:world")
    parser.add_argument(
        "tuned", metavar="TUNED", nargs="+", help="model folder or hub id, patch, adapter, or the folder of a run"
    )
    parser.add_argument(
        "--pictures", metavar="FOLDER", help="pictures such as those of the task, which the base writes rows after"
    )
    parser.add_argument("--per-source", metavar="N", type=int, default=32, help="rows of each source (default: 32)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the rows")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="rows a forward pass (default: 16)")
    parser.add_argument(
        "--moved",
        metavar="PICTURE",
        help="also measure where each model moved, matrix by matrix, and how far the output of each decoder layer "
        "drifted; drawn in this file, .png, .pdf or .svg. Takes the decoder of the base once more, in host memory",
    )
    parser.add_argument("--json", metavar="PATH", help="also write the numbers, with versions and machine")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status: 0, or 1 with one line on stderr if something is not as it should be."""
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(argv)

    def run() -> str:
        from dowser_pl.commands import drift_run  # noqa: PLC0415 - loads torch, which help and typos do without

        return drift_run.run(options, argv)

    return answer(run)
