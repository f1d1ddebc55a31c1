"""Where the steps of a proof run, and how large."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dowser_pl.models.sources import EMBEDDED

__all__ = ["BASE", "ROOT", "NotHereError", "Place"]

ROOT = Path(__file__).resolve().parents[2]
BASE = EMBEDDED["embedded:world"]


class NotHereError(Exception):
    """Why a step cannot be made here."""


@dataclass(frozen=True)
class Place:
    """Where and how large.

    Args:
        work: folder of all runs.
        rehearse: small, on a CPU.
        traces: folder of profiles.
    """

    work: Path
    rehearse: bool
    traces: Path

    @property
    def device(self) -> torch.device:
        """That the model lies on."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def accelerator(self) -> str:
        """As Lightning names it."""
        return "cpu" if self.rehearse else "gpu"

    @property
    def size(self) -> str:
        """Preset of the models with random weights."""
        return "tiny" if self.rehearse else "7b"

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if not self.rehearse:
            torch.cuda.synchronize()
