import pytest
import torch

from dowser_pl.masking import Changes, DenseEntries

OPTIMIZERS = {
    "adamw with decay": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.5),
}


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.detach().view(torch.int16 if values.element_size() == 2 else torch.int32).clone()


def make(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.nn.Parameter(torch.randn(8, 5, generator=generator).to(dtype)),
        "b": torch.nn.Parameter(torch.randn(3, 16, generator=generator).to(dtype)),
    }
    weights["a"].data[0, :4] = torch.tensor([0.0, -0.0, 1e-7, float("-0")])  # signs of zero count as bits
    masks = {name: torch.rand(w.shape, generator=generator) < 0.3 for name, w in weights.items()}
    return weights, masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_entries_keep_their_bits_whatever_the_optimizer_does(name, dtype):
    weights, masks = make(dtype)
    before = {key: bits(weight) for key, weight in weights.items()}
    entries = DenseEntries(weights, masks)
    optimizer = OPTIMIZERS[name](list(weights.values()))
    for step in range(4):
        if step == 2:  # momentum built up while an entry was trainable must not move it later
            entries.masks["a"] &= torch.rand(8, 5) < 0.5
            entries.after_step()
        optimizer.zero_grad()
        loss = sum((weight.float() ** 3).sum() + weight.float().sum() for weight in weights.values())
        loss.backward()
        entries.mask_gradients()
        assert all(not bool(weight.grad[~entries.masks[key]].any()) for key, weight in weights.items())
        optimizer.step()
        entries.after_step()
    for key, weight in weights.items():
        frozen = ~entries.masks[key]
        assert torch.equal(bits(weight)[frozen], before[key][frozen])
        assert not torch.equal(bits(weight)[~frozen], before[key][~frozen])
    frozen_counts, trainable_counts = entries.verify()
    assert frozen_counts.changed == 0
    assert 0 < trainable_counts.changed <= trainable_counts.entries == entries.num_trainable
    assert frozen_counts.entries + trainable_counts.entries == 8 * 5 + 3 * 16


def test_trainable_entries_move_as_in_unmasked_training():
    weights, masks = make()
    free = {name: torch.nn.Parameter(weight.detach().clone()) for name, weight in weights.items()}
    entries = DenseEntries(weights, masks)
    one, other = (torch.optim.AdamW(list(w.values()), lr=0.01) for w in (weights, free))
    for parameters, optimizer in ((weights, one), (free, other)):
        sum((w**2).sum() for w in parameters.values()).backward()
        if parameters is weights:
            entries.mask_gradients()
        optimizer.step()
    entries.after_step()
    for name, mask in masks.items():
        assert torch.equal(weights[name][mask], free[name][mask])


def test_verify_counts_single_bits():
    weights, masks = make()
    entries = DenseEntries(weights, {name: torch.zeros_like(mask) for name, mask in masks.items()})
    weights["a"].data[0, 0] = -0.0  # was +0.0
    assert entries.verify() == (Changes(88, 1), Changes(0, 0))


def test_gradients_that_are_not_numbers_are_masked_too():
    weights, masks = make()
    entries = DenseEntries(weights, masks)
    for weight in weights.values():
        weight.grad = torch.full_like(weight, float("nan"))
    entries.mask_gradients()
    assert not any(bool(torch.isnan(w.grad[~masks[name]]).any()) for name, w in weights.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_gives_masks_and_base_back(dtype, tmp_path):
    weights, masks = make(dtype)
    entries = DenseEntries(weights, masks)
    for name, weight in weights.items():
        weight.data[masks[name]] += 1
    torch.save(entries.state_dict(), tmp_path / "state.pt")
    loaded = DenseEntries.from_state(weights, torch.load(tmp_path / "state.pt", weights_only=True))
    for name in weights:
        assert torch.equal(loaded.masks[name], masks[name])
        assert torch.equal(bits(loaded.base[name]), bits(entries.base[name]))
    assert loaded.verify() == entries.verify()


def test_a_weight_without_a_mask_is_refused():
    weights, masks = make()
    del masks["b"]
    with pytest.raises(ValueError, match=r"b needs a mask of shape \(3, 16\), got none"):
        DenseEntries(weights, masks)
    masks["b"] = torch.ones(16, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"got \(16, 3\)"):
        DenseEntries(weights, masks)


def test_a_checkpoint_of_other_matrices_is_refused():
    weights, masks = make()
    state = DenseEntries(weights, masks).state_dict()
    with pytest.raises(ValueError, match="masks of 2 matrices and this run tunes 1.*'b'"):
        DenseEntries.from_state({"a": weights["a"]}, state)


def test_resuming_copies_the_base_once():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    base = {"a": torch.ones(2, 3)}
    assert DenseEntries({"a": weight}, {"a": torch.ones(2, 3, dtype=torch.bool)}, base).base["a"] is base["a"]
