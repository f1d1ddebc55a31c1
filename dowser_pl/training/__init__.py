"""Training only what the mask allows."""

from dowser_pl.training.finite import check_gradients, check_loss, check_precision
from dowser_pl.training.frozen import Changes, FrozenEntries

__all__ = ["Changes", "FrozenEntries", "check_gradients", "check_loss", "check_precision"]
