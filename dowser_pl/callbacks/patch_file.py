"""What a run changed as a small file: masks and values instead of a second model."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from dowser_pl import __version__
from dowser_pl.callbacks.dowser.callback import Dowser
from dowser_pl.callbacks.forgetting import Forgetting
from dowser_pl.callbacks.order import find_callback, need_dowser
from dowser_pl.distributed.tensors import shape_of, to_rank_zero
from dowser_pl.masking import tuned_module
from dowser_pl.models.lora import adapters_of
from dowser_pl.patches import save_patch

__all__ = ["PatchFile"]

_MOST_MOVED = 0.5  # share of trainable entries above which the model itself is the better file


class PatchFile(Callback):
    """Writes `<run>/patch.safetensors`, which `python -m dowser_pl patch` applies, removes and stacks.

    Args:
        enabled: write the file when training ends; not done where more than half of all entries were trained, or with
            adapters, which are a small file themselves.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Whether there is what the file tells."""
        if self.enabled and stage == "fit":
            need_dowser(trainer, self)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the report, whose scores the file tells."""
        if not self.enabled or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        dowser = find_callback(trainer, Dowser)
        assert dowser is not None  # by `setup`
        entries, base = dowser.entries, dowser.base
        if not trainer.is_global_zero and not entries.is_sharded:
            return
        total = sum(shape_of(weight).numel() for weight in entries.weights.values())
        if entries.num_trainable > _MOST_MOVED * total:
            rank_zero_info(
                f"No patch: {entries.num_trainable:,} of {total:,} entries may move; share the exported folder"
            )
            return
        if adapters_of(tuned_module(pl_module, self).network) is not None:
            rank_zero_info("No patch: what moved is adapters; share their folder, or that of the model")
            return
        state, tensors = entries.state_dict(base=False), pl_module.state_dict()
        tensors = to_rank_zero({key: tensors[key] for key in base.whole})
        if not trainer.is_global_zero:
            return
        try:
            changes = base.changes(state, tensors)
        except ValueError as error:  # nothing is lost: the model folder holds it all
            rank_zero_warn(f"No patch: {error}")
            return
        folder = Path(trainer.default_root_dir)
        config, report = folder / "config.yaml", find_callback(trainer, Forgetting)
        head = {
            "base": base.head,
            "method": dowser.method.settings(),
            "config": config.read_text(encoding="utf-8") if config.is_file() else None,
            "scores": None if report is None or report.written is None else report.written.scores(),
            "created_by": f"dowser_pl {__version__}",
        }
        path = folder / "patch.safetensors"
        save_patch(path, changes, head)
        rank_zero_info(f"Patch written to {path}: {entries.num_trainable:,} entries, {path.stat().st_size:,} bytes")
