"""What a bench leaves in its folder: bench.json, bench.md and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dowser_pl.bench.grid import Plan
from dowser_pl.bench.page import page
from dowser_pl.bench.plots import plot_trade_off
from dowser_pl.bench.results import Comparison, compare
from dowser_pl.bench.small_multiples import plot_depths, plot_tried
from dowser_pl.files.atomic import write_atomically

__all__ = ["content", "write_outputs"]


def content(plan: Plan, comparisons: Sequence[Comparison], origin: Mapping[str, Any]) -> dict[str, Any]:
    """bench.json: `methods` is of the first group (world, task, depth), `groups` has them all.

    Args:
        plan: of all methods.
        comparisons: of all groups.
        origin: command, machine and versions.
    """
    settings, cells = plan.settings, plan.cells()
    groups = {each.group.slug: each.to_dict() for each in comparisons}
    return {
        **origin,
        "settings": {
            "fit": list(settings.fit),
            "set": dict(settings.options),
            "seeds": list(settings.seeds),
            "tuning_seed": settings.tuning_seed,
            "splits": {name: dict(options) for name, options in settings.splits.items()},
            "worlds": dict(settings.worlds),
            "tasks": {name: dict(options) for name, options in settings.tasks.items()},
            "depths": list(settings.depths),
        },
        "cells": {
            "finished": sum(plan.done.record(cell) is not None for cell in cells),
            "failed": sum(plan.done.failure(cell) is not None for cell in cells),
            "all": len(cells) + plan.unknown().total(),
            "seconds": sum(record.seconds["wall"] for cell in cells if (record := plan.done.record(cell))),
        },
        "methods": comparisons[0].to_dict()["methods"],
        "groups": groups,
    }


def write_outputs(plan: Plan, origin: Mapping[str, Any], json_path: Path | None = None) -> list[Path]:
    """Write them all, the numbers first.

    Args:
        plan: of all methods; what has not finished is shown as such, and worlds, tasks and depths that were not begun
            are left out.
        origin: command, machine and versions.
        json_path: a second place for bench.json.

    Returns:
        The files.
    """
    folder, every = plan.settings.folder, compare(plan)
    comparisons = [each for each in every if each.begun] or every[:1]
    text = json.dumps(content(plan, comparisons, origin), indent=2, ensure_ascii=False) + "\n"
    written = [folder / "bench.json", *([] if json_path is None else [json_path])]
    for path in written:
        write_atomically(path, text)
    pictures = []
    for number, comparison in enumerate(comparisons):
        suffix = "" if number == 0 else f"-{comparison.group.slug}"
        for name, plot in (("trade_off", plot_trade_off), ("tried", plot_tried)):
            plot(comparison, folder / f"{name}{suffix}.png")
            pictures.append(f"{name}{suffix}.png")
    if len(plan.settings.depths) > 1:
        plot_depths(comparisons, folder / "depth.png")
        pictures.append("depth.png")
    write_atomically(folder / "bench.md", page(plan.settings, comparisons, pictures))
    return [*written, folder / "bench.md", *(folder / name for name in pictures)]
