"""What the fork server loads once, for all cells."""

from dowser_pl.__main__ import silence_bitsandbytes

silence_bitsandbytes()

import dowser_pl.cli.main  # noqa: E402
import dowser_pl.patches.merge  # noqa: E402, F401
