"""Which estimator of importance should be the default? Compare them on the embedded world.

    python benchmarks/compare_estimators.py --json runs/estimators/estimators.json

Prints one Markdown table, mean ± standard deviation over seeds:

- rank, overlap: Spearman correlation and mask overlap (Jaccard of the lowest tenth), mean over matrices, with two
  scores from the exact Jacobian of other prompts (`estimators/exact.py`); masks of two seeds of the row itself.
- KL: how far the next-token distributions move, in thousandths of a nat, when the chosen tenth is disturbed
  (`estimators/shift.py`).
- seconds: of the importance pass, on this machine.
- downstream, upstream, H: after fine-tuning on validation data, at one learning rate for all rows.

A fine-tuning that has a report is not run again. About 5 minutes without them, 30 with them, on 2 cores.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from dowser_pl.files.atomic import write_atomically
from dowser_pl.functional.masks import jaccard, num_trainable
from dowser_pl.functional.selection import lowest
from dowser_pl.importance import Probe, write_prompts
from dowser_pl.methods import rank_correlation
from dowser_pl.models import load_model, load_processor
from dowser_pl.models.layers import TARGETS, find_layers, text_inputs, text_model
from dowser_pl.reporting import Report
from dowser_pl.reporting.provenance import provenance
from estimators.exact import Truth, exact_scores
from estimators.fits import EPOCHS, RATE, fit_rows
from estimators.rows import RATIO, ROWS, Row, scores_of
from estimators.shift import NOISES, ShiftMeter, disturbed, world_texts
from estimators.table import Numbers, summary, table

TRUTH_SEED, TEXT_SEED = 1000, 1  # prompts and questions that no row has seen
ROWS_PER_TASK = 8
Scores = dict[str, Tensor]
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Bench:
    """What every row is held against.

    Attributes:
        layers: run-time name -> matrix of the undisturbed model.
        meter: of what the model says.
        truths: exact scores.
        draws: disturbances of each kind.
    """

    layers: Mapping[str, nn.Linear]
    meter: ShiftMeter
    truths: Truth
    draws: int

    @cached_property
    def reference_masks(self) -> dict[str, Masks]:
        """Of the exact scores and of |W|."""
        magnitude = {name: layer.weight.detach().abs() for name, layer in self.layers.items()}
        return {name: masks_of(scores) for name, scores in {**self.truths, "magnitude": magnitude}.items()}

    def agreement(self, scores: Scores, masks: Masks) -> Numbers:
        """Rank correlations and mask overlaps, mean over matrices."""
        numbers: Numbers = {f"overlap_{name}": overlap(masks, other) for name, other in self.reference_masks.items()}
        for truth, exact in self.truths.items():
            numbers[f"rank_{truth}"] = mean(rank_correlation(scores[name], exact[name]) for name in scores)
        return numbers

    def shifts(self, masks: Masks, seed: int) -> Numbers:
        """Mean shift over draws of each kind of noise."""
        numbers: Numbers = {}
        for noise in NOISES:
            found = []
            for draw in range(self.draws):
                with disturbed(self.layers, masks, noise, seed, draw):
                    found.append(self.meter.shift())
            numbers[f"shift_{noise}_text"] = mean(shift.text for shift in found)
            numbers[f"shift_{noise}_answers"] = mean(shift.answers for shift in found)
        return numbers


def masks_of(scores: Scores) -> Masks:
    """The lowest tenth of each matrix."""
    return {name: lowest(score, num_trainable(RATIO, score.numel())) for name, score in scores.items()}


def overlap(first: Masks, second: Masks) -> float:
    """Jaccard index, mean over matrices."""
    return mean(jaccard(first[name], second[name]) for name in first)


def outcome(report: Report | None) -> Numbers:
    """Scores after fine-tuning, if there was one."""
    if report is None:
        return {}
    return {name: getattr(report, name).after for name in ("downstream", "upstream", "h_score")}


def compare(rows: Sequence[Row], num_seeds: int, draws: int, truth_prompts: int) -> dict[str, list[Numbers]]:
    """Numbers by row and seed, without fine-tuning; the exact scores come first, as rows of their own."""
    model, processor = load_model("embedded:world", dtype="float32"), load_processor("embedded:world")
    layers = find_layers(model, None, TARGETS)
    meter = ShiftMeter(model, world_texts(processor, ROWS_PER_TASK, TEXT_SEED), model.config.image_token_id)
    writer = text_model(model)
    inputs = partial(text_inputs, writer)
    prompts = write_prompts(writer, processor.tokenizer, Probe(seed=TRUTH_SEED), range(truth_prompts), None, inputs)
    bench = Bench(layers, meter, exact_scores(writer, layers, prompts, inputs), draws)
    results: dict[str, list[Numbers]] = {}
    for truth, exact in bench.truths.items():
        masks = masks_of(exact)
        numbers = bench.agreement(exact, masks)
        results[f"exact {truth}"] = [numbers | bench.shifts(masks, seed) for seed in range(num_seeds)]
    scores_of(model, processor, layers, Row("authors", 16), 0)  # so that no row pays for the start
    for row in rows:
        all_masks: list[Masks] = []
        per_seed: list[Numbers] = []
        for seed in range(num_seeds):
            scores, seconds = scores_of(model, processor, layers, row, seed)
            all_masks.append(masks_of(scores))
            numbers = bench.agreement(scores, all_masks[seed]) | bench.shifts(all_masks[seed], seed)
            per_seed.append(numbers | {"seconds": seconds})
        for seed, numbers in enumerate(per_seed):
            other = all_masks[(seed + 1) % num_seeds]
            numbers["overlap_two_seeds"] = overlap(all_masks[seed], other) if num_seeds > 1 else None
        results[row.name] = per_seed
        print(f"{row.name} measured", file=sys.stderr)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers, with versions and machine")
    parser.add_argument("--seeds", type=int, default=3, help="how many; at least 3 for a default to be chosen by")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of fine-tuning")
    parser.add_argument("--no-fit", action="store_true", help="leave out fine-tuning")
    parser.add_argument("--folder", type=Path, default=Path("runs/estimators"), help="where fine-tunings lie")
    parser.add_argument("--jobs", type=int, default=2, help="fine-tunings at a time")
    parser.add_argument("--draws", type=int, default=12, help="disturbances of each kind per row and seed")
    parser.add_argument("--truth-prompts", type=int, default=64, help="prompts of the exact scores")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the measurements; 1 on a busy machine")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    reports = {} if options.no_fit else fit_rows(options.folder, ROWS, options.seeds, options.epochs, options.jobs)
    results = compare(ROWS, options.seeds, options.draws, options.truth_prompts)
    for name, per_seed in results.items():
        for seed, numbers in enumerate(per_seed):
            numbers.update(outcome(reports.get((name, seed))))
    print(table(results))
    print(
        f"\n{options.seeds} seeds, {options.threads} threads, exact scores from {options.truth_prompts} other prompts."
    )
    if reports:
        print(f"Fine-tuning: {options.epochs} epochs on validation data at learning rate {RATE:g} in every row.")
    if options.json:
        given = {row.name: {"probe": asdict(row.probe(0)), "method": row.method(0).settings()} for row in ROWS}
        lines = [{"row": name, **given.get(name, {}), **summary(numbers)} for name, numbers in results.items()]
        words = sys.argv[1:] if arguments is None else list(arguments)
        content = provenance("benchmarks/compare_estimators.py", words) | {
            "settings": {**vars(options), "json": str(options.json), "folder": str(options.folder), "rate": RATE},
            "rows": lines,
        }
        write_atomically(options.json, json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
