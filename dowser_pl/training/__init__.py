"""Training only what the mask allows."""

from dowser_pl.training.frozen import Counts, FrozenEntries

__all__ = ["Counts", "FrozenEntries"]
