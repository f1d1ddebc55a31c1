"""How far a run took a model from its base, on rows that the base wrote itself: what forgetting is without data.

It is the mean over positions of KL(base || tuned), in nats, and the share of them at which both would write the same
token next. It sees what the rows see: skills that no row touches may be lost unseen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dowser_pl.errors import DowserError
from dowser_pl.reporting.fields import Fields

DRIFT_HEADER = ("rows after", "positions", "KL to the base", "same next token")
DRIFT_ALIGNS = "lrrr"


@dataclass(frozen=True)
class DriftScore:
    """Drift on some positions.

    Attributes:
        kl: mean KL(base || tuned) in nats, at least 0.
        agreement: share of the positions at which the likeliest token is the base's.
        positions: how many there are.
    """

    kl: float
    agreement: float
    positions: int

    def __post_init__(self) -> None:
        # the sum over a vocabulary may end a rounding below 0
        if not (-1e-3 <= self.kl < float("inf") and 0 <= self.agreement <= 1 and self.positions > 0):
            raise DowserError(
                f"The drift has KL {self.kl}, agreement {self.agreement} on {self.positions} positions, expected a "
                "finite KL of at least 0, a share in [0, 1] and at least one position."
            )


@dataclass(frozen=True)
class ReportedDrift:
    """The drift of a run.

    Attributes:
        sources: what rows were written after, such as `text` or `shuffle` -> drift on these; at least one.
    """

    sources: Mapping[str, DriftScore]

    @property
    def all(self) -> DriftScore:
        """On the positions of all sources, each position counting the same."""
        scores = self.sources.values()
        total = sum(each.positions for each in scores)
        kl, agreement = (sum(getattr(each, name) * each.positions for each in scores) for name in ("kl", "agreement"))
        return DriftScore(kl / total, agreement / total, total)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which `read` reads."""
        return {**vars(self.all), "sources": {source: dict(vars(each)) for source, each in self.sources.items()}}

    @classmethod
    def read(cls, fields: Fields) -> "ReportedDrift":
        """Read the field `drift` of report.json; what is of all sources is computed again."""
        sources = fields.section("sources")
        return cls({name: _read(sources.section(name)) for name in sources.value})


def _read(fields: Fields) -> DriftScore:
    return DriftScore(fields.number("kl"), fields.number("agreement"), fields.count("positions"))


def kl_text(kl: float) -> str:
    """Two significant figures, as drift spans orders of magnitude; what is below a millionth is 0."""
    return "0" if abs(kl) < 1e-6 else f"{kl:.2g}"


def agreement_text(agreement: float) -> str:
    """A share as a percentage with one decimal: `97.8 %`."""
    return f"{100 * agreement:.1f} %"


def drift_text(drift: ReportedDrift) -> str:
    """The drift in one line: `KL 0.0031, next token the same at 97.8 % of 5,425 positions that it wrote itself`."""
    score = drift.all
    same = f"next token the same at {agreement_text(score.agreement)} of {score.positions:,} positions"
    return f"KL {kl_text(score.kl)}, {same} that it wrote itself"


def drift_rows(drift: ReportedDrift) -> list[tuple[str, ...]]:
    """One row for each source, and one for all where there are several."""
    scores = {**drift.sources, **({"all": drift.all} if len(drift.sources) > 1 else {})}
    return [
        (source, f"{each.positions:,}", kl_text(each.kl), agreement_text(each.agreement))
        for source, each in scores.items()
    ]


def drift_note(drift: ReportedDrift, upstream: bool) -> str:
    """What the drift says of forgetting, and what it cannot say.

    Args:
        drift: of the run.
        upstream: whether upstream tasks were measured.
    """
    said = (
        f"Drift from the base: {drift_text(drift)}. Training uses other rows of the same writer; skills that no row "
        "touches may change unseen."
    )
    return said if upstream else f"{said} No upstream task was given: this is all that is known of forgetting here."


NO_DRIFT = (
    "Nothing is known of forgetting: there is no upstream task, and no row that the base wrote was measured. List "
    "upstream tasks, or leave --dowser.drift true (decoder-only models)."
)
