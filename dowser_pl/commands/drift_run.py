"""What `drift` does; loads torch, so `--help` does without this file."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dowser_pl.commands.tuned import loaded, tuned_path
from dowser_pl.commands.tuned import tuned as tuned_model
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import write_atomically
from dowser_pl.importance.origin import Origin, OwnRows
from dowser_pl.importance.pictures import NUM_PICTURES, shrunken
from dowser_pl.reporting import ReportedDrift
from dowser_pl.reporting.moved import Moved, moved_text
from dowser_pl.reporting.plots.moved import plot_moved
from dowser_pl.reporting.plots.style import check_format
from dowser_pl.reporting.provenance import provenance
from dowser_pl.reporting.table import drift_table

__all__ = ["run"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def run(options: Namespace, argv: Sequence[str]) -> str:
    """Measure and write; returns what to print."""
    if options.moved:
        check_format(options.moved)
    tuned = [tuned_path(name) for name in options.tuned]  # before anything is loaded
    pictures = [] if options.pictures is None else _pictures(Path(options.pictures))
    rows = OwnRows(options.per_source, options.seed, options.batch_size, pictures)
    base = loaded(options.base, options.dtype)
    origin = Origin.of(base, rows, places=bool(options.moved))
    found, moved, rounded = dict[str, ReportedDrift](), dict[str, Moved](), list[str]()
    for name, what in zip(options.tuned, tuned, strict=True):
        with tuned_model(base, what, options.dtype) as network:
            found[name] = origin.drift(network)
            if options.moved:
                moved[name] = origin.moved(network)
            if network.dtype != base.network.dtype:
                here, there = (str(model.dtype).removeprefix("torch.") for model in (network, base.network))
                rounded.append(
                    f"{name} is {here} and {options.base} {there}: what rounding changed counts as moved. "
                    f"--dtype {here} leaves it out."
                )
    if options.json:
        content = {name: each.to_dict() for name, each in found.items()}
        written = provenance("drift", argv) | {"base": options.base, "drift": content}
        written |= {"moved": {name: each.to_dict() for name, each in moved.items()}} if moved else {}
        write_atomically(options.json, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    parts = [f"{name}: {drift_table(each)}" for name, each in found.items()]
    if moved:
        short = [Path(name).name for name in moved]
        labels = short if len(set(short)) == len(short) else list(moved)
        plot_moved(dict(zip(labels, moved.values(), strict=True)), options.moved)
        lines = "\n".join(f"{name}: {moved_text(each)}" for name, each in moved.items())
        parts.append(f"{lines}\nPicture: {options.moved}")
    return "\n\n".join([*parts, *rounded])


def _pictures(folder: Path) -> list[Image.Image]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)[:NUM_PICTURES]
    if not files:
        raise DowserError(f"there are no pictures in {folder}, expected some of {', '.join(_SUFFIXES)}")
    found = []
    for file in files:
        with Image.open(file) as picture:
            found.append(shrunken(picture))
    return found
