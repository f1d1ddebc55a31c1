"""What becomes of the tuned model when training ends: merged with its base, partly taken back, or left as it is."""

from collections.abc import Callable

from lightning.pytorch import Trainer

from dowser_pl.callbacks.curve import find_curve
from dowser_pl.callbacks.dowser.merging import Merging, snapshot
from dowser_pl.masking import DenseEntries, Protection, TunedModule
from dowser_pl.masking.base import State
from dowser_pl.methods import AfterFit, Method

__all__ = ["finish"]


def finish(
    trainer: Trainer,
    pl_module: TunedModule,
    method: Method,
    num_batches: int,
    entries: Protection,
    drift: Callable[[], float],
) -> tuple[State, DenseEntries] | None:
    """Decide which updates stay, where that is not decided yet.

    Args:
        trainer: its data, and a curve among its callbacks.
        pl_module: the model, tuned.
        method: of the run.
        num_batches: training batches that a merge may measure inputs on.
        entries: trained, and closed.
        drift: KL of the model as it is to its base, for a budget.

    Returns:
        What was trained, for checkpoints, and the masks of what stayed; None if all of it did.

    Raises:
        RuntimeError: if a matrix does not hold what was trained.
    """
    curve = find_curve(trainer)
    if not (isinstance(method, AfterFit) or curve.active):
        return None
    entries.verify()
    trained = snapshot(entries)
    if isinstance(method, AfterFit):
        return trained, Merging(trainer, pl_module, method, num_batches).merge(entries)
    smaller = curve.finish(trainer, pl_module, entries, drift)
    return None if smaller is None else (trained, smaller)
