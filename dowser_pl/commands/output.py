"""How an offline verb ends: its answer on stdout, or one line on stderr."""

import os
import sys
from collections.abc import Callable

from dowser_pl.cli.ending import FAILED, refuse
from dowser_pl.errors import DowserError

__all__ = ["answer"]


def answer(run: Callable[[], str]) -> int:
    """Print what `run` says, and turn its error into one line and an exit status.

    Returns:
        The exit status: 0, or 1 if something is not as it should be.
    """
    try:
        print(run())
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
    except (DowserError, OSError) as error:
        return refuse(" ".join(str(error).split()), FAILED)
    return 0
