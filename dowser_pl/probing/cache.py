"""The folder where importance is kept: which file serves a request, and why none does."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.probing.factors import Factors
from dowser_pl.probing.files import differences, load_factors, read_head, save_factors
from dowser_pl.probing.recorder import FACTORS

__all__ = ["Cache", "Request", "digest"]


@dataclass(frozen=True)
class Request:
    """What is wanted of every matrix.

    Args:
        statistics: those needed.
        prompts_per_row: how many prompts one row shall be the mean of.
        num_prompts: of sums over prompts, which serve just so many; None for statistics in rows.
    """

    statistics: frozenset[str]
    prompts_per_row: int
    num_prompts: int | None = None

    @property
    def factorised(self) -> bool:
        """Whether all statistics have rows."""
        return self.statistics <= set(FACTORS)


@dataclass(frozen=True)
class Cache:
    """The files of one model.

    Args:
        folder: where they lie; it need not exist.
        identity: what one prompt's factors depend on; ``identity["weights"]`` names the model.
        names: the matrices.
    """

    folder: Path
    identity: Mapping[str, Any]
    names: Sequence[str]

    def path(self, request: Request) -> Path:
        """Where what was measured for a request is written."""
        wanted = [sorted(request.statistics), request.prompts_per_row, request.num_prompts]
        return self.folder / f"{self._model}-{digest([self.identity, list(self.names), wanted])}.safetensors"

    def find(self, request: Request) -> tuple[Path, Factors] | None:
        """Of the files that hold what is requested or more, the one with the most prompts.

        Raises:
            ValueError: if the request's own file is damaged or was put there from elsewhere.
        """
        own = self.path(request)
        if own.exists():
            self.load(own, request)
        found: list[tuple[int, bool, Path]] = []
        for path in self._files():
            try:
                self._check(path, request)
                found.append((read_head(path)["num_prompts"], path == own, path))
            except ValueError:
                continue  # damaged, or it lacks something: no use here, and no harm
        if not found:
            return None
        best = max(found)[2]
        return best, self.load(best, request)

    def load(self, path: Path, request: Request) -> Factors:
        """The factors of a file, in rows as requested.

        Raises:
            ValueError: if the file is damaged, or does not hold what is asked for; the message says what differs.
        """
        self._check(path, request)
        factors = load_factors(path, self.identity, self.names, request.statistics)
        return factors.grouped(request.prompts_per_row)

    def save(self, factors: Factors, request: Request, notes: Mapping[str, object]) -> Path:
        """Write what was measured for a request."""
        save_factors(factors, self.path(request), self.identity, notes)
        return self.path(request)

    def near_misses(self) -> list[str]:
        """How the files of this model differ from what is asked for, a line each."""
        lines = []
        for other in self._files():
            try:
                found = read_head(other)["identity"]
            except ValueError:
                continue
            details = list(differences(found, json.loads(json.dumps(self.identity))))
            lines.append(f"{other}: {'; '.join(details) or 'other matrices, statistics, groups or sums of prompts'}")
        return lines

    def _check(self, path: Path, request: Request) -> None:
        """That a file fits the request, without reading its tensors."""
        head = read_head(path, self.identity, self.names, request.statistics)
        rows, number = head["prompts_per_row"], head["num_prompts"]
        if request.factorised and rows not in (1, request.prompts_per_row):
            raise ValueError(
                f"{path} holds means of {rows} prompts, expected {request.prompts_per_row} (dowser.method.group_size) "
                "or single prompts (dowser.probe.keep all); name another file, or delete it to probe again"
            )
        if not request.factorised and number != request.num_prompts:
            raise ValueError(
                f"{path} holds sums over {number} prompts, which serve no other number: expected "
                f"{request.num_prompts}; set --dowser.probe.num_prompts {number}, or probe again"
            )

    @property
    def _model(self) -> str:
        return str(self.identity["weights"])[:12]

    def _files(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob(f"{self._model}-*.safetensors")))


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
