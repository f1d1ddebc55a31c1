"""How far a model's answers move when only chosen entries of its matrices are disturbed.

The disturbance is either relative, W * (1 + N(0, 1)), or absolute, W + std(W) / 2 * N(0, 1) with the spread of the
whole matrix: steps of Adam are absolute. The shift is KL(undisturbed || disturbed) of the next token, mean over
positions of texts with their pictures.

Legend: B rows, T positions, P positions that are compared, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dowser_pl.data.base import Conversation, ImageSource
from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.world.datamodule import user_turn
from dowser_pl.data.world.tasks import TEXT_TOPICS, TOPICS, examples
from dowser_pl.functional.random_streams import stream

__all__ = ["NOISES", "Noise", "ShiftMeter", "disturbed", "world_texts"]

Noise = Literal["relative", "absolute"]
NOISES: tuple[Noise, ...] = ("relative", "absolute")
IGNORED = -100  # label of a token that is no answer
Batch = dict[str, Tensor]


def world_texts(processor: Any, rows_per_task: int, seed: int) -> list[Batch]:
    """Validation questions of every upstream task with their right answers, in right-padded batches.

    The first batch has the tasks with pictures, the second those without.
    """
    encoder = build_encoder(processor)
    batches = []
    for tasks in (TOPICS, TEXT_TOPICS):
        rows: list[Conversation] = []
        for task in tasks:
            for example in islice(examples(task, "validation", seed), rows_per_task):
                answer = {"role": "assistant", "content": [{"type": "text", "text": example.answer}]}
                pictures: list[ImageSource] = [example.scene] if example.scene else []
                rows.append(Conversation(f"{task} {len(rows)}", [user_turn(example), answer], pictures))
        batch, _ = encoder.training_batch(rows)
        batch.pop("ids")
        batches.append(batch)
    return batches


@dataclass(frozen=True)
class Shift:
    """Mean KL divergence in nats.

    Attributes:
        text: over positions that a word follows, of question or answer.
        answers: over those that a word of the answer follows, its end mark included.
    """

    text: float
    answers: float


class ShiftMeter:
    """Remembers what a model says and measures how far it has moved.

    Args:
        model: any Hugging Face model, in eval mode; undisturbed now.
        batches: right-padded rows with `labels` (B, T), -100 where no answer stands.
        image_token: id of the tokens in whose place the model puts pictures; None = none.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], image_token: int | None) -> None:
        self.model = model
        self.batches = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
        self.followed = []
        answers = []
        for batch in batches:
            real = batch["attention_mask"].bool() & (batch["input_ids"] != image_token)
            followed = real[:, :-1] & real[:, 1:]
            self.followed.append(followed)
            answers.append((batch["labels"][:, 1:] != IGNORED)[followed])
        self.answers = torch.cat(answers)
        self.base = self._log_probabilities()

    def shift(self) -> Shift:
        """From what the model said when this was made, to what it says now."""
        now = self._log_probabilities()
        by_position = (self.base.exp() * (self.base - now)).sum(dim=1)
        return Shift(float(by_position.mean()), float(by_position[self.answers].mean()))

    @torch.no_grad()
    def _log_probabilities(self) -> Tensor:
        """(P, V) of the next token, all batches one after the other."""
        rows = []
        for batch, followed in zip(self.batches, self.followed, strict=True):
            logits = self.model(**batch, use_cache=False).logits[:, :-1]
            rows.append(logits[followed].double().log_softmax(dim=-1))
        return torch.cat(rows)


@contextmanager
def disturbed(
    layers: Mapping[str, nn.Linear], masks: Mapping[str, Tensor], noise: Noise, seed: int, draw: int
) -> Iterator[None]:
    """Add noise to the masked entries; taken back on exit, bit by bit.

    An entry gets the same number for the same seed and draw, whatever the mask, so masks are compared in pairs.
    """
    kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            base = kept[name]
            unit = torch.randn(base.shape, generator=stream(seed, "disturbance", draw, name))
            size = base if noise == "relative" else 0.5 * base.std()
            layer.weight.data.add_(unit * size * masks[name])
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.data.copy_(kept[name])
