"""The method callback: measure the base model, build the masks, enforce them, check them; or decide later than that.

Hook order (Lightning 2.6): weights and callback state of a checkpoint are restored *before* `on_fit_start`, so masks
are never computed on tuned weights; optimizer states *after* it, so they find the optimizer over the entries.
`on_before_optimizer_step` runs after unscaling and before clipping: the entries' gradient alone is clipped.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from dowser_pl.callbacks.curve import find_curve
from dowser_pl.callbacks.dowser.base_reader import BaseReader
from dowser_pl.callbacks.dowser.checks import (
    check_adapters,
    check_ended,
    check_files,
    check_frozen,
    check_held,
    check_number,
    check_optimizers,
    check_same_base,
    check_settings,
    check_sharded,
    check_state,
    check_trainer,
    refuse_quantized,
)
from dowser_pl.callbacks.dowser.drift import DriftMeter, can_tell_drift, meter_again
from dowser_pl.callbacks.dowser.expected import expected_rows
from dowser_pl.callbacks.dowser.finish import finish
from dowser_pl.callbacks.dowser.first_steps import FirstSteps
from dowser_pl.callbacks.dowser.importance import Precision
from dowser_pl.callbacks.dowser.masks import MaskBuilder
from dowser_pl.callbacks.dowser.merging import let_choose, merge_adapters, unmerge
from dowser_pl.callbacks.dowser.protection import (
    Content,
    Form,
    announce_plan,
    leave_base_out,
    num_trained,
    protect,
    protect_again,
    reduce_gradients,
    saved_entries,
    stop_reducing,
)
from dowser_pl.callbacks.dowser.replay import Replayer, check_replay, load_replay
from dowser_pl.callbacks.dowser.rows import RowBank
from dowser_pl.callbacks.order import check_order
from dowser_pl.callbacks.room import check_room
from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import is_sharded_model
from dowser_pl.errors import DowserError
from dowser_pl.importance import Probe, Rows
from dowser_pl.importance.drift import Drift
from dowser_pl.importance.kl_to_base import KLToBase
from dowser_pl.importance.replay import Replay
from dowser_pl.masking import (
    BaseModel,
    Changes,
    Protection,
    TunedModule,
    trained_whole,
    tuned_module,
)
from dowser_pl.methods import Method, ModelDowser
from dowser_pl.models.lora import adapters_of
from dowser_pl.planning import kept_by
from dowser_pl.planning.written import WrittenRows
from dowser_pl.strategies.sharded import ShardedStrategy

__all__ = ["Dowser"]

_SECONDS = 20.0  # between two looks at the files of the base


class Dowser(Callback):
    """Protects the pretrained skills of a model while it learns a new one.

    Args:
        method: decides which entries of the tuned matrices may move.
        probe: settings of the importance pass; used by methods that need one.
        cache_dir: where importance factors are kept between runs; None = always probe.
        factors_file: read importance from exactly this file that `probe` wrote; an error if it belongs to other
            weights or settings.
        update: `compact` trains the trainable entries as parameters of their own, with gradients and optimizer
            states of their size; `dense` trains whole matrices and puts frozen entries back after each step.
        checkpoint: `compact` leaves the base out of checkpoints and refers to it; `full` keeps all weights.
        calibration_batches: training batches that a method which merges after training measures inputs on.
        rows: that the base writes itself, for what needs some: `NullSpace`, replay and drift.
        replay: hold the model to what its base says on rows that the base wrote itself; null = do without.
        kl_to_base: hold the model to what its base says on the answers that it learns; null = do without.
        max_perplexity: answer tokens of a larger perplexity under the base are not learnt; null = all are.
        drift: measure at every validation how far the model is from its base, on rows that the base wrote itself and
            that nothing is trained on.
    """

    def __init__(
        self,
        method: Method = ModelDowser(),  # noqa: B008 - immutable, and the default that YAML shows
        probe: Probe = Probe(),  # noqa: B008
        cache_dir: str | None = "runs/cache",
        factors_file: str | None = None,
        update: Form = "compact",
        checkpoint: Content = "compact",
        calibration_batches: int = 32,
        rows: Rows = Rows(),  # noqa: B008
        replay: Replay | None = None,
        kl_to_base: KLToBase | None = None,
        max_perplexity: float | None = None,
        drift: bool = True,
    ) -> None:
        check_settings(method, update, checkpoint, calibration_batches)
        self.method, self.probe = method, probe
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.factors_file = None if factors_file is None else Path(factors_file)
        self.update, self.checkpoint = update, checkpoint
        self.calibration_batches = calibration_batches
        self.rows = rows
        self.replay = replay if replay is not None and replay.weight else None
        self.reader = BaseReader(kl_to_base, max_perplexity)
        self.measures_drift = drift
        self.probe_seconds = 0.0
        self.counts: tuple[Changes, Changes] | None = None
        """(frozen, trainable), filled when training ends."""
        self.diagnostics: dict[str, float] = {}
        self.frozen_digest: dict[str, str] = {}
        """Content hash of all frozen entries `before` training and `after` it."""
        self.base = BaseModel("")
        """What the run began from."""
        self._entries: Protection | None = None
        self._first_steps: FirstSteps | None = None
        self._replayer: Replayer | None = None
        self._meter: DriftMeter | None = None
        self._saves_sharded = False  # whether every process saves its share of them
        self._loaded: dict[str, Any] | None = None
        self._next_look = 0.0
        self._trained: dict[str, Any] | None = None  # entries and their digest before they were merged

    @property
    def entries(self) -> Protection:
        """Masks and base of the tuned matrices.

        Raises:
            RuntimeError: before `on_fit_start`.
        """
        if self._entries is None:
            raise RuntimeError("masks are built in on_fit_start, which the Trainer calls")
        return self._entries

    @property
    def drift(self) -> dict[str, Drift]:
        """Kind of self-written rows -> drift from the base at the latest validation; empty where it is not measured."""
        return {} if self._meter is None else dict(self._meter.latest)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the model is loaded: refuse what cannot work, and say who averages gradients."""
        if stage == "fit":
            check_order(trainer)
            strategy = trainer.strategy
            self._saves_sharded = isinstance(strategy, ShardedStrategy) and strategy.saves_sharded
            module = tuned_module(pl_module, self)
            module.reduced_elsewhere = self.update == "compact"
            if module is not pl_module:
                check_held(trainer, pl_module, self.checkpoint)
                if trainer.ckpt_path is None and (self.method.needs or self.measures_drift):
                    module.processor  # noqa: B018 - one that is missing is told now
            check_sharded(trainer, self.method, self.update, self.checkpoint)
            check_replay(trainer, self.replay, self.update)
            self.reader.check(trainer)
        check_trainer(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The importance pass and the masks it decides; or, when resuming, the masks of the checkpoint.

        `builder` measures the base model (`ImportanceRunner`) and has the method choose the entries that may
        move; `protect` freezes all others. The optimizer is made anew, over what may move.
        """
        module = tuned_module(pl_module, self)
        check_adapters(self.method, self.checkpoint, adapters_of(module.network) is not None)
        layers = module.tuned_layers()
        weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
        whole = trained_whole(module, layers)
        bank = self._bank(trainer, module, self.cache_dir)
        builder = MaskBuilder(
            bank.precision, module, layers, self.method, self.probe, self.cache_dir, self.factors_file, bank
        )
        if self._loaded is None or trainer.ckpt_path is None:  # what was loaded to be validated is not to be resumed
            builder.refuse_tuned(trainer.ckpt_path)
            if trainer.limit_train_batches == 0:  # the verb `probe`
                self.base = module.base_model() if self.probe.inputs == "rows" else self.base
                builder.measure()
                self.diagnostics = builder.diagnostics
                return
        refuse_quantized(weights.values())
        curve = find_curve(trainer)
        has_drift = self.measures_drift and (  # of the base, which is not at hand any more when resuming
            can_tell_drift(module) if self._loaded is None else bool(self._loaded.get("drift"))
        )
        curve.check(trainer, whole, self.method, self._loaded is not None, has_drift)
        self.reader.begin(whole, self._loaded)
        number = num_trained(layers, self.method)
        check_number(number, self.method, whole)
        kept = replace(kept_by(self.method, module.network, layers), reads=self.reader.active)
        written = self._expected(bank, has_drift)
        announce_plan(trainer, module, number, self.update, kept, written)
        check_room(trainer, module, number, self.checkpoint, kept, written)
        if module.protected is not None:  # of an earlier fit that changed nothing
            module.protected.close()
        self._trained = self.counts = self._replayer = self._meter = None
        if self._loaded is not None:
            self._replayer = load_replay(self.replay, self._loaded, bank)
            self._meter = meter_again(self._loaded["drift"], bank) if has_drift else None
            self._entries = protect_again(self.method, self.update, weights, self._loaded["entries"])
            self._loaded = None
            digest = self._digest_frozen(module)
            check_same_base(self.base, whole, self.frozen_digest["before"], digest, self._entries)
        else:
            self.base = module.base_model()
            if self.replay is not None:
                self._replayer = Replayer.of(trainer, module, self.replay, bank)
            self._meter = DriftMeter.of(trainer, module, bank) if has_drift else None
            self._entries = protect(self.method, self.update, weights, builder)  # builder.masks()
            curve.order(self.method, self._entries, builder.masks_of)
            self.probe_seconds, self.diagnostics = builder.seconds, builder.diagnostics
            self.frozen_digest = {"before": self._digest_frozen(module)}
        check_files(module.files, lambda: self.entries.is_sharded)  # too late to know what was there before
        module.protected = self._entries
        trainer.strategy.setup_optimizers(trainer)  # over the entries; the first was over the matrices
        check_optimizers(trainer, self._entries, self.method)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write back, or restore, after every step of every optimizer."""
        self._first_steps = FirstSteps(trainer)
        if self.update == "compact":
            stop_reducing(trainer)
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._after_step)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the gradient of replay, and average over the processes, before anything looks at gradients."""
        self.reader.log(trainer, pl_module)
        if self._replayer is not None:
            self._replayer.add_gradient(trainer, pl_module, tuned_module(pl_module, self).network)
        if self.update == "compact":
            reduce_gradients(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The freeze: the optimizer and clipping see no gradient of a frozen entry.

        `compact`: during the backward pass each matrix' gradient was gathered to its k allowed entries and dropped
        (`CompactEntries._gather_gradient`), so it is only checked that no matrix has one left. `dense`: the
        gradients of frozen entries are zeroed here (`DenseEntries.mask_gradients`). Methods that decide at each
        step freeze nothing and add their penalty (`SoftEntries.mask_gradients`).

        Raises:
            DowserError: if a gradient reached a matrix by another way.
        """
        self.entries.mask_gradients()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Have the base read the batch, where that is asked for; now and then look at its files."""
        module = tuned_module(pl_module, self)
        if time.monotonic() > self._next_look:
            self._check_files(module)
        self.reader.read(trainer, module, self.entries, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask the model how far it is from its base."""
        if self._meter is not None and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            drift = self._meter.measure(trainer, tuned_module(pl_module, self))
            pl_module.log_dict({"drift/kl": drift.kl, "drift/agreement": drift.agreement})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge or take updates back, where that is done now, and compare every entry with the base.

        Raises:
            RuntimeError: if a frozen entry moved; nothing is exported then.
            DowserError: if the files of the base were written into, and weights changed with them.
        """
        module = tuned_module(pl_module, self)
        self._check_files(module)
        self.entries.close()
        let_choose(trainer, pl_module, self.entries)
        self.diagnostics = self.diagnostics | self.reader.told()
        drift = partial(self._drift_now, trainer, module)
        finished = finish(trainer, module, self.method, self.calibration_batches, self.entries, drift)
        if finished is not None:  # checkpoints hold what was trained: a run that resumes at its end comes here again
            self._trained = {"entries": finished[0], "frozen_digest": self.frozen_digest}
            self._entries = module.protected = final = finished[1]
            self.frozen_digest = {"before": self.base.frozen_digest_before(final.base_digests())}
        self.counts = self.entries.verify()
        self.frozen_digest["after"] = self._digest_frozen(module)
        check_frozen(self.counts[0], self.frozen_digest)
        merge_adapters(trainer, module)  # checkpoints hold adapters alone, which stay as they are

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the matrices, also after an error or an interruption."""
        if self._entries is not None:
            self._entries.close()
            self.reader.unhook()
            if stage == "fit":
                check_ended(trainer, self.counts)

    def state_dict(self) -> dict[str, Any]:
        """Masks in global coordinates, the values they cannot give back, and what they belong to.

        Empty on all processes but the first, whose state alone is saved, or all save what they hold of it.
        """
        if self._entries is None or (collectives.rank() > 0 and not self._entries.is_sharded):
            return self._loaded or {}
        state: dict[str, Any] = {"method": self.method.settings(), "update": self.update, "base": self.base.to_dict()}
        state |= {"probe_seconds": self.probe_seconds, "diagnostics": self.diagnostics}
        if self._replayer is not None:
            state["replay"] = self._replayer.state_dict()
        if self.reader.active:
            state["reader"] = self.reader.state_dict()
        if self._meter is not None:
            state["drift"] = self._meter.state_dict()
        if self._trained is None:
            state |= {"entries": saved_entries(self._entries, self._saves_sharded, self.checkpoint)}
            state["frozen_digest"] = self.frozen_digest
        state |= self._trained or {}
        return state if collectives.rank() == 0 or self._saves_sharded else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the masks of a checkpoint.

        Raises:
            DowserError: if they were made by another method or other hyper-parameters, or trained in the other form.
        """
        if not state_dict:
            return
        check_state(self.method, self.update, state_dict)
        self._loaded = state_dict
        self.probe_seconds, self.diagnostics = state_dict["probe_seconds"], state_dict["diagnostics"]
        self.frozen_digest = dict(state_dict["frozen_digest"])
        self.base = BaseModel(**state_dict["base"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave the base out of the checkpoint; the module puts it in again when it loads one."""
        if trainer.training and self._entries is not None and self._trained is None:
            self._check_files(tuned_module(pl_module, self))
        if self.checkpoint == "full" or self._entries is None:
            unmerge(checkpoint["state_dict"], self.base.keys, (self._trained or {}).get("entries", {}))
            return
        leave_base_out(checkpoint, self.base, self.state_key)

    def expected_rows(self, trainer: Trainer, pl_module: LightningModule, sharded: bool) -> list[WrittenRows]:
        """What a run will keep of rows that the base writes; the model may have no weights yet.

        Args:
            trainer: its data.
            pl_module: the model.
            sharded: whether processes will hold parts of it.
        """
        module = tuned_module(pl_module, self)
        bank = self._bank(trainer, module, None)
        return expected_rows(bank, self.replay, self.measures_drift and can_tell_drift(module), sharded)

    def _bank(self, trainer: Trainer, module: TunedModule, cache_dir: Path | None) -> RowBank:
        pictures = getattr(trainer.datamodule, "training_pictures", None)  # type: ignore[attr-defined]
        precision = Precision.of(trainer, module.network)
        return RowBank(precision, module, self.rows, cache_dir, lambda: self.base.fingerprint, pictures)

    def _expected(self, bank: RowBank, has_drift: bool) -> list[WrittenRows]:
        try:
            return expected_rows(bank, self.replay, has_drift, is_sharded_model(bank.module.network))
        except DowserError:
            if self._loaded is None:
                raise
            return []  # what is wrong with rows of a checkpoint is said where they are made again

    def _drift_now(self, trainer: Trainer, module: TunedModule) -> float:
        if self._meter is None:  # a checkpoint of a run that did without
            raise DowserError("the checkpoint knows nothing of drift; resume without --budget.max_drift")
        kl = self._meter.measure(trainer, module).kl
        return collectives.from_rank_zero(lambda: kl)  # all decide alike, however their kernels round

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self.entries.after_step(optimizer)
        if self._first_steps is not None:
            self._first_steps.look(optimizer, self.entries, self.method)

    def _check_files(self, module: TunedModule) -> None:
        """See `check_files`; weights that are sharded over processes were copied from their files."""
        self._next_look = time.monotonic() + _SECONDS
        before = self.frozen_digest["before"]
        check_files(module.files, lambda: self.entries.is_sharded or self._digest_frozen(module) == before)

    def _digest_frozen(self, module: TunedModule) -> str:
        return self.base.frozen_digest(module.state_dict(), self.entries.frozen_digests())
