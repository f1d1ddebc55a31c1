"""Scores and answers of base models, kept between runs: the same model is not asked the same questions twice.

A file says what they depend on, word for word, and holds a digest of itself. One that says anything else, or of
which a bit has changed, is not used: then the model is measured.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import write_atomically

__all__ = ["EvaluationCache", "Known"]

_FORMAT = 1


@dataclass(frozen=True)
class Known:
    """What was measured earlier.

    Attributes:
        path: the file.
        scores: task name -> score.
        answers: to every question, in their order, as the report has them.
        seconds: that measuring took.
    """

    path: Path
    scores: dict[str, float]
    answers: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class EvaluationCache:
    """The file of one model and one evaluation.

    Args:
        folder: where it lies; it need not exist.
        identity: what the scores depend on, JSON-able; `identity["weights"]` names the model.
        tasks: their names.
    """

    folder: Path
    identity: Mapping[str, Any]
    tasks: Sequence[str]

    @property
    def path(self) -> Path:
        """The file that holds the evaluation of this key."""
        return self.folder / f"{str(self.identity['weights'])[:12]}-{_digest(self.identity)[:16]}.evaluation.json"

    def find(self) -> Known | None:
        """The scores, if they are there; a file that cannot be used is told, and measured anew."""
        if not self.path.is_file():
            return None
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content.pop("sha256") != _digest(content) or content["format"] != _FORMAT:
                raise DowserError("it is not what was written")
            if content["identity"] != json.loads(json.dumps(self.identity)) or set(content["scores"]) != {*self.tasks}:
                raise DowserError("it belongs to something else")
            scores = {name: float(content["scores"][name]) for name in self.tasks}
            return Known(self.path, scores, [dict(row) for row in content["answers"]], float(content["seconds"]))
        except (ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError) as error:
            rank_zero_warn(f"{self.path} cannot be used ({error}); the base model is measured anew")
            return None

    def save(self, scores: Mapping[str, float], answers: Sequence[Mapping[str, Any]], seconds: float) -> Path | None:
        """Write what was measured; a disk that takes no file costs a warning, as nothing depends on it."""
        measured = {"scores": dict(scores), "answers": list(answers), "seconds": round(seconds, 1)}
        content = json.loads(json.dumps({"format": _FORMAT, "identity": self.identity, **measured}))
        try:
            write_atomically(self.path, json.dumps(content | {"sha256": _digest(content)}) + "\n")
        except OSError as error:
            rank_zero_warn(f"the base model's scores could not be kept: {error}. Fix: set --report.cache_dir")
            return None
        return self.path


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
