"""Lightning strategies that spread one model over processes; importing this registers their names."""

from dowser_pl.strategies.fsdp1 import FSDP1Strategy
from dowser_pl.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP1Strategy", "FSDP2Strategy"]
