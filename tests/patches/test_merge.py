import json
import re
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from dowser_pl.files.digests import digest
from dowser_pl.methods import FAPM, Dare, Full, Grafting, Layer, ModelTailor, Ties, Wise, build_masks
from dowser_pl.patches.apply import apply_patches
from dowser_pl.patches.merge import Merge
from dowser_pl.patches.patch import save_patch
from dowser_pl.patches.safetensors_file import read
from dowser_pl.patches.versions import Versions
from tests.patches.samples import fingerprints, load_folder, make_patch, raw, same_bits, save_base, save_tuned

FAMILY = ("q_proj.weight", "down_proj.weight")
NORM = "language_model.model.norm.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base in several shards and two tuned models; tests must not change them."""
    folder = tmp_path_factory.mktemp("models")
    return save_base(folder / "base", shard="40KB"), [save_tuned(folder / str(n), seed=n) for n in (1, 2)]


def expected(base, tuned, method):
    """All at once, from dictionaries of tensors: merged matrices, and the norms of the first that has others."""
    before, after = load_folder(base), [load_folder(folder) for folder in tuned]
    names = [name for name in before if before[name].ndim == 2 and any(differs(before, a, name) for a in after)]
    blocks = {name: re.sub(r"(layers\.\d+).*", r"\1", name) for name in names}
    layers = [
        {n: Layer(n.removesuffix(".weight") + (" of tuned model 2" if i else ""), before[n], tuned=a[n]) for n in names}
        for i, a in enumerate(after)
    ]
    masks = [dict(build_masks(method, blocks, each.__getitem__)) for each in layers]
    result = dict(before)
    for name in names:
        result[name] = method.merge_all([each[name] for each in layers], [each[name] for each in masks])
    result[NORM] = torch.stack([each[NORM].double() for each in after]).mean(dim=0).float()
    return result


def differs(one, other, name):
    return bool((raw(one[name]) != raw(other[name])).any())


@pytest.mark.parametrize(
    "method",
    [
        Dare(0.3),
        Ties(0.15, scale=0.5),
        Ties(0.15, scope="matrix"),
        Ties(0.15, scope="layer"),
        Wise(0.3),
        Grafting(0.1),
        Grafting(0.1, scope="layer"),
        FAPM(0.3),
        FAPM(0.3, scope="layer"),
    ],
    ids=lambda method: f"{type(method).__name__}-{getattr(method, 'scope', '')}",
)
@pytest.mark.parametrize("count", [1, 2])
def test_equals_the_merge_in_memory(folders, tmp_path, method, count):
    base, tuned = folders[0], folders[1][:count]
    if count == 2 and isinstance(method, (FAPM, Grafting)):
        with pytest.raises(ValueError, match=f"{type(method).__name__} merges one tuned model"):
            Merge(Versions(base, tuned), method)
        return
    merge = Merge(Versions(base, tuned), method)
    merge.write_folder(tmp_path / "out")
    before, wanted, found = load_folder(base), expected(base, tuned, method), load_folder(tmp_path / "out")
    assert same_bits(found, wanted)
    assert merge.others == [NORM]
    matrices = [name for name in before if name.endswith(FAMILY) and "language_model" in name]
    assert merge.merged.tensors == len(matrices) == 6
    assert merge.merged.entries == sum(before[name].numel() for name in matrices)
    changed = sum(int((raw(before[name]) != raw(found[name])).any(axis=1).sum()) for name in matrices)
    assert merge.merged.changed == changed > 0
    assert (merge.taken.tensors, merge.taken.entries) == (1, 32)


def test_all_else_is_the_base(folders, tmp_path):
    base, tuned = folders
    Merge(Versions(base, tuned), Dare(0.3), take_others=False).write_folder(tmp_path / "out")
    before, after = fingerprints(base), fingerprints(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed and all(name.endswith(".safetensors") for name in changed)
    found, original = load_folder(tmp_path / "out"), load_folder(base)
    assert {n for n in found if differs(original, found, n)} == {
        n for n in found if n.endswith(FAMILY) and "language_model" in n
    }


@pytest.mark.parametrize(("stops", "ends"), [([2, 2], 2), ([[2, 7], 2], [2, 7]), ([[2, 7], [9, 2]], [2, 7, 9])])
def test_a_merged_model_ends_its_answers_where_the_tuned_ones_do(tmp_path, stops, ends):
    base, tuned = save_base(tmp_path / "base"), [save_tuned(tmp_path / str(n), seed=n) for n in (1, 2)]
    settings = "generation_config.json"
    for folder, stop in zip(tuned, stops, strict=True):
        content = json.loads((folder / settings).read_text())
        (folder / settings).write_text(json.dumps(content | {"eos_token_id": stop, "temperature": 0.5}))
    merge = Merge(Versions(base, tuned), Ties(0.15))
    merge.write_folder(tmp_path / "out")
    before = json.loads((base / settings).read_text())
    assert json.loads((tmp_path / "out" / settings).read_text()) == before | {"eos_token_id": ends}
    save_patch(tmp_path / "p.safetensors", merge.changes(), {"base": {"model": "x", "generation": merge.generation}})
    apply_patches(base, [tmp_path / "p.safetensors"], tmp_path / "patched")
    assert (tmp_path / "patched" / settings).read_bytes() == (tmp_path / "out" / settings).read_bytes()


def test_only_what_matches_is_merged(folders, tmp_path):
    base, tuned = folders
    merge = Merge(Versions(base, tuned[:1]), Wise(0.5), only=["*layers.0*", "*layers.2.mlp*"])
    merge.write_folder(tmp_path / "out")
    assert merge.merged.tensors == 3
    assert len(merge.others) == 4
    found, after = load_folder(tmp_path / "out"), load_folder(tuned[0])
    assert not differs(found, after, "language_model.model.layers.1.mlp.down_proj.weight")
    assert differs(found, after, "language_model.model.layers.2.mlp.down_proj.weight")
    with pytest.raises(ValueError, match=r"no matrix that matches vision\* was tuned; 7 other tensors were, first"):
        Merge(Versions(base, tuned[:1]), Wise(0.5), only=["vision*"])


@pytest.mark.parametrize("method", [Ties(0.1), Wise(0.5)], ids=["sparse", "whole"])
def test_a_patch_applied_is_the_merged_folder(folders, tmp_path, method):
    base, tuned = folders
    merge = Merge(Versions(base, tuned), method)
    merge.write_folder(tmp_path / "out")
    counts = (merge.merged, merge.taken)
    save_patch(tmp_path / "p.safetensors", merge.changes(), {})
    assert (merge.merged, merge.taken) == counts, "counted anew, not added up"
    apply_patches(base, [tmp_path / "p.safetensors"], tmp_path / "patched")
    assert same_bits(load_folder(tmp_path / "patched"), load_folder(tmp_path / "out"))


def test_a_narrower_base_is_widened(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16)
    wide = {name: tensor.float() for name, tensor in load_folder(base).items()}
    name = next(name for name in wide if name.endswith(FAMILY))
    tuned = {**wide, name: wide[name] + 0.01}
    (tmp_path / "tuned").mkdir()
    save_file(tuned, tmp_path / "tuned" / "model.safetensors")
    merge = Merge(Versions(base, [tmp_path / "tuned"]), Wise(1.0))
    assert merge.versions.dtype == torch.float32
    merge.write_folder(tmp_path / "out")
    assert same_bits(load_folder(tmp_path / "out"), tuned)
    changes = merge.changes()
    assert list(changes) == [name] and changes[name].base_sha256 == digest(wide[name])
    save_patch(tmp_path / "p.safetensors", changes, {})
    apply_patches(base, [tmp_path / "p.safetensors"], tmp_path / "patched")
    assert same_bits(load_folder(tmp_path / "patched"), tuned)
    half = {name: tensor.half() for name, tensor in tuned.items()}  # holds less than bfloat16 in range
    save_file(half, tmp_path / "tuned" / "model.safetensors")
    with pytest.raises(ValueError, match="is float16 of shape .* and bfloat16 of shape"):
        Versions(base, [tmp_path / "tuned"])


def test_a_wider_base_is_narrowed_where_a_person_asks(tmp_path):
    """As of a run in bfloat16 whose base is kept in float32."""
    base = save_base(tmp_path / "base")
    narrow = {name: tensor.bfloat16() for name, tensor in load_folder(base).items()}
    name = next(name for name in narrow if name.endswith(FAMILY))
    tuned = {**narrow, name: narrow[name] + 0.5}
    for folder, tensors in (("narrow", narrow), ("tuned", tuned)):
        shutil.copytree(base, tmp_path / folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        save_file(tensors, tmp_path / folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"bfloat16 of shape .* and float32 of shape .* or add --cast"):
        Versions(base, [tmp_path / "tuned"])
    versions = Versions(base, [tmp_path / "tuned"], cast_to_tuned=True)
    assert versions.dtype == torch.bfloat16
    assert versions.changed() == [name], "that all were converted is no change"
    Merge(versions, Wise(0.5)).write_folder(tmp_path / "out")
    Merge(Versions(tmp_path / "narrow", [tmp_path / "tuned"]), Wise(0.5)).write_folder(tmp_path / "expected")
    assert same_bits(load_folder(tmp_path / "out"), load_folder(tmp_path / "expected"))
    assert not same_bits(load_folder(tmp_path / "out"), tuned)

    mixed = tuned | {name: tuned[name].float()}  # no one dtype that --cast could take
    (tmp_path / "mixed").mkdir()
    save_file(mixed, tmp_path / "mixed" / "model.safetensors")
    for asked in (False, True):
        with pytest.raises(ValueError, match=r"save both in one dtype$"):
            Versions(base, [tmp_path / "mixed"], cast_to_tuned=asked)

    patch = make_patch(tmp_path / "p.safetensors", tmp_path / "narrow", tmp_path / "tuned")
    Merge(Versions(base, [patch], cast_to_tuned=True), Wise(0.5)).write_folder(tmp_path / "patched")
    assert same_bits(load_folder(tmp_path / "patched"), load_folder(tmp_path / "expected"))


@pytest.mark.parametrize("method", [Ties(0.15), Dare(0.3), Wise(0.5)], ids=lambda method: type(method).__name__)
def test_a_patch_is_merged_as_the_folder_that_it_makes(folders, tmp_path, method):
    base, tuned = folders
    patches = [make_patch(tmp_path / f"{n}.safetensors", base, folder) for n, folder in enumerate(tuned)]
    Merge(Versions(base, tuned), method).write_folder(tmp_path / "folders")
    for number, mixed in enumerate((patches, [tuned[0], patches[1]], [patches[0], tuned[1]])):
        merge = Merge(Versions(base, mixed), method)
        merge.write_folder(tmp_path / str(number))
        assert same_bits(load_folder(tmp_path / str(number)), load_folder(tmp_path / "folders"))


def test_a_patch_of_another_base_is_refused(folders, tmp_path):
    base, tuned = folders
    other = tmp_path / "other"
    shutil.copytree(base, other)
    (file,) = (
        f for f in other.glob("*.safetensors") if "language_model.model.layers.2.mlp.down_proj.weight" in load_file(f)
    )
    tensors = load_file(file)
    tensors["language_model.model.layers.2.mlp.down_proj.weight"][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    patches = [
        make_patch(tmp_path / "a.safetensors", base, tuned[0]),
        make_patch(tmp_path / "b.safetensors", other, tuned[1]),
    ]
    with pytest.raises(
        ValueError, match=r"b.safetensors was made from another base than .*down_proj.weight has digest"
    ):
        Versions(base, patches)
    with pytest.raises(ValueError, match=r"a.safetensors was made from another base than"):
        Versions(other, patches)


def test_a_narrower_base_is_widened_for_a_patch(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16)
    wide = {name: tensor.float() for name, tensor in load_folder(base).items()}
    name = next(name for name in wide if name.endswith(FAMILY))
    tuned = {**wide, name: wide[name] + 0.01}
    for folder, tensors in (("wide", wide), ("tuned", tuned)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    patch = make_patch(tmp_path / "p.safetensors", tmp_path / "wide", tmp_path / "tuned")
    merge = Merge(Versions(base, [patch]), Wise(1.0))
    assert merge.versions.dtype == torch.float32
    merge.write_folder(tmp_path / "out")
    assert same_bits(load_folder(tmp_path / "out"), tuned)


def test_what_cannot_be_merged_is_refused_before_anything_is_written(folders, tmp_path):
    base, tuned = folders
    with pytest.raises(ValueError, match="Full decides before or during training.*fit --dowser.method Full"):
        Merge(Versions(base, tuned), Full())
    with pytest.raises(ValueError, match="ModelTailor needs the input gram of calibration data.*fit"):
        Merge(Versions(base, tuned), ModelTailor())
    with pytest.raises(ValueError, match="no matrix was tuned. Expected a model tuned from"):
        Merge(Versions(base, [base]), Dare())
    with pytest.raises(ValueError, match="bit for bit"):
        Merge(Versions(base, tuned[:1]), Wise(0.0), take_others=False).changes()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(ValueError, match="exists already"):
        Merge(Versions(base, tuned), Dare()).write_folder(tmp_path / "there")


def test_a_patched_base_is_refused(folders, tmp_path):
    base, tuned = folders
    save_patch(tmp_path / "p.safetensors", Merge(Versions(base, tuned), Ties(0.1)).changes(), {})
    apply_patches(base, [tmp_path / "p.safetensors"], tmp_path / "patched")
    with pytest.raises(ValueError, match="has patches, expected a base"):
        Versions(tmp_path / "patched", tuned)
    Versions(base, [tmp_path / "patched"])


@pytest.mark.parametrize("method", [Dare(0.3), Ties(0.15)], ids=["matrix", "model"])
def test_few_tensors_are_held_at_a_time(folders, tmp_path, monkeypatch, method):
    """Of three models some hundred tensors are read, and the present ones and those before them are there."""
    base, tuned = folders
    held, most = [], 0

    def watched(slot):
        nonlocal most
        tensor = read(slot)
        held.append(weakref.ref(tensor))
        most = max(most, sum(one() is not None for one in held))
        return tensor

    monkeypatch.setattr("dowser_pl.patches.versions.read", watched)
    Merge(Versions(base, tuned), method).write_folder(tmp_path / "out")
    assert len(held) > 100
    assert most <= 6


def simple(path, **tensors):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


def test_numbers_that_overflow_leave_nothing_behind(tmp_path):
    base = simple(tmp_path / "base", m=torch.zeros(4, 4).half())
    tuned = simple(tmp_path / "tuned", m=torch.full((4, 4), 30_000.0).half())
    with pytest.raises(ValueError, match="m got numbers that float16 does not hold"):
        Merge(Versions(base, [tuned]), Dare(0.25)).write_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_others_of_several_models(tmp_path):
    matrix = torch.zeros(2, 2)
    base = simple(tmp_path / "base", m=matrix, norm=torch.zeros(2), kept=torch.zeros(2), count=torch.tensor(0))
    one = simple(tmp_path / "one", m=matrix + 1, norm=torch.ones(2), kept=torch.zeros(2), count=torch.tensor(5))
    two = simple(tmp_path / "two", m=matrix, norm=torch.full((2,), 4.0), kept=torch.ones(2), count=torch.tensor(5))
    Merge(Versions(base, [one, two]), Wise(1.0)).write_folder(tmp_path / "out")
    found = load_folder(tmp_path / "out")
    assert found["m"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert (found["norm"].tolist(), found["kept"].tolist(), int(found["count"])) == ([2.5, 2.5], [1.0, 1.0], 5)
    three = simple(tmp_path / "three", m=matrix, norm=torch.zeros(2), kept=torch.zeros(2), count=torch.tensor(6))
    with pytest.raises(ValueError, match="count is int64 and the tuned models changed it differently"):
        Merge(Versions(base, [one, three]), Wise(1.0)).write_folder(tmp_path / "out2")
