"""The importance pass inside a Trainer: precision, processes, progress bar."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from tqdm.auto import tqdm

from dowser_pl.callbacks.dowser.identity import identity
from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import spread_model
from dowser_pl.importance import Factors, Probe, Prompt, Request, measure, probing_mode, write_prompts
from dowser_pl.importance.batches import aligned
from dowser_pl.importance.images import noise_images

__all__ = ["Measuring"]

_CHUNK = 64  # prompts per process whose factors are held one by one before groups are formed


@dataclass
class Measuring:
    """Asks prompts of a model, on every process.

    Args:
        trainer: its precision and processes.
        pl_module: the model and its processor.
        layers: run-time name -> matrix.
        probe: settings.

    Attributes:
        seconds: by phase, ``prompts`` and ``probes``; empty as long as nothing was measured.
    """

    trainer: Trainer
    pl_module: Any
    layers: dict[str, nn.Linear]
    probe: Probe
    seconds: dict[str, float] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What the factors of a prompt depend on, on every process."""

        def compute() -> dict[str, Any]:
            return identity(self.pl_module, self.probe, self._precision())

        return compute() if spread_model(self.pl_module.network) else collectives.from_first(compute)

    def _precision(self) -> str:
        """That the model computes in: the trainer's, but for weights that a strategy gathers in another dtype."""
        gathered = getattr(self.trainer.strategy, "param_dtype", None)
        kept = {str(weight.dtype).removeprefix("torch.") for weight in self.pl_module.network.parameters()}
        other = gathered is not None and kept != {gathered}
        return f"{self.trainer.precision}, gathered in {gathered}" if other else str(self.trainer.precision)

    def grow(self, known: Factors, num_prompts: int, request: Request) -> Factors:
        """``known``, continued until it has ``num_prompts`` prompts."""
        missing = range(known.num_prompts, num_prompts)
        if not missing:
            return known
        # sums over prompts are made in one go; rows are made in chunks that hold whole groups and whole batches
        unit = math.lcm(request.prompts_per_row, self.probe.batch_size)
        size = -(-_CHUNK * collectives.world_size() // unit) * unit if request.factorised else num_prompts
        model = self.pl_module.network if self.probe.noise_images else self.pl_module.text_model()
        bar = tqdm(total=len(missing), desc="Importance pass", unit="prompt", disable=collectives.rank() > 0)
        with bar, probing_mode(model), torch.enable_grad(), self.trainer.precision_plugin.forward_context():
            prompts = self._prompts(model, missing)
            start = time.monotonic()
            for chunk in aligned(missing, size):
                measured = measure(
                    model,
                    self.layers,
                    [prompts[index - missing.start] for index in chunk],
                    self.probe,
                    request.statistics,
                    chunk.start,
                    bar.update,
                    self.pl_module.text_inputs,
                )
                known = known.followed_by(measured.grouped(request.prompts_per_row))
            bar.update(len(missing) - bar.n)  # other processes did the rest
            self.seconds["probes"] = self.seconds.get("probes", 0.0) + time.monotonic() - start
        return known

    def _prompts(self, model: Any, indices: range) -> list[Prompt]:
        """The same on every process: in half precision another batch would write another text."""
        start = time.monotonic()
        processor, probe = self.pl_module.processor, self.probe

        def images(batch: range) -> list[dict[str, Tensor]]:
            return noise_images(processor, probe, batch)

        with_images = images if probe.noise_images else None
        text_inputs, ending = self.pl_module.text_inputs, self.pl_module.ending()
        prompts = write_prompts(model, processor.tokenizer, probe, indices, with_images, text_inputs, ending)
        self.seconds["prompts"] = self.seconds.get("prompts", 0.0) + time.monotonic() - start
        return prompts
