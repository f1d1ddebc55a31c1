import json

import numpy as np
import pytest

from dowser_pl.patches.apply import apply_patches, remove_patch
from tests.patches.samples import fingerprints, load_folder, make_patch, raw, same_bits, save_base, save_tuned


@pytest.fixture
def stack(tmp_path):
    """Base, three tuned models that overlap, and their patches."""
    base = save_base(tmp_path / "base", shard="100KB")
    tuned = [save_tuned(tmp_path / f"tuned{seed}", seed=seed, shard="100KB") for seed in (1, 2, 3)]
    patches = [make_patch(tmp_path / f"{i}.safetensors", base, folder) for i, folder in enumerate(tuned)]
    return base, tuned, patches


def expected(base, tuned):
    """Entry by entry: the value of the last model that moved it. Also overlaps per model, all and differing ones."""
    before = load_folder(base)
    result = {name: tensor.clone() for name, tensor in before.items()}
    held = {name: np.zeros(tensor.numel(), dtype=bool) for name, tensor in before.items()}
    counts = []
    for folder in tuned:
        overlap = different = 0
        for name, after in load_folder(folder).items():
            mine = (raw(before[name]) != raw(after)).any(axis=1)
            both = mine & held[name]
            overlap += int(both.sum())
            different += int((both & (raw(result[name]) != raw(after)).any(axis=1)).sum())
            raw(result[name])[mine] = raw(after)[mine]
            held[name] |= mine
        counts.append((overlap, different))
    return result, counts


def test_three_at_once_or_one_by_one_the_later_wins(stack, tmp_path):
    base, tuned, patches = stack
    result, counts = expected(base, tuned)
    assert counts[1][1] > 0 < counts[2][1]
    applied = apply_patches(base, patches, tmp_path / "at_once")
    assert [(entry.conflicts, entry.conflicts_different) for entry in applied] == counts
    assert same_bits(load_folder(tmp_path / "at_once"), result)
    folder = base
    for i, patch in enumerate(patches):
        (entry,) = apply_patches(folder, [patch], tmp_path / f"by{i}")
        assert entry == applied[i]
        folder = tmp_path / f"by{i}"
    assert fingerprints(folder) == fingerprints(tmp_path / "at_once")


def test_order_matters_where_they_overlap(stack, tmp_path):
    base, tuned, patches = stack
    apply_patches(base, patches[::-1], tmp_path / "out")
    assert same_bits(load_folder(tmp_path / "out"), expected(base, tuned[::-1])[0])


def test_they_come_off_last_to_first(stack, tmp_path):
    base, _, patches = stack
    states = [fingerprints(base)]
    for count in (1, 2, 3):
        apply_patches(base, patches[:count], tmp_path / f"out{count}")
        states.append(fingerprints(tmp_path / f"out{count}"))
    folder = tmp_path / "out3"
    with pytest.raises(ValueError, match="last to first: before .*0.safetensors, remove 2.safetensors, 1.safetensors"):
        remove_patch(folder, patch=patches[0])
    with pytest.raises(ValueError, match="x.safetensors is not applied to .*: 0.safetensors, 1.safetensors, 2.safe"):
        remove_patch(folder, patch=tmp_path / "x.safetensors")
    assert fingerprints(folder) == states[3]
    for count in (2, 1, 0):
        remove_patch(folder, patch=patches[count])
        assert fingerprints(folder) == states[count]
    assert not (folder / "dowser_patches").exists()


def test_each_patch_once(stack, tmp_path):
    base, _, patches = stack
    with pytest.raises(
        ValueError, match="0.safetensors is the same patch as .*0.safetensors, expected each patch once"
    ):
        apply_patches(base, [patches[0], patches[0]], tmp_path / "out")
    apply_patches(base, patches[:1], tmp_path / "out")
    with pytest.raises(ValueError, match=r"0.safetensors is applied to this folder already \(as 0.safetensors\)"):
        apply_patches(tmp_path / "out", [patches[1], patches[0]], tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_a_damaged_list_is_named(stack, tmp_path):
    base, _, patches = stack
    apply_patches(base, patches[:1], tmp_path / "out")
    path = tmp_path / "out" / "dowser_patches" / "applied.json"
    content = json.loads(path.read_text())
    for damaged in ("{", "[]", json.dumps(content | {"format": 2}), json.dumps({"format": 1, "patches": [{}]})):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="applied.json is damaged"):
            remove_patch(tmp_path / "out")
