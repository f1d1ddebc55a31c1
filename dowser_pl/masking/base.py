"""What stands between an optimizer and a pretrained model: which entries may move, and the proof that no other did.

Two forms, equal in what they train: `compact.py` makes the trainable entries a parameter of their own (compact);
`dense.py` lets the optimizer see whole matrices and puts frozen entries back (dense). A third, `soft.py`, freezes
nothing and holds every entry back by a rule of its own.

Legend: O outputs, I inputs of a matrix, k trainable entries of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dowser_pl.distributed.tensors import shape_of, to_local
from dowser_pl.errors import DowserError
from dowser_pl.files.digests import digest
from dowser_pl.functional.masks import PackedMasks

__all__ = ["Changes", "Protection", "State", "bits_of"]

State = Mapping[str, Mapping[str, Tensor]]
"""Name of a matrix -> `mask` (packed bits), `base` and `values` (k,), all on the CPU."""


@dataclass(frozen=True)
class Changes:
    """How many entries there are of a kind, and how many differ from the base."""

    entries: int
    changed: int


class Protection(ABC):
    """Masks of the tuned matrices and their enforcement.

    Args:
        weights: run-time name -> (O, I) parameter, holding the base or, when resuming, the tuned values. Where it is
            sharded over processes, O and everything below are of the rows that this process holds; where it is sharded
            by flat positions, (O, I) is (entries,).
        masks: name -> (O, I) bool, True = trainable; one for every weight.

    Attributes:
        is_sharded: whether processes hold different entries, and must call what looks at all of them together.
        weights: as given.
        packed: the masks as bits, in host memory.

    Raises:
        DowserError: if a weight has no mask, the shapes differ, or two names share one tensor; it would train
            unprotected.
    """

    is_sharded: ClassVar[bool] = False

    def __init__(self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        owners: dict[int, str] = {}
        for name, weight in weights.items():
            shape = masks[name].shape if name in masks else None
            here = to_local(weight)
            if shape != here.shape:
                found = "none" if shape is None else tuple(shape)
                raise DowserError(f"{name} needs a mask of shape {tuple(here.shape)}, got {found}")
            owner = owners.setdefault(here.data_ptr(), name)
            if here.numel() and owner != name:
                raise DowserError(
                    f"{owner} and {name} are one tensor, expected every tuned matrix to own its weight: a mask on one "
                    "use would bind the other. Untie them, or choose other targets or fewer layers"
                )
        self.weights = dict(weights)
        self.packed = masks if isinstance(masks, PackedMasks) else PackedMasks.of(masks.items())

    @property
    @abstractmethod
    def masks(self) -> Mapping[str, Tensor]:
        """Name -> (O, I) bool on the device of the weight, True = trainable."""

    @property
    @abstractmethod
    def num_trainable(self) -> int:
        """Trainable entries of all matrices."""

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains instead of the matrices, in their order."""

    @abstractmethod
    def mask_gradients(self) -> None:
        """Between the last backward pass and clipping: afterwards no frozen entry has a gradient, if any is frozen."""

    @abstractmethod
    def after_step(self, optimizer: Optimizer | None = None) -> None:
        """Put things right after a step.

        Args:
            optimizer: that made it, for those who ask for what it keeps.
        """

    @abstractmethod
    def base_values(self, name: str) -> Tensor:
        """(k,) pretrained values of the trainable entries, dtype of the weight, on the CPU."""

    @abstractmethod
    def values(self, name: str) -> Tensor:
        """(k,) trained values of these entries, as precise as they are kept."""

    def beside(self, name: str) -> dict[str, Tensor]:  # noqa: ARG002 - forms that keep nothing do not look
        """What else is kept of a matrix, a number for each of its entries, by kind; a checkpoint holds it too."""
        return {}

    def shared(self, name: str) -> dict[str, Tensor]:  # noqa: ARG002 - forms that keep nothing do not look
        """What a checkpoint holds of a matrix that is the same on all processes, such as `SHARED` kinds."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Let go of the matrices; gradients reach them again."""

    @contextmanager
    def base_in_place(self) -> Iterator[None]:
        """The matrices hold the base meanwhile and afterwards what they held before, bit for bit; for forward passes.

        What they held is kept beside them where nothing else gives it back: k values in the dtype of the weight.
        """
        held: dict[str, Tensor | None] = {}
        try:
            with torch.no_grad():
                for name in self.weights:
                    held[name] = self._to_hold(name)
                    self._put(name, self._base_at_hand(name))
            yield
        finally:
            with torch.no_grad():
                for name, values in held.items():
                    self._put_back(name, values)

    def _to_hold(self, name: str) -> Tensor | None:
        """(k,) what the trainable entries of a matrix hold, a copy; None = `_put_back` knows."""
        return to_local(self.weights[name])[self.masks[name]]

    def _base_at_hand(self, name: str) -> Tensor:
        """(k,) `base_values`, wherever they are kept."""
        return self.base_values(name)

    def _put(self, name: str, values: Tensor) -> None:
        """Write (k,) values into the trainable entries of a matrix."""
        here = to_local(self.weights[name])
        here[self.masks[name]] = values.to(here)

    def _put_back(self, name: str, held: Tensor | None) -> None:
        """Write what `_to_hold` gave."""
        if held is not None:
            self._put(name, held)

    def copies(self) -> dict[str, Tensor]:
        """Name -> (k,) what is trained, as precise as it is kept, copied to host memory; see `go_back`."""
        return {name: self.values(name).detach().to("cpu", copy=True) for name in self.weights}

    @torch.no_grad()
    def go_back(self, copies: Mapping[str, Tensor]) -> None:
        """Write what `copies` gave earlier in training; optimizer states stay what they are."""
        for name, values in copies.items():
            self._put(name, values)

    @property
    def packed_bytes(self) -> int:
        """Host memory of the masks."""
        return sum(bits.nbytes for bits in self.packed.bits.values())

    def frozen_digests(self) -> dict[str, str]:
        """Name -> content hash of the frozen entries: the matrix with zeros where it is trainable."""
        with ThreadPoolExecutor(4) as pool:  # one matrix and its mask per thread beside the weights
            return dict(zip(self.weights, pool.map(self._frozen_digest, self.weights), strict=True))

    def verify(self) -> tuple[Changes, Changes]:
        """Compare every trainable entry with the base, bit by bit, and count the frozen ones.

        Returns:
            (frozen, trainable); what changed among the frozen is told where a base to compare with is kept.
        """
        entries = sum(shape_of(weight).numel() for weight in self.weights.values())
        changed = 0
        for name, weight in self.weights.items():
            tuned = to_local(weight)[self.masks[name]].cpu()
            changed += int((bits_of(tuned) != bits_of(self.base_values(name))).sum())
        return Changes(entries - self.num_trainable, 0), Changes(self.num_trainable, changed)

    def state_dict(self, base: bool = True) -> dict[str, dict[str, Tensor]]:
        """Packed masks in global coordinates, base values and trained values, on the CPU.

        Frozen entries of a checkpoint's weights *are* the base, so these give the whole base back.

        Args:
            base: with the base values.
        """
        state, sent = {}, dict[int, Tensor]()
        for name, bits in self.packed.bits.items():
            state[name] = {"mask": bits, "values": self.values(name).detach().cpu()}
            state[name] |= {"base": self.base_values(name)} if base else {}
            state[name] |= {kind: kept.cpu() for kind, kept in self.beside(name).items()}
            # matrices that share an input share tensors, which torch.save writes once
            state[name] |= {kind: sent.setdefault(id(kept), kept.cpu()) for kind, kept in self.shared(name).items()}
        return state

    @classmethod
    def from_state(cls, weights: Mapping[str, nn.Parameter], state: State) -> "Protection":
        """Rebuild from `state_dict` and the tuned weights of the same checkpoint, already loaded.

        Raises:
            DowserError: if the checkpoint protects other matrices than the run tunes.
        """
        cls.check_names(weights, state)
        masks = PackedMasks()
        for name, weight in weights.items():
            here = to_local(weight)
            masks.put(name, state[name]["mask"], here.shape, here.device)
        return cls._resumed(weights, masks, state)

    @staticmethod
    def check_names(weights: Mapping[str, nn.Parameter], state: State) -> None:
        """Refuse a state of other matrices.

        Raises:
            DowserError: naming the first that differs.
        """
        if set(weights) != set(state):
            odd = sorted(set(weights) ^ set(state))
            raise DowserError(
                f"the checkpoint has masks of {len(state)} matrices and this run tunes {len(weights)}; the first "
                f"that differs is {odd[0]!r}. Resume with the model.targets and model.last_n_layers it was made with"
            )

    @classmethod
    @abstractmethod
    def _resumed(
        cls, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], state: State
    ) -> "Protection": ...

    def _frozen_digest(self, name: str) -> str:
        return digest(self.weights[name].detach().masked_fill(self.masks[name], 0))


SHARED = ("vectors", "left", "outputs", "shares")
"""Kinds of a matrix' state that no process holds a part of."""


def bits_of(values: Tensor) -> Tensor:
    """The bit patterns as integers, so that -0.0 and 0.0 differ and NaN equals itself."""
    kinds: dict[int, Any] = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.view(kinds[values.element_size()])
