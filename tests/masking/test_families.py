"""Two steps in every family: what is frozen keeps its bits, and what may move does."""

import pytest
import torch

from dowser_pl.masking import CompactEntries
from dowser_pl.models.layers import find_layers
from tests.distributed.test_sharded_steps import inputs_of
from tests.tiny_models import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_entries_keep_their_bits(family):
    model = FAMILIES[family]().train().requires_grad_(False)
    weights = {name: layer.weight.requires_grad_() for name, layer in find_layers(model, None, ["attn", "mlp"]).items()}
    random = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(weight.shape, generator=random) < 0.1 for name, weight in weights.items()}
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    entries = CompactEntries(weights, masks)
    frozen = entries.frozen_digests()
    optimizer = torch.optim.AdamW(entries.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        model(**inputs_of(family), use_cache=False).loss.backward()
        entries.mask_gradients()
        optimizer.step()
        optimizer.zero_grad()
        entries.after_step()
    assert entries.frozen_digests() == frozen
    moved = {name: tensor != before[name] for name, tensor in model.state_dict().items()}
    for name, mask in masks.items():
        changed = moved.pop(f"{name}.weight")
        assert not (changed & ~mask).any() and changed[mask].float().mean() > 0.8, name  # a ReLU may be silent
    assert not any(change.any() for change in moved.values())  # nor anything beside the matrices
