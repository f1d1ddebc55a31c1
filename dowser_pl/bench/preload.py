"""What the fork server loads once, for all cells."""

import logging

# while it is imported, bitsandbytes asks for a package that only makes 4-bit models faster on a CPU
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

import dowser_pl.cli.main  # noqa: E402
import dowser_pl.patches.merge  # noqa: E402, F401
