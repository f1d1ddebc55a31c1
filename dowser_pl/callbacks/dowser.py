"""The method callback: measure the base model, build the masks, enforce them, check them.

Hook order (Lightning 2.6): weights and callback state of a checkpoint are restored *before* ``on_fit_start``,
so a resumed run finds its masks there and never scores tuned weights. ``on_before_optimizer_step`` runs after
unscaling and before clipping, so what is clipped is the masked gradient.
"""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.callbacks.importance import Importance, ImportancePass
from dowser_pl.callbacks.measuring import Measuring
from dowser_pl.maths.masks import pack, unpack
from dowser_pl.methods import (
    Agreement,
    Layer,
    Method,
    ModelDowser,
    Scored,
    build_masks,
    magnitude_overlap,
    split_half,
)
from dowser_pl.probing import Factors, Probe
from dowser_pl.training import Changes, FrozenEntries

__all__ = ["Dowser"]


class Dowser(Callback):
    """Protects the pretrained skills of a model while it learns a new one.

    Args:
        method: decides which entries of the tuned matrices may move.
        probe: settings of the importance pass; used by methods that need one.
        cache_dir: where importance factors are kept between runs; None = always probe.
        factors_file: read importance from exactly this file that ``probe`` wrote; an error if it belongs to other
            weights or settings.
    """

    def __init__(
        self,
        method: Method = ModelDowser(),  # noqa: B008 - immutable, and the default that YAML shows
        probe: Probe = Probe(),  # noqa: B008
        cache_dir: str | None = "runs/cache",
        factors_file: str | None = None,
    ) -> None:
        self.method = method
        self.probe = probe
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.factors_file = None if factors_file is None else Path(factors_file)
        self.probe_seconds = 0.0
        self.counts: tuple[Changes, Changes] | None = None
        """(frozen, trainable), filled when training ends."""
        self.diagnostics: dict[str, float] = {}
        self._entries: FrozenEntries | None = None
        self._loaded: dict[str, Any] | None = None

    @property
    def entries(self) -> FrozenEntries:
        """Masks and base of the tuned matrices.

        Raises:
            RuntimeError: before ``on_fit_start``.
        """
        if self._entries is None:
            raise RuntimeError("masks are built in on_fit_start, which the Trainer calls")
        return self._entries

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Masks: from the checkpoint when resuming, else from the base model."""
        if trainer.strategy.restore_checkpoint_after_setup:
            raise ValueError(
                f"{type(trainer.strategy).__name__} is not supported yet: it restores checkpoints after masks are "
                "built. Use --trainer.strategy auto or ddp"
            )
        layers: dict[str, nn.Linear] = pl_module.tuned_layers()  # type: ignore[operator]
        weights = {name: layer.weight for name, layer in layers.items()}
        if self._loaded is None:
            self._refuse_tuned(trainer, pl_module)
            if trainer.limit_train_batches == 0:  # the verb `probe`
                self._measure(trainer, pl_module, layers)
                return
        if not all(weight.is_floating_point() for weight in weights.values()):
            raise ValueError(
                "the matrices to tune are quantized: they can be scored and run, not tuned. Use --model.quantization "
                "none, or the verbs probe, validate and predict"
            )
        if self._loaded is not None:
            self._entries = FrozenEntries.from_state(weights, self._loaded["entries"])
            self._loaded = None
        else:
            self._entries = FrozenEntries(weights, self._masks(trainer, pl_module, layers))
        pl_module.protected = self._entries  # type: ignore[assignment]
        rank_zero_info(
            f"{type(self.method).__name__}: {self.entries.num_trainable:,} of "
            f"{sum(weight.numel() for weight in weights.values()):,} entries in {len(layers)} matrices are trainable"
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put frozen entries back after every step of every optimizer."""
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._after_step)

    def on_before_optimizer_step(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizer: Optimizer,
    ) -> None:
        """Zero the gradients of frozen entries."""
        self.entries.mask_gradients()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare every entry with the base.

        Raises:
            RuntimeError: if a frozen entry moved; nothing is exported then.
        """
        self.counts = self.entries.verify()
        if self.counts[0].changed:
            raise RuntimeError(
                f"{self.counts[0].changed} of {self.counts[0].entries} frozen entries changed during training; this is "
                "a bug, or another callback writes weights"
            )

    def state_dict(self) -> dict[str, Any]:
        """Masks in global coordinates, the base values they cannot give back, and what they belong to."""
        if self._entries is None:
            return self._loaded or {}
        return {
            "method": self.method.settings(),
            "entries": self._entries.state_dict(),
            "probe_seconds": self.probe_seconds,
            "diagnostics": self.diagnostics,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the masks of a checkpoint.

        Raises:
            ValueError: if they were made by another method or other hyper-parameters.
        """
        if not state_dict:
            return
        if state_dict["method"] != self.method.settings():
            raise ValueError(
                f"the checkpoint was trained with {state_dict['method']}, this run asks for "
                f"{self.method.settings()}; resume with the same --dowser.method"
            )
        self._loaded = state_dict
        self.probe_seconds = state_dict["probe_seconds"]
        self.diagnostics = state_dict["diagnostics"]

    def _refuse_tuned(self, trainer: Trainer, pl_module: Any) -> None:
        """Masks are never computed on weights that were already tuned."""
        if trainer.ckpt_path is not None:
            raise ValueError(
                f"{trainer.ckpt_path} holds no masks: it was not written by a run with this callback. Masks are never "
                "computed on weights that were already tuned; start a fresh run from the base model instead"
            )
        protected: FrozenEntries | None = getattr(pl_module, "protected", None)
        if protected is not None and protected.verify()[1].changed:
            raise ValueError(
                "this model was tuned by an earlier fit, and masks are never computed on tuned weights; go on from its "
                "checkpoint with ckpt_path, or start from a newly loaded model"
            )

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self.entries.restore()

    def _masks(self, trainer: Trainer, pl_module: Any, layers: dict[str, nn.Linear]) -> dict[str, Tensor]:
        start = time.monotonic()
        importance = self._measure(trainer, pl_module, layers)

        def layer_of(name: str) -> Layer:
            return _layer(pl_module, layers, importance.factors, name)

        masks = {}
        for name, mask in build_masks(self.method, pl_module.tuned_blocks(), layer_of):
            # kernels may round differently: every process takes the first one's mask
            masks[name] = mask
            if trainer.world_size > 1:
                masks[name] = unpack(trainer.strategy.broadcast(pack(mask)), mask.shape)
        self.probe_seconds = time.monotonic() - start
        self.diagnostics |= magnitude_overlap(self.method, map(layer_of, layers))
        return masks

    def _measure(self, trainer: Trainer, pl_module: Any, layers: dict[str, nn.Linear]) -> Importance:
        """What the method needs to know of the base model; nothing, for some."""

        def agree(factors: Factors) -> Agreement | None:
            method = self.method
            return (
                split_half(method, (_layer(pl_module, layers, factors, name) for name in layers))
                if isinstance(method, Scored)
                else None
            )

        if not self.method.needs:
            return Importance(Factors({}, 0), None, {}, None)
        work = ImportancePass(Measuring(trainer, pl_module, layers, self.probe), self.method, agree)
        importance = work.run(self.cache_dir, self.factors_file)
        self.diagnostics = {"prompts": importance.factors.num_prompts}
        if importance.agreement is not None:
            self.diagnostics |= importance.agreement.as_dict()
        return importance


def _layer(pl_module: Any, layers: dict[str, nn.Linear], factors: Factors, name: str) -> Layer:
    return Layer(name, pl_module.base_weight(layers[name]), **factors.layers.get(name, {}))
