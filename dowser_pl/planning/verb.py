"""The verb `plan`: what a configuration would take, from the config of its model and some rows; no weight is read."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from dowser_pl.distributed.limits import no_model, no_optimizer, no_reading, no_training
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import write_atomically
from dowser_pl.functional.masks import num_trainable
from dowser_pl.methods import AfterFit, BeforeFit, EachStep
from dowser_pl.models.layers import decoder_layers
from dowser_pl.models.loading import skeleton
from dowser_pl.models.lora import Adapters
from dowser_pl.models.parts import named_part
from dowser_pl.models.quantized import is_quantized
from dowser_pl.planning.disk import disk_bytes
from dowser_pl.planning.memory import Kept, Placement
from dowser_pl.planning.model import MemoryPlan, batch_of, decoder_of, keeps_best, kept_by, sizes_of
from dowser_pl.planning.optimizers import ADAMW_8BIT, optimizer_kind
from dowser_pl.planning.run import RunPlan, rate_of, rows_of, text
from dowser_pl.planning.text import CARDS, fits, readable, smallest_card, table
from dowser_pl.planning.written import WrittenRows
from dowser_pl.reporting.provenance import provenance

__all__ = ["placement_of", "plan_run", "show", "write"]


def plan_run(
    trainer: Trainer,
    module: Any,
    datamodule: Any,
    placement: Placement,
    tokens: int | None,
    tokens_per_second: float | None,
    on_cpu: bool,
) -> tuple[dict[str, MemoryPlan], RunPlan]:
    """The memory of each form of training, and what the run takes beside it.

    Args:
        trainer: its precision, its epochs and its callback that holds the method.
        module: a `MultimodalModule` that has not loaded its model; it stays without.
        datamodule: tells the batch size, and how long rows are; None = one row of an assumed length.
        placement: devices and strategy.
        tokens: of every row; None = as they are measured, or assumed, see `batch_of`.
        tokens_per_second: of all devices; None = as measured, where it was.
        on_cpu: whether it will run there.

    Returns:
        `compact`; and where weights are not sharded over devices, `compact + 8-bit` and (unless the method decides
        after every step) `dense`. And the run.

    Raises:
        DowserError: if the model cannot be tuned, or not where it is placed, or a number cannot be.
    """
    if module.quantization != "none" and module.lora is None:
        raise _packed(f"--model.quantization {module.quantization}")
    if tokens is not None and tokens < 1:
        raise DowserError(f"--tokens is the length of a training row, at least 1; got {tokens}")
    if tokens_per_second is not None and not tokens_per_second > 0:
        raise DowserError(f"--tokens_per_second is what all devices train on in a second; got {tokens_per_second}")
    dowser: Any = next((each for each in _callbacks(trainer) if hasattr(each, "method")), None)
    method: Any = getattr(dowser, "method", None)
    if placement.shards and method is not None:
        _refuse_sharded(trainer, module, dowser)
    rows = rows_of(module, datamodule, tokens)
    tuned = _without_weights(trainer, module)
    each_step, ratio = isinstance(method, EachStep), 1.0
    if isinstance(method, BeforeFit) and method.update_ratio is not None:
        ratio = method.update_ratio
    entries = sum(num_trainable(ratio, weight.numel()) for weight in tuned)
    optimizer = module.optimizer([nn.Parameter(torch.zeros(1))])
    states = optimizer_kind(optimizer)
    kept = getattr(dowser, "checkpoint", "compact")
    reads = dowser is not None and dowser.reader.active
    beside = replace(kept_by(method, module.network, module.tuned_layers()), reads=reads)
    written = _written(trainer, module, datamodule, dowser, placement.shards, bool(rows.unknown) or datamodule is None)
    disk = disk_bytes(trainer, module.network, module.tuned_layers(), entries, kept, states, beside, written)
    network, module.model, module.adapters = module.model, None, None
    blocks = list(decoder_layers(network))
    dense = MemoryPlan(
        sizes_of(network, blocks, tuned, entries),
        "dense",
        states,
        placement,
        decoder_of(network, blocks, str(trainer.precision)),
        batch_of(network, datamodule, module.gradient_checkpointing, rows.longest or None, placement.devices),
        written=written,
        best=keeps_best(trainer),
    )
    forms = _forms(dense, each_step, beside)
    weights = sum(each.numel() for each in network.parameters())
    adapted = "lora" if module.quantization == "none" else "qlora"
    kinds = {name: adapted if module.lora is not None else "each step" if each_step else name for name in forms}
    rates = {name: rate_of(kind, weights, placement.devices, tokens_per_second, on_cpu) for name, kind in kinds.items()}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    return forms, RunPlan.of(
        trainer, rows, dense, known, disk, optimizer, getattr(method, "rate_hint", ""), sys.argv[2:]
    )


def _forms(dense: MemoryPlan, each_step: bool, kept: Kept) -> dict[str, MemoryPlan]:
    compact = replace(dense, form="compact", kept=kept)
    if dense.placement.shards:
        return {"compact": compact}
    rows = {"compact": compact, "compact + 8-bit": replace(compact, optimizer=ADAMW_8BIT)}
    return rows if each_step or kept.apart else {"dense": dense, **rows}


def placement_of(strategy: Any, devices: Any, num_nodes: int) -> Placement:
    """The place of a run by what `trainer.strategy`, `trainer.devices` and `trainer.num_nodes` say."""
    name = strategy if isinstance(strategy, str) else str(getattr(strategy, "class_path", type(strategy).__name__))
    if isinstance(devices, str) and "," in devices:
        count = len([each for each in devices.split(",") if each.strip()])
    elif isinstance(devices, (list, tuple)):
        count = len(devices)
    elif devices in ("auto", -1, "-1"):
        count = torch.cuda.device_count()
    else:
        count = int(devices)
    return Placement(name.rpartition(".")[2], max(1, count) * num_nodes)


def show(rows: Mapping[str, MemoryPlan], run: RunPlan) -> None:
    """Print the table of the plan.

    Args:
        rows: name -> plan.
        run: what it takes beside memory.
    """
    first = next(iter(rows.values()))
    weights = ", ".join(
        f"{readable(value)} {dtype}" for dtype, value in first.sizes.weights.items() if "int" not in dtype
    )
    entries = sum(each.entries for each in first.sizes.matrices)
    trainable = sum(each.trainable for each in first.sizes.matrices)
    lines = [
        f"weights {weights}; {trainable:,} of {entries:,} entries in {len(first.sizes.matrices)} matrices trainable"
        f"{_also(first)}; {first.optimizer.name}; {first.placement.devices} device(s), {first.placement.strategy}",
        "",
        *table(rows),
    ]
    if not run.rows.longest and first.batch is not None:
        lines.append(f"{first.batch.tokens:,} tokens a row is an assumption (text, and an image if any); set --tokens")
    lines += ["", *text(run, list(rows))]
    sys.stdout.write("\n".join(lines) + "\n")


def write(path: str | Path, rows: Mapping[str, MemoryPlan], run: RunPlan) -> None:
    """The numbers as JSON, with command, machine and versions."""
    content = provenance("plan", sys.argv[2:])
    content["run"] = asdict(run) | {"folder": str(run.folder), "seconds": {form: run.seconds(form) for form in rows}}
    content["rows"] = {name: _numbers(plan) for name, plan in rows.items()}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _without_weights(trainer: Trainer, module: Any) -> list[nn.Parameter]:
    """Give the module a model on the meta device, as the trainer would have it; returns its tuned matrices."""
    module.model = skeleton(
        module.path,
        dtype=module.dtype_name,
        eager=module.attn_implementation == "eager",
        trust_remote_code=module.trust_remote_code,
        quantization=module.quantization,
    )
    module.model.requires_grad_(False)
    if module.lora is not None:
        module.adapters = Adapters(module.model, module.tuned_layers(), module.lora)
    trainer.precision_plugin.convert_module(module)
    if any(map(is_quantized, module.tuned_layers().values())):
        raise _packed(f"the packed weights of {module.path}")
    tuned = [layer.weight for layer in module.tuned_layers().values()]
    parts = [named_part(module.model, part).values() for part in module.also_train]
    for weight in (*tuned, *(weight for part in parts for weight in part)):
        weight.requires_grad_(True)
    return tuned


class _Assumed:
    """Data that are not here, as if they had pictures."""

    def __init__(self, datamodule: Any) -> None:
        self.chat_template = getattr(datamodule, "chat_template", None)

    def training_pictures(self, number: int, seed: int) -> list[Image.Image]:  # noqa: ARG002 - one stands for all
        return [Image.new("RGB", (448, 448))]


def _written(
    trainer: Any, module: Any, datamodule: Any, dowser: Any, sharded: bool, absent: bool
) -> tuple[WrittenRows, ...]:
    """What replay and the meter will keep, of the callback that has them."""
    expected = getattr(dowser, "expected_rows", None)
    if expected is None:
        return ()
    data = _Assumed(datamodule) if absent else datamodule
    trainer.datamodule, module.chat_template = data, getattr(data, "chat_template", None)
    try:
        return tuple(expected(trainer, module, sharded))
    except (ValueError, OSError) as error:
        return (WrittenRows("replay and drift", unknown=" ".join(str(error).split())),)
    finally:
        trainer.datamodule = None


def _refuse_sharded(trainer: Trainer, module: Any, dowser: Any) -> None:
    """What `fit` refuses there, in its words."""
    if refused := no_model(module.quantization):
        raise DowserError(refused)
    curve = any(getattr(each, "ratios", None) is not None and each.active for each in _callbacks(trainer))
    refused = no_training(dowser.method, isinstance(dowser.method, AfterFit), curve, dowser.checkpoint)
    refused = refused or no_reading(dowser.reader.asked)
    refused = refused or no_optimizer(module.optimizer([nn.Parameter(torch.zeros(1))]))
    if refused is not None:
        raise DowserError(refused)


def _packed(got: str) -> DowserError:
    return DowserError(
        f"quantized weights cannot be tuned, got {got}; plan for adapters beside them (-c method/qlora_null_space), or "
        "with --model.quantization none"
    )


def _callbacks(trainer: Any) -> list[Any]:
    return list(trainer.callbacks)


def _also(plan: MemoryPlan) -> str:
    whole = sum(each.entries for each in plan.sizes.whole)
    return f", {whole:,} more without a mask" if whole else ""


def _numbers(plan: MemoryPlan) -> dict[str, Any]:
    held = plan.held
    return {
        "form": plan.form,
        "bytes": {**held.kinds, "total": held.total},
        "host_bytes": held.host,
        "smallest_card": smallest_card(held.total),
        "fits": {str(card): fits(held.total, card) for card in CARDS},
        "forecast": plan.placement.sharded,
        "optimizer": asdict(plan.optimizer),
        "placement": asdict(plan.placement),
        "decoder": asdict(plan.decoder) if plan.decoder else None,
        "batch": asdict(plan.batch) if plan.batch else None,
        "written": [asdict(each) | {"host": each.host, "checkpoint": each.checkpoint} for each in plan.written],
        "tuned_entries": sum(each.entries for each in plan.sizes.matrices),
        "trainable_entries": sum(each.trainable for each in plan.sizes.matrices),
        "whole_entries": sum(each.entries for each in plan.sizes.whole),
    }
