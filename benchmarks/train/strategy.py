"""Bytes that each process holds in compact training under a strategy, beside those of one process alone.

Weights, trainable values, indices, moments and gradients are counted on the tensors that are there after two steps, and
the collectives of the second step where torch dispatches them. Processes talk over gloo, on this machine.
"""

import contextlib
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from dowser_pl.callbacks.dowser.masks import rows_of
from dowser_pl.distributed import collectives
from dowser_pl.distributed.collectives import DistributedReducer
from dowser_pl.distributed.tensors import to_local
from dowser_pl.functional.selection import LOCAL
from dowser_pl.masking import CompactEntries, ShardedEntries
from dowser_pl.methods import Layer, Random, build_masks
from dowser_pl.models.layers import find_blocks
from dowser_pl.strategies.fsdp2 import fully_shard_model
from train.presets import PRESETS, Subject

__all__ = ["STRATEGIES", "measure_strategy", "measured_here", "share", "strategy_lines"]

STRATEGIES = ("fsdp2",)
_COUNTED = ("weights", "entries", "indices", "moments")


def measure_strategy(preset: str, strategy: str, ranks: int) -> dict[str, Any]:
    """Bytes by kind of one process alone and of each of several, and the largest share of any of them."""
    alone, *_ = _on(1, preset)
    held = _on(ranks, preset)
    content = {"strategy": strategy, "alone": alone, "ranks": held, "counted": list(_COUNTED)}
    return content | {"memory_share": share(alone, held)}


def share(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> float:
    """The most that any rank holds of what one process holds alone, of what is counted."""
    held = [sum(each["bytes"][kind] for kind in _COUNTED) for each in (alone, *ranks)]
    return max(held[1:]) / held[0]


def strategy_lines(content: dict[str, Any]) -> list[str]:
    """A table of what `measure_strategy` gave."""
    kinds = list(content["alone"]["bytes"])
    rows = {"alone": content["alone"], **{f"rank {rank}": each for rank, each in enumerate(content["ranks"])}}
    lines = [f"{'MB':<8}" + "".join(f"{kind:>11}" for kind in kinds)]
    lines += [
        f"{name:<8}" + "".join(f"{row['bytes'][kind] / 1e6:>11.2f}" for kind in kinds) for name, row in rows.items()
    ]
    counts = ", ".join(f"{number} {name}" for name, number in content["ranks"][0]["collectives"].items())
    held = f"{content['memory_share']:.3f} of one process ({' + '.join(content['counted'])})"
    return [*lines, f"{content['strategy']}: a rank holds at most {held}", f"collectives of a step: {counts}"]


def _on(ranks: int, preset: str) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(ranks) as pool:
        store = f"file://{Path(folder) / 'store'}"
        jobs = [(preset, rank, ranks, store, torch.get_num_threads()) for rank in range(ranks)]
        return pool.starmap(_measured, jobs, chunksize=1)


def _measured(preset: str, rank: int, ranks: int, store: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    with _group(rank, ranks, store):
        return measured_here(preset)


def measured_here(preset: str) -> dict[str, Any]:
    """`bytes` by kind and `collectives` of a step by name, on this process, with all that are in its group."""
    ranks = collectives.world_size()
    subject = Subject(PRESETS[preset])
    if ranks > 1:
        fully_shard_model(subject.model, init_device_mesh("cpu", (ranks,)))
    entries = _entries(subject, sharded=ranks > 1)
    optimizer = AdamW(entries.parameters(), lr=1e-5)
    gradients, calls = 0, {}
    for number in range(2):
        optimizer.zero_grad()
        with Collectives() as counted:
            subject.model(**subject.batch(number), use_cache=False).loss.backward()
        calls = dict(counted.names)
        gradients = sum(each.grad.nbytes for each in entries.parameters() if each.grad is not None)
        optimizer.step()
        entries.after_step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    held = entries.num_bytes()
    return {
        "bytes": {
            "weights": sum(to_local(each.detach()).nbytes for each in subject.model.parameters()),
            "entries": held["values"],
            "indices": held["indices"],
            "moments": sum(value.nbytes for value in states if isinstance(value, torch.Tensor)),
            "gradients": gradients,
            "host": held["base"] + entries.packed_bytes,
        },
        "collectives": calls,
    }


class Collectives(TorchDispatchMode):
    """Counts collectives by name while it is entered.

    PyTorch's `CommDebugMode` does so with hooks on every module, which cannot look into the outputs of Hugging Face
    models and make views of FSDP2's: a page of warnings about itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        if "c10d" in func.namespace and "wait" not in str(func):
            self.names[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def _entries(subject: Subject, sharded: bool) -> CompactEntries:
    """Random masks, by the rows that are here."""
    layers = {name: Layer(name, layer.weight.detach()) for name, layer in subject.layers.items()}
    here = {name: rows_of(layer) for name, layer in layers.items()} if sharded else layers
    blocks = find_blocks(subject.model, layers)
    method = Random(subject.preset.update_ratio)
    masks = dict(build_masks(method, blocks, here.__getitem__, DistributedReducer() if sharded else LOCAL))
    return (ShardedEntries if sharded else CompactEntries)(subject.weights, masks)


@contextlib.contextmanager
def _group(rank: int, ranks: int, store: str) -> Iterator[None]:
    if ranks == 1:
        yield
        return
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    try:
        yield
        collectives.all_gather_numbered(dict)  # none leaves while another still needs it
    finally:
        distributed.destroy_process_group()
