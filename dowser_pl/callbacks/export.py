"""The tuned model as a Hugging Face folder; adapters also by themselves."""

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from dowser_pl.distributed.models import is_sharded_model
from dowser_pl.distributed.tensors import shape_of, to_rank_zero
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.masking import TunedModule, tuned_module
from dowser_pl.models.generation import generation_tokens
from dowser_pl.models.lora import Adapters, adapters_of
from dowser_pl.models.sources import stored_folder
from dowser_pl.models.text_only import reads_images
from dowser_pl.patches.layout import Layout, is_other
from dowser_pl.patches.tuned_folder import TunedFolder, add_ends, write_image_settings

__all__ = ["Export"]


class Export(Callback):
    """Writes `<run>/model`: the folder of the base with the tuned weights in it, for plain `from_pretrained`.

    Settings, tokenizer, processor and code stay byte for byte as the base has them, weights keep their names and files;
    only the dtype and the tokens that end an answer are written into the base's JSON, where they differ. A model that
    has no such folder is written by `save_pretrained`, which is said when training starts.

    With adapters (LoRA) they are merged in it, and `<run>/adapter` has them alone, as peft reads them. Beside
    quantized weights (QLoRA) they are written alone: merged into weights of 4 bits they would lose most of what they
    learnt, so load the base in full precision and merge there (`PeftModel.from_pretrained(...).merge_and_unload()`).

    Args:
        enabled: write the folders when training ends.
        layout: of those that NVILA has, `hf` (one folder) or `original` (three, VILA's); None = that of the base.
    """

    def __init__(self, enabled: bool = True, layout: Layout | None = None) -> None:
        self.enabled = enabled
        self.layout = layout
        self._like_base = True  # whether the model has a folder to be written like

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Whether the module tells what is written."""
        if stage == "fit" and self._writes(trainer):
            tuned_module(pl_module, self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the base's folder now: nothing of a long run should end in surprise."""
        if not self._writes(trainer) or trainer.limit_train_batches == 0:
            return
        module = tuned_module(pl_module, self)
        adapters = adapters_of(module.network)
        if adapters is not None and not adapters.mergeable:
            return
        state = module.network.state_dict(keep_vars=True)
        if not trainer.is_global_zero:
            return
        self._like_base = True
        if self.layout is not None:
            is_other(stored_folder(module.path), self.layout)  # refuses what has none
        try:
            TunedFolder.of(module.path, module.network, _plain(adapters, _shapes(state)), self.layout)
        except (ValueError, FileNotFoundError) as error:
            self._like_base = False
            rank_zero_warn(
                f"{Path(trainer.default_root_dir) / 'model'} will not be written like the files of its base, but by "
                f"save_pretrained of the installed transformers, which others may read as another model: {error}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything into a temporary folder first, then rename it: never half a model."""
        if not self._writes(trainer):
            return
        module = tuned_module(pl_module, self)
        state = module.network.state_dict(keep_vars=True)
        if is_sharded_model(module.network):
            state = to_rank_zero(state)
        if not trainer.is_global_zero:
            return
        run, adapters = Path(trainer.default_root_dir), adapters_of(module.network)
        if adapters is not None:
            with atomic_path(run / "adapter") as temporary:
                adapters.save(temporary, module.path, state)
            rank_zero_info(f"Adapters written to {run / 'adapter'}")
            if not adapters.mergeable:
                rank_zero_info("The model itself is quantized and not written: merge the adapters into its base")
                return
        self._write(run / "model", module, _plain(adapters, state))
        rank_zero_info(f"Tuned model written to {run / 'model'}")

    def _writes(self, trainer: Trainer) -> bool:
        return self.enabled and not trainer.fast_dev_run  # type: ignore[attr-defined]

    def _write(self, path: Path, module: TunedModule, state: dict[str, Tensor]) -> None:
        network = module.network
        tokens = generation_tokens(network, module.ending())
        if not self._like_base:
            with atomic_path(path) as temporary:
                network.save_pretrained(temporary, state_dict=state)
                module.processor.save_pretrained(temporary)
                add_ends(temporary, tokens)
            return
        try:
            folder = TunedFolder.of(module.path, network, state, self.layout)
        except (ValueError, FileNotFoundError) as error:
            raise DowserError(
                f"the files of {module.path} changed while the model was tuned, expected them as they were, because "
                f"{path} is written like them: {error}. Put them back and resume the run, which then writes it"
            ) from error
        with atomic_path(path, needed_bytes=folder.num_bytes) as temporary:
            folder.write(temporary, tokens)
            if reads_images(module.processor):
                write_image_settings(temporary, module.processor.image_processor)


def _plain(adapters: Adapters | None, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it would be without adapters."""
    return state if adapters is None else adapters.plain_state(state)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stand-ins without memory, whole ones where weights are sharded; tensors of two names that are one stay one."""
    found = {id(each): torch.empty(shape_of(each), dtype=each.dtype, device="meta") for each in state.values()}
    return {name: found[id(each)] for name, each in state.items()}
