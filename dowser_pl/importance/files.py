"""The file of an importance pass: one safetensors file that says which weights and which settings it belongs to.

Any update ratio, any scope and every estimator that reduces the same statistics is read from it without probing
again, and so are fewer prompts. A file that does not belong is refused, never reused. Activations that several
matrices share are stored once.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from dowser_pl import __version__
from dowser_pl.files.atomic import atomic_path
from dowser_pl.files.sealed import Kind, Sealed, seal
from dowser_pl.importance.factors import Factors, Statistics

__all__ = ["differences", "load_factors", "read_head", "save_factors"]

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
    """Write the factors atomically.

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
    path: Path, identity: Mapping[str, object], names: Iterable[str], statistics: Iterable[str]
) -> Factors:
    """Read factors that belong to exactly these weights and settings.

    Args:
        path: a file written by :func:`save_factors`.
        identity: what the present run would measure.
        names: the matrices that are needed; the file may hold more.
        statistics: what is needed of them; the file may hold more.

    Raises:
        UnusableError: if the file is damaged; the message names the tensor.
        ValueError: if it belongs to something else or lacks what is needed; the message says which.
    """
    names, statistics = list(names), sorted(statistics)
    read: dict[str, Tensor] = {}
    layers: Statistics = {}
    with _opened(path) as file:
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
        path: a file written by :func:`save_factors`.
        identity: what it must belong to; None = anything.
        names: the matrices it must hold.
        statistics: what it must hold of them.

    Returns:
        ``identity``, ``num_prompts``, ``prompts_per_row``, ``shared``, ``versions``, ``notes``, ``has_digests``.

    Raises:
        UnusableError: if it is damaged or no importance cache.
        ValueError: if it is not what it must be; the message says what differs.
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
            raise ValueError(
                f"{path} holds the importance of another model or of other settings ({'; '.join(differing)}); delete "
                "it or name another one"
            )
    statistics = sorted(statistics)
    wanted = [f"{name}.{statistic}" for name in names for statistic in statistics]
    missing = [key for key in wanted if key not in present]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(wanted)} factors that are needed, first {missing[0]!r}; name "
            "another file, or delete it to probe again"
        )
    return head


def differences(found: Any, wanted: Any, name: str = "") -> Iterable[str]:
    """How two identities differ: ``probe.seed: got 0, expected 1`` and so on, setting by setting."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}):
            yield from differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name}: got {found!r}, expected {wanted!r}"


@contextmanager
def _opened(path: Path) -> Iterator[Sealed]:
    if not path.is_file():
        raise ValueError(f"there is no importance file {path}; the verb `probe` writes one and says where")
    file = Sealed(path, _KIND)
    try:
        yield file
    finally:
        file.close()


def _versions() -> dict[str, str]:
    return {"dowser_pl": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
