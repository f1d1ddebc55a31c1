"""What the quickstart takes on an idle and on a busy machine, with OpenMP's threads spinning and sleeping in waits.

    python benchmarks/busy_machine.py --json runs/bench/busy_machine.json

Whole runs of `python -m dowser_pl fit --config configs/quickstart.yaml`, each in a folder of its own, with as many
threads as torch takes by itself. "spinning" is the default of GNU and Intel OpenMP (`GOMP_SPINCOUNT=300000
KMP_BLOCKTIME=200`), "passive" what the command line sets where others compute (`OMP_WAIT_POLICY=PASSIVE`). Load is the
number of processes that compute beside the run, each on one thread. The two ways alternate, the first of them in turns,
so that a drift of the machine falls on both; the median is reported. Start it on an idle machine: load of others is
told.

About 4 minutes without load on 2 idle cores, 3 runs of each way, and up to 20 more with 4 processes beside them: a run
that takes longer than --limit is ended and counts as that.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from dowser_pl.files.atomic import write_atomically
from dowser_pl.reporting.provenance import provenance

ROOT = Path(__file__).parents[1]
WAYS = {
    "spinning": {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
OF_OPENMP = ("OMP_", "GOMP_", "KMP_", "MKL_NUM")
BUSY = "while True: pass"


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(way: str, limit: float, options: Sequence[str]) -> float:
    """Of one whole run, the start of Python included; at most the limit.

    Raises:
        RuntimeError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_OPENMP)} | WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        own = [f"--trainer.default_root_dir={folder}/run", f"--dowser.cache_dir={folder}/cache"]
        command = [sys.executable, "-m", "dowser_pl", "fit", "--config", "configs/quickstart.yaml", *own, *options]
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return limit
        took = time.monotonic() - start
    if done.returncode:
        raise RuntimeError(f"the run ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return took


def measure(loads: Sequence[int], repeats: int, limit: float, options: Sequence[str]) -> list[dict[str, Any]]:
    """One row for every load."""
    took: dict[tuple[int, str], list[float]] = {key: [] for key in product(loads, WAYS)}
    for load in loads:
        with busy(load):
            for turn in range(repeats):
                for way in sorted(WAYS, reverse=turn % 2 == 0):
                    took[load, way].append(seconds(way, limit, options))
                    print(f"load {load}, {way}: {took[load, way][-1]:.1f} s", file=sys.stderr, flush=True)
    return [{"load": load, **{way: took[load, way] for way in WAYS}} for load in loads]


def lines(rows: Sequence[dict[str, Any]], limit: float) -> list[str]:
    """The table, in Markdown: medians, with the lowest and highest behind them."""
    table = [f"| processes beside it | {' | '.join(f'{way}, s' for way in WAYS)} | passive / spinning |"]
    table.append("| ---: " * 4 + "|")
    for row in rows:
        middle = {way: statistics.median(row[way]) for way in WAYS}
        cells = [_cell(row[way], limit) for way in WAYS]
        ratio = "" if middle["passive"] >= limit else f"{middle['passive'] / middle['spinning']:.2f}"
        ended = "below " if middle["spinning"] >= limit else ""
        table.append(f"| {row['load']} | {' | '.join(cells)} | {ended if ratio else ''}{ratio} |")
    return table


def _cell(took: Sequence[float], limit: float) -> str:
    middle = statistics.median(took)
    return f"more than {limit:.0f}" if middle >= limit else f"{middle:.1f} ({min(took):.1f} to {max(took):.1f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 4], help="processes beside the run")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way at each load")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="of one run")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers, with versions and machine")
    parser.add_argument("options", nargs="*", help="of the runs, behind --, such as -- --trainer.max_epochs=1")
    options = parser.parse_args(argv)
    content = provenance("benchmarks/busy_machine.py", list(sys.argv[1:] if argv is None else argv))
    content["load_of_others"] = os.getloadavg()[0]
    print(f"load of others: {content['load_of_others']:.1f} of {os.cpu_count()} cores", file=sys.stderr)
    content["rows"] = measure(options.loads, options.repeats, options.limit, options.options)
    print("\n".join(lines(content["rows"], options.limit)))
    if options.json:
        write_atomically(options.json, json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
