"""The folder where importance is kept: which file serves a request, and why none does."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.probing.factors import Factors
from dowser_pl.probing.files import differences, load_factors, read_notes, save_factors

__all__ = ["Cache", "digest"]


@dataclass(frozen=True)
class Cache:
    """The files of one model.

    Args:
        folder: where they lie; it need not exist.
        identity: what one prompt's factors depend on; ``identity["weights"]`` names the model.
        names: the matrices.
        statistics: what is needed of each.
        prompts_per_row: how many prompts one row shall be the mean of.
    """

    folder: Path
    identity: Mapping[str, Any]
    names: Sequence[str]
    statistics: frozenset[str]
    prompts_per_row: int

    @property
    def path(self) -> Path:
        """Where this request is written."""
        request = [self.identity, list(self.names), sorted(self.statistics), self.prompts_per_row]
        return self.folder / f"{self._model}-{digest(request)}.safetensors"

    def find(self) -> tuple[Path, Factors] | None:
        """The file that serves the request: its own, or one that holds more; all of its prompts.

        Raises:
            ValueError: if the request's own file is damaged or was put there from elsewhere.
        """
        if self.path.exists():
            return self.path, self.load(self.path)
        for other in self._others():
            try:
                if read_notes(other)["identity"] == json.loads(json.dumps(self.identity)):
                    return other, self.load(other)
            except (ValueError, KeyError):
                continue  # damaged, older, or it lacks something: no use here, and no harm
        return None

    def load(self, path: Path) -> Factors:
        """The factors of a file, in rows of ``prompts_per_row`` prompts.

        Raises:
            ValueError: if the file is damaged, or does not hold what is asked for; the message says what differs.
        """
        factors = load_factors(path, self.identity, self.names, self.statistics)
        if factors.factorised and factors.prompts_per_row not in (1, self.prompts_per_row):
            raise ValueError(
                f"{path} holds means of {factors.prompts_per_row} prompts, expected {self.prompts_per_row} "
                "(dowser.method.group_size) or single prompts (dowser.probe.keep all); name another file, or delete it "
                "to probe again"
            )
        return factors.grouped(self.prompts_per_row)

    def save(self, factors: Factors, notes: Mapping[str, object]) -> Path:
        """Write the request's own file."""
        save_factors(factors, self.path, self.identity, notes)
        return self.path

    def near_misses(self) -> list[str]:
        """How the files of this model differ from the request, a line each."""
        lines = []
        for other in self._others():
            try:
                found = read_notes(other)["identity"]
            except (ValueError, KeyError):
                continue
            details = list(differences(found, json.loads(json.dumps(self.identity))))
            lines.append(f"{other}: {'; '.join(details) or 'other matrices or another estimator'}")
        return lines

    @property
    def _model(self) -> str:
        return str(self.identity["weights"])[:12]

    def _others(self) -> Iterator[Path]:
        return (path for path in sorted(self.folder.glob(f"{self._model}-*.safetensors")) if path != self.path)


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
