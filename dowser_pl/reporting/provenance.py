"""Where numbers come from: what `--json` writes beside them."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dowser_pl import __version__

PACKAGES = ("torch", "lightning", "transformers", "numpy", "matplotlib")


def installed_version(package: str) -> str:
    """Version from the package's metadata, which does not import it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def provenance(verb: str, argv: Sequence[str]) -> dict[str, Any]:
    """Command, machine and versions, ready for JSON.

    Args:
        verb: of the program, or the path of a script such as `benchmarks/bench_probe.py`.
        argv: what followed.
    """
    program = [verb] if verb.endswith(".py") else ["-m", "dowser_pl", verb]
    return {
        "command": ["python", *program, *argv],
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
        },
        "versions": {
            "python": platform.python_version(),
            "dowser_pl": __version__,
            **{package: installed_version(package) for package in PACKAGES},
        },
    }
