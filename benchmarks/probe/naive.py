"""The importance pass as it was published: what `bench_probe.py` measures ours against.

Written anew after the released code of arXiv 2602.04509 (LLaVA/scripts/llava_importance_self_gen_prompt.py of its
repository). For every probe of every batch: a forward pass with the logits of all positions, one Rademacher vector per
prompt over the logits of the last one, a backward pass that also forms the gradient of every weight, hooks that keep
the mean of |h| and |g| over batch and positions; then per matrix the dense product psi |W| a in the model's dtype,
moved to the CPU in float32, into a running mean and a running sum of squared deviations.

Three things differ, none of which changes a mask or costs time: the sum that is differentiated is not divided by the
batch size (a constant factor); the vectors are those of our pass, so that scores can be compared; no noise image stands
before the text, for neither side.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.functional.masks import num_trainable
from dowser_pl.functional.random_streams import stream
from dowser_pl.functional.selection import lowest
from dowser_pl.importance import Prompt
from probe.meters import PhaseClock

__all__ = ["NaiveLoop"]


@dataclass
class RunningMoments:
    """Welford's mean and sum of squared deviations of equally weighted matrices, float32 on the CPU."""

    mean: Tensor
    squared_deviations: Tensor
    count: int = 1

    @classmethod
    def of(cls, first: Tensor) -> "RunningMoments":
        """After one matrix."""
        value = first.to("cpu", torch.float32)
        return cls(value.clone(), torch.zeros_like(value))

    def add(self, value: Tensor) -> None:
        """Take in one more matrix."""
        value = value.to("cpu", torch.float32)
        self.count += 1
        deviation = value - self.mean
        self.mean.add_(deviation * (1.0 / self.count))
        self.squared_deviations.add_((value - self.mean) * deviation * 1.0)  # weighted by a batch's share, here equal

    @property
    def nbytes(self) -> int:
        """Memory of the two matrices."""
        return self.mean.nbytes + self.squared_deviations.nbytes


class NaiveLoop:
    """The loop and its state.

    Args:
        model: in eval mode; all its parameters must require a gradient, as they do in the released code.
        layers: name -> matrix to score.
        seed: of the probe vectors.

    Attributes:
        moments: name -> statistics of the scores so far.
    """

    def __init__(self, model: PreTrainedModel, layers: Mapping[str, nn.Linear], seed: int) -> None:
        self.model = model
        self.layers = layers
        self.seed = seed
        self.moments: dict[str, RunningMoments] = {}
        self._inputs: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    @property
    def state_bytes(self) -> int:
        """Memory that the loop holds from one batch to the next."""
        return sum(moments.nbytes for moments in self.moments.values())

    def run(self, prompts: Sequence[Prompt], first: int, num_probes: int, clock: PhaseClock) -> None:
        """All probes of one batch.

        Args:
            prompts: of one length; padding is not looked at.
            first: number of the first prompt, which fixes the probe vectors.
            num_probes: vectors per prompt.
            clock: told the phases `forward`, `backward`, `outer` and `statistics`.
        """
        device = next(self.model.parameters()).device
        tokens = torch.stack([prompt.tokens for prompt in prompts]).to(device)
        streams = [stream(self.seed, "probe", first + row) for row in range(len(prompts))]
        with ExitStack() as hooks:
            for name, module in self.layers.items():
                hooks.callback(module.register_forward_hook(self._watch_input(name)).remove)
                hooks.callback(module.register_full_backward_hook(self._watch_gradient(name)).remove)
            for _ in range(num_probes):
                self._probe(tokens, streams, clock)
        self.model.zero_grad(set_to_none=True)

    def masks(self, update_ratio: float) -> dict[str, Tensor]:
        """The lowest mean scores of each matrix, on the device of the model."""
        return {
            name: lowest(
                self.moments[name].mean.to(module.weight.device), num_trainable(update_ratio, module.weight.numel())
            )
            for name, module in self.layers.items()
        }

    def _probe(self, tokens: Tensor, streams: Sequence[torch.Generator], clock: PhaseClock) -> None:
        with clock.phase("forward"), torch.enable_grad():
            logits = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
            last = logits[:, -1]
            signs = torch.stack([torch.randint(0, 2, last.shape[1:], generator=random) for random in streams])
            total = ((signs.to(last.device) * 2.0 - 1.0) * last).sum()
        with clock.phase("backward"):
            self.model.zero_grad(set_to_none=True)
            total.backward()
        for name, module in self.layers.items():
            with clock.phase("outer"):
                score = self._gradients[name][:, None] * module.weight.detach().abs() * self._inputs[name][None, :]
            with clock.phase("statistics"):
                if name in self.moments:
                    self.moments[name].add(score)
                else:
                    self.moments[name] = RunningMoments.of(score)

    def _watch_input(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            self._inputs[name] = inputs[0].detach().abs().mean(dim=(0, 1))

        return hook

    def _watch_gradient(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            self._gradients[name] = outputs[0].detach().abs().mean(dim=(0, 1))

        return hook
