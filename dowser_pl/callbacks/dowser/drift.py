"""The meter of drift in a run: what the base said on rows that are never trained on, and how far the model is from it.

The base is asked once, before anything is trained; checkpoints hold what it said, since weights are tuned when a run
resumes. Every validation asks the model as it is.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from dowser_pl.callbacks.dowser.rows import RowBank, tokens_of
from dowser_pl.errors import DowserError
from dowser_pl.importance import probing_mode
from dowser_pl.importance.base_outputs import BaseOutputs, record_base
from dowser_pl.importance.drift import Drift, measure_drift, pooled
from dowser_pl.masking import TunedModule
from dowser_pl.models.layers import text_model

__all__ = ["DriftMeter", "can_tell_drift", "head_is_trained", "meter_again"]


def can_tell_drift(module: TunedModule) -> bool:
    """Whether a model continues its own text, so that what it says on its rows can be kept; if not, a line says so."""
    able = not text_model(module.network).config.is_encoder_decoder
    if not able:
        rank_zero_info(f"{type(module.network).__name__} is an encoder-decoder: drift from the base is not measured")
    return able


def head_is_trained(network: Any) -> bool:
    """Whether what makes logits of hidden states will change."""
    head = text_model(network).get_output_embeddings()
    return any(each.requires_grad for each in head.parameters())


def meter_again(state: Mapping[str, Any], bank: RowBank) -> "DriftMeter | None":
    """Make the meter of a checkpoint again; None with a warning where its pictures are not to be had any more.

    Args:
        state: that the checkpoint holds.
        bank: makes pictures of rows again.
    """
    try:
        return DriftMeter.from_state(state, bank)
    except DowserError as error:
        rank_zero_warn(f"drift is not measured any more: {error}")
        return None


class DriftMeter:
    """Measures drift on rows of the base.

    Args:
        base: what it said on them.
        batch_size: rows a forward pass.
        latest: kind of rows -> drift when it was last measured.
    """

    def __init__(self, base: BaseOutputs, batch_size: int, latest: Mapping[str, Drift] | None = None) -> None:
        self.base, self.batch_size, self.latest = base, batch_size, dict(latest or {})

    @classmethod
    def of(cls, trainer: Trainer, module: TunedModule, bank: RowBank) -> "DriftMeter":
        """Ask the base; on every process.

        Args:
            trainer: its precision.
            module: the model, its weights being the base.
            bank: has rows that nothing is trained on.
        """
        network, rows, batch_size = module.network, bank.held_out, bank.settings.batch_size
        trained = head_is_trained(network)  # while nothing is probed, when nothing takes a gradient
        with probing_mode(network), trainer.precision_plugin.forward_context():
            return cls(record_base(network, rows, batch_size, trained), batch_size)

    def measure(self, trainer: Trainer, module: TunedModule) -> Drift:
        """Ask the model as it is; on every process.

        Returns:
            The drift on all rows; `latest` has it by kind.
        """
        with trainer.precision_plugin.forward_context():
            self.latest = measure_drift(module.network, self.base, self.batch_size)
        return pooled(list(self.latest.values()))

    def state_dict(self) -> dict[str, Any]:
        """What the base said on which rows, and the latest drift."""
        latest = {kind: asdict(each) for kind, each in self.latest.items()}
        rows = [tokens_of(row) for row in self.base.rows]
        return {"rows": rows, "base": self.base.state_dict(), "batch_size": self.batch_size, "latest": latest}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], bank: RowBank) -> "DriftMeter":
        """The meter of a run that is resumed.

        Raises:
            DowserError: if the pictures of its rows cannot be made again.
        """
        latest = {kind: Drift(**each) for kind, each in state["latest"].items()}
        base = BaseOutputs.from_state(bank.remade(state["rows"], held_out=True), state["base"])
        return cls(base, state["batch_size"], latest)
