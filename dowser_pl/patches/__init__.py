"""The sparse difference of a tuned model as a file, on model folders and on loaded models."""

from dowser_pl.masking.base_model import Change
from dowser_pl.patches.patch import Patch, save_patch

__all__ = ["Change", "Patch", "save_patch"]
