"""Tuned models as a person names them: a run, a model folder, a patch or an adapter, beside the loaded base."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dowser_pl.commands.model_folder import model_folder
from dowser_pl.errors import DowserError
from dowser_pl.models.layers import text_model
from dowser_pl.models.lora import adapter_beside
from dowser_pl.module import MultimodalModule
from dowser_pl.patches.loaded import apply_to_model
from dowser_pl.patches.patch import Patch

__all__ = ["found", "loaded", "tuned"]


def found(name: str) -> Path:
    """What is to be compared with the base: a patch, or the folder of a model or of an adapter.

    Raises:
        DowserError: if a run has none of them.
        FileNotFoundError: if there is no such thing.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if (path / "report.json").is_file():  # a run
        for part in ("model", "patch.safetensors", "adapter"):
            if (path / part).exists():
                return path / part
        raise DowserError(f"{path} is a run without model, patch.safetensors and adapter: there is nothing to compare")
    return path if path.is_dir() else model_folder(name)


@contextmanager
def tuned(base: MultimodalModule, what: Path, dtype: Any) -> Iterator[Any]:
    """One tuned model; the base is as it was afterwards.

    Args:
        base: loaded.
        what: of `found`.
        dtype: to load a model folder in.

    Raises:
        DowserError: if it is not one of the base.
    """
    if what.is_file():
        with Patch.open(what) as patch:
            undo = apply_to_model(base.network, patch)
            try:
                yield base.network
            finally:
                undo.remove()
        return
    if (what / "adapter_config.json").is_file():
        with adapter_beside(base.network, what):
            yield base.network
        return
    other = loaded(str(what), dtype).network
    if type(other) is not type(base.network) or len(_head(other)) != len(_head(base.network)):
        raise DowserError(
            f"{what} is {type(other).__name__} with {len(_head(other))} tokens, expected a tuned model of the base, "
            f"{type(base.network).__name__} with {len(_head(base.network))}"
        )
    yield other


def loaded(path: str, dtype: Any) -> MultimodalModule:
    """A model on the GPU, where there is one, to be read from."""
    module = MultimodalModule(path, dtype=dtype)
    module.configure_model()
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    module.eval()
    return module


def _head(network: Any) -> torch.Tensor:
    weight: torch.Tensor = text_model(network).get_output_embeddings().weight
    return weight
