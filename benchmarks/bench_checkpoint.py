"""Time and peak memory of a checkpoint under FSDP2: gathered into one file, or written as a folder by all processes.

    python benchmarks/bench_checkpoint.py --preset 200m --json runs/bench/checkpoint_200m.json

Each of several processes holds its share of a random LLaVA, of entries (a tenth of each matrix) and of AdamW's moments,
and they save what `fit` saves: entries and moments (compact), and all weights beside them (full). File and folder take
turns; a save is everything until it is on the disk under its name. Peak memory is that of the first process beyond what
it held before. Processes talk over gloo on this machine and write to one disk. About two minutes (200m).
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import AdamW

from dowser_pl.callbacks.dowser.masks import rows_of
from dowser_pl.distributed import collectives
from dowser_pl.distributed.checkpoint import shares_of, write_folder
from dowser_pl.distributed.collectives import DistributedReducer
from dowser_pl.distributed.tensors import to_rank_zero
from dowser_pl.files.atomic import atomic_path, write_atomically
from dowser_pl.masking import ShardedEntries
from dowser_pl.masking.sharded import entries_as_shares
from dowser_pl.methods import Layer, Random, build_masks
from dowser_pl.models.layers import find_blocks
from dowser_pl.reporting.provenance import provenance
from dowser_pl.strategies.fsdp2 import fully_shard_model
from dowser_pl.strategies.optimizer_state import gathered_states, shared_states
from probe.meters import PeakMemory
from train.presets import PRESETS, Subject

__all__ = ["lines", "measure", "measured_here", "ratios"]

ROUNDS = 5


class Trained:
    """A model that is sharded over all processes, with entries and moments, and how it is saved."""

    def __init__(self, preset: str) -> None:
        subject = Subject(PRESETS[preset])
        fully_shard_model(subject.model, init_device_mesh("cpu", (collectives.world_size(),)))
        layers = {name: Layer(name, layer.weight.detach()) for name, layer in subject.layers.items()}
        here = {name: rows_of(layer) for name, layer in layers.items()}
        method, blocks = Random(subject.preset.update_ratio), find_blocks(subject.model, layers)
        masks = dict(build_masks(method, blocks, here.__getitem__, DistributedReducer()))
        self.model, self.entries = subject.model, ShardedEntries(subject.weights, masks)
        self.optimizer = AdamW(self.entries.parameters(), lr=1e-5)
        for values in self.entries.parameters():
            values.grad = torch.ones_like(values)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self, full: bool) -> dict[str, Any]:
        """Those that are in a checkpoint."""
        return dict(self.model.state_dict(keep_vars=True)) if full else {}

    def file(self, path: Path, full: bool) -> None:
        """One file, gathered on the first process and written by it."""
        state = {"entries": self.entries.state_dict(), "optimizer_states": [gathered_states(self.optimizer)]}
        state["state_dict"] = to_rank_zero(self.weights(full))
        if collectives.rank() == 0:
            with atomic_path(path) as temporary:
                torch.save(state, temporary)
        collectives.all_gather_numbered(dict)

    def folder(self, path: Path, full: bool) -> None:
        """A folder, written by all."""
        state = {"entries": entries_as_shares(self.entries), "optimizer_states": [shared_states(self.optimizer)]}
        write_folder(state | {"state_dict": shares_of(self.weights(full))}, path)


def measured_here(preset: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Seconds of each round, peak and size by content and form, on this process; all of a group must call it."""
    trained = Trained(preset)
    found: dict[str, dict[str, Any]] = {}
    for number in range(ROUNDS + 1):
        for content in ("compact", "full"):
            for form, save in (("file", trained.file), ("folder", trained.folder)):
                path = folder / f"{content}_{form}.ckpt"
                seconds, peak = _measured(save, path, content == "full")
                row = found.setdefault(f"{content} {form}", {"seconds": [], "peak_bytes": 0})
                if number > 0:  # the first is not timed
                    row["seconds"].append(seconds)
                    row["peak_bytes"] = max(row["peak_bytes"], peak)
                row["disk_bytes"] = sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())
    return found


def measure(preset: str, ranks: int) -> dict[str, Any]:
    """What the first of so many processes measured, and folder over file."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(ranks) as pool:
        jobs = [(preset, rank, ranks, folder) for rank in range(ranks)]
        rows, *_ = pool.starmap(_rank, jobs, chunksize=1)
    for row in rows.values():
        row["median_seconds"] = statistics.median(row["seconds"])
    return {"ranks": ranks, "rows": rows, "ratio": ratios(rows)}


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Folder over file, by content and number; None where memory is not measured."""
    found: dict[str, float | None] = {}
    for content in ("compact", "full"):
        for number in ("median_seconds", "peak_bytes", "disk_bytes"):
            folder, file = (rows[f"{content} {form}"][number] for form in ("folder", "file"))
            found[f"{content}_{number}"] = folder / file if file else None
    return found


def lines(content: dict[str, Any]) -> list[str]:
    """A table of what `measure` gave."""
    table = [f"{'':<16}{'seconds':>9}{'peak MB':>9}{'disk MB':>9}"]
    for name, row in content["rows"].items():
        table.append(
            f"{name:<16}{row['median_seconds']:>9.3f}{row['peak_bytes'] / 1e6:>9.1f}{row['disk_bytes'] / 1e6:>9.1f}"
        )
    known = {name: value for name, value in content["ratio"].items() if value is not None}
    return table + [f"folder over file, {name}: {value:.3f}" for name, value in known.items()]


def _rank(preset: str, rank: int, ranks: int, folder: str) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    try:
        return measured_here(preset, Path(folder))
    finally:
        collectives.all_gather_numbered(dict)  # none leaves while another still needs it
        distributed.destroy_process_group()


def _measured(save: Callable[[Path, bool], None], path: Path, full: bool) -> tuple[float, int]:
    collectives.all_gather_numbered(dict)
    with PeakMemory(torch.device("cpu")) as peak:
        start = time.perf_counter()
        save(path, full)
        seconds = time.perf_counter() - start
    return seconds, peak.host_bytes or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=[name for name in PRESETS if name != "7b"], default="60m")
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers, with versions and machine")
    options = parser.parse_args(argv)
    content = provenance("benchmarks/bench_checkpoint.py", list(sys.argv[1:] if argv is None else argv))
    content |= {"preset": options.preset} | measure(options.preset, options.ranks)
    print("\n".join(lines(content)))
    if options.json:
        write_atomically(options.json, json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
