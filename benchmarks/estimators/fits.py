"""Fine-tuning with each row's mask: the quickstart's recipe on validation data, one process per cell."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from dowser_pl.reporting import Report, read_report
from estimators.rows import Row

__all__ = ["EPOCHS", "RATE", "fit_rows"]

ROOT = Path(__file__).parents[2]
RATE, EPOCHS = 3e-3, 8  # the quickstart's


def fit_rows(
    folder: Path, rows: Sequence[Row], num_seeds: int, epochs: int, jobs: int
) -> dict[tuple[str, int], Report]:
    """Reports by name of the row and seed; a cell that has one already is not run again."""
    cells = list(product([row for row in rows if row.tuned], range(num_seeds)))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        reports = pool.map(lambda cell: _fit(folder, cell[0], cell[1], epochs, threads), cells)
        return {(row.name, seed): report for (row, seed), report in zip(cells, reports, strict=True)}


def command(folder: Path, row: Row, seed: int, epochs: int) -> list[str]:
    """What is run for one cell."""
    options = {
        "config": ROOT / "configs" / "quickstart.yaml",
        "trainer.default_root_dir": _run(folder, row, seed, epochs),
        "trainer.max_epochs": epochs,
        "model.optimizer.lr": RATE,
        "data.split": "validation",
        "export.enabled": "false",
        "overwrite": "true",  # what a fit that was killed left
        "seed_everything": seed,
        "data.seed": seed,
        "dowser.cache_dir": folder / "cache",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "dowser_pl", "fit", *words, *row.options(seed)]


def _run(folder: Path, row: Row, seed: int, epochs: int) -> Path:
    return folder / f"{row.name}-{epochs}-epochs-seed-{seed}"


def _fit(folder: Path, row: Row, seed: int, epochs: int, threads: int) -> Report:
    run = _run(folder, row, seed, epochs)
    if not (run / "report.json").is_file():
        run.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with (run / "output.log").open("w") as log:  # outlives a failure
            words = command(folder, row, seed, epochs)
            subprocess.run(words, env=environment, check=True, stdout=log, stderr=subprocess.STDOUT)
    return read_report(run)
