"""Patches as flat positions and values."""

import pytest
import torch
from safetensors.torch import load_file

from dowser_pl.errors import DowserError
from dowser_pl.functional.masks import pack
from dowser_pl.masking.base_model import Change
from dowser_pl.patches.sparse_update import save_sparse_update


def test_positions_are_of_the_flattened_tensor(tmp_path):
    mask = torch.tensor([[False, True, False], [True, False, True]])
    changes = {
        "a.weight": Change((2, 3), pack(mask), torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16), ""),
        "b.weight": Change((2, 2), None, torch.arange(4.0).view(2, 2), ""),
    }
    assert save_sparse_update(tmp_path / "u.safetensors", changes, {"model": "m"}) == 7
    found = load_file(tmp_path / "u.safetensors")
    assert found["a.weight.indices"].tolist() == [1, 3, 5]
    assert found["a.weight.values"].tolist() == [1.0, 2.0, 3.0]
    assert found["a.weight.values"].dtype == torch.bfloat16
    assert found["b.weight.indices"].tolist() == found["b.weight.values"].tolist() == [0, 1, 2, 3]
    again = tmp_path / "again.safetensors"
    save_sparse_update(again, changes, {"model": "m"})
    assert again.read_bytes() == (tmp_path / "u.safetensors").read_bytes()


def test_a_tensor_that_is_too_large_for_positions_of_32_bits_is_refused(tmp_path):
    huge = Change((2**16, 2**15), torch.zeros(1, dtype=torch.uint8), torch.zeros(0), "")
    with pytest.raises(DowserError, match="b.weight has 2,147,483,648 entries, expected at most 2.31 - 1"):
        save_sparse_update(tmp_path / "u.safetensors", {"b.weight": huge}, {})
