"""The tuned model as a Hugging Face folder; adapters also by themselves."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from dowser_pl.files import atomic_path
from dowser_pl.shards import to_first
from dowser_pl.spread_models import spread_model

__all__ = ["Export"]


class Export(Callback):
    """Writes ``<run>/model``: weights, processor and generation config, for plain ``from_pretrained``.

    With adapters (LoRA) they are merged in it, and ``<run>/adapter`` has them alone, as peft reads them. Beside
    quantized weights (QLoRA) they are written alone: merged into weights of 4 bits they would lose most of what they
    learnt, so load the base in full precision and merge there (``PeftModel.from_pretrained(...).merge_and_unload()``).

    Args:
        enabled: write the folders when training ends.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write everything into a temporary folder first, then rename it: never half a model."""
        if not self.enabled or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        gathered = None
        if spread_model(pl_module.network):
            gathered = to_first(pl_module.network.state_dict(keep_vars=True))
        if not trainer.is_global_zero:
            return
        run, adapters = Path(trainer.default_root_dir), pl_module.adapters
        if adapters is not None:
            with atomic_path(run / "adapter") as temporary:
                adapters.save(temporary, pl_module.path, gathered)
            rank_zero_info(f"Adapters written to {run / 'adapter'}")
            if not adapters.mergeable:
                rank_zero_info("The model itself is quantized and not written: merge the adapters into its base")
                return
        with atomic_path(run / "model") as temporary:
            state = adapters.plain_state(gathered) if adapters else gathered
            pl_module.network.save_pretrained(temporary, state_dict=state)
            pl_module.processor.save_pretrained(temporary)
        rank_zero_info(f"Tuned model written to {run / 'model'}")
