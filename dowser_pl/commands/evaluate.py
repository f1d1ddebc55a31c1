"""`python -m dowser_pl evaluate`: score any models on the same tasks, without training, and compare them."""

import argparse
import sys
from collections.abc import Sequence

from dowser_pl.cli.arguments import resolve_configs
from dowser_pl.cli.parser import LineParser
from dowser_pl.cli.spelling import check_spelling
from dowser_pl.commands.harness import TERMS, add_terms
from dowser_pl.commands.output import answer


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = LineParser(
        prog="python -m dowser_pl evaluate",
        description="Score models on the same tasks and compare each with the first. What a killed evaluation has "
        "answered is kept, task by task: the same command goes on with the others.",
        epilog="example: python -m dowser_pl evaluate --model runs/mine -c eval/upstream_llava --data.root /data --out "
        "runs/eval   Other options are those of validate (python -m dowser_pl validate --help), or of lmms-eval",
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
    parser.add_argument(
        "--engine", choices=["own", "lmms-eval"], default="own", help="which program asks and scores (default: own)"
    )
    group = add_terms(parser, "with --engine lmms-eval")
    group.add_argument("--tasks", nargs="+", metavar="TASK", help="names of tasks that lmms-eval has, or finds")
    group.add_argument("--python", metavar="PATH", help="the interpreter that has lmms_eval (default: this one)")
    group.add_argument(
        "--as", metavar="NAME", dest="as_", help="lmms-eval's name for what loads the models (default: by their family)"
    )
    group.add_argument("--model_args", metavar="ARGS", help="more of lmms-eval's model_args, such as dtype=bfloat16")
    return parser


def check_engine(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]) -> None:
    """End with one line where options do not go together with the engine."""
    own = options.engine == "own"
    names = (*TERMS, "tasks", "python", "as_", "model_args")
    given = [f"--{name.strip('_').replace('out_of', 'out-of')}" for name in names if getattr(options, name) is not None]
    if own and given:
        parser.error(f"{given[0]} is for --engine lmms-eval")
    if not own and (options.config or not options.tasks):
        parser.error("--engine lmms-eval is told its tasks by --tasks, and has no -c")
    if not own and "--output_path" in rest:
        parser.error("--output_path of lmms-eval is below --out")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status: 0, or 1 with one line on stderr if something is not as it should be."""
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    check_engine(parser, options, rest)

    def run() -> str:
        if options.engine == "lmms-eval":
            from dowser_pl.commands import evaluate_lmms_eval  # noqa: PLC0415 - loads torch, as below

            return evaluate_lmms_eval.run(options, rest, argv)
        configs = [word for name in options.config for word in ("-c", name)]
        arguments = resolve_configs([*configs, *rest])
        check_spelling("validate", arguments)
        from dowser_pl.commands import evaluate_run  # noqa: PLC0415 - loads torch, which help and typos do without

        return evaluate_run.run(options, arguments, argv)

    return answer(run)
