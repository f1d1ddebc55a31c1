"""Low-rank adapters (peft) beside the matrices to tune: put in, merged in place, written to files.

Edward Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen: "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685: `z = W h + alpha / r * B A h` with A (r, I), B
(O, r), B = 0 at first. On 4-bit weights it is QLoRA (Dettmers et al. 2023, arXiv 2305.14314).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dowser_pl.distributed.collectives import all_reduce_counts
from dowser_pl.distributed.tensors import full_tensor, is_sharded, shard_like, to_local
from dowser_pl.errors import DowserError
from dowser_pl.functional.random_streams import stream
from dowser_pl.models.quantized import is_quantized, keep_as_loaded

__all__ = ["Adapters", "LoraSettings", "adapter_beside", "weight_beside"]

_ADAPTER = "default"  # peft's name for the only one


@dataclass(frozen=True)
class LoraSettings:
    """Adapters beside every matrix of `model.targets` in `model.last_n_layers`.

    Args:
        r: rank of the adapters.
        alpha: they are scaled by alpha / r.
        dropout: of their inputs, in [0, 1).
        seed: of A; the same seed and matrix name give the same values.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.r < 1 or not 0.0 <= self.dropout < 1.0 or not self.alpha > 0:
            raise DowserError(
                f"model.lora needs a rank of at least 1, an alpha above 0 and a dropout in [0, 1); got r {self.r}, "
                f"alpha {self.alpha}, dropout {self.dropout}"
            )


class Adapters:
    """The adapters of one model, put beside its matrices in place; nothing else takes a gradient then.

    Args:
        model: the base, plain or quantized.
        layers: run-time name -> matrix.
        settings: of all adapters.

    Attributes:
        parts: run-time name -> A (r, I) and B (O, r) of every adapter, float32.
        mergeable: whether the matrices can take the adapters in; quantized ones would lose most of them.
        scale: alpha / r.
    """

    def __init__(self, model: PreTrainedModel, layers: Mapping[str, nn.Linear], settings: LoraSettings) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - slow, and few runs need it

        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft computes with any number
            lora_dropout=settings.dropout,
            target_modules=list(layers),
            bias="none",
        )
        self.mergeable = not any(is_quantized(layer) for layer in layers.values())
        if not self.mergeable:
            keep_as_loaded(model)
        self.scale = settings.alpha / settings.r
        self.parts: dict[str, nn.Linear] = {}
        self._model = inject_adapter_in_model(config, model)
        self._names = list(layers)
        model._adapters = self  # type: ignore[assignment]  # see `adapters_of`
        for name in layers:
            adapted: Any = model.get_submodule(name)
            first, second = adapted.lora_A[_ADAPTER], adapted.lora_B[_ADAPTER]
            bound = first.in_features**-0.5  # peft's default, drawn again so that a resumed run begins from the same
            # where Lightning loads a model, another dtype and device are the default
            drawn = torch.empty(first.weight.shape, dtype=torch.float32, device="cpu")
            first.weight.data.copy_(drawn.uniform_(-bound, bound, generator=stream(settings.seed, name)))
            self.parts |= {f"{name}.lora_A.{_ADAPTER}": first, f"{name}.lora_B.{_ADAPTER}": second}

    @property
    def matrices(self) -> dict[str, nn.Linear]:
        """Run-time name that a matrix of the base has without adapters -> the matrix."""
        adapted: dict[str, Any] = {name: self._model.get_submodule(name) for name in self._names}
        return {name: each.base_layer for name, each in adapted.items()}

    @property
    def sources(self) -> dict[str, nn.Linear]:
        """Run-time name of every A -> the matrix of the base that takes in what it does."""
        return self._beside("lora_A")

    @property
    def sinks(self) -> dict[str, nn.Linear]:
        """Run-time name of every B -> the matrix of the base whose output it adds to; in the order of `sources`."""
        return self._beside("lora_B")

    def _beside(self, part: str) -> dict[str, nn.Linear]:
        return {f"{name}.{part}.{_ADAPTER}": each for name, each in self.matrices.items()}

    def merge(self) -> None:
        """`W + alpha / r * B A` in place of each W; the adapters stay where they are, without effect.

        Raises:
            DowserError: if a merged weight is not finite, or the matrices are quantized.
        """
        if not self.mergeable:
            raise DowserError("the matrices are quantized, expected plain ones; merge into the base in full precision")
        for name in self._names:
            adapted: Any = self._model.get_submodule(name)
            if is_sharded(adapted.base_layer.weight):
                _merge_sharded(adapted, name)
            else:
                adapted.merge(safe_merge=True)

    def plain_state(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The state dict that the model would have if it had never had adapters; views, no copies.

        Args:
            state: that of the model, where it is sharded over processes and had to be gathered.
        """
        state = dict(self._model.state_dict() if state is None else state)
        for name in self._names:
            for key in [key for key in state if key.startswith(f"{name}.")]:
                tensor = state.pop(key)
                if key.startswith(f"{name}.base_layer."):
                    state[name + key.removeprefix(f"{name}.base_layer")] = tensor
        return state

    def save(self, folder: Path, base: str, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapters as peft does, for `peft.PeftModel.from_pretrained(base_model, folder)`.

        Args:
            folder: is made.
            base: path or hub id of the base model, for the adapter's configuration.
            state: as for `plain_state`.
        """
        from peft import get_peft_model_state_dict  # noqa: PLC0415

        peft_config: Any = self._model.peft_config
        config = copy(peft_config[_ADAPTER])
        given = None if state is None else dict(state)
        adapters = get_peft_model_state_dict(self._model, given, save_embedding_layers=False)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"base_model.model.{key}": value.detach().cpu().contiguous() for key, value in adapters.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.base_model_name_or_path, config.inference_mode = base, True
        config.save_pretrained(folder)


def adapters_of(model: PreTrainedModel) -> Adapters | None:
    """The adapters that were put beside matrices of the model; None = none."""
    found: Adapters | None = getattr(model, "_adapters", None)
    return found


@torch.no_grad()
def _merge_sharded(adapted: Any, name: str) -> None:
    """As peft merges, where processes hold parts of a matrix and of its adapters; all must call it."""
    first, second = (full_tensor(part[_ADAPTER].weight) for part in (adapted.lora_A, adapted.lora_B))
    weight, moved = adapted.base_layer.weight, second @ first * adapted.scaling[_ADAPTER]
    here = to_local(weight)
    merged = here + shard_like(moved, weight).to(here)  # weights may be kept in host memory and gathered on the GPU
    if any(all_reduce_counts([not bool(merged.isfinite().all())])):
        raise DowserError(
            f"merging the adapters into {name} gives numbers that are not finite; train with a lower rate"
        )
    here.copy_(merged)
    adapted.merged_adapters.append(_ADAPTER)


@contextmanager
def adapter_beside(network: PreTrainedModel, folder: Path) -> Iterator[None]:
    """Put the adapter of a folder beside the matrices of a model, and take it away again.

    Args:
        network: the base of the adapter.
        folder: as peft writes it.
    """
    from peft import PeftModel  # noqa: PLC0415 - slow, and few runs need it

    adapted = PeftModel.from_pretrained(network, folder)
    try:
        yield
    finally:
        adapted.unload()


@torch.no_grad()
def weight_beside(module: Any) -> Tensor:
    """(O, I) what a matrix multiplies with, an adapter that was put beside it included."""
    adapted = getattr(module, "get_delta_weight", None)
    if adapted is None:
        weight: Tensor = module.weight
        return weight
    total = module.base_layer.weight
    for name in module.active_adapters:
        total = total + adapted(name)
    return total
