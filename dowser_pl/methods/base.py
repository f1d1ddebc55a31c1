"""What a method is: how much of each weight's move is allowed, and when that is decided.

A method holds hyper-parameters and decisions, never tensors: the callback measures what the method needs,
hands it one layer at a time, and owns the resulting masks.

Legend: O outputs, I inputs of a matrix; N rows of factors (one per group of prompts); t steps made so far, the present
one included.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import num_trainable
from dowser_pl.functional.merges import masked_move
from dowser_pl.functional.selection import LOCAL, Reducer, lowest

__all__ = [
    "AfterFit",
    "BeforeFit",
    "EachStep",
    "Layer",
    "Method",
    "Need",
    "Ranking",
    "Reference",
    "Scope",
    "Scored",
    "Stage",
]


Need = Literal[
    "activation",
    "abs_gradient",
    "square_gradient",
    "token_product",
    "weight_square",
    "gradient",
    "tuned",
    "input_gram",
]
Stage = Literal["before_fit", "each_step", "after_fit"]
Scope = Literal["matrix", "layer", "model"]


@dataclass(frozen=True)
class Reference:
    """The publication of a method; `arxiv` is empty for folklore."""

    title: str
    authors: str
    year: int
    arxiv: str = ""


@dataclass(frozen=True)
class Layer:
    """One matrix and what was measured of it; fields that no method asked for are None.

    Attributes:
        name: run-time name of the matrix' module, as in `model.named_modules()`; where several tuned models are
            merged, one name for each.
        weight: (O, I) pretrained weights.
        activation: (N, I) float32, the mean |h_j| over positions and the prompts of a row.
        abs_gradient: (N, O) float32, the mean |g_i| over probes, positions and the prompts of a row.
        square_gradient: (N, O) float32, the mean g_i^2 over the same.
        token_product: (O, I) float32, the mean over prompts, probes and positions t of |g_ti| |h_tj|.
        weight_square: (O, I) float32, the mean over prompts and probes of (d(xi . f) / dW_ij)^2.
        tuned: (O, I) weights after training.
        input_gram: (I, I) float32, the mean over tokens of h h^T, of the tuned model.
        rows: which rows of a larger matrix these O are, and how many it has; None = it is whole.
        part: which flat positions of these rows are meant; None = all. The weights of the others are not told.
    """

    name: str
    weight: Tensor
    activation: Tensor | None = None
    abs_gradient: Tensor | None = None
    square_gradient: Tensor | None = None
    token_product: Tensor | None = None
    weight_square: Tensor | None = None
    tuned: Tensor | None = None
    input_gram: Tensor | None = None
    rows: tuple[slice, int] | None = None
    part: slice | None = None

    @property
    def num_entries(self) -> int:
        """The number of entries of the whole matrix."""
        return self.weight.numel() if self.rows is None else self.rows[1] * self.weight.shape[1]

    def meant(self, entries: Tensor) -> Tensor:
        """Take of (O, I) numbers, made of entries one by one, those that are meant: (O, I), or 1-D of a part."""
        return entries if self.part is None else entries.reshape(-1)[self.part]

    def measured(self, what: Need) -> Tensor:
        """The measurement `what`, on the device of the weight.

        Raises:
            DowserError: if it was not taken. A weight without a score is never left trainable.
        """
        value: Tensor | None = getattr(self, what)
        if value is None:
            raise DowserError(
                f"{self.name} has no {what.replace('_', ' ')}: it was not measured, so this weight cannot be "
                "judged. Methods list what they need in `needs`; factors from a cache file must cover every "
                "layer that is tuned"
            )
        return value.to(self.weight.device)

    def moved(self) -> Tensor:
        """(O, I) float32, how far training moved each entry: |tuned - base|.

        Raises:
            DowserError: if it was not trained, or a distance is not a number.
        """
        distance = (self.measured("tuned").float() - self.weight.detach().float()).abs()
        if bool(distance.isnan().any()):
            raise DowserError(
                f"{self.name} moved by something that is not a number, expected finite weights before and after "
                "training; look at the loss of that run"
            )
        return distance


class Method(ABC):
    """A rule for what may move, of one of three kinds: `BeforeFit`, `EachStep`, `AfterFit`.

    Attributes:
        stage: when it decides.
        reference: the publication.
    """

    stage: ClassVar[Stage]
    reference: ClassVar[Reference]

    update_ratio: float | None
    """Trainable share of each matrix, in [0, 1] (the paper's rho); None for a method that has none."""

    @property
    def needs(self) -> frozenset[Need]:
        """What the callback has to measure before the method decides: fields of `Layer`."""
        return frozenset()

    @property
    def rate_hint(self) -> str:
        """How learning rates that did well compare with those of full fine-tuning; may be empty."""
        return ""

    @property
    def prompts_per_row(self) -> int:
        """How many prompts are averaged into one row of the factors."""
        return 1

    def settings(self) -> dict[str, str | int | float]:
        """Name and hyper-parameters, as they stand in reports and checkpoints.

        Hyper-parameters are the attributes whose names do not begin with `_`.

        Raises:
            DowserError: one of them is no plain value.
        """
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        for name, value in own.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise DowserError(
                    f"{type(self).__name__}.{name} is a {type(value).__name__}, expected a text, a number or a list of "
                    "them, as it stands in reports and checkpoints; keep what is none under a name that begins with _"
                ) from error
        return {"method": type(self).__name__, **own}


class BeforeFit(Method):
    """A method that decides before training which entries may be trained; all others are frozen."""

    stage: ClassVar[Stage] = "before_fit"

    @property
    def rate_hint(self) -> str:
        """Smaller masks need larger rates."""
        masked = self.update_ratio is not None and self.update_ratio < 1
        return "masks did best at about ten times that of full fine-tuning (docs/results/methods.md)" if masked else ""

    @abstractmethod
    def mask(self, layer: Layer) -> Tensor:
        """(O, I) bool, True = trainable, exactly `round(update_ratio * O * I)` of them; all, without a ratio."""


class AfterFit(Method):
    """A method that lets every entry train and decides afterwards what of each move is kept.

    Attributes:
        of_patches: what merges the patches that this method has made of several models, where it cannot decide again
            without the data of their runs; None = itself.
        merges: class names of the methods whose patches alone it merges; empty = any tuned models.
    """

    stage: ClassVar[Stage] = "after_fit"
    of_patches: ClassVar["type[AfterFit] | None"] = None
    merges: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def mask(self, layer: Layer) -> Tensor:
        """(O, I) bool, True = keeps its move, exactly `round(update_ratio * O * I)` of them; all, without a ratio."""

    def merge(self, layer: Layer, mask: Tensor) -> Tensor:
        """(O, I) final weights: `base + mask * (tuned - base)`."""
        return masked_move(layer.weight, layer.measured("tuned"), mask)

    def merge_all(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> Tensor:
        """(O, I) final weights of one matrix of which there are several tuned versions.

        Args:
            layers: the matrix, once for each tuned model, all with one base.
            masks: what `mask` said of each.

        Raises:
            DowserError: if the method cannot merge so many.
        """
        if len(layers) != 1:
            raise DowserError(
                f"{type(self).__name__} merges one tuned model with its base, got {len(layers)} tuned models; give "
                "one, or use a method that merges several"
            )
        return self.merge(layers[0], masks[0])


class Ranking(Method):
    """A rule that lets the lowest-scoring share of entries move; decided before training it is `Scored`.

    Args:
        update_ratio: trainable share, in [0, 1].
        scope: which entries compete for it: those of one `matrix`, of all matrices of one decoder `layer`, or
            of the whole `model`.
    """

    update_ratio: float

    def __init__(self, update_ratio: float, scope: Scope) -> None:
        num_trainable(update_ratio, 0)
        if scope not in get_args(Scope):
            raise DowserError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}")
        self.update_ratio = update_ratio
        self.scope = scope

    @abstractmethod
    def score(self, layer: Layer) -> Tensor:
        """(O, I) float32 >= 0, low = trainable."""

    def mask(self, layer: Layer) -> Tensor:
        """The lowest-scoring entries of the matrix, were it alone (scope `matrix`)."""
        return lowest(self.score(layer), num_trainable(self.update_ratio, layer.weight.numel()))


class Scored(Ranking, BeforeFit):
    """A method that gives every pretrained entry a score and trains the lowest-scoring share; see `Ranking`."""


class EachStep(Method):
    """A method whose mask, if it has one, changes with every step; no entry is frozen.

    The callback keeps base, sum of gradients and what `prior` returns beside each matrix, all on its device:
    the bytes of the weights, 4 and 4 per entry, the latter two where they are asked for.

    Attributes:
        sums_gradients: whether `step` wants the sum of all gradients so far.
        needs_directions: whether matrices train off directions that are found before training, as those of `NullSpace`
            and `OSF` do; `step` and `penalty` are not asked then.
        needs_moment: whether `filtered` is asked, for which values are kept while a step is made (4 bytes an entry) and
            the optimizer must be Adam.
    """

    stage: ClassVar[Stage] = "each_step"
    sums_gradients: ClassVar[bool] = False
    needs_directions: ClassVar[bool] = False
    needs_moment: ClassVar[bool] = False
    update_ratio: None = None

    @property
    def num_kept(self) -> int:
        """How many float32 tensors of a matrix' shape are kept beside its base."""
        return self.sums_gradients + self.needs_moment + bool(self.needs)

    def prior(self, layer: Layer) -> Tensor | None:
        """(O, I) float32, made of the base before training and kept through it; None = nothing.

        Args:
            layer: the base weight and what was measured of it.
        """
        return None

    def penalty(self, base: Tensor, tuned: Tensor) -> Tensor | None:
        """(O, I) float32 to add to the gradient before it is clipped; None = nothing.

        Args:
            base: (O, I) float32 pretrained weights.
            tuned: (O, I) float32 weights as they are.
        """
        return None

    def filtered(
        self, before: Tensor, tuned: Tensor, moment: Tensor, decayed: float, reducer: Reducer = LOCAL
    ) -> Tensor:
        """(O, I) float32, what is to become of the optimizer's step; asked before `step`, where `needs_moment`.

        Args:
            before: (O, I) float32 weights before it.
            tuned: (O, I) float32 weights as it left them.
            moment: (O, I) float32, Adam's mean m of gradients, of this step included; its bias is not corrected.
            decayed: what the step multiplied each weight by beside moving it, `1 - lr * weight_decay`.
            reducer: as for `step`.
        """
        return tuned

    def step(
        self, base: Tensor, tuned: Tensor, gradients: Tensor | None, prior: Tensor | None, reducer: Reducer = LOCAL
    ) -> Tensor:
        """(O, I) float32 weights to go on with; may be `tuned` itself.

        Args:
            base: (O, I) float32 pretrained weights.
            tuned: (O, I) float32 weights as the optimizer's step left them.
            gradients: (O, I) float32, the sum over t steps of what the optimizer took: of the mean over all tokens of
                accumulated batches and processes, penalised and clipped; None unless `sums_gradients`.
            prior: what `prior` returned.
            reducer: where the model is sharded over processes, all tensors are of the part of a matrix that is here
                (1-D under FSDP1), and what is asked of the whole matrix is asked through this; all processes call
                this for every matrix in the same order.
        """
        return tuned
