"""Choose the quickstart's learning rate and length: every method over its own grid, scored on validation data.

    python tools/tune_quickstart.py --json runs/tune/tune.json

Each cell is one `python -m dowser_pl fit` run in a process of its own; a cell that has a report is not run again, so
an interrupted grid goes on where it stopped. Prints one Markdown row per cell and marks the best H-score of each
method. About 20 minutes on 2 cores.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from dowser_pl.files.atomic import write_atomically
from dowser_pl.reporting import Report, read_report
from dowser_pl.reporting.provenance import provenance

ROOT = Path(__file__).parent.parent
# method -> learning rates and epochs; the length is chosen once, for all methods
GRIDS = {
    "ModelDowser": ((2e-3, 3e-3, 4e-3, 6e-3), (5, 8)),
    "Full": ((1e-4, 2e-4, 4e-4, 8e-4), (8,)),
    "Random": ((2e-3, 3e-3, 4e-3, 6e-3), (8,)),
    "Magnitude": ((2e-3, 3e-3, 4e-3, 6e-3), (8,)),
}
Cell = tuple[str, float, int]
CELLS: list[Cell] = [(method, *cell) for method, grid in GRIDS.items() for cell in product(*grid)]


def run_cell(folder: Path, cell: Cell, threads: int) -> Report:
    """One run on validation data, unless its report is there already."""
    method, rate, epochs = cell
    run = folder / f"{method}-{rate:g}-{epochs}"
    if not (run / "report.json").is_file():
        command = [sys.executable, "-m", "dowser_pl", "fit", "--config", str(ROOT / "configs" / "quickstart.yaml")]
        command += ["--trainer.default_root_dir", str(run), "--trainer.max_epochs", str(epochs)]
        command += ["--dowser.method", method, "--model.optimizer.lr", str(rate)]
        command += ["--data.split", "validation", "--export.enabled", "false", "--overwrite", "true"]
        command += ["--dowser.probe.num_prompts", "64", "--dowser.probe.num_probes", "8"]  # the paper's budget
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, env=environment, check=True, capture_output=True)
    return read_report(run)


def main() -> int:
    """Run the grid, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers, with versions and machine")
    parser.add_argument("--folder", type=Path, default=Path("runs/tune"), help="where the runs lie")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    run_cell(arguments.folder, CELLS[0], threads)  # alone: it fills the importance cache for the others
    with ThreadPoolExecutor(arguments.jobs) as pool:
        reports = dict(zip(CELLS, pool.map(lambda c: run_cell(arguments.folder, c, threads), CELLS), strict=True))
    best = {
        method: max((c for c in CELLS if c[0] == method), key=lambda cell: reports[cell].h_score.after or 0.0)
        for method in GRIDS
    }
    print("| method | learning rate | epochs | downstream | upstream | H-score | |")
    print("| :-- | --: | --: | --: | --: | --: | :-- |")
    for cell, report in reports.items():
        scores = (report.downstream.after, report.upstream.after, report.h_score.after)
        numbers = " | ".join(f"{score:.3f}" for score in scores if score is not None)
        print(f"| {cell[0]} | {cell[1]:g} | {cell[2]} | {numbers} | {'best' if cell in best.values() else ''} |")
    if arguments.json:
        rows = [{"epochs": cell[2], "best": cell in best.values(), **reports[cell].to_dict()} for cell in CELLS]
        content = provenance("tools/tune_quickstart.py", sys.argv[1:]) | {"rows": rows}
        write_atomically(arguments.json, json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
