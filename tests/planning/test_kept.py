"""What a null space holds beside training, against what a run of one says that it holds."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dowser_pl.masking import CompactEntries, DenseEntries
from dowser_pl.methods import OSF, Anchor, Lora, LoraStart, MoFO, NullSpace, NullSpaceSettings, SoftDowser
from dowser_pl.models.layers import find_layers
from dowser_pl.models.lora import Adapters, LoraSettings
from dowser_pl.planning import kept_by
from dowser_pl.planning.memory import Kept, OptimizerKind, Placement, Sizes, bytes_held, share_out
from dowser_pl.planning.optimizers import optimizer_kind
from tests.tiny_models import save_tiny_llava, tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer

HIDDEN, MLP = 32, 48


def layers_of(model):
    return find_layers(model, 2, ["attn", "mlp"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_null_space_is_planned_as_a_run_holds_it(precision, adapters, tmp_path):
    """Its base, its values and its directions: two layers of four inputs, of which two are shared."""
    settings = NullSpaceSettings(rank=6, tokens=100)
    method = Lora(settings) if adapters else NullSpace(rank=6, tokens=100)
    trainer = build_trainer(tmp_path, method, max_epochs=1, limit_val_batches=1, precision=precision)
    module = build_module(
        save_tiny_llava(tmp_path / "model"), last_n_layers=2, lora=LoraSettings(r=2) if adapters else None
    )
    trainer.fit(module, datamodule=TinyData())
    entries, layers = trainer.callbacks[0].entries, module.tuned_layers()
    held, dtype = entries.num_bytes(), module.network.dtype
    weights = [layer.weight for layer in layers.values()]
    total = sum(weight.numel() for weight in weights)
    matrices = share_out([(weight.numel(), weight.element_size()) for weight in weights], total)
    weighed = Sizes({str(dtype): sum(weight.nbytes for weight in weights)}, matrices)
    kind, kept = optimizer_kind(trainer.optimizers[0]), kept_by(method, module.network, layers)
    plan = bytes_held(weighed, "compact", kind, kept=kept)
    by_hand = 2 * 6 * (3 * (HIDDEN * dtype.itemsize + 4) + MLP * dtype.itemsize + 4)
    assert plan.kept == held["directions"] == by_hand
    apart = 2 * 2 * (6 * HIDDEN + MLP) if adapters and precision == "32-true" else total  # B is its own values
    assert plan.entries == held["values"] == 4 * apart
    assert plan.base == (0 if adapters else held["base"]) and held["base"] == total * dtype.itemsize
    two = bytes_held(weighed, "compact", kind, Placement("fsdp2", 2), kept=kept)
    assert two.kept == plan.kept and two.base == -(-plan.base // 2)  # directions are whole on every device


def test_all_directions_are_as_many_as_inputs_and_others_have_none():
    model = tiny_llava()
    layers = layers_of(model)
    all_of_them = kept_by(NullSpace(rank=None), model, layers)
    assert all_of_them == kept_by(NullSpace(rank=99), model, layers)
    assert all_of_them.shared == 2 * (3 * HIDDEN * (HIDDEN * 4 + 4) + MLP * (MLP * 4 + 4))
    assert kept_by(Anchor(), model, layers) == Kept(1, 0)
    assert kept_by(SoftDowser(), model, layers) == Kept(1, 2)
    assert kept_by(MoFO(), model, layers) == Kept(1, 1)
    both = 2 * 4 * (2 * 16 * (32 + 32 + 1) + 2 * 8 * (16 + 32 + 1) + 3 * 16 * (32 + 48 + 1))  # q o, k v, the MLP
    assert kept_by(OSF(), model, layers) == Kept(1, apart=2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48), shared=both)
    parts = Adapters(model, layers, LoraSettings(r=2)).parts
    assert kept_by(Lora(), model, parts) == Kept()
    adapted = kept_by(Lora(NullSpaceSettings(rank=None)), model, parts)
    assert adapted.shared == all_of_them.shared and adapted.copies == 0
    assert adapted.apart == 2 * 2 * (6 * HIDDEN + MLP), "R of every A"
    preserved = kept_by(Lora(preserve=3), model, parts)
    sides = sum(each.in_features + each.out_features for each in layers.values())
    assert preserved == Kept(apart=2 * sides, shared=3 * (4 * sides + 4 * 2 * 7 * 2))
    assert kept_by(Lora(start=LoraStart()), model, parts) == Kept(shared=4 * sides), "one of two ranks on each side"
    outer, inner = (sum(getattr(each, side) for each in layers.values()) for side in ("out_features", "in_features"))
    assert kept_by(Lora(start=LoraStart(freeze=True)), model, parts) == Kept(shared=4 * (outer + 2 * inner))


def test_weights_alone_are_not_looked_at():
    """Also on the meta device, as the verb has them, and in another precision."""
    model = tiny_llava().to("meta", torch.bfloat16)
    layers: dict[str, nn.Linear] = layers_of(model)
    assert kept_by(NullSpace(rank=6), model, layers).shared == 2 * 6 * (3 * (HIDDEN * 2 + 4) + MLP * 2 + 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "ratio"), [(CompactEntries, 1.0), (CompactEntries, 0.25), (DenseEntries, 0.25)])
def test_what_matrices_held_is_planned_where_they_hold_the_base(dtype, kind, ratio):
    """Of three matrices of 400 entries, against what the entries keep of them meanwhile."""
    weights = {name: nn.Parameter(torch.randn(20, 20).to(dtype)) for name in "abc"}
    masks = {name: (torch.arange(400) < ratio * 400).view(20, 20) for name in weights}
    entries, form = kind(weights, masks), "compact" if kind is CompactEntries else "dense"
    held = [entries._to_hold(name) for name in weights]
    size = sum(each.nbytes for each in held if each is not None)
    assert (
        size == {"dense": 300 * dtype.itemsize, "compact": 4800 if (ratio, dtype) == (1.0, torch.float32) else 0}[form]
    )
    sizes = Sizes({}, share_out([(400, dtype.itemsize)] * 3, round(1200 * ratio)))
    none = OptimizerKind("SGD", 0)
    plain, reads = (bytes_held(sizes, form, none, kept=Kept(reads=each)) for each in (False, True))
    assert reads == replace(plain, workspace=max(plain.workspace, size))
