"""How fast our importance pass could be at best: its work divided by what this machine was measured to do.

A phase takes at least as long as its floating-point operations at the rate of a large matrix product, and at least as
long as its bytes at the rate of a large copy. Counted is what the pass as it is built cannot avoid: operations of the
matrix products, one read of the weights for each of them, one read or write of each score. Not counted: attention,
norms, softmax, activations, sampling, Python; so the ratio to it says how much all that costs.

Legend: N prompts, R probes, T tokens, B prompts of a batch, G groups of prompts that become one row of factors.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

__all__ = ["Ceilings", "PassSize", "measure_ceilings", "roofline"]


@dataclass(frozen=True)
class Ceilings:
    """Operations and bytes per second."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class PassSize:
    """What the work depends on.

    Args:
        target_weights: entries of the scored matrices.
        head_weights: entries of the output embedding.
        key_value_size: entries of the key-value cache per token, all layers.
        itemsize: bytes of a weight.
        num_prompts: N.
        num_probes: R.
        num_tokens: T.
        batch_size: B while measuring.
        written_together: B while writing.
        group_size: prompts per row of factors.
    """

    target_weights: int
    head_weights: int
    key_value_size: int
    itemsize: int
    num_prompts: int
    num_probes: int
    num_tokens: int
    batch_size: int
    written_together: int = 64
    group_size: int = 4

    def prompts(self) -> tuple[float, float]:
        """Operations and bytes of writing: T - 1 steps; each reads all weights and the keys and values so far."""
        weights = self.target_weights + self.head_weights
        steps = self.num_tokens - 1
        writers = math.ceil(self.num_prompts / self.written_together)
        read = self.num_prompts * self.key_value_size * steps * (steps + 1) / 2
        return 2.0 * weights * self.num_prompts * steps, self.itemsize * (weights * writers * steps + read)

    def probes(self) -> tuple[float, float]:
        """Operations and bytes of measuring: one forward and R backward passes; the head sees one position."""
        batches = math.ceil(self.num_prompts / self.batch_size)
        per_pass = 2.0 * self.num_prompts * (self.target_weights * self.num_tokens + self.head_weights)
        read = self.itemsize * (self.target_weights + self.head_weights) * batches
        return per_pass * (1 + self.num_probes), read * (1.0 + self.num_probes)

    def masks(self) -> tuple[float, float]:
        """Operations and bytes of choosing: G products; a score is written once and read three times."""
        groups = math.ceil(self.num_prompts / self.group_size)
        return 2.0 * groups * self.target_weights, self.target_weights * (self.itemsize + 4.0 * 4 + 1)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of a few large matrix products and of a few large copies."""
    side, size = (8192, 1 << 31) if device.type == "cuda" else (1024, 1 << 27)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    seconds = _best(lambda: torch.mm(left, right, out=product), device)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Ceilings(2.0 * side**3 / seconds, 2.0 * size / _best(lambda: target.copy_(source), device))


def roofline(size: PassSize, ceilings: Ceilings) -> dict[str, Any]:
    """Seconds by phase, in total, and the numbers they come from."""
    work = {"prompts": size.prompts(), "probes": size.probes(), "masks": size.masks()}
    seconds = {phase: max(flops / ceilings.flops, moved / ceilings.bandwidth) for phase, (flops, moved) in work.items()}
    return {
        "seconds": {**seconds, "total": sum(seconds.values())},
        "flops": {phase: flops for phase, (flops, _) in work.items()},
        "bytes": {phase: moved for phase, (_, moved) in work.items()},
        "ceilings": asdict(ceilings),
    }


def _best(run: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
