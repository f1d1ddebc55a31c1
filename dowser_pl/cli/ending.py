"""How a command ends: its exit status, and the one line on stderr where it failed."""

import sys

__all__ = ["FAILED", "INTERRUPTED", "STATUSES", "TERMINATED", "WRONG", "refuse"]

FAILED, WRONG, INTERRUPTED, TERMINATED = 1, 2, 130, 143
STATUSES = {
    0: "done",
    FAILED: "not done, for the reason on stderr; a traceback instead of a reason is a bug",
    WRONG: "the command line or a configuration is not understood; nothing was begun",
    INTERRUPTED: "interrupted (Ctrl-C)",
    TERMINATED: "ended from outside (SIGTERM), as by SLURM",
}


def refuse(message: object, status: int = WRONG) -> int:
    """Say on stderr why a command ends; returns its exit status."""
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    return status
