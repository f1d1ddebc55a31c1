"""Which of the models that a run validated was kept, and what is said of the choice."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dowser_pl.errors import DowserError
from dowser_pl.reporting.fields import Fields


@dataclass(frozen=True)
class Validated:
    """A model in the midst of training.

    Attributes:
        step: optimizer steps that it took.
        epoch: that the last of them is in, from 1.
        score: H-score of its validation; the mean of the one role that has tasks, where the other has none.
    """

    step: int
    epoch: int
    score: float


@dataclass(frozen=True)
class KeptModel:
    """The validated model that was kept, and all there were.

    Attributes:
        step: optimizer steps of the kept one.
        validated: all, in their order; the last of the highest score is kept.
        apart: whether the scores are of other questions than those of the report.

    Raises:
        DowserError: if the kept one was not validated.
    """

    step: int
    validated: Sequence[Validated]
    apart: bool = False

    def __post_init__(self) -> None:
        if self.step not in [each.step for each in self.validated]:
            known = ", ".join(str(each.step) for each in self.validated) or "none"
            raise DowserError(f"The model of step {self.step} was kept, expected one that was validated: {known}.")

    @classmethod
    def read(cls, fields: Fields) -> "KeptModel":
        """Read the field `kept` of report.json."""
        validated = [
            Validated(each.count("step"), each.count("epoch"), each.number("score"))
            for each in fields.sections("validated")
        ]
        return cls(fields.count("step"), validated, fields.flag("apart"))

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain values, which `read` reads."""
        return {"step": self.step, "validated": [asdict(each) for each in self.validated], "apart": self.apart}


def kept_parts(kept: KeptModel | None) -> list[str]:
    """The sentence of a report; none where the last model was kept without a choice."""
    if kept is None:
        return []
    one = next(each for each in kept.validated if each.step == kept.step)
    last = kept.validated[-1]
    beside = "it is also the last" if one is last else f"the last, of step {last.step:,}, has {last.score:.3f}"
    chosen = (
        "other questions than those of this report"
        if kept.apart
        else "the questions of this report, whose scores after training flatter it a little"
    )
    return [
        f"Kept: the model of epoch {one.epoch} (step {one.step:,}), whose score of {one.score:.3f} is the best of "
        f"{len(kept.validated)} validations; {beside}. It was chosen on {chosen}."
    ]
