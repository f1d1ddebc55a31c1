"""Model Tailor: a patch of tuned entries on the pretrained model, decorated for what was taken back.

Didi Zhu, Zhongyi Sun, Zexi Li, Tao Shen, Ke Yan, Shouhong Ding, Kun Kuang, Chao Wu: "Model Tailor: Mitigating
Catastrophic Forgetting in Multi-modal Large Language Models", ICML 2024, arXiv 2402.12048.

Patch: the entries of highest `fusion * z(|tuned - base|) + (1 - fusion) * z(sensitivity)`, z standardising each
output row. Decorator: the entries of the patch make up for the others' return to the base, as the Optimal Brain
Surgeon derives it (`functional/optimal_brain_surgeon.py`), with the inputs of calibration data.

The released code differs from the derivation, and each difference is an option; the defaults are the derivation's:

- `fusion` 0.5; the training script has 0.8, a second copy of the code 0.5.
- `selection`: all entries of a matrix compete; the code lets those of each block of 128 columns compete, by weights
  that earlier blocks have compensated already.
- `sensitivity`: what taking back costs, `(tuned - base)^2 / [H^-1]_jj`; the code has what setting to zero would
  cost, `tuned^2` instead.
- `compensation_sign`: the code adds the compensation that the derivation subtracts.

Several tasks: each model is tailored by itself, with the data of its task, and `Stitch` adds up what is left of them.
The release has no code of it, and the text of the paper was not read for it, so that the rule for entries which several
patches hold is an option: the equation of one patch, summed over the tasks, adds their moves up.

Not as the code: exactly k entries; a row whose entries all moved alike gets zeros, not NaN; all matrices see the
inputs of the tuned model, while the code tailors layer by layer and feeds each from the tailored ones before it.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, get_args

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import num_trainable
from dowser_pl.functional.merges import mean_of_moves, sum_of_moves
from dowser_pl.functional.optimal_brain_surgeon import fused_score, inverse_factor, reverted
from dowser_pl.functional.selection import highest
from dowser_pl.methods.base import AfterFit, Layer, Need, Reference

__all__ = ["CompensationSign", "ModelTailor", "Overlap", "Selection", "Sensitivity", "Stitch"]

CompensationSign = Literal["derivation", "released"]
Selection = Literal["matrix", "block"]
Sensitivity = Literal["move", "weight"]
Overlap = Literal["sum", "mean"]

_REFERENCE = Reference(
    title="Model Tailor: Mitigating Catastrophic Forgetting in Multi-modal Large Language Models",
    authors="Zhu, Sun, Li, Shen, Yan, Ding, Kuang, Wu",
    year=2024,
    arxiv="2402.12048",
)


class Stitch(AfterFit):
    """Stitch the decorated patches of several tasks onto their base: `base + sum_t mask_t * (tailored_t - base)`.

    Args:
        overlap: of an entry that several patches move, the `sum` of the moves, or their `mean`.
    """

    reference: ClassVar[Reference] = _REFERENCE
    merges = ("ModelTailor", "Stitch")
    update_ratio: None = None

    def __init__(self, overlap: Overlap = "sum") -> None:
        if overlap not in get_args(Overlap):
            raise DowserError(f"overlap must be one of {', '.join(get_args(Overlap))}, got {overlap!r}")
        self.overlap = overlap

    @property
    def needs(self) -> frozenset[Need]:
        """The tailored weights."""
        return frozenset({"tuned"})

    def mask(self, layer: Layer) -> Tensor:
        """(O, I) bool, what the patch moved."""
        return layer.measured("tuned") != layer.weight

    def merge_all(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> Tensor:
        """(O, I): the base with the moves of all patches."""
        add_up = sum_of_moves if self.overlap == "sum" else mean_of_moves
        return add_up(layers[0].weight, [layer.measured("tuned") for layer in layers], masks)


class ModelTailor(AfterFit):
    """Train everything, then keep a patch and decorate it.

    Args:
        update_ratio: share of each matrix in the patch, in [0, 1].
        fusion: weight of the move against the sensitivity, in [0, 1]; see this file's head, for the next three too.
        selection: the patch is chosen in the whole `matrix`, or in each `block` of columns (released).
        sensitivity: of the `move` or of the `weight` (released).
        compensation_sign: of the `derivation` or as `released`.
        damping: of the inverse, as a share of the mean of its diagonal.
        block_size: columns of a block.
    """

    reference: ClassVar[Reference] = _REFERENCE
    of_patches = Stitch
    update_ratio: float

    def __init__(
        self,
        update_ratio: float = 0.1,
        fusion: float = 0.5,
        selection: Selection = "matrix",
        sensitivity: Sensitivity = "move",
        compensation_sign: CompensationSign = "derivation",
        damping: float = 0.01,
        block_size: int = 128,
    ) -> None:
        num_trainable(update_ratio, 0)
        for name, value, kind in (
            ("selection", selection, Selection),
            ("sensitivity", sensitivity, Sensitivity),
            ("compensation_sign", compensation_sign, CompensationSign),
        ):
            if value not in get_args(kind):
                raise DowserError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
        if not 0.0 <= fusion <= 1.0:
            raise DowserError(f"fusion is the weight of the move in the score, in [0, 1], got {fusion}")
        if not damping > 0 or block_size < 1:
            raise DowserError(f"damping must be above 0 and block_size at least 1, got {damping} and {block_size}")
        self.update_ratio = update_ratio
        self.fusion = fusion
        self.selection = selection
        self.sensitivity = sensitivity
        self.compensation_sign = compensation_sign
        self.damping = damping
        self.block_size = block_size

    @property
    def needs(self) -> frozenset[Need]:
        """The tuned weights and their inputs."""
        return frozenset({"tuned", "input_gram"})

    def mask(self, layer: Layer) -> Tensor:
        """(O, I) bool, the patch."""
        factor = self._factor(layer)
        tuned = layer.measured("tuned")
        if self.selection == "block":
            return self._reverted(layer, factor, lambda part, own: self._block(layer, factor, part, own))[1]
        score = self._score(layer, slice(None), tuned.to(factor.dtype), factor.square().sum(dim=0))
        return highest(score.float(), num_trainable(self.update_ratio, tuned.numel()))

    def merge(self, layer: Layer, mask: Tensor) -> Tensor:
        """(O, I): the patch, decorated, on the base."""
        return self._reverted(layer, self._factor(layer), lambda part, _: mask[:, part])[0]

    def _factor(self, layer: Layer) -> Tensor:
        return inverse_factor(layer.measured("input_gram"), self.damping)

    def _reverted(
        self, layer: Layer, factor: Tensor, choose: Callable[[slice, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        sign = 1.0 if self.compensation_sign == "derivation" else -1.0
        return reverted(layer.weight, layer.measured("tuned"), factor, choose, sign, self.block_size)

    def _block(self, layer: Layer, factor: Tensor, part: slice, own: Tensor) -> Tensor:
        """(O, C) bool, the patch of one block; the counts of all blocks add up to that of the matrix."""
        score = self._score(layer, part, own, factor.diagonal()[part].square())
        before, until = (num_trainable(self.update_ratio, len(own) * stop) for stop in (part.start, part.stop))
        return highest(score.float(), until - before)

    def _score(self, layer: Layer, part: slice, present: Tensor, inverse: Tensor) -> Tensor:
        """(O, C) scores of the columns `part`, in which `present` stands; `inverse` is [H^-1]_jj of each."""
        base = layer.weight[:, part].to(present.dtype)
        lost = present - base if self.sensitivity == "move" else present
        moved = layer.measured("tuned")[:, part].to(present.dtype) - base
        return fused_score(moved, lost.square() / inverse, self.fusion)
