"""`python -m dowser_pl push`: the model and the patch of a run to the Hugging Face hub, with a card of its report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dowser_pl.cli.parser import LineParser
from dowser_pl.commands.output import answer
from dowser_pl.errors import DowserError
from dowser_pl.reporting import read_report
from dowser_pl.reporting.card import HUB_ID, model_card
from dowser_pl.reporting.folder import PICTURE_NAME
from dowser_pl.reporting.table import bytes_text

PARTS = {"model": "model", "adapter": "adapter", "patch": "patch.safetensors"}
"""Part -> where it lies in a run."""
CARD = "README.md"


def build_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = LineParser(
        prog="python -m dowser_pl push",
        description="Upload model, adapter and patch of a run to the Hugging Face hub, with a card of its report. The "
        "card has scores and no answers; a patch holds the configuration of its run, with the paths in it.",
        epilog="example: python -m dowser_pl push runs/mine --to me/my-model --dry-run",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run that has ended")
    parser.add_argument("--to", metavar="OWNER/NAME", required=True, help="the repository, which is made if need be")
    parser.add_argument(
        "--only", metavar="PART", action="append", choices=tuple(PARTS), help="model, adapter or patch; again for more"
    )
    parser.add_argument("--license", metavar="NAME", help="for the card, as the hub calls it: apache-2.0, llama2 ...")
    parser.add_argument("--private", action="store_true", help="make a private repository, where it is made")
    parser.add_argument("--dry-run", action="store_true", help="show the card and the files, and send nothing")
    return parser


def files_of(run: Path, parts: Sequence[str]) -> dict[str, Path]:
    """Path in the repository -> file. The model lies at its root, the adapter there too where it comes alone.

    Args:
        run: folder of a run.
        parts: of it; all of them are there.
    """
    found: dict[str, Path] = {}
    for part in parts:
        place = run / PARTS[part]
        if place.is_file():  # not beside the model: vLLM loads every *.safetensors that lies there
            found[f"{part}/{place.name}"] = place
            continue
        prefix = "adapter/" if part == "adapter" and "model" in parts else ""
        files = sorted(path for path in place.rglob("*") if path.is_file())
        found |= {f"{prefix}{path.relative_to(place).as_posix()}": path for path in files}
    if (run / PICTURE_NAME).is_file():
        found[PICTURE_NAME] = run / PICTURE_NAME
    found.pop(CARD, None)  # that of the base: the report's takes its place
    return found


def push(options: argparse.Namespace) -> str:
    """Upload, or say what would be; returns what to print.

    Raises:
        DowserError: if something is missing, or the hub refuses.
    """
    if not HUB_ID.fullmatch(options.to):
        raise DowserError(f"got --to {options.to}, expected OWNER/NAME, such as me/my-model")
    run = Path(options.run)
    report = read_report(run)
    there = [part for part, name in PARTS.items() if (run / name).exists()]
    parts = [part for part in PARTS if part in (options.only or there)]
    missing = [part for part in parts if part not in there]
    if missing or not parts:
        raise DowserError(
            f"{run} has no {missing[0] if missing else 'model, adapter or patch.safetensors'}; it has: "
            f"{', '.join(there) or 'a report alone'}. Fix: give --only what is there, or let the run write it"
        )
    files = files_of(run, parts)
    card = model_card(report, options.to, parts, options.license, PICTURE_NAME if PICTURE_NAME in files else None)
    listed = "\n".join(f"{bytes_text(path.stat().st_size):>12}  {name}" for name, path in files.items())
    shown = f"{len(card.encode()):>10} B  {CARD}\n{listed}"
    if options.dry_run:
        return f"{card}\n{len(files) + 1} files for {options.to}:\n{shown}\nNothing was sent."
    return f"{shown}\nSent to {_send(options, card, files)}"


def _send(options: argparse.Namespace, card: str, files: dict[str, Path]) -> str:
    """One commit with all files; returns the address."""
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - a dry run has no use for it

    content = [CommitOperationAdd(CARD, card.encode())]
    content += [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    hub = HfApi()
    try:
        address = hub.create_repo(options.to, private=options.private or None, exist_ok=True)
        hub.create_commit(options.to, content, commit_message=f"{options.to}, by dowser_pl")
    except (OSError, ValueError) as error:
        raise DowserError(
            f"the hub did not take {options.to}: {error}. Fix: log in (`hf auth login`) as somebody who may write there"
        ) from error
    return str(address)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status: 0, or 1 with one line on stderr if something is not as it should be."""
    options = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    return answer(lambda: push(options))
