"""The two forms of training under a Hugging Face `Trainer`, which clips and empties gradients of a model's parameters.

Dense: these are what is trained, so masks are put on their gradients, and frozen entries back after each step. Compact:
the optimizer, which keeps nothing of a matrix before its first step, is given k values of each in its place; what the
Trainer would do to their gradients is done here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.errors import DowserError
from dowser_pl.masking import CompactEntries, DenseEntries, Protection
from dowser_pl.masking.base import State

__all__ = ["CompactForm", "DenseForm", "TrainerForm", "innermost"]

_STEPS_ENTRY_BY_ENTRY = ("ASGD", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


def innermost(optimizer: Any) -> Any:
    """The optimizer itself, which accelerate has wrapped."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


class TrainerForm(ABC):
    """What a callback does around the steps of a Trainer.

    Args:
        network: the model.
        entries: masks, values and base.
        optimizer: of the Trainer, over the matrices or over what an earlier form gave it.
        earlier: name of a matrix -> what an earlier form gave it instead.

    Attributes:
        given: name of a matrix -> what the optimizer was given instead; empty where it trains the matrices.
    """

    kind: ClassVar[type[Protection]]
    _let_go: Callable[[], object]

    def __init__(
        self,
        network: nn.Module,  # noqa: ARG002 - dense training leaves both alone
        entries: Protection,
        optimizer: Any,  # noqa: ARG002
        earlier: Mapping[str, nn.Parameter],  # noqa: ARG002
    ) -> None:
        self.entries = entries
        self.given: dict[str, nn.Parameter] = {}

    @abstractmethod
    def before_step(self, max_norm: float) -> None:
        """After the last backward pass, when the Trainer has clipped."""

    @abstractmethod
    def after_step(self) -> None:
        """When the optimizer has made its step."""

    @abstractmethod
    def put(self, state: State) -> None:
        """Write trained values of a checkpoint into the model."""

    def close(self) -> None:
        """Gradients come whole again, as they do when a form is left behind, such as by an error, and collected."""
        self._let_go()

    def resume(self, folder: Path) -> None:  # noqa: B027 - the Trainer has loaded what is needed
        """Load of a checkpoint what the Trainer could not."""


class DenseForm(TrainerForm):
    """Whole matrices are trained."""

    kind = DenseEntries

    def __init__(
        self, network: nn.Module, entries: Protection, optimizer: Any, earlier: Mapping[str, nn.Parameter]
    ) -> None:
        super().__init__(network, entries, optimizer, earlier)
        hooks = [
            weight.register_post_accumulate_grad_hook(_masking(entries.masks[name]))
            for name, weight in entries.weights.items()
        ]
        self._let_go = finalize(self, _all_of(*(hook.remove for hook in hooks)))

    def before_step(self, max_norm: float) -> None:
        """Gradients of frozen entries became zero as they came."""

    def after_step(self) -> None:
        """Whatever the optimizer did to a frozen entry (weight decay, momentum) is taken back, bit for bit."""
        self.entries.after_step()

    def put(self, state: State) -> None:
        """Write trained values into the matrices.

        Where files of a model have other names than the loaded one, the Trainer has loaded none of it, and but warned.
        """
        with torch.no_grad():
            for name in self.entries.weights:
                self.entries._put(name, state[name]["values"])


class CompactForm(TrainerForm):
    """The optimizer trains k values of each matrix."""

    kind = CompactEntries

    def __init__(
        self, network: nn.Module, entries: Protection, optimizer: Any, earlier: Mapping[str, nn.Parameter]
    ) -> None:
        super().__init__(network, entries, optimizer, earlier)
        self._optimizer: Optimizer = innermost(optimizer)
        values: dict[str, Any] = {name: entries.values(name) for name in entries.weights}
        instead = {id(weight): values[name] for name, weight in entries.weights.items()}
        instead |= {id(given): values[name] for name, given in earlier.items()}
        for group in self._optimizer.param_groups:
            group["params"] = [instead.get(id(each), each) for each in group["params"]]
        self._optimizer.state.clear()
        self.given = values
        self._norm = _ShownNorm(network, entries, getattr(optimizer, "scaler", None))
        self._let_go = finalize(self, _all_of(entries.close, self._norm.close))

    @staticmethod
    def check(optimizer: Any, fresh: bool) -> None:
        """Refuse an optimizer whose step is not that of each entry by itself, or that has begun already.

        Raises:
            DowserError: if it is such a one.
        """
        inner = innermost(optimizer)
        known = type(inner).__name__ in _STEPS_ENTRY_BY_ENTRY and type(inner).__module__.startswith("torch.optim.")
        if not known or (fresh and inner.state):
            raise DowserError(
                f"got a {type(inner).__module__}.{type(inner).__name__} with update 'compact', expected one of "
                f"torch.optim's {', '.join(_STEPS_ENTRY_BY_ENTRY)}, before its first step: it is given entries instead "
                "of matrices. Fix: DowserCallback(update='dense')"
            )

    def before_step(self, max_norm: float) -> None:
        """Clip, as the Trainer would."""
        self._norm.hide()
        self.entries.mask_gradients()
        torch.nn.utils.clip_grad_norm_(self.entries.parameters(), max_norm if max_norm > 0 else math.inf)

    def after_step(self) -> None:
        """Write the values into the matrices, and empty their gradients."""
        self.entries.after_step(self._optimizer)
        for values in self.entries.parameters():
            values.grad = None

    def put(self, state: State) -> None:
        """Write trained values, more precise than what matrices hold, into the entries, and from there into these."""
        entries: Any = self.entries
        entries._restore(state)

    def resume(self, folder: Path) -> None:
        """Moments in the precision in which they were saved; the Trainer has loaded them for the matrices."""
        file = folder / "optimizer.pt"
        if file.is_file():  # not with save_only_model
            self._optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


class _ShownNorm:
    """Shows the Trainer the norm of gradients that its model does not have, as it looks for one before each step.

    When a backward pass ends, the norm is made the gradient of the smallest parameter that nobody trains; what the
    Trainer does to that changes nothing, and before the step it is taken away. So every logger is told the norm.

    Args:
        network: the model.
        entries: whose values are trained.
        scaler: of gradients in float16; None = there is none.
    """

    def __init__(self, network: nn.Module, entries: Protection, scaler: Any) -> None:
        frozen = [each for each in network.parameters() if not each.requires_grad and each.is_floating_point()]
        self._shown, self._values, self._scaler = min(frozen, key=Tensor.numel), entries.parameters(), scaler
        self._waiting = False
        trained = [weight for weight in entries.weights.values() if weight.requires_grad]
        self._hooks = [weight.register_post_accumulate_grad_hook(self._wait) for weight in trained]

    def _wait(self, _: Tensor) -> None:
        if not self._waiting:
            self._waiting = True
            torch.autograd.Variable._execution_engine.queue_callback(self._show)

    @torch.no_grad()
    def _show(self) -> None:
        norm = torch.nn.utils.get_total_norm([each.grad for each in self._values if each.grad is not None])
        self._waiting, self._shown.grad = False, torch.zeros_like(self._shown)
        self._shown.grad.view(-1)[0] = norm if self._scaler is None else norm / self._scaler.get_scale()

    def hide(self) -> None:
        """Take it away."""
        self._waiting, self._shown.grad = False, None

    def close(self) -> None:
        """Show nothing any more."""
        for hook in self._hooks:
            hook.remove()
        self.hide()


def _all_of(*calls: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        for each in calls:
            each()

    return call


def _masking(mask: Tensor) -> Callable[[Tensor], None]:
    """What makes gradients of frozen entries zero (also NaN) as soon as they are there, before any norm is taken.

    Under DDP that is before they are averaged; all processes have the same mask.

    Args:
        mask: (O, I) bool, True = trained.
    """
    frozen = ~mask

    @torch.no_grad()
    def hook(weight: Tensor) -> None:
        if weight.grad is not None:
            weight.grad.masked_fill_(frozen, 0)

    return hook
