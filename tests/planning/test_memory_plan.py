"""Predicted bytes against those that a training really held, and cards at their borders."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, Lion8bit, SGD8bit
from torch import nn
from torch.optim import SGD, AdamW, RMSprop

from dowser_pl.masking import CompactEntries, DenseEntries
from dowser_pl.planning.activations import Batch, Decoder, activation_bytes
from dowser_pl.planning.memory import Matrix, OptimizerKind, Placement, Sizes, bytes_held, share_out
from dowser_pl.planning.model import MemoryPlan
from dowser_pl.planning.optimizers import ADAMW_8BIT, optimizer_kind
from dowser_pl.planning.text import CARDS, fits, lines, savings, smallest_card, table

FORMS = {"dense": DenseEntries, "compact": CompactEntries}
OPTIMIZERS = {"adamw": AdamW, "adamw 8-bit": AdamW8bit}
WIDTHS = [256, 256, 256, 640] * 3 + [256]  # of a chain of matrices


def trained(form, optimizer_class, dtype, ratio=0.1):
    """Two real steps of a chain of matrices with one bias that is trained whole; what was held, by kind."""
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, outputs, bias=False) for inputs, outputs in pairwise(WIDTHS)]
    chain = nn.Sequential(*layers).to(dtype)
    bias = nn.Parameter(torch.zeros(WIDTHS[-1], dtype=dtype))
    weights = {str(number): layer.weight for number, layer in enumerate(chain)}
    gradients = Watch([*weights.values(), bias])
    masks = {name: torch.rand(weight.shape) < ratio for name, weight in weights.items()}
    entries = FORMS[form](weights, masks)
    optimizer = optimizer_class([*entries.parameters(), bias], lr=1e-3)
    gradients.tensors += entries.parameters() if form == "compact" else []
    for _ in range(2):
        optimizer.zero_grad()
        (chain(torch.randn(4, WIDTHS[0], dtype=dtype)) + bias).square().sum().backward()
        gradients.look()
        entries.mask_gradients()
        optimizer.step()
        entries.after_step()
    states = {value.data_ptr(): value.nbytes for each in optimizer.state.values() for value in tensors(each)}
    kinds = entries.num_bytes() if form == "compact" else {}
    held = {
        "weights": sum(weight.nbytes for weight in weights.values()) + bias.nbytes,
        "gradients": gradients.peak,
        "moments": sum(states.values()),
        "entries": kinds.get("values", 0),
        "indices": kinds.get("indices", 0),
        "masks": 0 if form == "compact" else sum(mask.nbytes for mask in entries.masks.values()),
        "base": 0 if form == "compact" else sum(each.nbytes for each in entries.base.values()),
        "host": kinds.get("base", 0) + entries.packed_bytes,
    }
    matrices = share_out(
        [(weight.numel(), weight.element_size()) for weight in weights.values()], entries.num_trainable
    )
    whole = (Matrix(bias.numel(), bias.numel(), bias.element_size()),)
    return held, Sizes({str(dtype): held["weights"]}, matrices, whole), optimizer


def tensors(state):
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


class Watch:
    """Bytes of gradients whenever one arrives."""

    def __init__(self, watched):
        self.tensors, self.peak = list(watched), 0
        for each in watched:
            each.register_post_accumulate_grad_hook(lambda _: self.look())

    def look(self):
        self.peak = max(self.peak, sum(each.grad.nbytes for each in self.tensors if each.grad is not None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_is_predicted(form, optimizer, dtype):
    held, sizes, built = trained(form, OPTIMIZERS[optimizer], dtype)
    planned = bytes_held(sizes, form, optimizer_kind(built, on_gpu=False))
    predicted = vars(planned)
    for kind, measured in held.items():
        assert predicted[kind] == pytest.approx(measured, rel=0.15), kind
    left = set(predicted) - set(held)
    assert left == {"buckets", "gathered", "activations", "workspace", "kept"}
    assert predicted["buckets"] == predicted["gathered"] == predicted["activations"] == predicted["kept"] == 0


def test_what_may_move_entirely_shares_its_memory_in_float32():
    for dtype in (torch.float32, torch.bfloat16):
        held, sizes, built = trained("compact", AdamW, dtype, ratio=2.0)
        predicted = vars(bytes_held(sizes, "compact", optimizer_kind(built)))
        for kind in ("entries", "indices", "host", "moments", "gradients"):
            assert predicted[kind] == pytest.approx(held[kind], rel=0.15), (kind, dtype)
    assert bytes_held(sizes, "compact", optimizer_kind(built)).entries > 0


@pytest.mark.parametrize(
    "build",
    [
        lambda p: AdamW(p, amsgrad=True),
        lambda p: SGD(p, lr=0.1),
        lambda p: SGD(p, lr=0.1, momentum=0.9),
        lambda p: RMSprop(p, momentum=0.9, centered=True),
        AdamW8bit,
        lambda p: AdamW8bit(p, min_8bit_size=1 << 20),
        lambda p: SGD8bit(p, lr=0.1, momentum=0.9),
        Lion8bit,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_an_optimizer(build, dtype):
    parameters = [nn.Parameter(torch.ones(count, dtype=dtype)) for count in (100_000, 70_001)]
    optimizer = build(parameters)
    kind = optimizer_kind(optimizer)
    for each in parameters:
        each.grad = torch.ones_like(each)
    optimizer.step()
    states = {value.data_ptr(): value.nbytes for each in optimizer.state.values() for value in tensors(each)}
    expected = sum(kind.state_bytes(each.numel(), each.element_size()) for each in parameters) + kind.table_bytes
    assert kind.known and expected == pytest.approx(sum(states.values()), rel=0.02, abs=3000)


def test_small_parameters_keep_states_of_32_bits():
    assert ADAMW_8BIT.state_bytes(4095, 4) == 2 * 4 * 4095
    assert ADAMW_8BIT.state_bytes(4096, 4) == 2 * (4096 + 4 * 16)


def test_an_unknown_optimizer_is_said_to_be_unknown():
    class Mine(torch.optim.Optimizer):
        pass

    kind = optimizer_kind(Mine([nn.Parameter(torch.ones(1))], {}))
    assert not kind.known and kind.state_bytes(10, 2) == 80
    assert any("not known: two of float32" in line for line in lines(plan(optimizer=kind)))


def test_entries_are_shared_out_to_the_last_one():
    matrices = share_out([(10, 4), (7, 4), (0, 4), (3, 4)], 7)
    assert sum(each.trainable for each in matrices) == 7
    assert all(each.trainable <= each.entries for each in matrices)
    with pytest.raises(ValueError, match="got 21 trainable entries, expected 0 to 20"):
        share_out([(10, 4), (10, 4)], 21)


SIZES = Sizes({"bfloat16": 2_000_000}, (Matrix(600_000, 60_000, 2), Matrix(300_000, 30_000, 2)), (), 400_000)
ADAMW = OptimizerKind("AdamW", 2, scalar_bytes=4)


def test_bytes_by_hand():
    compact = bytes_held(SIZES, "compact", ADAMW, activations=5000)
    assert (compact.weights, compact.entries, compact.indices) == (2_000_000, 360_000, 360_000)
    assert compact.gradients == 90_000 * 4 + 600_000 * 2  # the first matrix' gradient comes last
    assert compact.moments == 2 * 90_000 * 4 + 8 and compact.host == 180_000 + 900_000 // 8
    assert compact.masks == compact.base == compact.buckets == compact.gathered == 0
    assert compact.workspace == 60_000 * 4  # the largest parameter
    assert compact.total == 2_000_000 + 360_000 * 2 + compact.gradients + compact.moments + 240_000
    dense = bytes_held(SIZES, "dense", ADAMW, activations=5_000_000)
    assert (dense.gradients, dense.moments, dense.masks, dense.base) == (1_800_000, 3_600_008, 900_000, 1_800_000)
    assert dense.entries == dense.indices == 0 and dense.host == 900_000 // 8
    assert dense.total == 2_000_000 + 1_800_000 * 2 + 3_600_008 + 900_000 + 5_000_000


def test_the_best_model_so_far_is_held_on_the_host_by_hand():
    sizes = replace(SIZES, whole=(Matrix(1000, 1000, 2),))
    for form, itemsize in (("compact", 4), ("dense", 2)):
        without, held = (bytes_held(sizes, form, ADAMW, best=best) for best in (False, True))
        assert held == replace(without, host=without.host + 90_000 * itemsize + 1000 * 2)
    text = "\n".join(lines(replace(plan(), best=True)))
    assert "of base values, masks and the best model so far in host memory" in text


def test_devices_hold_all_or_a_part():
    alone = bytes_held(SIZES, "dense", ADAMW)
    copies = bytes_held(SIZES, "dense", ADAMW, Placement("ddp", 4))
    assert copies == replace(alone, buckets=1_800_000)
    parts = bytes_held(SIZES, "dense", ADAMW, Placement("ModelParallelStrategy", 4))
    assert (parts.weights, parts.moments, parts.gathered) == (500_000, alone.moments // 4, 400_000)
    assert parts.buckets == 0
    assert bytes_held(SIZES, "dense", ADAMW, Placement("fsdp", 1)) == alone


def plan(optimizer=ADAMW, **changes):
    decoder = Decoder(2, 64, 64, 32, 128, 4, 1000, 2)
    return MemoryPlan(SIZES, "compact", optimizer, Placement(), decoder, Batch(2, 10, False), **changes)


def test_cards_at_their_borders():
    for card, larger in zip(CARDS, (*CARDS[1:], None), strict=True):
        most = int(0.95 * card * 2**30)
        assert fits(most, card) and not fits(most + 1, card)
        assert smallest_card(most) == card and smallest_card(most + 1) == larger
    assert smallest_card(0) == 8 and CARDS == (8, 12, 16, 24, 40, 48, 80, 141)


def test_activations_by_hand():
    decoder = Decoder(2, 64, 64, 32, 128, 4, 1000, 2)
    layer = 8 * 64 + 2 * (2 * 64 + 64 + 128) + 2 * (64 + 2 * 32) + 3 * 2 * 128
    batch = Batch(2, 10, False)
    assert activation_bytes(decoder, batch) == 20 * (2 * layer + 14 * 1000)
    assert activation_bytes(replace(decoder, itemsize=4), batch) == 20 * (2 * (2 * layer - 8 * 64) + 12 * 1000)
    assert activation_bytes(decoder, replace(batch, gradient_checkpointing=True)) == 20 * (2 * 64 * 2 + 14 * 1000)
    stored = activation_bytes(replace(decoder, fused_attention=False), batch)
    assert stored - activation_bytes(decoder, batch) == 20 * 2 * (4 + 2) * 4 * 10


def test_lines_name_every_kind_and_warn_where_the_card_is_too_small():
    text = "\n".join(lines(plan()))
    for word in ("weights", "trainable values", "indices", "gradients", "moments", "activations", "host memory"):
        assert word in text, word
    assert "WARNING" not in text and "2 x 10 tokens in 2 layers, without gradient checkpointing" in text
    total = plan().held.total
    assert "WARNING" not in "\n".join(lines(plan(card_bytes=total)))
    warned = "\n".join(lines(plan(card_bytes=total - 1)))
    assert "WARNING" in warned and "--model.gradient_checkpointing true" in warned


def test_the_table_says_what_would_help():
    huge = replace(plan(), batch=Batch(64, 4096, False), decoder=Decoder(32, 4096, 4096, 4096, 11008, 32, 32064, 2))
    text = "\n".join(table({"dense": replace(huge, form="dense"), "compact": huge}))
    assert "141 GB card" in text and "compact with --model.gradient_checkpointing true" in text
    helped = savings(huge)
    assert all(each.held.total < huge.held.total for each in helped.values()) and len(helped) == 2
    assert "--trainer.precision bf16-true" in savings(replace(huge, sizes=replace(SIZES, weights={"float32": 1 << 32})))


@pytest.mark.parametrize("name, taken", [("FSDP2Strategy", True), ("fsdp1", True), ("FSDPStrategy", False)])
def test_a_spread_plan_says_what_it_leaves_out_and_whether_fit_takes_the_strategy(name, taken):
    text = "\n".join(lines(replace(plan(), placement=Placement(name, 2))))
    assert f"not counted under {name}: what is gathered beside" in text
    assert (f"`fit` does not take {name}" in text) == (not taken)
    assert "not counted" not in "\n".join(lines(replace(plan(), placement=Placement("ddp", 2))))


def test_a_plan_without_a_known_decoder_says_so():
    text = "\n".join(lines(replace(plan(), decoder=None)))
    assert "activations are not estimated" in text
