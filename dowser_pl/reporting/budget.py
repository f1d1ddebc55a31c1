"""What a budget for forgetting chose among the update ratios of one run."""

import math
from dataclasses import dataclass
from typing import Any

from dowser_pl.reporting.fields import Fields


@dataclass(frozen=True)
class BudgetChoice:
    """The ratio that was chosen because the upstream mean may fall by so much and no more.

    Attributes:
        max_upstream_drop: upstream mean that may be lost.
        update_ratio: the chosen one.
        kept: whether it keeps the budget; if none does, the smallest measured ratio is taken.
        drops: measured ratio -> upstream mean lost (negative = gained), on data to choose on, not that of the report.
    """

    max_upstream_drop: float
    update_ratio: float
    kept: bool
    drops: dict[float, float]

    @property
    def drop(self) -> float:
        """Upstream mean lost at the chosen ratio, on the data to choose on."""
        return self.drops[self.update_ratio]

    @classmethod
    def read(cls, budget: Fields) -> "BudgetChoice":
        """`budget` in report.json."""
        drops = {entry.number("update_ratio"): entry.number("drop") for entry in budget.sections("drops")}
        return cls(budget.number("max_upstream_drop"), budget.number("update_ratio"), budget.flag("kept"), drops)

    def to_dict(self) -> dict[str, Any]:
        """What `read` reads."""
        drops = [{"update_ratio": ratio, "drop": drop} for ratio, drop in self.drops.items()]
        return {**vars(self), "drops": drops}


def check_budget(budget: BudgetChoice) -> None:
    """Refuse a choice that no budget can have led to.

    Raises:
        ValueError: the budget is negative or not finite, a measured drop or its ratio is not possible, or the chosen
            ratio was not measured.
    """
    if not (math.isfinite(budget.max_upstream_drop) and budget.max_upstream_drop >= 0):
        raise ValueError(
            f"The budget's max_upstream_drop is {budget.max_upstream_drop}, expected a finite number of at least 0."
        )
    for ratio, drop in budget.drops.items():
        if not (0 <= ratio <= 1 and math.isfinite(drop)):
            raise ValueError(
                f"The budget has the drop {drop} at update ratio {ratio}, expected a finite drop and a ratio in [0, 1]."
            )
    if budget.update_ratio not in budget.drops:
        measured = ", ".join(map(str, budget.drops)) or "none"
        raise ValueError(
            f"The budget chose update ratio {budget.update_ratio}, expected one that was measured: {measured}."
        )
