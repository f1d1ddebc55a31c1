"""The two sides of `bench_probe.py`: our importance pass and the loop as published, timed by phase, memory watched."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.importance import Factors, Probe, Prompt, measure, probing_mode, write_prompts
from dowser_pl.methods import Layer, ModelDowser
from dowser_pl.models.layers import find_layers
from probe.meters import PeakMemory, PhaseClock, nothing_kept_back
from probe.models import PlainTokens, Preset, build_model
from probe.naive import NaiveLoop

__all__ = ["GROUP", "METHOD", "Ours", "Published", "Subject", "memory_in_use", "peak_bytes"]

GROUP = 4  # prompts of one batch of the loop, and of one row of our factors
METHOD = ModelDowser(0.1, group_size=GROUP)


@dataclass(frozen=True)
class Subject:
    """What both sides score."""

    model: PreTrainedModel
    layers: dict[str, nn.Linear]
    tokenizer: PlainTokens

    def write(self, settings: Probe, indices: range) -> list[Prompt]:
        """The prompts of the given numbers."""
        return write_prompts(self.model, self.tokenizer, settings, indices)


@dataclass
class Ours:
    """Our pass with one budget, run as often as one likes.

    Attributes:
        seconds: of every pass, by phase and in total.
        peaks: of every pass, as malloc is.
        prompts: of the last pass.
        factors: of the last pass.
        masks: of the last pass.
    """

    subject: Subject
    settings: Probe
    seconds: list[dict[str, float]] = field(default_factory=list)
    peaks: list[PeakMemory] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    factors: Factors = field(default_factory=lambda: Factors({}, 0))
    masks: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> None:
        """One more pass: prompts, probes, masks."""
        model, layers = self.subject.model, self.subject.layers
        clock = PhaseClock(model.device)
        self.masks = {}  # not held while the next ones are made
        with PeakMemory(model.device) as peak:
            with probing_mode(model), torch.enable_grad():
                with clock.phase("prompts"):
                    self.prompts = self.subject.write(self.settings, range(self.settings.num_prompts))
                with clock.phase("probes"):
                    measured = measure(model, layers, self.prompts, self.settings, METHOD.needs)
                    self.factors = measured.grouped(METHOD.prompts_per_row)
            with clock.phase("masks"):
                self.masks = {name: METHOD.mask(self.layer(name)) for name in layers}
        self.seconds.append(clock.with_total())
        self.peaks.append(peak)

    def layer(self, name: str) -> Layer:
        """A matrix with its factors."""
        return Layer(name, self.subject.layers[name].weight, **self.factors.layers[name])

    def median(self) -> dict[str, float]:
        """Seconds of the pass in the middle; of an even number the slower of the two there."""
        return sorted(self.seconds, key=lambda seconds: seconds["total"])[len(self.seconds) // 2]


class Published:
    """The loop, batch by batch.

    Args:
        subject: what is scored; all parameters require a gradient from here on.
        settings: prompts, probes and seed.
        num_probes: how many probes of the first batch to run and multiply up; None = all of all batches.

    Attributes:
        batches: numbers of the prompts of each batch that is run.
        prompts: those written so far.
        masks: once chosen.
    """

    def __init__(self, subject: Subject, settings: Probe, num_probes: int | None) -> None:
        self.subject = subject
        self.settings = settings
        self.extrapolated = num_probes is not None
        self.num_probes = num_probes or settings.num_probes
        num_prompts = GROUP if self.extrapolated else int(settings.num_prompts)
        self.batches = [range(first, first + GROUP) for first in range(0, num_prompts, GROUP)]
        self.prompts: list[Prompt] = []
        self.masks: dict[str, Tensor] = {}
        self.peaks: list[tuple[PeakMemory, int]] = []
        self._clock = PhaseClock(subject.model.device)
        self._loop = self._new_loop()

    def warm_up(self) -> None:
        """One probe that is not timed."""
        loop = self._new_loop()
        loop.run(self.subject.write(self.settings, self.batches[0]), 0, 1, PhaseClock(self.subject.model.device))
        if self.extrapolated:  # nothing that is done once may be multiplied, and masks mean nothing anyway
            self._loop = loop

    def run(self, batch: range) -> None:
        """One batch: prompts, then its probes."""
        with self._watched():
            with self._clock.phase("prompts"):
                prompts = self.subject.write(self.settings, batch)
            self._loop.run(prompts, batch.start, self.num_probes, self._clock)
        self.prompts += prompts

    def choose(self) -> None:
        """The masks of all batches."""
        with self._watched(), self._clock.phase("masks"):
            self.masks = self._loop.masks(METHOD.update_ratio)

    def seconds(self) -> dict[str, float]:
        """By phase and in total, multiplied up where only a part was run."""
        batches = int(self.settings.num_prompts) / GROUP / len(self.batches)
        factors = {"prompts": batches, "masks": 1.0}
        probes = batches * self.settings.num_probes / self.num_probes
        seconds = {phase: value * factors.get(phase, probes) for phase, value in self._clock.seconds.items()}
        return {**seconds, "total": sum(seconds.values())}

    @contextmanager
    def _watched(self) -> Iterator[None]:
        held = self._loop.state_bytes  # resident already, and to be counted
        with PeakMemory(self.subject.model.device) as peak:
            yield
        self.peaks.append((peak, held))

    def _new_loop(self) -> NaiveLoop:
        return NaiveLoop(self.subject.model.requires_grad_(True), self.subject.layers, self.settings.seed)


def peak_bytes(side: Ours | Published) -> dict[str, int | None]:
    """The largest peak of all blocks so far: host and device together, and each; None where it is not known."""
    peaks = [(peak, 0) for peak in side.peaks] if isinstance(side, Ours) else side.peaks
    hosts = [None if peak.host_bytes is None else peak.host_bytes + held for peak, held in peaks]
    host = None if None in hosts else max(known for known in hosts if known is not None)
    device = max(peak.device_bytes for peak, _ in peaks)
    return {"total": None if host is None else host + device, "host": host, "device": device}


def memory_in_use(preset: Preset) -> dict[str, dict[str, int | None]]:
    """Peaks of one pass (`ours`) and of one batch of the loop with all its state (`naive`); not timed.

    In a process of its own, whose malloc hands every freed block back, which costs time.
    """
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
