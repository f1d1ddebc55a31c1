"""How far a loaded model is from its base, without data, in a script: what `python -m dowser_pl drift` measures.

with train_only(model, masks) as trained:
    ...
    print(drift(model, processor, trained))
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image
from transformers import PreTrainedModel

from dowser_pl.distributed.models import device_of
from dowser_pl.errors import DowserError
from dowser_pl.importance.origin import Origin, OwnRows
from dowser_pl.importance.pictures import NUM_PICTURES, shrunken
from dowser_pl.integrations.plain import PlainModel, check_autocast, check_plain, left_as_it_was
from dowser_pl.integrations.train_only import Trained, trained_inside
from dowser_pl.models import load_model, load_processor
from dowser_pl.reporting.drift import DriftScore, ReportedDrift
from dowser_pl.reporting.moved import Moved, moved_text
from dowser_pl.reporting.table import drift_table

__all__ = ["BaseHeld", "DriftFromBase", "drift"]


class BaseHeld(Protocol):
    """What holds the base of a tuned model, such as what `train_only` and `apply_to_model` give."""

    def base_in_place(self) -> AbstractContextManager[None]:
        """The model is its base meanwhile."""


@dataclass(frozen=True)
class DriftFromBase:
    """How far a model is from its base, on rows that the base wrote; printed it is a table.

    Attributes:
        sources: what rows were written after, such as `text` or `noise` -> `kl`, `agreement` and `positions`.
        moved: by how much each matrix, and the output of each decoder layer; None where that was not asked for.
    """

    sources: Mapping[str, DriftScore]
    moved: Moved | None = None

    @property
    def kl(self) -> float:
        """The mean over all positions of KL(base || model), in nats."""
        return ReportedDrift(self.sources).all.kl

    @property
    def agreement(self) -> float:
        """The share of all positions at which the likeliest token is the base's."""
        return ReportedDrift(self.sources).all.agreement

    def __str__(self) -> str:
        lines = [] if self.moved is None else [moved_text(self.moved)]
        return "\n\n".join([drift_table(ReportedDrift(self.sources)), *lines])

    def to_json(self) -> str:
        """All numbers, as `drift --json` has them of a model."""
        found: dict[str, Any] = {"drift": ReportedDrift(self.sources).to_dict()}
        found |= {} if self.moved is None else {"moved": self.moved.to_dict()}
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def drift(
    model: PreTrainedModel,
    processor: Any = None,
    base: str | Path | PreTrainedModel | BaseHeld | None = None,
    *,
    per_source: int = 32,
    seed: int = 0,
    batch_size: int = 16,
    pictures: Sequence[Image.Image] = (),
    moved: bool = False,
    chat_template: str | None = None,
) -> DriftFromBase:
    """Have a base write rows, and compare what it says there with what a tuned model says; both are left as they were.

    Args:
        model: tuned, on any device.
        processor: of both; None = that of the folder of the base, or what `train_only` knows.
        base: its folder or hub id, the loaded model, or what holds its values while `model` has others: what
            `train_only` or `apply_to_model` gave, or `entries` of a callback. None = what `train_only` holds, inside.
        per_source: rows of each kind.
        seed: of the rows.
        batch_size: rows a forward pass.
        pictures: such as those of the task; the base writes rows after them too.
        moved: also tell how far each matrix moved and the output of each decoder layer drifted, which takes the decoder
            of the base once more in host memory.
        chat_template: text or path, where it is not that of the processor.

    Raises:
        DowserError: if one is no plain model, the model is none that tuning makes of the base, or the base writes none
            of its own text.
        FileNotFoundError: if there is no base at that path.
    """
    check_plain(model)
    check_autocast(model)
    rows = OwnRows(per_source, seed, batch_size, [shrunken(each) for each in pictures[:NUM_PICTURES]])
    base = trained_inside(model) if base is None else base
    if base is None or base is model:
        raise DowserError(
            f"got {'the model itself' if base is model else 'nothing'} as the base, expected what the model was before "
            "it was tuned. Fix: base=model.name_or_path where it was trained since it was loaded, what train_only or "
            "apply_to_model gave, or the loaded base"
        )
    if isinstance(base, Trained) and processor is None:
        processor = base.of.processor
    if isinstance(base, str | Path):
        processor = load_processor(str(base)) if processor is None else processor
        origin = _origin(PlainModel(_loaded(str(base), model), processor, chat_template), rows, moved)
    elif isinstance(base, PreTrainedModel):
        origin = _origin(PlainModel(base, processor, chat_template), rows, moved)
    else:
        with _held(base).base_in_place():
            origin = _origin(PlainModel(model, processor, chat_template), rows, moved)
    with left_as_it_was(model):
        found = origin.drift(model)
        return DriftFromBase(found.sources, origin.moved(model) if moved else None)


def _origin(base: PlainModel, rows: OwnRows, places: bool) -> Origin:
    with left_as_it_was(base.network):
        return Origin.of(base, rows, places)


def _held(base: Any) -> BaseHeld:
    if not hasattr(base, "base_in_place"):
        check_plain(base)  # which tells wrappers
    return cast(BaseHeld, base)


def _loaded(path: str, like: PreTrainedModel) -> PreTrainedModel:
    dtype: Any = str(like.dtype).removeprefix("torch.")
    loaded: Any = load_model(path, dtype=dtype)
    loaded.to(device_of(like))
    return cast(PreTrainedModel, loaded)
