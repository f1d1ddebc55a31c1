"""`python -m dowser_pl merge`: a tuned model, or several, merged with their base after training."""

import argparse
import sys
from collections.abc import Sequence

from dowser_pl.cli.parser import LineParser
from dowser_pl.commands.output import answer
from dowser_pl.errors import DowserError, nearest_of

PROGRAM = "python -m dowser_pl merge"
# method -> what it does, and its options with their defaults, as `dowser_pl.methods` has them
METHODS: dict[str, tuple[str, dict[str, bool | int | float | str]]] = {
    "Dare": (
        "keep a random share of the moves, enlarged (arXiv 2311.03099)",
        {"update_ratio": 0.1, "rescale": True, "scale": 1.0, "seed": 0},
    ),
    "FAPM": (
        "keep moves that are large, and small beside their weight (arXiv 2509.08255)",
        {"update_ratio": 0.1, "scope": "matrix"},
    ),
    "Grafting": ("keep the largest moves (arXiv 2302.06600)", {"update_ratio": 0.1, "scope": "model"}),
    "ModelTailor": ("stitch the patches of its runs, one a task (arXiv 2402.12048)", {"overlap": "sum"}),
    "Ties": (
        "keep the largest moves, elect signs, average what agrees (arXiv 2306.01708)",
        {"update_ratio": 0.2, "scale": 1.0, "undecided": "base", "scope": "model"},
    ),
    "Wise": ("go part of the way from base to tuned (arXiv 2109.01903)", {"alpha": 0.5}),
}


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb, but for those of the method."""
    parser = LineParser(
        prog=PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Merge a tuned model, or several, with the base they were tuned from, tensor by tensor.\n"
        "Changed matrices are merged; changed tensors that are no matrices are the tuned model's.",
        epilog="\n".join(
            [
                "methods, and their options with defaults:",
                *_method_lines(),
                "",
                f"example: {PROGRAM} --base BASE --tuned runs/full/model --method Dare --out models/dare",
            ]
        ),
    )
    named = "model folder, 'embedded:world', or hub id that is in the cache"
    parser.add_argument("--base", metavar="BASE", required=True, help=named)
    parser.add_argument(
        "--tuned",
        metavar="TUNED",
        action="append",
        required=True,
        help="the same model after tuning, as BASE or as a run, of which the patch is taken, or as a patch; again for "
        "more",
    )
    parser.add_argument("--method", metavar="METHOD", required=True, help=f"one of {', '.join(METHODS)}; see below")
    parser.add_argument("--out", metavar="PATH", required=True, help="the new model folder, or the patch file")
    parser.add_argument(
        "--patch", action="store_true", help="write a patch of the base; so does an --out that ends in .safetensors"
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        default=[],
        help="merge only matrices whose name matches, such as '*language_model*'; again for more",
    )
    parser.add_argument(
        "--others",
        choices=("tuned", "base"),
        default="tuned",
        help="whose changed tensors to take where none are merged: the tuned model's (the default; of several, the "
        "mean of those that changed it) or the base's",
    )
    parser.add_argument(
        "--cast",
        action="store_true",
        help="convert every floating tensor of the base to the dtype of the tuned models even where that loses digits "
        "(float32 to bfloat16); a conversion that loses none needs no option",
    )
    parser.add_argument("--json", metavar="PATH", help="also write the numbers, with versions and machine")
    parser.set_defaults(program=PROGRAM, methods=tuple(METHODS))
    return parser


def method_options(name: str, rest: Sequence[str]) -> dict[str, bool | int | float | str]:
    """The options of a method out of `--method.NAME VALUE` or `--method.NAME=VALUE`.

    Raises:
        DowserError: if the name is a slip of one of ours, if there is no such option, or it takes no such value.
    """
    if name not in METHODS and (hint := nearest_of(name, {each: each for each in METHODS})):
        raise DowserError(f"got --method {name}, expected one of: {', '.join(METHODS)}{hint} See {PROGRAM} --help")
    defaults, found = METHODS[name][1] if name in METHODS else {}, {}
    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--method.") else [word])]
    if len(words) % 2 or not all(word.startswith("--method.") for word in words[::2]):
        odd = next((word for word in words[::2] if not word.startswith("--method.")), words[-1] if words else "")
        options = [each for action in build_parser()._actions for each in action.option_strings]
        hint = nearest_of(odd, {each: each for each in options})
        raise DowserError(f"got {odd!r}, expected options of the method as --method.OPTION VALUE; see --help{hint}")
    for word, value in zip(words[::2], words[1::2], strict=True):
        option = word.removeprefix("--method.")
        if option not in defaults:
            known = ", ".join(f"--method.{each}" for each in defaults) or "none here"
            hint = nearest_of(option, {each: f"--method.{each}" for each in defaults})
            raise DowserError(f"{name} has no option {word}, expected one of: {known}{hint}")
        found[option] = _value(word, value, defaults[option])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status: 0, or 1 with one line on stderr if something is not as it should be."""
    argv = sys.argv[1:] if argv is None else argv
    options, rest = build_parser().parse_known_args(argv)

    def run() -> str:
        settings = method_options(options.method, rest)
        from dowser_pl.commands import merge_run  # noqa: PLC0415 - loads torch, which help and typos do without

        return merge_run.run(options, settings, argv)

    return answer(run)


def _method_lines() -> list[str]:
    lines = []
    for name, (purpose, options) in METHODS.items():
        lines.append(f"  {name:<10}{purpose}")
        lines += [f"  {'':<10}  --method.{option} {_text(default)}" for option, default in options.items()]
    return lines


def _value(word: str, text: str, default: bool | int | float | str) -> bool | int | float | str:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise DowserError(f"got {word} {text}, expected true or false")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError as error:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise DowserError(f"got {word} {text}, expected {kind} such as {default}") from error


def _text(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
