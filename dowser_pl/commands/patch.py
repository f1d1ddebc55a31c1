"""`python -m dowser_pl patch`: sparse patches of models: look at them, put them on, take them off, make them."""

import argparse
import sys
from collections.abc import Callable, Sequence

from dowser_pl.cli.parser import LineParser
from dowser_pl.commands.output import answer

PROGRAM = "python -m dowser_pl patch"
ORDER = "Patches are applied in the order given; where two change the same entry, the later one wins."


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the options of `patch info`."""
    parser.add_argument("patch", metavar="PATCH", help="a patch.safetensors")
    parser.add_argument(
        "--json", metavar="PATH", help="also write all of it, tensor by tensor, with versions and machine"
    )


def add_apply(parser: argparse.ArgumentParser) -> None:
    """Add the options of `patch apply`."""
    parser.add_argument("base", metavar="BASE", help="model folder, 'embedded:world', or hub id that is in the cache")
    parser.add_argument("patches", metavar="PATCH", nargs="+", help="patch files, first to last")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="the new model folder")
    parser.add_argument(
        "--cast",
        action="store_true",
        help="convert every floating tensor of the new folder to the dtype of the patch even where that loses digits "
        "(float16 to bfloat16), which removing does not undo; a conversion that loses none (float16 to float32) needs "
        "no option and is undone",
    )
    parser.add_argument(
        "--layout",
        choices=("hf", "original"),
        help="write an NVILA as one folder (hf) or as VILA's three (original), if not as BASE has it",
    )


def add_remove(parser: argparse.ArgumentParser) -> None:
    """Add the options of `patch remove`."""
    parser.add_argument("folder", metavar="FOLDER", help="a folder that `patch apply` wrote")
    parser.add_argument(
        "patch", metavar="PATCH", nargs="?", help="the patch that is meant; must be the last one applied"
    )
    parser.add_argument("--out", metavar="FOLDER", help="write a new folder instead of replacing FOLDER")


def add_diff(parser: argparse.ArgumentParser) -> None:
    """Add the options of `patch diff`."""
    parser.add_argument("base", metavar="BASE", help="model folder, 'embedded:world', or hub id that is in the cache")
    parser.add_argument("tuned", metavar="TUNED", help="folder of the same model after tuning, in the same dtype")
    parser.add_argument("--out", metavar="PATCH", required=True, help="the patch file, such as patch.safetensors")
    parser.add_argument(
        "--update-ratio",
        metavar="R",
        type=float,
        help="of every matrix only this share of entries, those that moved furthest, and nothing but matrices",
    )


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `patch export`."""
    parser.add_argument(
        "run",
        metavar="RUN_OR_CKPT",
        help="folder of a run, one of its checkpoints, or a patch to write anew; with --layout a model folder",
    )
    parser.add_argument(
        "--out", metavar="PATH", required=True, help="the patch file, such as patch.safetensors, or the model folder"
    )
    parser.add_argument(
        "--format",
        choices=("patch", "sparse-update"),
        default="patch",
        help="sparse-update: of each tensor flat positions (int32) and values, as engines take updates in place",
    )
    parser.add_argument(
        "--layout",
        choices=("hf", "original"),
        help="write an NVILA as one folder (hf) or as VILA's three (original), every tensor byte for byte",
    )


# sub-verb -> (what it does, what --help adds, options); `run_<sub-verb>` in patch_verbs.py does it
SUB_VERBS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "info": ("say what a patch changes, and of which base", "", add_info),
    "apply": ("write a copy of a base model with patches applied", ORDER, add_apply),
    "remove": ("take the last patch off again, byte for byte", "Patches come off last to first.", add_remove),
    "export": (
        "make a patch out of a checkpoint, or of an NVILA its other layout",
        "The base is not needed; the run need not have ended.",
        add_export,
    ),
    "diff": ("make a patch out of a base and a tuned model", "", add_diff),
}


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb and its sub-verbs."""
    parser = LineParser(
        prog=PROGRAM,
        description="A patch is the sparse difference between a tuned model and its base, as one small file.",
        epilog=f"example: {PROGRAM} apply BASE runs/a/patch.safetensors --out models/a. {ORDER}",
    )
    parser.set_defaults(program=PROGRAM, order=ORDER)
    verbs = parser.add_subparsers(dest="sub_verb", metavar="SUB-VERB", required=True)
    for name, (purpose, rule, add_options) in SUB_VERBS.items():
        description = f"{purpose[0].upper()}{purpose[1:]}. {rule}".strip()
        add_options(verbs.add_parser(name, help=purpose, description=description))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status: 0, or 1 with one line on stderr if something is not as it should be."""
    argv = sys.argv[1:] if argv is None else argv
    options = build_parser().parse_args(argv)

    def run() -> str:
        from dowser_pl.commands import patch_verbs  # noqa: PLC0415 - loads torch, which `--help` does without

        said: str = getattr(patch_verbs, f"run_{options.sub_verb}")(options, argv)
        return said

    return answer(run)
