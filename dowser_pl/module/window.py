"""The batches between two optimizer steps, weighed as if they were one batch.

A model gives the mean loss over the tokens of a batch, and batches have different numbers of them. So each batch
counts by its tokens: its loss is multiplied by them before its backward pass, and when the last one is done the
gradients are divided by the tokens of all. The other way, to know all counts before the first backward pass, would
have to fetch the whole window ahead: its pictures in memory at once, and a position in the data that is ahead of what
was trained on.

The sum is kept in units of the tokens of the window's first batch. So a token of any batch has the gradient that it has
in the mean of that one, which float16 can hold; and a window of one batch is that batch's mean, bit for bit.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from dowser_pl.distributed import collectives

__all__ = ["Window", "count_targets"]


class Window:
    """The batches between two optimizer steps, of all processes together; all must call its methods."""

    def __init__(self) -> None:
        self._first = self._tokens = self._loss = 0.0

    @property
    def mean(self) -> float:
        """Loss per token of the batches so far."""
        return self._loss / max(self._tokens, 1.0)

    def add(self, loss: Tensor, tokens: Tensor, begins: bool) -> float:
        """Take in a batch; 16 bytes are exchanged.

        Args:
            loss: () mean over the tokens of this process.
            tokens: () how many these are.
            begins: whether this is the first batch of the window.

        Returns:
            What to multiply this process' loss by, as gradients of batches are added and those of processes averaged.
        """
        here = total = float(tokens)
        summed = float(loss.detach()) * here
        if collectives.world_size() > 1:
            both = torch.tensor([here, summed], dtype=torch.float64, device=loss.device)
            total, summed = collectives.all_reduce(both).tolist()
        if begins:
            self._first = self._tokens = self._loss = 0.0
        self._first = self._first or total
        self._tokens += total
        self._loss += summed
        return here * collectives.world_size() / max(self._first, 1.0)

    @torch.no_grad()
    def end(self, parameters: Iterable[Tensor], divided_by: int) -> None:
        """Make the summed gradients that of the mean over the tokens of all batches.

        Args:
            parameters: whose gradients are complete.
            divided_by: what each loss was divided by for the number of batches.
        """
        factor = divided_by * self._first / max(self._tokens, 1.0)
        self._first = self._tokens = self._loss = 0.0
        if factor not in (0.0, 1.0):  # 0: no batch was added
            for each in parameters:
                if each.grad is not None:
                    each.grad.mul_(factor)


def count_targets(labels: Tensor, shifted: bool) -> Tensor:
    """How many tokens a batch's loss is the mean of.

    Args:
        labels: (B, T), -100 = no loss.
        shifted: whether a label is what the position before it is to say, as in all models but encoder-decoders; then
            the first one of a row has nobody to say it.

    Returns:
        () int64.
    """
    return (labels[:, int(shifted) :] != -100).sum()
