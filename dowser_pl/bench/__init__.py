"""Every method on the same footing: tuned on validation data, then measured over seeds. Loads no torch by itself."""

from dowser_pl.bench.outputs import write_outputs
from dowser_pl.bench.runner import Bench
from dowser_pl.bench.settings import Settings, read_settings

__all__ = ["Bench", "Settings", "read_settings", "write_outputs"]
