"""What `compare_estimators.py` compares: estimators of importance at their budgets, and controls."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dowser_pl.importance import Probe, measure, probing_mode, write_prompts
from dowser_pl.importance.prompts import noise_images
from dowser_pl.methods import HighestImportance, Layer, Magnitude, ModelDowser, Random, Scored, WandaLike
from dowser_pl.models.layers import text_inputs, text_model

__all__ = ["RATIO", "ROWS", "Row", "scores_of"]

RATIO = 0.1
METHODS: dict[str, Callable[[int], Scored]] = {
    **{name: lambda _, name=name: ModelDowser(RATIO, name) for name in ("authors", "paper", "token", "weight")},  # type: ignore[misc]
    "magnitude": lambda _: Magnitude(RATIO),
    "wanda": lambda _: WandaLike(RATIO),
    "random": lambda seed: Random(RATIO, seed=seed),
    "highest": lambda _: HighestImportance(RATIO),
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        scored_by: key of `METHODS`.
        num_prompts: of the probe.
        num_probes: of the probe.
        positions: whose logits are probed.
        noise_images: whether prompts begin with a picture.
        tuned: whether it is worth a fine-tuning.
    """

    scored_by: str
    num_prompts: int = 128
    num_probes: int = 1
    positions: Literal["last", "all"] = "last"
    noise_images: bool = False
    tuned: bool = True

    @property
    def name(self) -> str:
        """In tables and folders."""
        if not self.method(0).needs or self.scored_by == "highest":
            return self.scored_by
        variant = ("-all" if self.positions == "all" else "") + ("-images" if self.noise_images else "")
        return f"{self.scored_by}-{self.num_prompts}x{self.num_probes}{variant}"

    def method(self, seed: int) -> Scored:
        """What scores."""
        return METHODS[self.scored_by](seed)

    def probe(self, seed: int) -> Probe:
        """Settings of the pass."""
        return Probe(
            num_prompts=self.num_prompts,
            num_probes=self.num_probes,
            positions=self.positions,
            noise_images=self.noise_images,
            seed=seed,
        )

    def options(self, seed: int) -> list[str]:
        """The same for `python -m dowser_pl fit`.

        Raises:
            ValueError: for a row that is a control of this tool alone.
        """
        method = self.method(seed)
        if type(method) not in (ModelDowser, Magnitude, Random):
            raise ValueError(f"{self.name} is no method of dowser_pl, so it cannot be trained; set tuned=False")
        chosen: dict[str, object] = {"method": type(method).__name__}
        chosen |= {f"method.{name}": value for name, value in method.settings().items() if name != "method"}
        if method.needs:
            names = ("num_prompts", "num_probes", "positions", "noise_images")
            chosen |= {f"probe.{name}": getattr(self, name) for name in names}
        chosen["probe.seed"] = seed
        return [word for name, value in chosen.items() for word in (f"--dowser.{name}", str(value))]


ROWS = (
    Row("authors", 64, 8),
    Row("authors"),
    Row("paper", 64, 8),
    Row("paper"),
    Row("token"),
    Row("weight"),
    Row("authors", positions="all"),
    Row("weight", positions="all"),
    Row("authors", noise_images=True),
    Row("authors", 16, 8, tuned=False),
    Row("authors", 32, 1, tuned=False),
    Row("magnitude"),
    Row("wanda", tuned=False),
    Row("random"),
    Row("highest", tuned=False),
)


def scores_of(
    model: Any, processor: Any, layers: Mapping[str, nn.Linear], row: Row, seed: int
) -> tuple[dict[str, Tensor], float | None]:
    """By matrix the (O, I) scores, and the seconds of the importance pass; None where there is none."""
    method, probe = row.method(seed), row.probe(seed)
    factors: Mapping[str, Mapping[str, Tensor]] = {}
    seconds = None
    if method.needs:
        writer = model if probe.noise_images else text_model(model)
        images = partial(noise_images, processor, probe) if probe.noise_images else None
        inputs = partial(text_inputs, text_model(model))
        start = time.monotonic()
        with probing_mode(writer):
            prompts = write_prompts(writer, processor.tokenizer, probe, range(row.num_prompts), images, inputs)
            measured = measure(writer, layers, prompts, probe, method.needs, text_inputs=inputs)
        seconds = time.monotonic() - start
        factors = measured.grouped(method.prompts_per_row).layers
    with torch.no_grad():
        scores = {
            name: method.score(Layer(name, layer.weight.detach(), **factors.get(name, {})))
            for name, layer in layers.items()
        }
    return scores, seconds
