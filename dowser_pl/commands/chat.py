"""`python -m dowser_pl chat`: questions to a tuned model in the terminal, the base's answer beside its own."""

import argparse
import sys
from collections.abc import Sequence

from dowser_pl.cli.parser import LineParser
from dowser_pl.commands.output import answer


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = LineParser(
        prog="python -m dowser_pl chat",
        description="Ask a tuned model and its base the same questions, each by itself; answers are greedy.",
        epilog="example: python -m dowser_pl chat runs/quickstart --image digit.png --question 'which digit is it ?'",
    )
    parser.add_argument(
        "tuned",
        metavar="TUNED",
        help="folder of a run, model folder or hub id, patch, or adapter; patches and adapters take no second model "
        "in memory",
    )
    parser.add_argument(
        "--base", metavar="BASE", help="model folder, hub id, or embedded:world; default: what a run or a patch says"
    )
    parser.add_argument(
        "--image", metavar="FILE", action="append", default=[], help="picture before each question; again for more"
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        action="append",
        default=[],
        help="again for more; default: line by line",
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=int, default=128, help="longest answer in tokens (default: 128)"
    )
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--chat-template", metavar="TEMPLATE", help="instead of the run's, or the model's own")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status: 0, or 1 with one line on stderr if something is not as it should be."""
    options = build_parser().parse_args(sys.argv[1:] if argv is None else argv)

    def run() -> str:
        from dowser_pl.commands import chat_run  # noqa: PLC0415 - loads torch, which help and typos do without

        return chat_run.run(options)

    return answer(run)
