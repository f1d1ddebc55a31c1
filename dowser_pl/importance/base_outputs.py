"""What the base said on rows that it wrote, kept small and exact, and what the current model says there.

A row says something at every position before a token of text: logits there are a prediction of that token. Positions
before padding or before a placeholder of an image predict nothing that is ever written, and do not count.

The logits themselves would be V numbers a position. The head's input is H numbers, and a head that stays as it is makes
the base's logits of them again. Where it is trained too or sharded over processes, or where the model does more to
logits than its head does (scales or caps them), the k likeliest outcomes and the probability of all others are kept
instead.

Legend: N positions that count, B rows of a batch, T positions, H hidden size, V vocabulary, k outcomes that are kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.distributed.models import device_of, is_sharded_model
from dowser_pl.distributed.tensors import shape_of
from dowser_pl.errors import DowserError
from dowser_pl.functional.divergence import TopOutcomes, top_outcomes
from dowser_pl.importance.probe import stacked
from dowser_pl.importance.prompts import Prompt, alike, counted
from dowser_pl.models.layers import text_inputs, text_model

__all__ = ["BaseOutputs", "bytes_per_position", "current_logits", "record_base"]

_NUM_KEPT = 256  # outcomes, where hidden states do not give the logits back


@dataclass(frozen=True)
class BaseOutputs:
    """Rows and what the base said on each, in host memory.

    Attributes:
        rows: what was read.
        hidden: per row (N, H), the head's input in the dtype in which the base computed it; None = not kept.
        top: per row the likeliest outcomes of N positions; None = hidden states are kept.
        head: makes logits of hidden states; None = that of the model that is asked, which must be the base's.
    """

    rows: list[Prompt]
    hidden: list[Tensor] | None
    top: list[TopOutcomes] | None = None
    head: nn.Module | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the base said, as what `torch.save` writes and loads again without classes of ours; rows are apart."""
        return {"hidden": self.hidden, "top": None if self.top is None else [each._asdict() for each in self.top]}

    @classmethod
    def from_state(cls, rows: list[Prompt], state: Mapping[str, Any]) -> "BaseOutputs":
        """What `state_dict` gave, of these rows."""
        top = None if state["top"] is None else [TopOutcomes(**each) for each in state["top"]]
        return cls(rows, state["hidden"], top)

    def of(self, network: PreTrainedModel, numbers: Sequence[int]) -> Tensor | TopOutcomes:
        """What the base said at the positions that count of some rows, one row after another.

        Args:
            network: the model, whose head is that of the base where hidden states are kept.
            numbers: of the rows.

        Returns:
            (N, V) logits, without a graph, or the top outcomes of N positions; on the device of the model.
        """
        device = device_of(network)
        if self.top is not None:
            chosen = [self.top[number] for number in numbers]
            return TopOutcomes(*(torch.cat(each).to(device) for each in zip(*chosen, strict=True)))
        assert self.hidden is not None
        hidden = torch.cat([self.hidden[number] for number in numbers]).to(device)
        with torch.no_grad():
            logits: Tensor = (self.head or _head(network))(hidden)
        return logits


def current_logits(network: PreTrainedModel, rows: Sequence[Prompt]) -> Tensor:
    """(N, V) logits at the positions that count, one row after another, with their graph.

    Args:
        network: the model, in whichever mode it is to be run.
        rows: that can be read together, see `alike`.
    """
    return _run(network, rows)[0]


def record_base(
    network: PreTrainedModel, rows: list[Prompt], batch_size: int, head_is_trained: bool = False
) -> BaseOutputs:
    """Run the base on rows and keep what it says.

    Args:
        network: the model, its weights being the base, in eval mode and in the precision that it will train in.
        rows: decoder-only ones, each of at least one position that counts.
        batch_size: rows a forward pass.
        head_is_trained: whether the head will not be that of the base later.

    Raises:
        DowserError: for encoder-decoders, or for rows that say nothing.
    """
    _check(network, rows)
    batches = list(alike(rows, batch_size))
    if not head_is_trained and not is_sharded_model(network):  # a head that is sharded cannot be run by itself
        found: dict[int, Tensor] = {}
        if all(_keep_hidden(network, rows, numbers, found) for numbers in batches):
            return BaseOutputs(rows, [found[number] for number in range(len(rows))])
    top: dict[int, TopOutcomes] = {}
    for numbers in batches:
        chosen = [rows[number] for number in numbers]
        with torch.no_grad():
            kept = top_outcomes(current_logits(network, chosen), _NUM_KEPT)
        parts = zip(*(each.cpu().split(_counts(chosen)) for each in kept), strict=True)
        top |= {number: TopOutcomes(*map(torch.clone, part)) for number, part in zip(numbers, parts, strict=True)}
    return BaseOutputs(rows, None, [top[number] for number in range(len(rows))])


def bytes_per_position(network: PreTrainedModel, changes: bool) -> int:
    """What is kept of a position that counts, by the sizes of a model, which may have no weights yet.

    Args:
        network: the model.
        changes: whether its head will be trained, or is sharded.

    Returns:
        Of the head's input; or of the likeliest outcomes, also where the config tells that logits are capped. That a
        model does other things to its logits than its head does shows when it is run.
    """
    text = text_model(network)
    words, inputs = shape_of(_head(network).weight)  # type: ignore[arg-type]
    if changes or getattr(text.config.get_text_config(), "final_logit_softcapping", None):
        return min(_NUM_KEPT, words) * (torch.float32.itemsize + torch.int64.itemsize) + torch.float32.itemsize
    return inputs * network.dtype.itemsize


@torch.no_grad()
def _keep_hidden(network: PreTrainedModel, rows: list[Prompt], numbers: list[int], found: dict[int, Tensor]) -> bool:
    """Whether the head makes the logits of these rows of the hidden states that are put into `found`, bit for bit."""
    chosen = [rows[number] for number in numbers]
    _, logits, hidden, positions = _run(network, chosen)
    if not torch.equal(_head(network)(hidden), logits):
        return False
    kept = hidden[positions].cpu().split(_counts(chosen))
    found.update({number: part.clone() for number, part in zip(numbers, kept, strict=True)})
    return True


def _run(network: PreTrainedModel, rows: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits at the positions that count, all logits, the head's input, and the (B, T) mask of what counts."""
    text = text_model(network)
    inputs, _ = stacked(list(rows), device_of(network), partial(text_inputs, text))
    model = network if rows[0].image else text
    with _head_input(network) as seen:
        logits: Tensor = model(**inputs, use_cache=False).logits
    positions = nn.utils.rnn.pad_sequence([counted(row) for row in rows], batch_first=True).to(logits.device)
    return logits[positions], logits, seen[-1], positions


@contextmanager
def _head_input(network: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the head is given meanwhile."""
    seen: list[Tensor] = []
    hook = _head(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


def _head(network: PreTrainedModel) -> nn.Module:
    head: nn.Module = text_model(network).get_output_embeddings()
    return head


def _counts(rows: Sequence[Prompt]) -> list[int]:
    return [int(counted(row).sum()) for row in rows]


def _check(network: PreTrainedModel, rows: Sequence[Prompt]) -> None:
    if text_model(network).config.is_encoder_decoder:
        raise DowserError(
            f"got {type(network).__name__}, an encoder-decoder, expected a model that continues its own text: what it "
            "said on rows cannot be kept. Fix: choose a decoder-only model, or do without replay and drift"
        )
    silent = [number for number, count in enumerate(_counts(rows)) if not count]
    if silent or not rows:
        raise DowserError(
            f"got {len(rows)} rows of which {len(silent)} predict no token of text (the first is {silent[:1]}), "
            "expected rows of at least two tokens. Fix: more --dowser.probe.num_tokens"
        )
