"""Replay inside a Trainer: the base's rows and what it said on them, and its gradient before each optimizer step."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dowser_pl.callbacks.dowser.drift import head_is_trained
from dowser_pl.callbacks.dowser.rows import RowBank, tokens_of
from dowser_pl.distributed import collectives
from dowser_pl.distributed.models import run_reduced_grad_hooks
from dowser_pl.errors import DowserError
from dowser_pl.importance import probing_mode
from dowser_pl.importance.base_outputs import BaseOutputs, record_base
from dowser_pl.importance.replay import Replay, draw_rows, replay_gradient
from dowser_pl.masking import TunedModule
from dowser_pl.strategies import FSDP1Strategy

__all__ = ["Replayer", "check_replay", "load_replay"]


def check_replay(trainer: Trainer, settings: Replay | None, update: str) -> None:
    """Refuse what would add a wrong gradient.

    Raises:
        DowserError: saying what to set instead.
    """
    if settings is None:
        return
    if isinstance(trainer.strategy, FSDP1Strategy):
        raise DowserError(
            "got dowser.replay with FSDP1, which averages the gradient of one backward pass a step, expected another "
            "strategy. Set --trainer.strategy ddp, or -c strategy/fsdp2, or --dowser.replay null"
        )
    if update == "dense" and trainer.world_size > 1:
        raise DowserError(
            f"got dowser.replay and update 'dense' on {trainer.world_size} processes, whose wrapper has averaged "
            "gradients before replay adds its own. Set --dowser.update compact, or --dowser.replay null"
        )


class Replayer:
    """The rows of a run and what its base says on them.

    Args:
        settings: of the run.
        base: what was recorded.
        seed: of the rows that are drawn.
    """

    def __init__(self, settings: Replay, base: BaseOutputs, seed: int) -> None:
        self.settings, self.base, self.seed = settings, base, seed

    @classmethod
    def of(cls, trainer: Trainer, module: TunedModule, settings: Replay, bank: RowBank) -> "Replayer":
        """Have the base say what it says on its rows; on every process.

        Args:
            trainer: its precision.
            module: the model, its weights being the base.
            settings: of the run.
            bank: of rows.

        Raises:
            DowserError: if there are no rows of the kinds asked for, or the model is one whose words cannot be kept.
        """
        network = module.network
        chosen = [row for row in bank.used if settings.sources is None or row.kind in settings.sources]
        missing = set(settings.sources or ()) - {row.kind for row in bank.used}
        if missing:
            raise DowserError(
                f"got replay.sources {settings.sources}, expected some of {sorted({row.kind for row in bank.used})}: "
                f"there are no rows of {sorted(missing)}; list them under --dowser.rows.sources as well"
            )
        trained = head_is_trained(network)  # while nothing is probed, when nothing takes a gradient
        with probing_mode(network), trainer.precision_plugin.forward_context():
            base = record_base(network, chosen, bank.settings.batch_size, trained)
        return cls(settings, base, bank.settings.seed)

    def add_gradient(self, trainer: Trainer, pl_module: LightningModule, network: Any) -> None:
        """Where the batches of an optimizer step are complete: one forward and backward pass over some rows."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate() or step % self.settings.every:
            return
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)

        def backward(loss: Tensor) -> None:
            (loss if scaler is None else scaler.scale(loss)).backward()
            run_reduced_grad_hooks(network)

        numbers = draw_rows(self.base.rows, self.settings.rows, self.seed, step, collectives.rank())
        with trainer.precision_plugin.forward_context():
            kl = replay_gradient(network, self.base, numbers, self.settings.weight * self.settings.every, backward)
        pl_module.log("train/replay_kl", kl, batch_size=len(numbers), sync_dist=trainer.world_size > 1)

    def state_dict(self) -> dict[str, Any]:
        """Rows and what the base said: weights are tuned when a run resumes, so neither can be made again."""
        return {
            "rows": [tokens_of(row) for row in self.base.rows],
            "base": self.base.state_dict(),
            "settings": asdict(self.settings),
            "seed": self.seed,
        }


def load_replay(settings: Replay | None, state: Mapping[str, Any], bank: RowBank) -> Replayer | None:
    """Rows and what the base said on them, of a run that is resumed.

    Args:
        settings: of the present run; None = it does without.
        state: what its checkpoint holds.
        bank: makes pictures of rows again.

    Raises:
        DowserError: if that run replayed in another way.
    """
    kept = state.get("replay")
    was, now = None if kept is None else kept["settings"], None if settings is None else asdict(settings)
    if was != now:
        raise DowserError(
            f"the checkpoint was trained with replay {was}, this run asks for {now}; resume with the same "
            "--dowser.replay"
        )
    if settings is None or kept is None:
        return None
    rows = bank.remade(kept["rows"], held_out=False)
    return Replayer(settings, BaseOutputs.from_state(rows, kept["base"]), kept["seed"])
