"""Trainable entries as a parameter train what dense masking with restore trains, and nothing else."""

import bitsandbytes
import pytest
import torch
from torch import nn

from dowser_pl.masking import CompactEntries, DenseEntries

SHAPES = {"first": (24, 20), "second": (12, 24)}


def make(dtype=torch.float32, share=0.3, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    weights = {n: nn.Parameter(torch.randn(s, generator=generator).div(4).to(dtype)) for n, s in shapes.items()}
    masks = {n: torch.rand(s, generator=generator) < share for n, s in shapes.items()}
    return weights, masks


def bits(values):
    return values.detach().view({2: torch.int16, 4: torch.int32}[values.element_size()])


def loss_of(weights, step):
    inputs = torch.randn(8, 20, generator=torch.Generator().manual_seed(step)).to(weights["first"].dtype)
    hidden = torch.tanh(inputs @ weights["first"].T)
    return (hidden @ weights["second"].T).float().pow(3).mean() * 30


def train(form, make_optimizer, steps=6, accumulate=1, clip=None, dtype=torch.float32, share=0.3):
    weights, masks = make(dtype, share)
    entries = form(weights, masks)
    optimizer = make_optimizer(entries.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, 1.0, steps)
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            (loss_of(weights, 10 * step + part) / accumulate).backward()
        entries.mask_gradients()
        if clip:
            clip(entries.parameters())
        optimizer.step()
        entries.after_step()
        schedule.step()
    return weights, masks, entries


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.3),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bit_equal_to_dense_masking_with_restore(name, accumulate):
    dense, masks, _ = train(DenseEntries, OPTIMIZERS[name], accumulate=accumulate)
    compact, _, entries = train(CompactEntries, OPTIMIZERS[name], accumulate=accumulate)
    base, _ = make()
    for key, mask in masks.items():
        if (
            "fused" in name
        ):  # where a vector of the CPU ends, its kernel may round otherwise: elsewhere in short vectors
            torch.testing.assert_close(compact[key], dense[key], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(bits(compact[key]), bits(dense[key])), name
        assert torch.equal(bits(compact[key])[~mask], bits(base[key])[~mask])
        assert not bool((compact[key] == base[key])[mask].any())
    assert entries.verify()[1].changed == entries.num_trainable


def test_bit_equal_when_clipped_by_value():
    def clip(parameters):
        nn.utils.clip_grad_value_(parameters, 0.01)

    dense, _, _ = train(DenseEntries, OPTIMIZERS["adamw"], clip=clip)
    compact, _, _ = train(CompactEntries, OPTIMIZERS["adamw"], clip=clip)
    free, _, _ = train(CompactEntries, OPTIMIZERS["adamw"])
    assert all(torch.equal(bits(compact[name]), bits(dense[name])) for name in SHAPES)
    assert not torch.equal(compact["first"], free["first"]), "nothing was clipped"


def test_the_norm_of_the_entries_is_that_of_the_masked_gradient():
    """Summed in another order: equal to 1e-6 of the norm, and so are the weights."""
    norms = []

    def clip(parameters):
        norms.append(float(nn.utils.clip_grad_norm_(parameters, 0.05)))

    dense, _, _ = train(DenseEntries, OPTIMIZERS["adamw"], clip=clip)
    compact, _, _ = train(CompactEntries, OPTIMIZERS["adamw"], clip=clip)
    dense_norms, compact_norms = norms[:6], norms[6:]
    assert min(norms) > 0.05, "nothing was clipped"
    assert compact_norms == pytest.approx(dense_norms, rel=1e-5)
    for name in SHAPES:
        torch.testing.assert_close(compact[name], dense[name], rtol=1e-4, atol=1e-5)


EIGHT_BIT = {
    "AdamW8bit": lambda p: bitsandbytes.optim.AdamW8bit(p, lr=0.01, weight_decay=0.1, min_8bit_size=64),
    "PagedAdamW8bit": lambda p: bitsandbytes.optim.PagedAdamW8bit(p, lr=0.01, min_8bit_size=64),
    "Lion8bit": lambda p: bitsandbytes.optim.Lion8bit(p, lr=0.01, min_8bit_size=64),
}


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_eight_bit_optimizers_train_the_entries_like_any_vector(name):
    """The oracle steps plain vectors with gradients that a naive loop reads from the dense ones."""
    compact, masks, entries = train(CompactEntries, EIGHT_BIT[name], share=0.5)
    weights, _ = make()
    vectors = {key: nn.Parameter(weights[key].detach()[mask].clone()) for key, mask in masks.items()}
    optimizer = EIGHT_BIT[name](list(vectors.values()))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, 1.0, 6)
    for step in range(6):
        for weight in weights.values():
            weight.grad = None
        loss_of(weights, 10 * step).backward()
        for key, mask in masks.items():
            vectors[key].grad = weights[key].grad[mask].clone()
        optimizer.step()
        schedule.step()
        for key, mask in masks.items():
            weights[key].data[mask] = vectors[key].detach()
    states = [state for state in optimizer.state.values() if state["state1"].dtype == torch.uint8]
    assert len(states) == 2, "not trained in 8 bits"
    for key in SHAPES:
        assert torch.equal(bits(compact[key]), bits(weights[key]))
    assert entries.verify()[1].changed > 0.9 * entries.num_trainable


def test_updates_that_bfloat16_would_lose_add_up():
    """Each step moves an entry by less than half of its spacing in bfloat16: dense training stands still."""

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1.0)

    moved = {}
    for form in (DenseEntries, CompactEntries):
        weights = {"a": nn.Parameter(torch.full((4, 8), 1.0, dtype=torch.bfloat16))}
        mask = torch.zeros(4, 8, dtype=torch.bool)
        mask[1] = True
        entries = form(weights, {"a": mask})
        optimizer = sgd(entries.parameters())
        for _ in range(32):
            optimizer.zero_grad()
            (weights["a"].float() * 2**-10).sum().backward()
            entries.mask_gradients()
            optimizer.step()
            entries.after_step()
        moved[form] = float(1.0 - weights["a"].detach()[1, 0])
    assert moved[DenseEntries] == 0.0
    assert moved[CompactEntries] == pytest.approx(32 * 2**-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_hold_the_rounded_values(dtype):
    weights, masks, entries = train(CompactEntries, OPTIMIZERS["adamw"], dtype=dtype)
    base, _ = make(dtype)
    for name, mask in masks.items():
        values = entries.values(name)
        assert values.dtype == torch.float32
        assert torch.equal(bits(weights[name])[mask], bits(values.to(dtype)))
        assert torch.equal(bits(weights[name])[~mask], bits(base[name])[~mask])


def test_a_scaler_skips_a_step_whose_gradient_overflows():
    weights, masks = make()
    entries = CompactEntries(weights, masks)
    optimizer = torch.optim.AdamW(entries.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: entries.after_step())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    before = {name: bits(weight).clone() for name, weight in weights.items()}
    for step, factor in enumerate((float("inf"), 1.0)):
        optimizer.zero_grad()
        scaler.scale(loss_of(weights, step) * factor).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(bits(weights[name]), before[name]) for name in weights)
        assert same == (step == 0)
    assert scaler.get_scale() == 2.0**3
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())


def test_one_dense_gradient_at_a_time():
    """When the gradient of one matrix is made, that of the matrix behind it is gone."""
    weights, masks = make()
    entries = CompactEntries(weights, masks)
    alive = []

    def count(_):
        alive.append(sum(weight.grad is not None for weight in weights.values()))

    for weight in weights.values():
        weight.register_hook(count)
    loss_of(weights, 0).backward()
    assert alive == [0, 0] and all(weight.grad is None for weight in weights.values())
    reference, _ = make()
    loss_of(reference, 0).backward()
    for (name, mask), values in zip(masks.items(), entries.parameters(), strict=True):
        assert torch.equal(values.grad, reference[name].grad[mask])


def test_gradients_of_frozen_entries_may_be_anything():
    weights, masks = make()
    entries = CompactEntries(weights, masks)
    poison = {name: torch.where(mask, 1.0, float("nan")) for name, mask in masks.items()}
    sum((weight * poison[name]).nansum() for name, weight in weights.items()).backward()
    assert all(bool(torch.isfinite(values.grad).all()) for values in entries.parameters())


def test_a_matrix_that_trains_whole_needs_no_second_copy():
    weights, _ = make()
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    entries = CompactEntries(weights, masks)
    assert entries.num_bytes() == {"indices": 0, "values": 0, "base": 4 * (24 * 20 + 12 * 24)}
    compact, _, _ = train(CompactEntries, OPTIMIZERS["adamw"], share=2.0)
    dense, _, _ = train(DenseEntries, OPTIMIZERS["adamw"], share=2.0)
    assert all(torch.equal(bits(compact[name]), bits(dense[name])) for name in SHAPES)
    half, _, _ = train(CompactEntries, OPTIMIZERS["adamw"], share=2.0, dtype=torch.bfloat16)
    assert not torch.equal(half["first"], make(torch.bfloat16)[0]["first"])


def test_memory_is_that_of_the_entries():
    weights, masks = make(torch.bfloat16)
    entries = CompactEntries(weights, masks)
    count = sum(int(mask.sum()) for mask in masks.values())
    assert entries.num_trainable == count
    assert entries.num_bytes() == {"indices": 4 * count, "values": 4 * count, "base": 2 * count}


@pytest.mark.parametrize("form", [CompactEntries, DenseEntries])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_gives_masks_values_and_base_back(form, dtype, tmp_path):
    weights, masks, entries = train(form, OPTIMIZERS["adamw"], dtype=dtype)
    torch.save(entries.state_dict(), tmp_path / "state.pt")
    copies = {name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()}
    resumed = form.from_state(copies, torch.load(tmp_path / "state.pt", weights_only=True))
    for name, mask in masks.items():
        assert torch.equal(resumed.masks[name], mask)
        assert torch.equal(resumed.values(name), entries.values(name))
        assert torch.equal(bits(resumed.base_values(name)), bits(make(dtype)[0][name])[mask])
    assert resumed.verify() == entries.verify()
    assert resumed.frozen_digests() == entries.frozen_digests()


def test_the_digest_of_frozen_entries_sees_one_bit_of_them_and_no_trainable_one():
    weights, masks = make()
    entries = CompactEntries(weights, masks)
    before = entries.frozen_digests()
    for name, mask in masks.items():
        weights[name].data[mask] += 1
    assert entries.frozen_digests() == before
    position = tuple((~masks["second"]).nonzero()[3].tolist())
    bits(weights["second"])[position] ^= 1
    after = entries.frozen_digests()
    assert after["first"] == before["first"] and after["second"] != before["second"]


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_a_compiled_model_trains_the_same(backend):
    weights, masks = make()
    entries = CompactEntries(weights, masks)
    optimizer = OPTIMIZERS["adamw"](entries.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, 1.0, 6)

    @torch.compile(backend=backend)
    def forward(inputs, first, second):
        return (torch.tanh(inputs @ first.T) @ second.T).float().pow(3).mean() * 30

    for step in range(6):
        optimizer.zero_grad()
        inputs = torch.randn(8, 20, generator=torch.Generator().manual_seed(10 * step))
        forward(inputs, weights["first"], weights["second"]).backward()
        optimizer.step()
        entries.after_step()
        schedule.step()
    plain, _, _ = train(CompactEntries, OPTIMIZERS["adamw"])
    for name in SHAPES:
        torch.testing.assert_close(weights[name], plain[name], rtol=1e-5, atol=1e-6)
    assert entries.verify()[1].changed == entries.num_trainable


def test_after_closing_gradients_reach_the_matrices_again():
    weights, masks = make()
    entries = CompactEntries(weights, masks)
    entries.close()
    loss_of(weights, 0).backward()
    assert all(weight.grad is not None for weight in weights.values())
    assert all(values.grad is None for values in entries.parameters())


def test_two_owners_of_one_gradient_are_found_out():
    weights, masks = make()
    first = CompactEntries(weights, masks)
    CompactEntries(weights, masks)
    with pytest.raises(RuntimeError, match="the gradient of .* was taken by another hook"):
        loss_of(weights, 0).backward()
    first.close()
    for weight in weights.values():
        weight.grad = None
    loss_of(weights, 0).backward()


@pytest.mark.parametrize("form", [CompactEntries, DenseEntries])
def test_tied_weights_are_refused(form):
    weight = nn.Parameter(torch.ones(4, 4))
    mask = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="head and embeddings are one tensor"):
        form({"head": weight, "embeddings": weight}, {"head": mask, "embeddings": mask})


def test_what_cannot_be_written_in_place_is_refused():
    mask = torch.eye(4, 6, dtype=torch.bool)
    transposed = nn.Parameter(torch.ones(6, 4).T)
    with pytest.raises(ValueError, match=r"a must be contiguous.*strides \(1, 4\)"):
        CompactEntries({"a": transposed}, {"a": mask})
    with pytest.raises(ValueError, match="requires_grad False"):
        CompactEntries({"a": nn.Parameter(torch.ones(4, 6), requires_grad=False)}, {"a": mask})
