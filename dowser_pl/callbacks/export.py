"""The tuned model as a Hugging Face folder."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from dowser_pl.files import atomic_path

__all__ = ["Export"]


class Export(Callback):
    """Writes ``<run>/model``: weights, processor and generation config, for plain ``from_pretrained``.

    Args:
        enabled: write the folder when training ends.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write everything into a temporary folder first, then rename it: never half a model."""
        if not self.enabled or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir) / "model"
        with atomic_path(folder) as temporary:
            pl_module.network.save_pretrained(temporary)
            pl_module.processor.save_pretrained(temporary)
        rank_zero_info(f"Tuned model written to {folder}")
