"""What the callbacks ask of a LightningModule: the whole list, as types, and one error for all that is missing.

Any LightningModule with these members can be trained with the callback `Dowser` and reported on; one that subclasses
`dowser_pl.module.MultimodalModule` has them. Callbacks look in `setup`, before anything is loaded. All else is had
from these by functions of `dowser_pl.models`: the text part, the decoder layers, adapters, unpacked weights.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from dowser_pl.errors import DowserError
from dowser_pl.masking.base import Protection
from dowser_pl.masking.base_model import BaseModel

__all__ = ["Files", "ReportedModule", "TunedModule", "reported_module", "trained_whole", "tuned_module"]


class Files(Protocol):
    """Files that may change while a model that was read from them is used, as `dowser_pl.models.WeightFiles`."""

    def changed(self) -> dict[Path, bool]:
        """Files that changed -> whether memory may have changed with them; empty if the module watches none."""

    def forget(self) -> None:
        """Take what is there now for what is to stay."""


class TunedModule(Protocol):
    """A LightningModule whose matrices the callback `Dowser` may mask.

    Attributes:
        protected: what the callback lets the optimizer train; set in `on_fit_start`, None until then. From then on
            `configure_optimizers`, which is called once more, builds over `protected.parameters()` instead of the
            matrices, beside what the module trains whole.
        reduced_elsewhere: set in `setup`: whether the callback averages gradients over processes. A module that loads
            its model in `configure_model` then calls `masking.leave_out_of_buckets(self)`; without DDP it need not.
        holds_checkpoint: whether weights of a checkpoint were loaded; such a model is not scored.
    """

    protected: Protection | None
    reduced_elsewhere: bool
    holds_checkpoint: bool

    @property
    def path(self) -> str:
        """Hub id or folder of the base model, for checkpoints, the report and exported files."""

    @property
    def files(self) -> Files:
        """The files that the model was read from, looked at while it is trained."""

    @property
    def network(self) -> Any:
        """The Hugging Face model (`PreTrainedModel`), loaded before `on_fit_start`; may raise until then."""

    @property
    def processor(self) -> Any:
        """The Hugging Face processor of the model, or its tokenizer; the importance pass writes prompts with it."""

    def tuned_layers(self) -> dict[str, nn.Linear]:
        """Run-time name in `network` -> matrix that may be masked; called in `on_fit_start` and later."""

    def base_model(self) -> BaseModel:
        """What the run begins from; called once in `on_fit_start`, before anything is trained."""

    def ending(self) -> Any:
        """What ends an answer, a `dowser_pl.models.generation.Ending`; for prompts, and for exported files."""

    def state_dict(self) -> dict[str, Any]:
        """Key -> tensor, like every LightningModule; the keys are those of `base_model`."""


class ReportedModule(Protocol):
    """A LightningModule whose validation the callbacks `Forgetting`, `Curve` and `Predictions` read.

    Attributes:
        scores: task name -> score of the latest validation; read when one has ended.
        answers: task name -> rows (`task, id, prediction, references` ...) of the latest validation, of this process.
    """

    scores: dict[str, float]
    answers: dict[str, list[dict[str, Any]]]

    @property
    def path(self) -> str:
        """Hub id or folder of the base model, for the report."""

    def tasks(self) -> list[Any]:
        """The evaluation tasks (`name, role, metric, max_new_tokens`), one per validation loader, in their order."""

    def protocol(self) -> dict[str, Any] | None:
        """What scores depend on beside the weights, JSON-able, so that those of the base are kept; None = unknown."""

    def score_tasks(self, tasks: Sequence[Any], loaders: Sequence[Any]) -> dict[str, float]:
        """Task name -> score of the model as it is, outside of any loop; the curve asks when training ends."""

    def row_scores(self, task: Any, rows: Sequence[dict[str, Any]]) -> list[float]:
        """Write `score` into each row of a task; nothing for a metric that says nothing of single rows."""

    def score_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """The same for the rows of all tasks that have references, and their means in the log; `predict` asks."""

    def pictures(self, task: Any, row: dict[str, Any], place: int) -> list[Any]:
        """Pillow images of the question at this place of the task, for the report; may be none."""


def tuned_module(pl_module: object, asker: object) -> TunedModule:
    """The module that a hook was given, as what it must be: itself, or what it holds as one attribute.

    Args:
        pl_module: any LightningModule.
        asker: the callback that asks.

    Raises:
        DowserError: listing all members that it lacks.
    """
    held: list[Any] = [each for each in vars(pl_module).values() if hasattr(type(each), "held_by")]
    if len({id(each) for each in held}) > 1:
        raise DowserError(
            f"{type(pl_module).__name__} holds {len(held)} Protectables, expected one: a run has one base and one set "
            "of masks. Fix: keep the one whose model is to be protected"
        )
    if held:
        return cast(TunedModule, held[0].held_by(pl_module))
    _refuse_missing(pl_module, TunedModule, asker)
    return cast(TunedModule, pl_module)


def reported_module(pl_module: object, asker: object) -> ReportedModule:
    """The module by what reports ask of it; see `tuned_module`."""
    _refuse_missing(pl_module, ReportedModule, asker)
    return cast(ReportedModule, pl_module)


def trained_whole(module: Any, layers: Mapping[str, nn.Linear]) -> list[str]:
    """Keys in a module's state dict of what is trained without a mask.

    Args:
        module: the LightningModule.
        layers: its matrices that are masked.
    """
    masked = {id(layer.weight) for layer in layers.values()}
    trained = ((key, each) for key, each in module.named_parameters(remove_duplicate=False) if each.requires_grad)
    return sorted(key for key, each in trained if id(each) not in masked)


def _refuse_missing(pl_module: object, contract: type, asker: object) -> None:
    missing = [name for name in _members(contract) if not _has(pl_module, name)]
    if missing:
        kind, ours = type(pl_module).__name__, f"dowser_pl.masking.{contract.__name__}"
        listed = "".join(f"\n  {_signature(contract, name)}" for name in missing)
        raise DowserError(
            f"{kind} cannot be used with the callback {type(asker).__name__}, which expects a LightningModule with "
            f"the members of {ours}; it lacks{listed}\n"
            f"Fix: self.protectable = dowser_pl.Protectable(model, processor) in its __init__, a subclass of "
            f"dowser_pl.MultimodalModule, or give {kind} these members (attributes in __init__); {ours} says what each "
            "is for"
        )


_NOTHING = object()


def _members(contract: type) -> list[str]:
    return [*contract.__annotations__, *(name for name in vars(contract) if not name.startswith("_"))]


def _has(pl_module: object, name: str) -> bool:
    """Without asking properties, which raise until the model is loaded; torch keeps modules in a table of its own."""
    of_torch = vars(pl_module).get("_modules", {})
    return name in of_torch or inspect.getattr_static(pl_module, name, _NOTHING) is not _NOTHING


def _signature(contract: type, name: str) -> str:
    member = vars(contract).get(name)
    if member is None:
        return f"{name}: {_said(contract.__annotations__[name])}"
    if isinstance(member, property):
        return f"{name}: {_said(inspect.signature(cast(Any, member.fget)).return_annotation)}"
    signature = inspect.signature(member)
    given = [f"{each.name}: {_said(each.annotation)}" for each in list(signature.parameters.values())[1:]]
    return f"{name}({', '.join(given)}) -> {_said(signature.return_annotation)}"


def _said(annotation: Any) -> str:
    text = inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)  # no module's name in front of a class
