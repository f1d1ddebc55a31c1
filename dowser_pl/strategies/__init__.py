"""Lightning strategies that shard one model over processes; importing this registers their names."""

import sys

from dowser_pl.strategies.fsdp1 import FSDP1Strategy
from dowser_pl.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP1Strategy", "FSDP2Strategy"]

# configurations of earlier runs say `dowser_pl.fsdp1_strategy.FSDP1Strategy`
sys.modules["dowser_pl.fsdp1_strategy"] = sys.modules[FSDP1Strategy.__module__]
