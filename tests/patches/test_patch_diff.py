import pytest
import torch
from safetensors.torch import save_file

from dowser_pl.patches.apply import apply_patches
from dowser_pl.patches.diff import difference
from dowser_pl.patches.patch import save_patch
from tests.patches.samples import load_folder, naive_changes, same_bits, save_base, save_tuned


def folder(path, tensors):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_that_differs(tmp_path, dtype):
    base, tuned = save_base(tmp_path / "base", dtype, "40KB"), save_tuned(tmp_path / "tuned", dtype)
    found, naive = difference(base, tuned), naive_changes(base, tuned)
    assert found.left_out == ()
    assert found.changes.keys() == naive.keys()
    assert any(change.mask is None for change in naive.values())
    for name, change in found.changes.items():
        assert (change.shape, change.base_sha256) == (naive[name].shape, naive[name].base_sha256)
        assert (change.mask is None) == (naive[name].mask is None)
        assert change.mask is None or torch.equal(change.mask, naive[name].mask)
        assert torch.equal(change.values, naive[name].values)
    save_patch(tmp_path / "patch", found.changes, {})
    apply_patches(base, [tmp_path / "patch"], tmp_path / "out")
    assert same_bits(load_folder(tmp_path / "out"), load_folder(tuned))


def test_odd_tensors(tmp_path):
    nan = float("nan")
    before = {
        "zero": torch.tensor([0.0, 1.0, nan]),
        "scalar": torch.tensor(1.0),
        "double": torch.ones(2, 2, dtype=torch.float64),
        "integers": torch.arange(9),
        "empty": torch.empty(0, 2),
    }
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["zero"][0] = -0.0
    after["scalar"] += 1
    after["double"][0, 1] += 2**-52
    after["integers"][8] = -1
    base, tuned = folder(tmp_path / "base", before), folder(tmp_path / "tuned", after)
    found = difference(base, tuned)
    assert {name: change.values.numel() for name, change in found.changes.items()} == dict.fromkeys(
        ("zero", "scalar", "double", "integers"), 1
    )
    save_patch(tmp_path / "patch", found.changes, {})
    apply_patches(base, [tmp_path / "patch"], tmp_path / "out")
    assert same_bits(load_folder(tmp_path / "out"), load_folder(tuned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.1, 0.37, 1.0])
def test_only_the_largest_of_every_matrix(tmp_path, dtype, ratio):
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (9, 7), "cube": (2, 3, 5)}
    before = {name: torch.randint(-8, 9, shape, generator=generator) / 8 for name, shape in shapes.items()}
    moves = {name: torch.randint(-3, 4, tensor.shape, generator=generator) for name, tensor in before.items()}  # ties
    before = {name: tensor.to(dtype) for name, tensor in before.items()}
    after = {name: (tensor + moves[name]).to(dtype) for name, tensor in before.items()}
    before["norm"], after["norm"] = torch.zeros(5), torch.ones(5)
    base, tuned = folder(tmp_path / "base", before), folder(tmp_path / "tuned", after)
    found = difference(base, tuned, ratio)
    assert found.left_out == ("norm",)
    assert set(found.changes) == {"matrix", "cube"}
    for name, change in found.changes.items():
        distance = (after[name].double() - before[name].double()).abs().flatten().tolist()
        order = sorted(range(len(distance)), key=lambda i: (-distance[i], i))[: round(ratio * len(distance))]
        chosen = [i for i in sorted(order) if distance[i] > 0]
        bits = [change.mask[i // 8] >> (i % 8) & 1 for i in range(len(distance))]
        assert [i for i, bit in enumerate(bits) if bit] == chosen
        assert change.values.tolist() == after[name].flatten()[chosen].tolist()


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (
            {"a": torch.ones(2, 2)},
            "different tensors .1 are only in the first, 0 only in the second; b is only in .*base",
        ),
        (
            {"a": torch.ones(2, 2), "b": torch.ones(2), "c": torch.ones(2)},
            "0 are only in the first, 1 only.*; c is only",
        ),
        (
            {"a": torch.ones(2, 2), "b": torch.ones(3)},
            r"b is float32 of shape \(3,\) in .*tuned and float32 of shape \(2,",
        ),
        ({"a": torch.ones(2, 2), "b": torch.ones(2).half()}, "b is float16 of shape .* in one dtype"),
        ({"a": torch.ones(2, 2), "b": torch.ones(2)}, "no entry of .*tuned differs from .*base"),
    ],
)
def test_folders_that_are_not_one_model(tmp_path, after, message):
    base = folder(tmp_path / "base", {"a": torch.ones(2, 2), "b": torch.ones(2)})
    with pytest.raises(ValueError, match=message):
        difference(base, folder(tmp_path / "tuned", after))


def test_what_cannot_be_ranked_is_said(tmp_path):
    base = folder(tmp_path / "base", {"a": torch.ones(2, 2), "b": torch.ones(2)})
    tuned = folder(tmp_path / "tuned", {"a": torch.tensor([[1.0, float("nan")], [1, 1]]), "b": torch.ones(2)})
    with pytest.raises(ValueError, match="a holds a distance that is not a number"):
        difference(base, tuned, 0.5)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        difference(base, tuned, 1.5)
    norm = folder(tmp_path / "norm", {"a": torch.ones(2, 2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="in matrices; 1 smaller tensors differ"):
        difference(base, norm, 0.5)
