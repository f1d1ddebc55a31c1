"""Bytes and messages between processes, per step and for the importance pass, as functions of ranks and model size.

    python benchmarks/scaling.py --ranks 8 64 --json runs/scaling.json

Formulas, no measurements; `tests/distributed/test_scaling.py` counts the collectives of two processes and compares.
Bytes are those of the buffers that one process hands to collectives: its own gradient to an all-reduce, its own piece
to an all-gather, its whole gradient to a reduce-scatter. What one process then sends over its links is, for the usual
ring, 2 (R - 1) / R of an all-reduce, R - 1 times its piece of an all-gather, (R - 1) / R of a reduce-scatter, and as
much as is broadcast.

Legend: R processes, O outputs, I inputs of a matrix, k its trainable entries, M matrices, P all weights.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.files.atomic import write_atomically
from dowser_pl.functional.masks import num_trainable
from dowser_pl.reporting.provenance import provenance

Traffic = dict[str, tuple[int, float]]
"""Kind of collective -> messages, bytes that one process hands to them."""

HISTOGRAMS = {"gpu": (1 << 11, 1 << 10, 1 << 10), "cpu": (1 << 15, 1 << 16)}  # bins of the selection, by pass
CHUNK = 64  # prompts of a process whose factors travel together
WRITTEN_TOGETHER = 64  # prompts
TOKENS, BATCH_SIZE = 64, 16  # of the probe, by default


@dataclass(frozen=True)
class Sizes:
    """What the traffic of a model depends on.

    Args:
        matrices: (O, I) of every tuned matrix.
        inputs: widths of the different inputs of those matrices, added up: matrices that read the same tensor share it.
        weights: P, all there are.
        blocks: decoder layers.
    """

    matrices: tuple[tuple[int, int], ...]
    inputs: int
    weights: int
    blocks: int

    @classmethod
    def of_decoder(cls, hidden: int, mlp: int, blocks: int, key_value: int, vocabulary: int) -> "Sizes":
        """A Llama: four attention and three MLP matrices a block, and two tables of words."""
        block = [(hidden, hidden), (key_value, hidden), (key_value, hidden), (hidden, hidden)]
        block += [(mlp, hidden), (mlp, hidden), (hidden, mlp)]
        weights = blocks * sum(o * i for o, i in block) + 2 * vocabulary * hidden
        return cls(tuple(block * blocks), blocks * (3 * hidden + mlp), weights, blocks)

    @property
    def tuned(self) -> int:
        """Entries of the tuned matrices."""
        return sum(o * i for o, i in self.matrices)

    @property
    def outputs(self) -> int:
        """Their outputs, added up."""
        return sum(o for o, _ in self.matrices)

    def entries(self, update_ratio: float) -> int:
        """Trainable entries."""
        return sum(num_trainable(update_ratio, o * i) for o, i in self.matrices)


MODELS = {
    "7B": Sizes.of_decoder(4096, 11008, 32, 4096, 32000),
    "70B": Sizes.of_decoder(8192, 28672, 80, 1024, 128256),
    "400B": Sizes.of_decoder(16384, 53248, 126, 1024, 128256),
}


def ddp_step(sizes: Sizes, update_ratio: float, micro_batches: int = 1) -> Traffic:
    """Compact training under DDP: tokens and loss of a batch, which entries have a gradient, and these in float32."""
    matrices = len(sizes.matrices)
    values = 16 * micro_batches + 4 * matrices + 4 * sizes.entries(update_ratio)
    return {"all_reduce": (micro_batches + 1 + matrices, values)}


def ddp_dense_step(sizes: Sizes, weight_bytes: int) -> float:
    """Bytes of dense training under DDP, which puts whole gradients into as many messages as it likes."""
    return 16.0 + weight_bytes * sizes.tuned


def fsdp2_step(sizes: Sizes, ranks: int, weight_bytes: int, reduce_bytes: int, micro_batches: int = 1) -> Traffic:
    """Under FSDP2: all weights are gathered forward and backward, gradients of tuned matrices are scattered.

    Groups are the decoder layers, and all else. Nothing of it depends on the update ratio: gradients are reduced before
    entries are taken out of them. Small things are summed beside: tokens and loss of each batch, whether all
    gradients are finite, and for clipping a norm of each matrix and process.
    """
    gathers = 2 * micro_batches * (sizes.blocks + 1)
    return {
        "all_gather": (gathers, 2 * micro_batches * weight_bytes * sizes.weights / ranks),
        "reduce_scatter": (micro_batches * sizes.blocks, micro_batches * reduce_bytes * sizes.tuned),
        "all_reduce": (micro_batches + 2, 16 * micro_batches + 8 + 4 * len(sizes.matrices) * ranks),
    }


def factors(sizes: Sizes, ranks: int, prompts: int, statistics: int = 1) -> Traffic:
    """Factors of the prompts that one process measured, in float32, gathered everywhere; beside them their sizes.

    Args:
        sizes: of the model.
        ranks: R.
        prompts: of all processes.
        statistics: of the outputs that are kept: what the method asks for; 2 of small models whose cache keeps all.
    """
    chunks = -(-prompts // (CHUNK * ranks))
    return {"all_gather": (2 * chunks, 4 * (sizes.inputs + statistics * sizes.outputs) * prompts / ranks)}


def written(sizes: Sizes, ranks: int, weight_bytes: int, prompts: int, tokens: int) -> Traffic:
    """Prompts that are written under FSDP2: decoder layers are gathered for each token, all else once.

    Processes share batches of 64 prompts; those that have none left keep the others company.

    Args:
        sizes: of the model.
        ranks: R.
        weight_bytes: of a weight.
        prompts: of all processes.
        tokens: of a prompt, of which the first is not written.
    """
    rounds, rest = -(-prompts // (WRITTEN_TOGETHER * ranks)), sizes.weights - sizes.tuned
    handed = rounds * weight_bytes * ((tokens - 1) * sizes.tuned + rest) / ranks
    return {
        "all_gather": (rounds * ((tokens - 1) * sizes.blocks + 1), handed),
        "all_reduce": (rounds * tokens, 4.0 * rounds * tokens),
    }


def probed(sizes: Sizes, ranks: int, weight_bytes: int, prompts: int, batch_size: int) -> Traffic:
    """Prompts that are measured under FSDP2, with one probe: all weights, forward and backward, for each batch."""
    rounds = -(-prompts // (batch_size * ranks))
    return {"all_gather": (2 * rounds * (sizes.blocks + 1), 2 * rounds * weight_bytes * sizes.weights / ranks)}


def masks(sizes: Sizes) -> Traffic:
    """Under DDP the first process' masks as bits, one matrix at a time."""
    return {"broadcast": (len(sizes.matrices), sum(-(-o * i // 8) for o, i in sizes.matrices))}


def selection(sizes: Sizes, device: str = "gpu") -> Traffic:
    """Where scores are sharded: some histograms of 8-byte counts for each matrix."""
    bins, matrices = HISTOGRAMS[device], len(sizes.matrices)
    return {"all_reduce": (len(bins) * matrices, 8 * sum(bins) * matrices)}


def on_the_links(traffic: Traffic, ranks: int) -> float:
    """Bytes that one process sends in rings."""
    share = {"all_reduce": 2 * (ranks - 1) / ranks, "all_gather": ranks - 1, "reduce_scatter": (ranks - 1) / ranks}
    return sum(share.get(kind, 1.0) * handed for kind, (_, handed) in traffic.items())


def rows(ranks: Sequence[int], update_ratio: float, prompts: int) -> list[dict[str, Any]]:
    """Everything that is printed, ready for JSON."""
    found = []
    for name, sizes in MODELS.items():
        for number in ranks:
            parts: dict[str, Traffic] = {
                "step, DDP compact": ddp_step(sizes, update_ratio),
                "step, FSDP2 bf16": fsdp2_step(sizes, number, 2, 2),
                "step, FSDP2 bf16, float32 reduced": fsdp2_step(sizes, number, 2, 4),
                "pass, prompts written (FSDP2)": written(sizes, number, 2, prompts, TOKENS),
                "pass, prompts measured (FSDP2)": probed(sizes, number, 2, prompts, BATCH_SIZE),
                "pass, factors": factors(sizes, number, prompts),
                "pass, masks (DDP)": masks(sizes),
                "pass, histograms (FSDP2)": selection(sizes),
            }
            for part, traffic in parts.items():
                messages = sum(count for count, _ in traffic.values())
                handed = sum(count for _, count in traffic.values())
                found.append({
                    "model": name, "ranks": number, "part": part, "messages": messages, "handed": handed,
                    "sent": on_the_links(traffic, number), "kinds": traffic,
                })  # fmt: skip
    return found


def lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table."""
    text = ["| model | ranks | what | messages | handed | sent |", "| :-- | --: | :-- | --: | --: | --: |"]
    for row in found:
        numbers = f"{row['messages']:,} | {_gigabytes(row['handed'])} | {_gigabytes(row['sent'])}"
        text.append(f"| {row['model']} | {row['ranks']} | {row['part']} | {numbers} |")
    return text


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.3g} GB" if count >= 1e7 else f"{count / 1e6:.3g} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--update-ratio", type=float, default=0.1)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers, with versions and machine")
    options = parser.parse_args(argv)
    found = rows(options.ranks, options.update_ratio, options.prompts)
    print("\n".join(lines(found)))
    if options.json:
        content = provenance("benchmarks/scaling.py", list(sys.argv[1:] if argv is None else argv))
        settings = {"update_ratio": options.update_ratio, "prompts": options.prompts}
        write_atomically(options.json, json.dumps(content | {"settings": settings, "rows": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
