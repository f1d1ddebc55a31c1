"""The folder where importance is kept: which file serves a request, and why none does.

A file of which a bit has changed, or that cannot be checked for that, is renamed and measured anew.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.files.sealed import UnusableError
from dowser_pl.importance.factors import Factors
from dowser_pl.importance.files import differences, load_factors, read_head, save_factors
from dowser_pl.importance.recorder import FACTORS

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

        Files of this model that are damaged or carry no digests are set aside, with a line each.

        Raises:
            ValueError: if the request's own file was put there from elsewhere.
        """
        for path in self._suitable(request):
            try:
                return path, self.load(path, request)
            except UnusableError as error:
                _set_aside(path, str(error))
        return None

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

    def _suitable(self, request: Request) -> list[Path]:
        """The files whose heads say that they serve, best first."""
        own, found = self.path(request), list[tuple[int, bool, Path]]()
        for path in self._files():
            try:
                head = self._check(path, request)
            except UnusableError as error:
                _set_aside(path, str(error))
            except ValueError:
                if path == own:
                    raise
                # it lacks something: no use here, and no harm
            else:
                if head["has_digests"]:
                    found.append((head["num_prompts"], path == own, path))
                else:
                    _set_aside(path, f"{path} is of an earlier version and carries no digests")
        return [path for *_, path in sorted(found, reverse=True)]

    def _check(self, path: Path, request: Request) -> dict[str, Any]:
        """The head of a file that fits the request, without reading its tensors."""
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
        return head

    @property
    def _model(self) -> str:
        return str(self.identity["weights"])[:12]

    def _files(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob(f"{self._model}-*.safetensors")))


def _set_aside(path: Path, why: str) -> None:
    """Rename a file, so that it is neither used nor in the way of a new one; several processes may."""
    aside = path.with_name(f"{path.name}.corrupt")
    with suppress(FileNotFoundError):
        path.replace(aside)
    logging.getLogger("dowser_pl").warning("%s: it is now %s, and not used", why.rpartition(";")[0] or why, aside.name)


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
