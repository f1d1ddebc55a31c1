"""LoRA: train low-rank adapters beside the matrices, and nothing else.

Edward Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen: "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685. The adapters are peft's, see `models/lora.py`; with
`model.quantization: 4bit` it is QLoRA (arXiv 2305.14314).

There is no masked LoRA: an entry of B A belongs to a whole row and a whole column, so a product that spares the frozen
entries of an arbitrary mask is zero in nearly all of them, and masks are refused together with adapters.

With `null_space` it is `W0 + s B (R P)`: A = R P lives behind the projection P of its inputs that `NullSpace` uses, of
the inputs that the base has on rows which it wrote itself. R and B are trained, by any optimizer, with the gradient
`dL/dR = (dL/dA) P`; the adapter holds R P, also at the start, and is an ordinary one. In the limit of eps -> 0 and all
directions, adapters do nothing to inputs that those rows have. A relative: Tang et al.: "LoRA-Null: Low-Rank Adaptation
via Null Space for Large Language Models", arXiv 2503.02659, begins with A in the null space of inputs on given data;
here A stays there, softly, and the model writes the rows.

With `preserve` it is OPLoRA: Yifeng Xiong, Xiaohui Xie: "OPLoRA: Orthogonal Projection LoRA Prevents Catastrophic
Forgetting during Parameter-Efficient Fine-Tuning", 2025, arXiv 2510.13003: `W0 + s (P_L R_B) (R_A P_R)`, with P_L and
P_R the projections off the k leading left and right singular vectors of W0. These k singular triples of W0 are triples
of the tuned matrix (`dowser_pl/functional/singular.py`), up to the rounding of what adapters hold. As in the paper R_A
and R_B are trained; that the adapter holds R_A P_R and P_L R_B, and so is an ordinary one, changes no step. Of
quantized matrices W0 is what they unpack to. There is no public code to compare with.

With `start` the adapter begins in a part of W0 that inputs hardly use, as LoRA-Null has it (Tang et al., see above) or
CorDA (Yang et al., 2024, arXiv 2406.05223), `dowser_pl/functional/adapter_starts.py`: `W0 + s (B A - B0 A0)`, from
B = B0 and A = A0. Half of `model.lora.r` is trained and the other half is B0 A0, so it is twice the rank that the
papers name, and the base stays as it is (`dowser_pl/masking/held.py`); they write W0 - s B0 A0 over it, rounded to its
precision. They measure inputs on questions of a data set (NQ-open); here the model writes the rows. Their codes have
s = 1, which is alpha = r. `freeze` is LoRA-Null where A stays A0.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.methods.base import BeforeFit, Layer, Reference
from dowser_pl.methods.null_space import NullSpaceSettings

__all__ = ["Lora", "LoraStart"]


@dataclass(frozen=True)
class LoraStart:
    """Which part of a matrix its adapter takes over at the start.

    Args:
        rule: `lora_null`, what W makes of the directions that inputs have least, or `corda`, the least components of W
            times the second moment of inputs.
        tokens: self-written tokens that inputs are measured on.
        freeze: train B alone.

    Raises:
        DowserError: if one is out of its range.
    """

    rule: Literal["lora_null", "corda"] = "lora_null"
    tokens: int = 8192
    freeze: bool = False

    def __post_init__(self) -> None:
        rules = get_args(type(self).__dataclass_fields__["rule"].type)
        if self.rule not in rules:
            raise DowserError(f"start.rule must be one of {', '.join(rules)}, got {self.rule!r}")
        if self.tokens < 1:
            raise DowserError(
                f"start.tokens is how many the model writes to measure inputs on, at least 1; got {self.tokens}"
            )


class Lora(BeforeFit):
    """Train every entry of the adapters that `model.lora` describes; the matrices they belong to stay as they are.

    Args:
        null_space: keep outputs on what the model writes itself, by a projection of what adapters take in; null = do
            without.
        preserve: how many leading singular triples of each matrix stay as they are; null = do without. It excludes
            `null_space`.
        start: the part of each matrix that adapters take over at the start; null = they begin with nothing. It excludes
            the other two, and half of `model.lora.r` is trained.
    """

    reference: ClassVar[Reference] = Reference(
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        authors="Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen",
        year=2022,
        arxiv="2106.09685",
    )
    update_ratio: None = None

    def __init__(
        self, null_space: NullSpaceSettings | None = None, preserve: int | None = None, start: LoraStart | None = None
    ) -> None:
        if preserve is not None and preserve < 1:
            raise DowserError(f"preserve is how many singular triples stay, at least 1, or null; got {preserve}")
        given = {"null_space": null_space, "preserve": preserve, "start": start}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise DowserError(f"got {' and '.join(named)}, expected one of them: each decides what an adapter holds")
        self._null_space = null_space
        self._preserve = preserve
        self._start = start

    @property
    def null_space(self) -> NullSpaceSettings | None:
        """How directions of inputs are measured and taken out; None = they are not."""
        return self._null_space

    @property
    def preserve(self) -> int | None:
        """How many leading singular triples of each matrix stay as they are; None = they need not."""
        return self._preserve

    @property
    def start(self) -> LoraStart | None:
        """Which part of each matrix adapters take over at the start; None = none."""
        return self._start

    @property
    def projects(self) -> bool:
        """Whether adapters train behind a projection."""
        return self.null_space is not None or self.preserve is not None

    @property
    def rate_hint(self) -> str:
        """What is kept off directions stands larger rates."""
        return "" if self.null_space is None else "about three times that of plain LoRA"

    def settings(self) -> dict[str, Any]:
        """Name and hyper-parameters; those of a projection or a start where there is one."""
        null_space = {} if self.null_space is None else {"null_space": asdict(self.null_space)}
        start = {} if self.start is None else {"start": asdict(self.start)}
        return super().settings() | null_space | start | ({} if self.preserve is None else {"preserve": self.preserve})

    def mask(self, layer: Layer) -> Tensor:
        """A mask of an adapter, True everywhere."""
        return torch.ones_like(layer.weight, dtype=torch.bool)
