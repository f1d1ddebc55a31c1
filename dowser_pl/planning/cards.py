"""Which cards a plan fits on, and what would make it smaller."""

from collections.abc import Iterator
from dataclasses import replace

from dowser_pl.planning.model import MemoryPlan
from dowser_pl.planning.sizes import Matrix, Sizes

__all__ = ["CARDS", "GIB", "HELD_BACK", "fits", "savings", "smallest_card"]

CARDS = (8, 12, 16, 24, 40, 48, 80, 141)
"""GB as cards are sold, taken as 2**30 bytes."""
HELD_BACK = 0.05
"""Share of a card that the driver, the libraries and fragments take."""
_FUSED = ("Adam", "AdamW", "SGD", "Adagrad")  # of torch, which can step without a copy of all parameters
GIB = 2**30


def fits(total: int, card: int) -> bool:
    """Whether ``total`` bytes fit on a card of ``card`` GB."""
    return total <= (1 - HELD_BACK) * card * GIB


def smallest_card(total: int) -> int | None:
    """The smallest of :data:`CARDS` that is large enough; None if none is."""
    return next((card for card in CARDS if fits(total, card)), None)


def savings(plan: MemoryPlan) -> dict[str, MemoryPlan]:
    """What can be set -> the plan with it alone; only what makes it smaller."""
    before = plan.held.total
    return {setting: other for setting, other in _alternatives(plan) if other.held.total < before}


def _alternatives(plan: MemoryPlan) -> Iterator[tuple[str, MemoryPlan]]:
    if plan.form == "dense":
        yield "--dowser.update compact", replace(plan, form="compact")
    if plan.batch is not None:
        if not plan.batch.gradient_checkpointing:
            yield (
                "--model.gradient_checkpointing true",
                replace(plan, batch=replace(plan.batch, gradient_checkpointing=True)),
            )
        if plan.batch.rows > 1:
            yield (
                "--data.batch_size 1, with --trainer.accumulate_grad_batches",
                replace(plan, batch=replace(plan.batch, rows=1)),
            )
    if plan.optimizer.copies and plan.optimizer.name in _FUSED:
        yield "--model.optimizer.fused true", replace(plan, optimizer=replace(plan.optimizer, copies=0))
    if "float32" in plan.sizes.weights:
        decoder = None if plan.decoder is None else replace(plan.decoder, itemsize=2, cast_bytes=0)
        yield "--trainer.precision bf16-true", replace(plan, sizes=_in_16_bits(plan.sizes), decoder=decoder)


def _in_16_bits(sizes: Sizes) -> Sizes:
    def half(matrices: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
        return tuple(replace(each, itemsize=2) for each in matrices)

    weights = dict(sizes.weights)
    weights["bfloat16"] = weights.get("bfloat16", 0) + weights.pop("float32") // 2
    return Sizes(weights, half(sizes.matrices), half(sizes.whole), sizes.layer_bytes // 2)
