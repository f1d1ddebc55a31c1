"""Training only what the mask allows."""

from dowser_pl.training.frozen import Changes, FrozenEntries

__all__ = ["Changes", "FrozenEntries"]
