"""Peak memory in use of both sides, in a process of its own: its malloc hands every freed block back, which costs time.

In the process that is timed malloc stays as everybody has it.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch
from peak_memory import nothing_kept_back
from probe_bench_model import PlainTokens, Preset, build_model
from probe_sides import GROUP, Ours, Published, Subject, peak_bytes

from dowser_pl.importance import Probe
from dowser_pl.models.layers import find_layers

__all__ = ["memory_in_use"]


def memory_in_use(preset: Preset) -> dict[str, dict[str, int | None]]:
    """Peaks of one pass (``ours``) and of one batch of the loop with all its state (``naive``); not timed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, preset, torch.get_num_threads()).result()


def _measure(preset: Preset, threads: int) -> dict[str, dict[str, int | None]]:
    """Two probes each are enough: from the second on, every probe of the loop finds the state the first has set up."""
    torch.set_num_threads(threads)
    probes = min(2, preset.num_probes)
    settings = Probe(preset.num_prompts, probes, preset.num_tokens, batch_size=preset.batch_size)
    with nothing_kept_back():  # from the start: it does not mend a heap that has holes
        model = build_model(preset, seed=0)
        subject = Subject(model, find_layers(model, None, ["attn", "mlp"]), PlainTokens(preset.vocab_size))
        Ours(subject, replace(settings, num_prompts=GROUP, num_probes=1)).run()  # libraries warm up
        ours, naive = Ours(subject, settings), Published(subject, settings, num_probes=probes)
        ours.run()
        naive.run(naive.batches[0])
        naive.choose()
    return {"ours": peak_bytes(ours), "naive": peak_bytes(naive)}
