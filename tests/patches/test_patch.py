import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dowser_pl.masking.base_model import Change
from dowser_pl.patches.patch import Patch, exchange, save_patch, tensor_digest

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8]
HEAD = {"base": {"model": "owner/name"}, "scores": {"before": 0.5}}


def change(values=(1.0, 2.0), mask=(0b10000001, 0b0), shape=(3, 3), dtype=torch.float32):
    bits = None if mask is None else torch.tensor(mask, dtype=torch.uint8)
    return Change(shape, bits, torch.tensor(values, dtype=dtype), "0" * 64, "run.time")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read(tmp_path, dtype):
    changes = {
        "some": change((3, 4), dtype=dtype),
        "whole": change(((1, 2), (3, 4)), None, (2, 2), dtype),
        "scalar": change(7, None, (), dtype),
        "masked scalar": change((7,), (1,), (), dtype),
        "empty": change((), (), (0, 4), dtype),
        "none": change((), (0, 0), dtype=dtype),
    }
    save_patch(tmp_path / "patch.safetensors", changes, HEAD)
    with Patch.open(tmp_path / "patch.safetensors") as patch:
        assert patch.names == tuple(sorted(changes))
        assert patch.head["base"] == {"model": "owner/name", "fingerprint": None}
        assert patch.head["scores"] == {"before": 0.5}
        assert patch.head["config"] is patch.head["method"] is patch.head["created_by"] is None
        for name, expected in changes.items():
            found = patch.change(name)
            assert (found.shape, found.base_sha256, found.runtime) == (expected.shape, "0" * 64, "run.time")
            assert found.values.dtype == dtype
            assert torch.equal(found.values, expected.values)
            assert (found.mask is None) == (expected.mask is None)
            assert found.mask is None or torch.equal(found.mask, expected.mask)
            assert patch.num_entries(name) == expected.values.numel()


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for path, names in ((tmp_path / "a", "abcdefgh"), (tmp_path / "b", "hgfedcba")):
        save_patch(path, {name: change() for name in names}, HEAD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_layout_is_the_documented_one(tmp_path):
    save_patch(tmp_path / "p.safetensors", {"layer.weight": change(), "norm.weight": change((1, 2), None, (2,))}, {})
    tensors = load_file(tmp_path / "p.safetensors")
    assert sorted(tensors) == ["layer.weight.mask", "layer.weight.values", "norm.weight.values"]
    with safe_open(tmp_path / "p.safetensors", framework="pt") as file:
        (text,) = file.metadata().values()
    described = {"base_sha256": "0" * 64, "dtype": "float32", "runtime": "run.time", "shape": [3, 3]}
    assert json.loads(text)["tensors"]["layer.weight"] == described


def test_the_file_is_little_more_than_bits_and_values(tmp_path):
    numel = 256 * 1024
    mask = torch.zeros(numel // 8, dtype=torch.uint8)
    mask[::2] = 1
    entries = int(mask.sum())
    changes = {
        f"language_model.model.layers.{i}.weight": Change(
            (256, 1024), mask.clone(), torch.zeros(entries, dtype=torch.bfloat16), "0" * 64, "some.run_time.name.weight"
        )
        for i in range(3)
    }
    save_patch(tmp_path / "p", changes, HEAD)
    assert (tmp_path / "p").stat().st_size < 1.1 * 3 * (numel / 8 + 2 * entries)


def test_digests_tell_every_bit_dtype_and_shape_apart():
    tensors = [
        torch.tensor([0.0, 1.0]),
        torch.tensor([-0.0, 1.0]),
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([0.0, 1.0]).view(torch.int32),
        torch.tensor([0.0, 1.0], dtype=torch.bfloat16),
        torch.tensor(0.0),
        torch.empty(0),
        torch.empty(0, 3),
    ]
    assert len({tensor_digest(tensor) for tensor in tensors}) == len(tensors)
    square = torch.arange(6.0).view(2, 3)
    assert tensor_digest(square.t()) == tensor_digest(square.t().contiguous()) != tensor_digest(square)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exchange_keeps_every_bit(dtype):
    noise = torch.randint(0, 256, (64 * 8,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = noise.view(dtype)[:24].clone()  # NaN with odd payloads among them
    tensor = torch.zeros(6, 4, dtype=dtype).t()  # not contiguous
    bits = torch.tensor([0xFF, 0xFF, 0xFF], dtype=torch.uint8)
    old = exchange(tensor, Change((4, 6), bits, values, ""))
    assert torch.equal(old, torch.zeros(24, dtype=dtype))
    assert torch.equal(tensor.contiguous().flatten().view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(
        exchange(tensor, Change((4, 6), None, old.view(4, 6), "")).flatten().view(torch.uint8), values.view(torch.uint8)
    )


def test_exchange_of_a_scalar():
    tensor = torch.tensor(1.0)
    assert exchange(tensor, change((7.0,), (1,), ())) == torch.tensor([1.0])
    assert tensor == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (change((1.0,)), r"got values of shape \(1,\), expected \(2,\), one per set bit"),
        (change(((1.0, 2.0),)), r"got values of shape \(1, 2\), expected \(2,\)"),
        (change(mask=(1, 0, 0)), r"uint8 of shape \(3,\), expected packed bits, \(2,\) uint8"),
        (change(mask=(1, 0b10)), "bits behind entry 9"),
        (change(mask=None), r"got values of shape \(2,\), expected the whole \(3, 3\)"),
    ],
)
def test_a_change_that_does_not_fit_itself_is_neither_written_nor_read(tmp_path, wrong, message):
    path = tmp_path / "p.safetensors"
    with pytest.raises(ValueError, match=f"layer: .*{message}"):
        save_patch(path, {"layer": wrong}, {})
    assert not path.exists()
    whole = wrong.mask is None
    save_patch(path, {"layer": change(((1.0,) * 3,) * 3, None) if whole else change()}, {})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"layer.values": wrong.values} | ({} if whole else {"layer.mask": wrong.mask}), path, metadata)
    with Patch.open(path) as patch, pytest.raises(ValueError, match=f"damaged .*{message}.*copy or make it again"):
        patch.change("layer")


def test_values_of_another_dtype_than_the_head_says_are_damage(tmp_path):
    save_patch(tmp_path / "p", {"layer": change()}, {})
    with safe_open(tmp_path / "p", framework="pt") as file:
        metadata = file.metadata()
    save_file({"layer.values": change().values.half(), "layer.mask": change().mask}, tmp_path / "p", metadata)
    with Patch.open(tmp_path / "p") as patch, pytest.raises(ValueError, match="got float16 values, expected float32"):
        patch.change("layer")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "patch.safetensors"
    save_patch(path, {"layer": change(), "other": change()}, {})
    whole, tensors = path.read_bytes(), load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    (key,) = metadata
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="not a readable patch"):
        Patch.open(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "layer.values"}, path, metadata)
    with pytest.raises(ValueError, match="head and its tensors do not belong together"):
        Patch.open(path)
    save_file(tensors | {"stray": torch.ones(1)}, path, metadata)
    with pytest.raises(ValueError, match="head and its tensors do not belong together"):
        Patch.open(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="holds no patch.*format None, expected 1"):
        Patch.open(path)
    save_file(tensors, path, {key: json.dumps(json.loads(metadata[key]) | {"format": 99})})
    with pytest.raises(ValueError, match="format 99, expected 1"):
        Patch.open(path)
    save_file(tensors, path, {key: metadata[key][:-1]})
    with pytest.raises(ValueError, match="its head is no JSON"):
        Patch.open(path)
    with pytest.raises(ValueError, match=r"no patch file .*pacth.safetensors, did you mean .*/patch.safetensors\?"):
        Patch.open(tmp_path / "pacth.safetensors")


def test_an_unknown_field_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no field 'methods', expected some of: base, config"):
        save_patch(tmp_path / "p", {}, {"methods": {}})


def flip(path, name, place=0, bit=0):
    """One bit of a tensor of a file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    first, last = json.loads(content[8:start])[name]["data_offsets"]
    changed = bytearray(content)
    changed[start + range(first, last)[place]] ^= 1 << bit
    path.write_bytes(changed)


FLIPS = {
    "the last digit of a value": ("layer.values", 0, 0),
    "the sign of a value": ("layer.values", -1, 7),
    "an entry left out": ("layer.mask", 0, 0),
    "of a tensor that is whole": ("norm.values", 2, 3),
}


@pytest.mark.parametrize("name", FLIPS)
def test_a_flipped_bit_is_found_and_the_tensor_named(tmp_path, name):
    tensor, place, bit = FLIPS[name]
    path = tmp_path / "p.safetensors"
    save_patch(path, {"layer": change(), "norm": change((1, 2), None, (2,))}, HEAD)
    flip(path, tensor, place, bit)
    layer = tensor.split(".")[0]
    with Patch.open(path) as patch:
        with pytest.raises(ValueError, match=f"damaged .*{layer}.*; copy or make it again"):
            patch.change(layer)
        with pytest.raises(ValueError, match="damaged"):
            patch.check()
        patch.change("norm" if layer == "layer" else "layer")


def test_a_mask_of_as_many_other_entries_is_found(tmp_path):
    """Two bits, so that their number is right."""
    save_patch(tmp_path / "p", {"layer": change()}, HEAD)
    flip(tmp_path / "p", "layer.mask", 0, 0)
    flip(tmp_path / "p", "layer.mask", 0, 1)
    with Patch.open(tmp_path / "p") as patch, pytest.raises(ValueError, match=r"damaged \(layer.mask has digest"):
        patch.change("layer")


@pytest.mark.parametrize("said", ['"owner/name', '"run.time', '\\"000000', "float32"])
def test_a_head_that_was_edited_is_found(tmp_path, said):
    save_patch(tmp_path / "p", {"layer": change()}, HEAD)
    old, whole = said.encode(), (tmp_path / "p").read_bytes()
    assert old in whole
    (tmp_path / "p").write_bytes(whole.replace(old, old[:-1] + bytes([old[-1] ^ 1]), 1))
    with pytest.raises(ValueError, match="damaged .its head is not what was written"):
        Patch.open(tmp_path / "p")


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("whole", [False, True])
def test_values_that_are_not_finite_are_neither_written_nor_read(tmp_path, odd, dtype, whole, monkeypatch):
    values = torch.tensor([1.0, odd]).to(dtype)
    wrong = change(mask=None if whole else (0b10000001, 0b0), shape=(2,) if whole else (3, 3))
    wrong = Change(wrong.shape, wrong.mask, values, wrong.base_sha256, wrong.runtime)
    with pytest.raises(ValueError, match=r"layer has 1 values that are not finite \(the first is -?(nan|inf)\)"):
        save_patch(tmp_path / "p", {"layer": wrong}, {})
    assert not (tmp_path / "p").exists()
    with monkeypatch.context() as patched:  # by another program, with all its digests
        patched.setattr("dowser_pl.patches.patch._check_finite", lambda *_: None)
        save_patch(tmp_path / "p", {"layer": wrong}, {})
    with Patch.open(tmp_path / "p") as patch, pytest.raises(ValueError, match="p: layer has 1 values .* not finite"):
        patch.change("layer")
    with Patch.open(tmp_path / "p", finite=False) as patch:
        assert patch.change("layer").values.dtype == dtype


def test_a_patch_of_an_earlier_version_is_read_and_told_of(tmp_path, caplog):
    path = tmp_path / "p"
    save_patch(path, {"layer": change()}, HEAD)
    with safe_open(path, framework="pt") as file:
        ((key, text),) = file.metadata().items()
    head = json.loads(text)
    del head["digests"], head["sha256"]
    save_file(load_file(path), path, {key: json.dumps(head)})
    with Patch.open(path) as patch:
        assert torch.equal(patch.change("layer").values, change().values)
    assert f"{path} carries no digests" in caplog.text
