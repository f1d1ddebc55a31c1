"""Hooks on matrices for as long as something watches them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Watching"]

Self = TypeVar("Self", bound="Watching")


class Watching(ABC):
    """Context manager that hooks onto matrices when entered, and lets go of them when left, also after an error.

    Args:
        layers: run-time name -> linear module.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self._handles: list[RemovableHandle] = []

    def __enter__(self: Self) -> Self:
        for name, module in self.layers.items():
            self._handles.append(self._hook(name, module))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forget()

    @abstractmethod
    def _hook(self, name: str, module: nn.Module) -> RemovableHandle:
        """Put the hook onto one matrix."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop what was held of the batch."""
