"""The method under a Hugging Face `Trainer`, and what is built on it, such as TRL's `SFTTrainer` and `DPOTrainer`.

    callback = DowserCallback(ModelDowser(update_ratio=0.1))
    trainer = Trainer(model, args, train_dataset=rows, processing_class=processor, callbacks=[callback])
    trainer.train()

`update="dense"` trains whole matrices and holds frozen entries as they were (`dowser_pl/masking/dense.py`): gradients
and moments take the memory of full fine-tuning, and a copy of the matrices comes on top; under any optimizer that steps
after the backward pass, and DDP. `update="compact"` gives the optimizer the k entries of each matrix instead
(`dowser_pl/masking/compact.py`): in one process, under optimizers of `torch.optim` that step entry by entry.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from dowser_pl.callbacks.dowser.checks import check_frozen
from dowser_pl.errors import DowserError
from dowser_pl.importance import Probe
from dowser_pl.integrations.importance import check_method, check_probe, measure_importance
from dowser_pl.integrations.masks import choose_masks
from dowser_pl.integrations.protectable import Protectable
from dowser_pl.integrations.trainer_checkpoint import (
    FILE,
    check_loaded,
    find_entries,
    load_entries,
    save_entries,
    write_patch,
)
from dowser_pl.integrations.trainer_checks import (
    check_given,
    check_model,
    check_optimizer,
    check_step,
    check_trainer,
    check_untuned,
)
from dowser_pl.integrations.trainer_forms import CompactForm, DenseForm, TrainerForm
from dowser_pl.masking import BaseModel, Protection
from dowser_pl.masking.base import Changes
from dowser_pl.methods import BeforeFit, ModelDowser
from dowser_pl.models.layers import TARGETS

__all__ = ["DowserCallback"]

_LOG = logging.getLogger(__name__)
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FORMS: dict[str, type[TrainerForm]] = {"compact": CompactForm, "dense": DenseForm}
_HOLDERS: "WeakKeyDictionary[nn.Module, ReferenceType[DowserCallback]]" = WeakKeyDictionary()
"""Who takes care of a model; the last that was given to a Trainer of it."""
_TUNED: "WeakSet[nn.Module]" = WeakSet()


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
        update: `dense`, for any optimizer and DDP, with the memory of full fine-tuning; or `compact`, in one process.

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
        update: Literal["compact", "dense"] = "dense",
    ) -> None:
        self.method, self.probe = method or ModelDowser(), probe or Probe()
        check_method(method or self.method)
        check_probe(self.probe)
        if update not in _FORMS:
            raise DowserError(f"got update {update!r}, expected 'compact' or 'dense'")
        self.processor, self.cache_dir, self.update = processor, cache_dir, update
        self.targets, self.last_n_layers = targets, last_n_layers
        self.counts: tuple[Changes, Changes] | None = None
        self.frozen_digest: dict[str, str] = {}
        self._of: Protectable | None = None
        self._base = BaseModel("")
        self._form: TrainerForm | None = None
        self._looked = False  # at what the first step finds

    @property
    def entries(self) -> Protection:
        """Masks and base of the matrices.

        Raises:
            RuntimeError: before training has begun.
        """
        return self._trained.entries

    @property
    def _trained(self) -> TrainerForm:
        if self._form is None:
            raise RuntimeError("masks are chosen in on_train_begin, which the Trainer calls")
        return self._form

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Refuse what cannot work, and leave a gradient to the matrices alone, before anything is built over it."""
        check_trainer(args, self.update)
        model, processor = kwargs["model"], self.processor or kwargs.get("processing_class")
        check_model(model, processor)
        earlier = _HOLDERS.get(model, lambda: None)()
        if earlier is not None and earlier._form is not None:  # of a run that was stopped
            earlier._form.close()
        self._of = Protectable(model, processor, self.targets, self.last_n_layers)
        self._of.freeze_all_else()
        _HOLDERS[model] = ref(self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """The importance pass and the masks it decides; or, in a run that goes on, the masks of the checkpoint."""
        check_trainer(args, self.update)
        of: Any = self._of
        holder = _HOLDERS.get(kwargs["model"], lambda: self)()
        given = None if of is None else of.network
        check_given(kwargs["model"], given, state.is_hyper_param_search, 1 + (holder is not self))
        weights: dict[str, Any] = {name: layer.weight for name, layer in of.tuned_layers().items()}
        optimizer = kwargs["optimizer"]
        check_optimizer(optimizer, weights, {} if self._form is None else self._form.given)
        if self.update == "compact":
            CompactForm.check(optimizer, fresh=self._form is None and not state.global_step)
        if self._form is not None:  # of a run that was stopped
            self._form.close()
        if state.global_step:
            self._resume(find_entries(args, state), weights, optimizer)
        elif self._form is None:
            check_untuned(kwargs["model"] not in _TUNED)
            self._begin(of, weights, optimizer)
        else:
            self._again(weights, optimizer)
        self.counts, self._looked = None, False

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """No frozen entry has a gradient any more, since before they were clipped; look once if all is well."""
        if not self._looked:
            _TUNED.add(kwargs["model"])
            same = self._digest() == self.frozen_digest["before"]
            same = same and (bool(state.global_step) or not any(each.changed for each in self.entries.verify()))
            check_step(self.entries.parameters(), same)
            self._looked = True
        self._trained.before_step(args.max_grad_norm)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Whatever the optimizer did to a frozen entry (weight decay, momentum) is taken back, bit for bit."""
        self._trained.after_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Masks, values and base into the checkpoint.

        Raises:
            RuntimeError: if a frozen entry moved.
        """
        self._verify()
        if args.should_save:
            head: dict[str, Any] = {"settings": self._settings(), "base": self._base.to_dict()}
            head["frozen_digest"] = self.frozen_digest["before"]
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            save_entries(folder, self.entries.state_dict(), head)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Compare every frozen entry with the base, and write the patch.

        Raises:
            RuntimeError: if one moved.
        """
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None and (Path(best) / FILE).is_file():
            self._trained.put(load_entries(Path(best), self._settings())[0])
        self._trained.close()
        self.counts = self._verify()
        if not self.counts[1].changed:
            _LOG.warning("No entry changed: the learning rate of %g moves none. Raise it", args.learning_rate)
        if state.is_world_process_zero:
            of: Any = self._of
            path, trained = Path(str(args.output_dir)) / "patch.safetensors", self.entries.state_dict(base=False)
            write_patch(path, self._base, trained, of.state_dict(), self.method.settings())

    def _begin(self, of: Protectable, weights: dict[str, nn.Parameter], optimizer: Any) -> None:
        autocast = _HALF.get(AcceleratorState().mixed_precision)
        importance = measure_importance(
            of, probe=self.probe, method=self.method, cache_dir=self.cache_dir, autocast=autocast
        )
        masks = choose_masks(importance, self.method)
        self._base = of.base_model()
        missing = [key for key in self._base.keys.values() if key not in self._base.saved_names]
        if missing:
            _LOG.warning("There will be no patch: %s is not one tensor in the files of this model", missing[0])
        self._form = self._form_of(_FORMS[self.update].kind(weights, masks.packed), optimizer)
        self.frozen_digest = {"before": self._digest()}
        _LOG.info("%s entries in %s matrices are trained", self.entries.num_trainable, len(weights))

    def _resume(self, folder: Path, weights: dict[str, nn.Parameter], optimizer: Any) -> None:
        entries, head = load_entries(folder, self._settings())
        check_loaded(weights, entries, folder)
        self._form = self._form_of(_FORMS[self.update].kind.from_state(weights, entries), optimizer)
        self._base = BaseModel(**head["base"])
        self._form.put(entries)
        self._form.resume(folder)
        self.frozen_digest = {"before": head["frozen_digest"]}
        if self._digest() != head["frozen_digest"]:
            raise DowserError(
                f"frozen entries are not those that the run of {folder} began from, expected the same base in the same "
                "dtype. Fix: load the model as it was loaded then"
            )

    def _again(self, weights: dict[str, nn.Parameter], optimizer: Any) -> None:
        """Masks are there from an earlier call, and will do where no step was made since."""
        same = self._digest() == self.frozen_digest["before"]
        check_untuned(same and not any(each.changed for each in self.entries.verify()))
        self._form = self._form_of(_FORMS[self.update].kind(weights, self.entries.packed), optimizer)

    def _form_of(self, entries: Protection, optimizer: Any) -> TrainerForm:
        of: Any = self._of
        return _FORMS[self.update](of.network, entries, optimizer, {} if self._form is None else self._form.given)

    def _verify(self) -> tuple[Changes, Changes]:
        self.frozen_digest["after"] = self._digest()
        counts = self.entries.verify()
        check_frozen(counts[0], self.frozen_digest)
        return counts

    def _settings(self) -> dict[str, Any]:
        of: Any = self._of
        chosen = {"update": self.update, "targets": of.targets, "last_n_layers": of.last_n_layers}
        found: dict[str, Any] = json.loads(
            json.dumps({"method": self.method.settings(), "probe": asdict(self.probe), **chosen})
        )
        return found

    def _digest(self) -> str:
        of: Any = self._of
        return self._base.frozen_digest(of.state_dict(), self.entries.frozen_digests())
