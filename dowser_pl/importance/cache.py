"""The files of importance passes and the folder where they are kept: which file serves a request, and why none does.

A file says which weights and which settings it belongs to. Any update ratio, any scope and every estimator that reduces
the same statistics is read from it without probing again, and so are fewer prompts. A file that does not belong is
refused, never reused; one of which a bit has changed, or that cannot be checked for that, is renamed and measured anew.
Activations that several matrices share are stored once.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from dowser_pl import __version__
from dowser_pl.distributed.tensors import digests
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path
from dowser_pl.files.digests import combined
from dowser_pl.files.sealed import Kind, Sealed, UnusableError, seal
from dowser_pl.importance.factors import Factors, Statistics
from dowser_pl.importance.recorder import FACTORS

__all__ = ["Cache", "Request", "differences", "digest", "fingerprint", "load_factors", "read_head", "save_factors"]


_KIND = Kind(
    "dowser_pl_importance",
    "importance cache",
    "importance",
    3,
    cure="delete it to probe again",
    other="delete it or name another one",
)
_KEYS = {"identity", "shared", "num_prompts", "prompts_per_row", "versions", "notes"}


def save_factors(
    factors: Factors,
    path: Path,
    identity: Mapping[str, object],
    notes: Mapping[str, object] | None = None,
) -> None:
    """Write the factors of an importance pass atomically.

    Args:
        factors: what was measured.
        path: the file; its folder is made.
        identity: what the factors depend on (weights fingerprint, settings ...), JSON-able.
        notes: what is worth knowing besides (agreement of halves ...), JSON-able.
    """
    owners: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, statistics in factors.layers.items():
        for statistic, value in statistics.items():
            key = f"{name}.{statistic}"
            owner = owners.setdefault(id(value), key)
            if owner == key:
                tensors[key] = value.contiguous()
            else:
                shared[key] = owner
    head = {
        "identity": identity,
        "shared": shared,
        "num_prompts": factors.num_prompts,
        "prompts_per_row": factors.prompts_per_row,
        "versions": _versions(),
        "notes": notes or {},
    }
    with atomic_path(path, needed_bytes=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        save_file(tensors, temporary, seal(_KIND, head, tensors))


def load_factors(
    path: Path, identity: Mapping[str, object], names: Iterable[str], statistics: Iterable[str] | None = None
) -> Factors:
    """Read factors that belong to exactly these weights and settings.

    Args:
        path: a file written by `save_factors`.
        identity: what the present run would measure.
        names: the matrices that are needed; the file may hold more.
        statistics: what is needed of them; the file may hold more. None = all that it holds of the first.

    Raises:
        UnusableError: if the file is damaged; the message names the tensor.
        DowserError: if it belongs to something else or lacks what is needed; the message says which.
    """
    names, read = list(names), dict[str, Tensor]()
    layers: Statistics = {}
    with _opened(path) as file:
        if statistics is None:
            keys = (key.rpartition(".") for key in (*file.names(), *file.head.get("shared", ())))
            statistics = {statistic for name, _, statistic in keys if name == names[0]} or FACTORS
        statistics = sorted(statistics)
        head = _checked_head(file, identity, names, statistics)
        file.tell()
        for name in names:
            layers[name] = {}
            for statistic in statistics:
                owner = head["shared"].get(f"{name}.{statistic}", f"{name}.{statistic}")
                if owner not in read:
                    read[owner] = file.verify(owner, file.read(owner))
                layers[name][statistic] = read[owner]
        for other in sorted(file.names() - read.keys()) if file.has_digests else ():
            file.verify(other, file.read(other))  # a file with one changed bit may have more
        try:
            return Factors(layers, head["num_prompts"], head["prompts_per_row"]).checked()
        except ValueError as error:
            raise file.damaged(str(error)) from error


def read_head(
    path: Path,
    identity: Mapping[str, object] | None = None,
    names: Iterable[str] = (),
    statistics: Iterable[str] = (),
) -> dict[str, Any]:
    """What a file says of itself, without its tensors.

    Args:
        path: a file written by `save_factors`.
        identity: what it must belong to; None = anything.
        names: the matrices it must hold.
        statistics: what it must hold of them.

    Returns:
        `identity`, `num_prompts`, `prompts_per_row`, `shared`, `versions`, `notes`, `has_digests`.

    Raises:
        UnusableError: if it is damaged or no importance cache.
        DowserError: if it is not what it must be; the message says what differs.
    """
    with _opened(path) as file:
        return _checked_head(file, identity, names, statistics) | {"has_digests": file.has_digests}


def _checked_head(
    file: Sealed, identity: Mapping[str, object] | None, names: Iterable[str], statistics: Iterable[str]
) -> dict[str, Any]:
    path, head = file.path, file.head
    if not set(head) >= _KEYS:
        raise file.damaged(f"its head lacks {sorted(_KEYS - set(head))[0]!r}")
    present = {*file.names(), *head["shared"]}
    if identity is not None:
        differing = list(differences(head["identity"], json.loads(json.dumps(identity))))
        if differing:
            raise DowserError(
                f"{path} holds the importance of another model or of other settings ({'; '.join(differing)}); delete "
                "it or name another one"
            )
    statistics = sorted(statistics)
    wanted = [f"{name}.{statistic}" for name in names for statistic in statistics]
    missing = [key for key in wanted if key not in present]
    if missing:
        raise DowserError(
            f"{path} lacks {len(missing)} of the {len(wanted)} factors that are needed, first {missing[0]!r}; name "
            "another file, or delete it to probe again"
        )
    return head


def differences(found: Any, wanted: Any, name: str = "") -> Iterable[str]:
    """How two identities differ: `probe.seed: got 0, expected 1` and so on, setting by setting."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name}: got {found!r}, expected {wanted!r}"


@contextmanager
def _opened(path: Path) -> Iterator[Sealed]:
    if not path.is_file():
        raise DowserError(f"there is no importance file {path}; the verb `probe` writes one and says where")
    file = Sealed(path, _KIND)
    try:
        yield file
    finally:
        file.close()


def _versions() -> dict[str, str]:
    return {"dowser_pl": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


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
        identity: what one prompt's factors depend on; `identity["weights"]` names the model.
        names: the matrices.
    """

    folder: Path
    identity: Mapping[str, Any]
    names: Sequence[str]

    def path(self, request: Request) -> Path:
        """The file to which what was measured for a request is written."""
        wanted = [sorted(request.statistics), request.prompts_per_row, request.num_prompts]
        return self.folder / f"{self._model}-{digest([self.identity, list(self.names), wanted])}.safetensors"

    def find(self, request: Request) -> tuple[Path, Factors] | None:
        """The file with the most prompts among those that hold what is requested or more.

        Files of this model that are damaged or carry no digests are set aside, with a line each.

        Raises:
            DowserError: if the request's own file was put there from elsewhere.
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
            DowserError: if the file is damaged, or does not hold what is asked for; the message says what differs.
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
            raise DowserError(
                f"{path} holds means of {rows} prompts, expected {request.prompts_per_row} (dowser.method.group_size) "
                "or single prompts (dowser.probe.keep all); name another file, or delete it to probe again"
            )
        if not request.factorised and number != request.num_prompts:
            raise DowserError(
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


def fingerprint(model: nn.Module) -> str:
    """Content hash of every parameter and persistent buffer: names, shapes, dtypes and bytes.

    Where weights are sharded over processes, all must call it.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    return combined(digests(model.state_dict()))
