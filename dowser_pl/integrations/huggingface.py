"""The method under a Hugging Face `Trainer`, and what is built on it, such as TRL's `SFTTrainer` and `DPOTrainer`.

    callback = DowserCallback(ModelDowser(update_ratio=0.1))
    trainer = Trainer(model, args, train_dataset=rows, processing_class=processor, callbacks=[callback])
    trainer.train()

A callback cannot give the Trainer other parameters than those of the model: it clips and empties the gradients of
these alone. So whole matrices are trained and frozen entries are held as they were (`dowser_pl/masking/dense.py`):
their gradients and moments take the memory of full fine-tuning, and a copy of the matrices comes on top. Any optimizer
will do that steps after the backward pass, since frozen entries are put back after each of its steps, bit for bit.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dowser_pl import __version__
from dowser_pl.callbacks.dowser.checks import check_frozen
from dowser_pl.errors import DowserError
from dowser_pl.importance import Probe
from dowser_pl.integrations.protectable import Protectable
from dowser_pl.integrations.scripts import choose_masks, measure_importance
from dowser_pl.integrations.trainer_checkpoint import FILE, find_entries, load_entries, save_entries
from dowser_pl.integrations.trainer_checks import check_gradients, check_model, check_optimizer, check_trainer
from dowser_pl.integrations.trainer_hooks import as_loaded, let_inputs_take_gradients, masking
from dowser_pl.masking import BaseModel, DenseEntries
from dowser_pl.masking.base import Changes, State
from dowser_pl.methods import BeforeFit, Lora, ModelDowser
from dowser_pl.models.layers import TARGETS
from dowser_pl.patches import save_patch

__all__ = ["DowserCallback"]

_LOG = logging.getLogger(__name__)
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_HOLDERS: "WeakKeyDictionary[nn.Module, ReferenceType[DowserCallback]]" = WeakKeyDictionary()
"""Who takes care of a model; the last that was given to a Trainer of it."""


class DowserCallback(TrainerCallback):
    """Scores the model before training, trains the entries that matter least, and proves that no other moved.

    It is given to the Trainer when that is made (`callbacks=[...]`): from then on nothing of the model but the matrices
    takes a gradient, which optimizers and wrappers look at when they are made. Beside the model, in `output_dir`, it
    writes `patch.safetensors` when training ends, and into each checkpoint masks and base.

    Args:
        method: that chooses; None = Model-Dowser, a tenth of each matrix.
        processor: of the model, or its tokenizer; None = the `processing_class` of the Trainer.
        probe: how the model is asked; None = as `fit` asks by default.
        cache_dir: where importance is kept, and looked for; None = nowhere.
        targets: which matrices; see `Protectable`.
        last_n_layers: of the decoder; None = all.

    Attributes:
        counts: (frozen, trained) entries and how many of each changed, once training has ended.
        frozen_digest: content hash of all that is frozen, `before` training and `after` it.

    Raises:
        DowserError: for a method that decides at another time.
    """

    def __init__(
        self,
        method: BeforeFit | None = None,
        processor: Any = None,
        probe: Probe | None = None,
        cache_dir: str | Path | None = None,
        targets: Sequence[str] = TARGETS,
        last_n_layers: int | None = None,
    ) -> None:
        self.method, self.probe = method or ModelDowser(), probe or Probe()
        if not isinstance(self.method, BeforeFit) or isinstance(self.method, Lora):
            raise DowserError(
                f"got {method if isinstance(method, type) else type(method).__name__}, expected a method that chooses "
                "entries before training, such as ModelDowser(update_ratio=0.1). Fix: others need python -m dowser_pl "
                "fit, or lightning.Trainer with the callback Dowser"
            )
        self.processor, self.cache_dir = processor, cache_dir
        self.targets, self.last_n_layers = targets, last_n_layers
        self.counts: tuple[Changes, Changes] | None = None
        self.frozen_digest: dict[str, str] = {}
        self._of: Protectable | None = None
        self._base = BaseModel("")
        self._entries: DenseEntries | None = None
        self._hooks: list[Any] = []
        self._looked = False  # at what the first step finds

    @property
    def entries(self) -> DenseEntries:
        """Masks and base of the matrices.

        Raises:
            RuntimeError: before training has begun.
        """
        if self._entries is None:
            raise RuntimeError("masks are chosen in on_train_begin, which the Trainer calls")
        return self._entries

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse what cannot work, and leave a gradient to the matrices alone, before anything is built over it."""
        check_trainer(args)
        model, processor = kwargs["model"], self.processor or kwargs.get("processing_class")
        check_model(model, processor)
        self._of = Protectable(model, processor, self.targets, self.last_n_layers)
        for _ in self._of.freeze_all_else():
            pass
        _HOLDERS[model] = ref(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The importance pass and the masks it decides; or, in a run that goes on, the masks of the checkpoint."""
        check_trainer(args)
        of = self._held(kwargs["model"], state)
        weights: dict[str, Any] = {name: layer.weight for name, layer in of.tuned_layers().items()}
        check_optimizer(kwargs["optimizer"], weights)
        for hook in self._hooks:  # of a run that was stopped
            hook.remove()
        if state.global_step:
            self._resume(find_entries(args, state), weights)
        elif self._entries is None:
            self._begin(of, weights)
        else:
            self._refuse_tuned()
        self.counts, self._looked = None, False
        let_inputs_take_gradients(args, of.network)
        self._hooks = [
            weight.register_post_accumulate_grad_hook(masking(self.entries.masks[name]))
            for name, weight in weights.items()
        ]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients of frozen entries became zero as they came, before they were clipped; look once if all is well."""
        if not self._looked:
            moved = 0 if state.global_step else sum(each.changed for each in self.entries.verify())
            check_gradients(self.entries.weights, moved)
            self._looked = True

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Whatever the optimizer did to a frozen entry (weight decay, momentum) is taken back, bit for bit."""
        self.entries.after_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Masks, values and base into the checkpoint.

        Raises:
            RuntimeError: if a frozen entry moved.
        """
        check_frozen(self.entries.verify()[0], {"before": "", "after": ""})
        if args.should_save:
            head = {
                "settings": self._settings(),
                "base": self._base.to_dict(),
                "frozen_digest": self.frozen_digest["before"],
            }
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            save_entries(folder, self.entries.state_dict(), head)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare every frozen entry with the base, and write the patch.

        Raises:
            RuntimeError: if one moved.
        """
        for hook in self._hooks:
            hook.remove()
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None and (Path(best) / FILE).is_file():
            self._put(load_entries(Path(best))[0])
        self.counts = self.entries.verify()
        self.frozen_digest["after"] = self._digest()
        check_frozen(self.counts[0], self.frozen_digest)
        if state.is_world_process_zero:
            self._save_patch(Path(str(args.output_dir)) / "patch.safetensors")

    def _held(self, model: Any, state: TrainerState) -> Protectable:
        """The model that the Trainer was made with, which nobody else takes care of."""
        if state.is_hyper_param_search or (self._of is not None and self._of.network is not model):
            raise DowserError(
                "got a Trainer that makes its model anew when training begins (model_init, hyperparameter_search), "
                "expected the one it was made with: optimizers are built before masks. Fix: Trainer(model=...)"
            )
        if self._of is None:
            raise DowserError(
                "got DowserCallback from add_callback, expected it when the Trainer is made: its optimizer and DDP are "
                "to see which parameters take gradients. Fix: Trainer(..., callbacks=[DowserCallback(...)])"
            )
        if _HOLDERS[model]() is not self:
            raise DowserError(
                "got two DowserCallbacks for one model, expected one: masks of one would undo those of the other. Fix: "
                "leave one in callbacks=[...]; after another Trainer was made with this model, use that one"
            )
        return self._of

    def _begin(self, of: Protectable, weights: dict[str, nn.Parameter]) -> None:
        autocast = _HALF.get(AcceleratorState().mixed_precision)
        with as_loaded(of.network):
            importance = measure_importance(
                of, probe=self.probe, method=self.method, cache_dir=self.cache_dir, autocast=autocast
            )
        masks = choose_masks(importance, self.method)
        self._base = of.base_model()
        missing = [key for key in self._base.keys.values() if key not in self._base.saved_names]
        if missing:
            _LOG.warning("There will be no patch: %s is not one tensor in the files of this model", missing[0])
        self._entries = DenseEntries(weights, masks.packed)
        self.frozen_digest = {"before": self._digest()}
        total = sum(weight.numel() for weight in weights.values())
        _LOG.info("%s of %s entries in %s matrices are trained", self.entries.num_trainable, total, len(weights))

    def _resume(self, folder: Path, weights: dict[str, nn.Parameter]) -> None:
        entries, head = load_entries(folder)
        if head["settings"] != self._settings():
            raise DowserError(
                f"{folder} was made with {head['settings']}, this run asks for {self._settings()}; resume with the "
                "same settings of DowserCallback"
            )
        self._entries = DenseEntries.from_state(weights, entries)
        self._base = BaseModel(**head["base"])
        self._put(entries)
        self.frozen_digest = {"before": head["frozen_digest"]}
        if self._digest() != head["frozen_digest"]:
            raise DowserError(
                f"frozen entries are not those that the run of {folder} began from, expected the same base in the same "
                "dtype. Fix: load the model as it was loaded then"
            )

    def _refuse_tuned(self) -> None:
        """Masks are there from an earlier call, and will do where no step was made since."""
        if any(each.changed for each in self.entries.verify()) or self._digest() != self.frozen_digest["before"]:
            raise DowserError(
                "the model was trained by this callback already, expected the base: masks are never computed on "
                "weights that were already tuned. Fix: train(resume_from_checkpoint=True), or load the model again and "
                "make another Trainer"
            )

    def _put(self, state: State) -> None:
        """Write trained values: of models whose files have other names the Trainer loads no weights, with a warning."""
        with torch.no_grad():
            for name in self.entries.weights:
                self.entries._put(name, state[name]["values"])

    def _settings(self) -> dict[str, Any]:
        of: Any = self._of
        chosen = {"targets": of.targets, "last_n_layers": of.last_n_layers}
        found: dict[str, Any] = json.loads(
            json.dumps({"method": self.method.settings(), "probe": asdict(self.probe), **chosen})
        )
        return found

    def _digest(self) -> str:
        of: Any = self._of
        return self._base.frozen_digest(of.state_dict(), self.entries.frozen_digests())

    def _save_patch(self, path: Path) -> None:
        of: Any = self._of
        try:
            changes = self._base.changes(self.entries.state_dict(base=False), of.state_dict())
            head = {"base": self._base.head, "method": self.method.settings(), "config": None, "scores": None}
            save_patch(path, changes, head | {"created_by": f"dowser_pl {__version__}"})
        except DowserError as error:  # nothing is lost: the weights hold it all
            _LOG.warning("No patch: %s", error)
