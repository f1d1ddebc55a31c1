"""`python -m dowser_pl evaluate`: score any models on the same tasks, without training, and compare them."""

import argparse
import sys
from collections.abc import Sequence

from dowser_pl.cli.arguments import resolve_configs
from dowser_pl.cli.parser import LineParser
from dowser_pl.cli.spelling import check_spelling
from dowser_pl.commands.output import answer


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = LineParser(
        prog="python -m dowser_pl evaluate",
        description="Score models on the same tasks and compare each with the first. What a killed evaluation has "
        "answered is kept, task by task: the same command goes on with the others.",
        epilog="example: python -m dowser_pl evaluate --model runs/mine -c eval/upstream_llava --data.root /data --out "
        "runs/eval   Other options are those of validate: python -m dowser_pl validate --help",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        action="append",
        required=True,
        help="model folder, hub id, the folder of a run, a patch, an adapter, or BASE+PATCH; again for more. A run, "
        "patch or adapter alone is compared with its base",
    )
    parser.add_argument(
        "-c", "--config", metavar="NAME", action="append", default=[], help="the tasks, as for fit; again for more"
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="for evaluation.json, evaluation.md and answers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status: 0, or 1 with one line on stderr if something is not as it should be."""
    argv = sys.argv[1:] if argv is None else argv
    options, rest = build_parser().parse_known_args(argv)

    def run() -> str:
        configs = [word for name in options.config for word in ("-c", name)]
        arguments = resolve_configs([*configs, *rest])
        check_spelling("validate", arguments)
        from dowser_pl.commands import evaluate_run  # noqa: PLC0415 - loads torch, which help and typos do without

        return evaluate_run.run(options, arguments, argv)

    return answer(run)
