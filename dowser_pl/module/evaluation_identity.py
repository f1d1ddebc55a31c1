"""What the scores of an evaluation depend on beside the weights: all that the model reads, and how it answers.

Questions count as the model gets them: as the tensors that the processor made of them. So whatever changes one of
these, in a row, an image, the chat template, the tokenizer or the size of a batch, is seen without being listed here.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from dowser_pl.data.base import EvaluatedData
from dowser_pl.data.loaders import EvaluationLoader
from dowser_pl.distributed import collectives
from dowser_pl.files.digests import combined, digest
from dowser_pl.metrics import build_metric
from dowser_pl.models.generation import generation_tokens
from dowser_pl.models.text_only import tokenizer_of
from dowser_pl.reporting.provenance import installed_version

__all__ = ["limited", "protocol"]

_READ = ("inputs", "candidates", "references", "ids", "told")
_PACKAGE = Path(__file__).parents[1]
_OURS = ("dowser_pl", "lightning", "pytorch_lightning")
_HOOKS = [name for name in vars(Callback) if name.startswith(("on_validation", "on_sanity", "on_fit_start", "setup"))]


def protocol(module: Any) -> dict[str, Any] | None:
    """All of it, JSON-able; every process must call it, and each tells what it will ask.

    Args:
        module: its model loaded and its trainer attached.

    Returns:
        None where something is not known well enough to say that it is the same as at another time: data modules,
        modules, metrics and callbacks of others, code that comes with a model.
    """
    shares = collectives.all_gather_numbered(lambda: {collectives.rank(): _of_this_process(module)})
    return None if None in shares else {"processes": shares}


def limited(loader: Any, limit: float | None) -> Iterator[Any]:
    """The first batches: a number of them, or a share of all."""
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return iter(loader)
    return islice(loader, int(len(loader) * limit) if isinstance(limit, float) else limit)


def _of_this_process(module: Any) -> dict[str, Any] | None:
    trainer, data = module.trainer, module.trainer.datamodule
    backend = getattr(tokenizer_of(module.processor), "backend_tokenizer", None)
    if backend is None or not isinstance(data, EvaluatedData) or _changes_batches(data) or not _known(module, trainer):
        return None
    loaders, tasks = data.val_dataloader(), module.tasks()
    if not all(type(loader) is EvaluationLoader for loader in loaders):
        return None
    with isolate_rng():
        asked = [_digest_of(limited(loader, trainer.limit_val_batches)) for loader in loaders]
    if None in asked:
        return None
    return {
        "tasks": [[task.name, repr(task.metric), task.max_new_tokens] for task in tasks],
        "questions": asked,
        "answers": _answers(module, backend),
        "numerics": _numerics(module, trainer),
        "versions": _versions(),
    }


def _known(module: Any, trainer: Trainer) -> bool:
    """Whether all that takes part is of this package or of Lightning."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    others = [each for each in callbacks if isinstance(each, LambdaCallback) or not _is_ours(type(each))]
    watching = any(_hook(each, name) is not getattr(Callback, name) for each in others for name in _HOOKS)
    metrics = all(_is_ours(type(build_metric(task.metric))) for task in module.tasks())
    runs_it = (module, trainer.strategy, trainer.precision_plugin)
    return metrics and not watching and all(_is_ours(type(each)) for each in runs_it) and not module.trust_remote_code


def _hook(callback: Callback, name: str) -> Any:
    return vars(callback).get(name, getattr(type(callback), name))


def _changes_batches(data: EvaluatedData) -> bool:
    """Whether batches may reach the model otherwise than the loaders give them."""
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    return any(getattr(type(data), name) is not getattr(LightningDataModule, name) for name in hooks)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _OURS


def _digest_of(batches: Iterator[Any]) -> str | None:
    """Of what the model reads, what is right and what is told, batch by batch; None for what is no plain data."""
    whole = hashlib.sha256()
    for batch in batches:
        try:
            line = json.dumps([_plain(batch.get(key)) for key in _READ], sort_keys=True)
        except TypeError:
            return None
        whole.update(f"{line}\n".encode())
    return whole.hexdigest()


def _plain(value: Any) -> Any:
    """With digests in place of tensors."""
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _answers(module: Any, backend: Any) -> dict[str, Any]:
    """How answers are written, where they end, and how their tokens become words."""
    tokenizer = tokenizer_of(module.processor)
    words = json.loads(backend.to_str())
    for state in ("padding", "truncation"):  # of the last call
        words.pop(state, None)
    parts = [part for part in module.network.modules() if getattr(part, "generation_config", None) is not None]
    return {
        "model's own settings": module.own_settings,
        "generation": [json.loads(part.generation_config.to_json_string(use_diff=False)) for part in parts],
        "ending": asdict(module.ending()),
        "tokens": generation_tokens(module.network, module.ending()),
        "tokenizer": [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.clean_up_tokenization_spaces],
        "words": hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest(),
    }


def _numerics(module: Any, trainer: Trainer) -> dict[str, Any]:
    """What decides in which order and how exactly numbers are added up."""
    on_gpu = module.device.type == "cuda"
    return {
        "network": f"{type(module.network).__module__}.{type(module.network).__qualname__}",
        "precision": str(trainer.precision),
        "quantization": module.quantization,
        "strategy": [type(trainer.strategy).__name__, str(getattr(trainer.strategy, "param_dtype", None))],
        "device": torch.cuda.get_device_name(module.device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": None if on_gpu else torch.get_num_threads(),
        "float32": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@cache
def _versions() -> dict[str, str]:
    """Of libraries, and the content of this package's own files, which change between versions too."""
    own = {str(path.relative_to(_PACKAGE)): _file_digest(path) for path in sorted(_PACKAGE.rglob("*.py"))}
    names = (
        "torch",
        "transformers",
        "tokenizers",
        "lightning",
        "torchmetrics",
        "pycocoevalcap",
        "bitsandbytes",
        "peft",
    )
    return {name: installed_version(name) for name in names} | {
        "torch build": torch.__version__,
        "dowser_pl": combined(own),
    }


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
