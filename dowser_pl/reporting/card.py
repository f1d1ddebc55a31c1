"""A model card made from a report: what was tuned, what it learnt and forgot, how to load it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from dowser_pl.reporting.report import Report
from dowser_pl.reporting.table import markdown_page

__all__ = ["HUB_ID", "model_card"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""An owner and a name."""


def model_card(
    report: Report, repository: str, parts: Sequence[str], license: str | None = None, picture: str | None = None
) -> str:
    """The text of README.md, with the head that the hub reads; it has scores and no answer of anybody's data.

    Args:
        report: of the run.
        repository: `owner/name` that it goes to.
        parts: what is there: any of `model`, `adapter`, `patch`.
        license: as the hub calls it.
        picture: file name of the picture of the report, if it is there.
    """
    base = report.model if report.model and HUB_ID.fullmatch(report.model) else None
    head = {
        "library_name": "peft" if list(parts) == ["adapter"] else "transformers",
        "tags": ["dowser_pl", report.method],
        **({"base_model": base} if base else {}),
        **({"license": license} if license else {}),
    }
    shown = replace(report, run=repository.partition("/")[2], model=base or (report.model and Path(report.model).name))
    title, _, rest = markdown_page(shown, picture).strip().partition("\n")
    text = "\n\n".join([title, _said(report), rest.strip(), "## Use", *_use(repository, parts)])
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{text}\n"


def _said(report: Report) -> str:
    frozen, trainable = report.frozen, report.trainable
    total = frozen.entries + trainable.entries
    said = f"Of {total:,} entries of its tuned matrices {trainable.changed:,} moved in training"
    if frozen.entries and not frozen.changed:
        said += f"; {frozen.entries:,} were frozen and are those of the base to the bit"
    unmasked = report.diagnostics.get("entries_trained_without_a_mask")
    return f"{said}. Further parts were trained in full." if unmasked else f"{said}."


def _use(repository: str, parts: Sequence[str]) -> list[str]:
    place = ', subfolder="adapter"' if "model" in parts else ""
    uses = {
        "model": f'The whole model, as its base is loaded: `from_pretrained("{repository}")`.',
        "adapter": f'The adapter beside the base: `PeftModel.from_pretrained(base, "{repository}"{place})`.',
        "patch": "What changed alone: `python -m dowser_pl patch apply BASE patch/patch.safetensors --out FOLDER`.",
    }
    return [uses[part] for part in parts]
