"""A module whose weights a callback protects: what it began from, what may be trained, how checkpoints come back."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from dowser_pl.distributed.collectives import check_same
from dowser_pl.distributed.models import hand_over_gradients
from dowser_pl.distributed.tensors import is_spread
from dowser_pl.masking import BaseModel, LocalParameters, Protection, clip_by_norm, local_state
from dowser_pl.models.names import SavedNames, saved_names
from dowser_pl.models.weight_files import WeightFiles
from dowser_pl.module.evaluation import EvaluatedModule
from dowser_pl.module.window import Window

__all__ = ["ProtectedModule"]


class ProtectedModule(EvaluatedModule):
    """The side of the module that the callback :class:`dowser_pl.callbacks.Dowser` works with.

    Attributes:
        path: hub id or folder of the base model.
        model: the Hugging Face model, once it is loaded.
        files: that it was read from.
        protected: what the callback lets the optimizer train, once it has decided.
        holds_checkpoint: whether weights of a checkpoint were loaded.
        reduced_elsewhere: whether the callback averages gradients over processes, instead of the wrapper.
        window: the batches since the last optimizer step.
    """

    path: str
    model: PreTrainedModel | None

    def __init__(self) -> None:
        super().__init__()
        self.files = WeightFiles()
        self.protected: Protection | None = None
        self.holds_checkpoint = False
        self.reduced_elsewhere = False
        self.window = Window()
        self._saved_names: SavedNames | None = None  # of a model that is sharded
        self._local = LocalParameters()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Conversions of the whole module (``bf16-true``) leave alone what ``from_pretrained`` computes in full.

        Rotary frequencies, rounded to half precision, turn late positions by other angles: another model would be
        trained and scored than the one that is exported, of which no file holds them.
        """
        kept = [
            (part, name, part._buffers[name]) for part in self.modules() for name in part._non_persistent_buffers_set
        ]
        super()._apply(fn, recurse)
        for part, name, before in kept:
            now = part._buffers[name]
            if before is not None and now is not None and now.dtype != before.dtype:
                part._buffers[name] = before.to(now.device)
        return self

    @abstractmethod
    def tuned_layers(self) -> dict[str, nn.Linear]:
        """Run-time name -> matrix that the method may mask."""

    def base_model(self) -> BaseModel:
        """What the run begins from; to be asked before anything is trained."""
        keys = {name: f"model.{name}.weight" for name in self.tuned_layers()}
        whole = self.trained_whole()
        files = self._saved_names or saved_names(self.network)
        names = {key: files[runtime] for key in (*keys.values(), *whole) if (runtime := key[len("model.") :]) in files}
        base = BaseModel.of(self.path, self.state_dict(), keys, whole, names, self.generation_tokens())
        check_same(base.fingerprint, "weights")  # nothing would make them equal later
        return base

    def trained_whole(self) -> list[str]:
        """Keys in the module's state dict of what is trained without a mask."""
        masked = {id(layer.weight) for layer in self.tuned_layers().values()}
        trained = ((key, each) for key, each in self.named_parameters(remove_duplicate=False) if each.requires_grad)
        return sorted(key for key, each in trained if id(each) not in masked)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the base back into a checkpoint that left it out, from the model that was loaded.

        Raises:
            ValueError: if that is not the base of the checkpoint, or training would go on without the masks.
        """
        reload, self.holds_checkpoint = self.holds_checkpoint or self.protected is not None, True
        if "without_base" not in checkpoint:
            self._cut_entries(checkpoint)
            return
        if reload:  # the weights are no longer the base
            self.model = self.protected = None
            self.configure_model()
        owner = checkpoint["without_base"]
        if self._trainer is not None and self.trainer.state.fn == "fit":
            callbacks = {callback.state_key for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
            if owner not in callbacks:
                raise ValueError(
                    f"the checkpoint was trained under the masks of the callback {owner}, and this trainer has none of "
                    f"that name: got {', '.join(sorted(callbacks))}; without it, whole matrices would be trained"
                )
        state = checkpoint["callbacks"].get(owner)
        if state is None:
            raise ValueError(
                "the checkpoint left its base model out and holds no masks to put it back with: it is damaged. Masks "
                "are never computed on weights that were already tuned; start a fresh run from the base model instead"
            )
        base = BaseModel(**state["base"])
        complete, state["entries"] = base.restore(checkpoint["state_dict"], state["entries"], self.state_dict())
        # scales of quantized weights are saved and not loaded; they were compared with those of the base just now
        loadable = {name for name, _ in (*self.named_parameters(remove_duplicate=False), *self.named_buffers())}
        checkpoint["state_dict"] = {key: tensor for key, tensor in complete.items() if key in loadable}

    def _cut_entries(self, checkpoint: dict[str, Any]) -> None:
        """Keep of the entries what concerns those that this process holds."""
        spread = {name: layer.weight for name, layer in self.tuned_layers().items() if is_spread(layer.weight)}
        for state in checkpoint.get("callbacks", {}).values() if spread else ():
            entries = state.get("entries", {}) if isinstance(state, dict) else {}
            if set(entries) == set(spread):
                state["entries"] = {name: local_state(entry, spread[name]) for name, entry in entries.items()}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As Lightning does; then gradients go to whoever takes them, and are complete before any callback looks."""
        super().backward(loss, *args, **kwargs)
        hand_over_gradients(self.network)
        if not self.trainer.fit_loop._should_accumulate():
            groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
            trained = [each for group in groups for each in group["params"]]
            self.window.end(trained, self.trainer.accumulate_grad_batches)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm over all processes where they hold different entries; else as Lightning does."""
        if self.protected is None or not self.protected.together or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_by_norm([each for group in optimizer.param_groups for each in group["params"]], gradient_clip_val)

    def trained_parameters(self) -> list[nn.Parameter]:
        """What an optimizer is to be built over: entries the callback lets it train, and parts trained whole."""
        if self.protected is None:
            return [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        masked = {id(weight) for weight in self.protected.weights.values()}
        others = [each for each in self.network.parameters() if each.requires_grad and id(each) not in masked]
        return [*self.protected.parameters(), *map(self._local.of, others)]
