"""POPE: yes or no, whether an object is in the picture. Li et al., 2023. arXiv:2305.10355.

An answer is read as the official script reads it: of the first sentence, commas left out, it is "no" if one of its
words is "No", "no" or "not", and "yes" in any other case, an empty answer too. References are "yes" or "no".
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dowser_pl.errors import DowserError
from dowser_pl.metrics.answers import AnswerMetric, check_rows


def said_yes(prediction: str) -> bool:
    """Whether the official script reads an answer as "yes"."""
    words = prediction.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def is_yes(reference: str) -> bool:
    """Whether "yes" is right.

    Raises:
        DowserError: the reference is neither "yes" nor "no".
    """
    label = reference.strip().lower()
    if label not in ("yes", "no"):
        raise DowserError(f'pope: the reference is {reference!r}, expected "yes" or "no".')
    return label == "yes"


class POPEAccuracy(AnswerMetric):
    """Share of answers that are read as the right one of "yes" and "no"."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if yes or no is right, else 0."""
        return float(said_yes(prediction) == is_yes(references[0]))


class POPEF1(Metric):
    """F1 of "yes": 2 TP / (2 TP + FP + FN), over all rows of all ranks; 0 where no "yes" is said or right."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", default=torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add answers and their references.

        Raises:
            DowserError: lengths differ, or a reference is neither "yes" nor "no".
        """
        check_rows("POPEF1", predictions, references)
        pairs = [(said_yes(said), is_yes(right[0])) for said, right in zip(predictions, references, strict=True)]
        added = [pairs.count(each) for each in ((True, True), (True, False), (False, True))]
        self.counts += torch.tensor(added, dtype=torch.int64, device=self.counts.device)

    def compute(self) -> Tensor:
        """F1, a float32 scalar in [0, 1]."""
        right, wrong, missed = self.counts.tolist()
        total = 2 * right + wrong + missed
        return torch.tensor(2 * right / total if total else 0.0, dtype=torch.float32, device=self.counts.device)
