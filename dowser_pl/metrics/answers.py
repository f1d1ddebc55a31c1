"""What every metric over strings shares: checked rows, and a mean that ranks can reduce exactly.

A row is one prediction with the list of its accepted references. Scores lie in [0, 1], higher is better.
The sum is kept in whole billionths (int64): integer addition gives the same total in any order and on any
number of ranks and devices, where a float sum would not. One row is off by at most 5e-10.
"""

import json
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from dowser_pl.errors import DowserError

BILLION = 10**9


FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def plain_width(text: str) -> str:
    """The text with the full-width letters, digits and marks of East Asian keyboards as plain ones."""
    return text.translate(FULL_WIDTH)


def check_rows(metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse rows that no metric could score.

    Raises:
        DowserError: a bare string where a list belongs (it would be scored letter by letter), lengths that
            differ, or a row without any reference.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise DowserError(f"{metric}: got one string, expected lists: predictions and reference lists.")
    if len(predictions) != len(references):
        raise DowserError(
            f"{metric}: got {len(predictions)} predictions and {len(references)} lists of references, "
            "expected one list of references per prediction, in the same order."
        )
    for row, accepted in enumerate(references):
        if isinstance(accepted, str):
            raise DowserError(
                f"{metric}: the references of row {row} are the string {accepted!r}, "
                f"expected a list of strings. Write [{accepted!r}]."
            )
        if not accepted:
            raise DowserError(
                f"{metric}: row {row} has no reference, so no prediction can be right. "
                "Give it at least one accepted answer, or leave the row out of the evaluation set."
            )


def warn_of_nothing(metric: str, count: int) -> None:
    """Say that a score of 0 is of predictions in which there was nothing to compare."""
    warnings.warn(
        f"{metric}: nothing can be read from any of the {count} predictions, so the score is 0 whatever it knows. "
        "Look at them with `predict`, and at where the log says that answers end.",
        stacklevel=3,
    )


class AnswerMetric(Metric):
    """Mean over rows of a score in [0, 1]; a subclass says how one row is scored."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor
    answered: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("answered", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Score in [0, 1] of one prediction against its accepted references (never empty)."""

    def says_something(self, prediction: str) -> bool:
        """Whether there is anything in a prediction that could be right."""
        return bool(prediction.strip())

    def row_scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The score of each row by itself; it raises what `update` raises, and nothing is added."""
        check_rows(type(self).__name__, predictions, references)
        return [self.score(*row) for row in zip(predictions, references, strict=True)]

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add answers and their references.

        Raises:
            DowserError: lengths differ, or a row has no reference (nothing of the batch is counted then).
        """
        scores = self.row_scores(predictions, references)
        self.total += sum(round(score * BILLION) for score in scores)
        self.count += len(scores)
        self.answered += sum(map(self.says_something, predictions))

    def compute(self) -> Tensor:
        """Mean score over all rows of all ranks, a float32 scalar in [0, 1].

        Raises:
            DowserError: no row was added on any rank.
        """
        count = int(self.count)
        if count == 0:
            raise DowserError(f"{type(self).__name__}: no row was scored, so there is no mean. Call update().")
        if int(self.answered) == int(self.total) == 0:
            warn_of_nothing(type(self).__name__, count)
        mean = int(self.total) / (count * BILLION)
        return torch.tensor(mean, dtype=torch.float32, device=self.count.device)


class LineMetric(Metric):
    """A metric of the whole set, which is no mean of rows: a line of JSON of each row is its state.

    The lines of one update are one uint8 tensor; ranks gather them by concatenation.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    lines: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dist_sync_fn=_gather_bytes, **kwargs)
        self.add_state("lines", default=[], dist_reduce_fx="cat")

    def add(self, rows: Iterable[Any]) -> None:
        """Keep what JSON can hold of each row."""
        encoded = bytearray("".join(json.dumps(row) + "\n" for row in rows).encode("ascii"))
        if encoded:
            self.lines.append(torch.frombuffer(encoded, dtype=torch.uint8).to(self.device))

    def added(self) -> list[str]:
        """The lines of all ranks."""
        text = bytes(dim_zero_cat(self.lines).cpu().numpy()).decode("ascii") if len(self.lines) else ""
        return text.splitlines()


def _gather_bytes(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Gather uint8 states of any length; a rank without rows brings an empty float tensor, cast here."""
    return gather_all_tensors(tensor.to(torch.uint8), group)
