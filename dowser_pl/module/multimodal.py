"""The LightningModule: the loss of training, one optimizer over what is tuned, and what a callback may protect.

`ProtectedModule` is the side that `dowser_pl.masking.TunedModule` asks for: what the weights were at first, what may be
trained, how checkpoints come back. `MultimodalModule` is that around a Hugging Face model.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import PreTrainedModel, get_scheduler

from dowser_pl.distributed.collectives import check_same
from dowser_pl.distributed.limits import no_model
from dowser_pl.distributed.models import is_sharded_model, run_reduced_grad_hooks
from dowser_pl.distributed.tensors import is_sharded
from dowser_pl.errors import DowserError
from dowser_pl.masking import (
    BaseModel,
    LocalParameters,
    Protection,
    ReportedModule,
    TunedModule,
    by_rate,
    check_gradients,
    check_images,
    check_loss,
    check_precision,
    clip_by_norm,
    leave_out_of_buckets,
    local_state,
    make_optimizer,
    trained_whole,
)
from dowser_pl.models.generation import generation_tokens
from dowser_pl.models.layers import find_layers
from dowser_pl.models.loading import check_finite, files_of, load_model, load_processor, skeleton
from dowser_pl.models.lora import Adapters, LoraSettings
from dowser_pl.models.names import SavedNames, saved_names
from dowser_pl.models.parts import named_part
from dowser_pl.models.quantized import is_quantized
from dowser_pl.models.weight_files import WeightFiles
from dowser_pl.module.evaluation import EvaluatedModule
from dowser_pl.module.window import Window, count_targets
from dowser_pl.strategies.sharded import ShardedStrategy

__all__ = ["MultimodalModule", "ProtectedModule"]


class ProtectedModule(EvaluatedModule):
    """The side of the module that the callback `dowser_pl.callbacks.Dowser` works with.

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
        """Conversions of the whole module (`bf16-true`) leave alone what `from_pretrained` computes in full.

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
        whole = trained_whole(self, self.tuned_layers())
        files = self._saved_names or saved_names(self.network)
        names = {key: files[runtime] for key in (*keys.values(), *whole) if (runtime := key[len("model.") :]) in files}
        tokens = generation_tokens(self.network, self.ending())
        base = BaseModel.of(self.path, self.state_dict(), keys, whole, names, tokens)
        check_same(base.fingerprint, "weights")  # nothing would make them equal later
        return base

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the base back into a checkpoint that left it out, from the model that was loaded.

        Raises:
            DowserError: if that is not the base of the checkpoint, or training would go on without the masks.
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
                raise DowserError(
                    f"the checkpoint was trained under the masks of the callback {owner}, and this trainer has none of "
                    f"that name: got {', '.join(sorted(callbacks))}; without it, whole matrices would be trained"
                )
        state = checkpoint["callbacks"].get(owner)
        if state is None:
            raise DowserError(
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
        sharded = {name: layer.weight for name, layer in self.tuned_layers().items() if is_sharded(layer.weight)}
        for state in checkpoint.get("callbacks", {}).values() if sharded else ():
            entries = state.get("entries", {}) if isinstance(state, dict) else {}
            if set(entries) == set(sharded):
                state["entries"] = {name: local_state(entry, sharded[name]) for name, entry in entries.items()}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass; gradients go to whoever takes them, and are complete before any callback looks."""
        super().backward(loss, *args, **kwargs)
        run_reduced_grad_hooks(self.network)
        if not self.trainer.fit_loop._should_accumulate():
            groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
            trained = [each for group in groups for each in group["params"]]
            self.window.end(trained, self.trainer.accumulate_grad_batches)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm over all processes where they hold different entries; else as Lightning does."""
        if self.protected is None or not self.protected.is_sharded or gradient_clip_algorithm == "value":
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


if TYPE_CHECKING:  # what callbacks ask of a module it has; `mypy` sees to it

    def _has_all(module: "MultimodalModule") -> tuple[TunedModule, ReportedModule]:
        return module, module


_WARMUP = 0.03
Schedule = Literal["constant", "constant_with_warmup", "cosine", "linear"]
Part = Literal["projector", "lm_head", "norms", "embeddings", "vision"]


class MultimodalModule(ProtectedModule):
    """Wraps any Hugging Face image-text-to-text model, and any language model of text alone.

    Args:
        path: hub id, local folder, or `embedded:world` for the small model shipped with the package.
        dtype: of the weights; `auto` takes that of the files.
        attn_implementation: as in `from_pretrained` (`sdpa`, `eager`, `flash_attention_2`); None = its choice.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        quantization: load the matrices in `8bit` or `4bit` (bitsandbytes), to score (`probe`), validate or
            predict where memory is short; such weights cannot be tuned, but adapters beside them can.
        trust_remote_code: run code that comes with the model; only for sources you trust.
        generation: how answers are written: `greedy`, or as the generation config of the `model` says (sampling,
            penalties, beams ...). It changes scores.
        last_n_layers: tune only the last n layers of the text decoder; None = all of them.
        targets: which matrices of those layers are tuned, under the mask of the method: kinds, `attn` and `mlp`, or
            names as the model has them, such as `q_proj`. `qformer` is every matrix in the layers of the Q-Former of
            InstructBLIP and BLIP-2, `qformer.crossattention.attention.query` those of a name.
        lora: put low-rank adapters (peft) beside those matrices and tune these instead, with the method `Lora`;
            null = none.
        also_train: further parts to train in full, *without* a mask; nothing protects them.
        part_rates: learning rates of parts in `also_train` that are not to have the optimizer's, such as
            `{projector: 1e-3}`; the schedule scales all rates alike.
        optimizer: any torch-like optimizer, over the tuned parameters.
        scheduler: learning-rate schedule, stepped after every optimizer step: one of these names, or any
            `torch.optim.lr_scheduler` with its arguments (`ReduceLROnPlateau` looks at `train/loss`).
        warmup_ratio: share of all steps over which the learning rate rises from 0; of the named schedules alone.
    """

    def __init__(
        self,
        path: str,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        quantization: Literal["none", "8bit", "4bit"] = "none",
        trust_remote_code: bool = False,
        generation: Literal["greedy", "model"] = "greedy",
        last_n_layers: int | None = None,
        targets: list[str] = ["attn", "mlp"],  # noqa: B006 - a default that YAML can show
        lora: LoraSettings | None = None,
        also_train: list[Part] = [],  # noqa: B006
        part_rates: dict[str, float] = {},  # noqa: B006
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-5, weight_decay=0.0),
        scheduler: Schedule | Callable[[Optimizer], LRScheduler] = "cosine",
        warmup_ratio: float = _WARMUP,
    ) -> None:
        super().__init__()
        if not 0.0 <= warmup_ratio <= 1.0:
            raise DowserError(f"model.warmup_ratio is a share of all steps, in [0, 1]; got {warmup_ratio}")
        if not isinstance(scheduler, str) and warmup_ratio not in (0, _WARMUP):
            raise DowserError(
                f"model.warmup_ratio belongs to {', '.join(get_args(Schedule))}; got {warmup_ratio} beside another "
                "schedule. Fix: set it to 0, and warm up in the schedule itself"
            )
        if odd := sorted(set(part_rates) - set(also_train)):
            raise DowserError(f"model.part_rates has {odd[0]}, expected parts in model.also_train; got {also_train}")
        self.path = path
        self.dtype_name = dtype
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.quantization, self.trust_remote_code = quantization, trust_remote_code
        self.own_settings = generation == "model"
        self.last_n_layers, self.targets = last_n_layers, list(targets)
        self.lora = lora
        self.also_train, self.part_rates = list(also_train), dict(part_rates)
        self.optimizer = optimizer
        self.scheduler, self.warmup_ratio = scheduler, warmup_ratio
        self.model: PreTrainedModel | None = None
        self.adapters: Adapters | None = None  # of `lora`, once the model is loaded

    @cached_property
    def processor(self) -> Any:
        """The Hugging Face processor of the model, of text alone its tokenizer; data modules ask in their `setup`."""
        return load_processor(self.path, trust_remote_code=self.trust_remote_code, say=rank_zero_info)

    def configure_model(self) -> None:
        """Load the weights once and leave a gradient only to what is tuned."""
        if self.model is not None:
            return
        sharding = self._sharding()
        self.adapters = None
        self.processor  # noqa: B018 - one that does not belong to the model is refused before that is read
        self._look_ahead()
        self.files = files_of(self.path)
        self.model = load_model(
            self.path,
            dtype=self.dtype_name,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            gradient_checkpointing=self.gradient_checkpointing,
            quantization=self.quantization,
            empty=sharding is not None and not self.trainer.is_global_zero,  # the first process tells the others
        )
        self.model.train().requires_grad_(False)
        if self.lora is not None:
            self.adapters = Adapters(self.model, self.tuned_layers(), self.lora)
        for layer in self.tuned_layers().values():
            layer.weight.requires_grad_(not is_quantized(layer))
        for part in self.also_train:
            for parameter in named_part(self.model, part).values():
                parameter.requires_grad_(True)
        if self._trainer is not None and str(self.trainer.precision).endswith("-true"):
            # now, not after checkpoints are restored: what they hold was rounded to this precision
            loaded_as = self.model.dtype
            self.trainer.precision_plugin.convert_module(self)
            if self.model.dtype != loaded_as:
                check_finite(self.path, self.model)
        if sharding is not None:
            self._saved_names, self._local = saved_names(self.model), LocalParameters()  # sharding would hide the names
            sharding.shard(self.model)
        elif self.reduced_elsewhere:
            leave_out_of_buckets(self)

    def _look_ahead(self) -> None:
        """Refuse, before weights are read, a model without such matrices, as GPT-2, whose are transposed."""
        if not self.trust_remote_code:  # that of others may not be made for models without weights
            find_layers(skeleton(self.path), self.last_n_layers, self.targets)

    def _sharding(self) -> ShardedStrategy | None:
        """The strategy that is to shard the model, if it is one that does.

        Raises:
            DowserError: if the model is one that cannot be sharded.
        """
        strategy = None if self._trainer is None else self.trainer.strategy
        if not isinstance(strategy, ShardedStrategy):
            return None
        if refused := no_model(self.quantization):
            raise DowserError(refused)
        return strategy

    @property
    def network(self) -> PreTrainedModel:
        """The Hugging Face model, once it is loaded."""
        if self.model is None:
            raise RuntimeError("the model is loaded in configure_model, which the Trainer calls")
        return self.model

    def tuned_layers(self) -> dict[str, nn.Linear]:
        """Run-time name -> matrix that the method may mask; with adapters, these."""
        if self.adapters is not None:
            return dict(self.adapters.parts)
        return find_layers(self.network, self.last_n_layers, self.targets)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Cross-entropy of the assistant's tokens, the mean over those of all processes and accumulated batches.

        What is given back is this batch's share of it, see `dowser_pl.masking.Window`; what is logged is the
        mean over the batches since the last optimizer step.

        Raises:
            DowserError: when the loss is not finite; the last checkpoint is kept.
        """
        rows = batch.pop("ids", None)
        if {"projector", "vision"} & set(self.also_train) and is_sharded_model(self.network):
            check_images("pixel_values" in batch)
        loss: Tensor = self.network(**batch, use_cache=False).loss
        check_loss(loss, self.global_step, batch_idx, rows)
        tokens = count_targets(batch["labels"], not self.network.config.get_text_config().is_encoder_decoder)
        weight = self.window.add(loss, tokens, begins=batch_idx % self.trainer.accumulate_grad_batches == 0)
        self.log("train/loss", self.window.mean, prog_bar=True, batch_size=len(batch["input_ids"]))
        return loss.float() * weight

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Refuse gradients that are not finite, unless a gradient scaler (16-mixed) skips such steps by itself."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            trained = [each for group in optimizer.param_groups for each in group["params"]]
            is_sharded = self.protected is not None and self.protected.is_sharded
            check_gradients(trained, self.global_step, is_sharded)

    def configure_optimizers(self) -> Any:
        """The optimizer over what the callback lets it train and over all other parameters that take a gradient.

        Lightning asks before masks are known and the callback once more when they are.
        """
        tuned = self.trained_parameters()
        check_precision(
            self.network.parameters() if tuned else []
        )  # which the trainer's precision decides only after loading
        if not tuned:  # quantized; only `probe` comes here then
            return None
        parts = {part: map(self._local.of, named_part(self.network, part).values()) for part in self.part_rates}
        rates = {id(each): self.part_rates[part] for part, found in parts.items() for each in found}
        optimizer = make_optimizer(self.optimizer, by_rate(tuned, rates))
        if self.trainer.limit_train_batches == 0:  # `probe` trains nothing, so there is nothing to schedule
            return optimizer
        schedule = self._schedule(optimizer)
        found = {"scheduler": schedule, "interval": "step"}
        if isinstance(schedule, ReduceLROnPlateau):
            found["monitor"] = getattr(schedule, "monitor", "train/loss")  # Lightning's own names one
        return {"optimizer": optimizer, "lr_scheduler": found}

    def _schedule(self, optimizer: Optimizer) -> LRScheduler:
        if isinstance(self.scheduler, str):
            steps = int(self.trainer.estimated_stepping_batches)
            warming = round(self.warmup_ratio * steps)
            return get_scheduler(self.scheduler, optimizer, num_warmup_steps=warming, num_training_steps=steps)
        try:
            schedule = self.scheduler(optimizer)
        except (TypeError, ValueError) as error:
            raise DowserError(
                f"model.scheduler cannot be built: {error}. Give what it takes under model.scheduler.init_args"
            ) from error
        if not isinstance(schedule, LRScheduler):
            raise DowserError(
                f"model.scheduler: got {type(schedule).__name__}, expected one of {', '.join(get_args(Schedule))} or a "
                "torch.optim.lr_scheduler.LRScheduler"
            )
        return schedule
