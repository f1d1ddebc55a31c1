"""Every bit of a file of ours counts: a file that differs anywhere is refused, or says the very same."""

import json
import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dowser_pl.files.sealed import Kind, Sealed, UnusableError, reseal, seal

KIND = Kind("kind", "thing", "content", 7, cure="copy it again", other="name another one")
HEAD = {"made_by": "tests \u732b", "numbers": [1, 2.5, float("nan")], "nested": {"a": None}}


@pytest.fixture
def tensors():
    return {"one": torch.arange(5.0), "two": torch.tensor([[1, 2, 3]], dtype=torch.uint8), "none": torch.empty(0, 3)}


@pytest.fixture
def path(tmp_path, tensors):
    save_file(tensors, tmp_path / "file.safetensors", seal(KIND, HEAD, tensors))
    return tmp_path / "file.safetensors"


def content(path):
    """All that a file says, bit for bit."""
    file = Sealed(path, KIND)
    read = {name: file.verify(name, file.read(name)) for name in file.names()}
    told = {name: (str(each.dtype), tuple(each.shape), each.numpy().tobytes()) for name, each in read.items()}
    return json.dumps(file.head, sort_keys=True), told, file.has_digests


def test_what_was_written_is_read(path, tensors):
    head, told, has_digests = content(path)
    assert json.loads(head)["made_by"] == HEAD["made_by"] and json.loads(head)["format"] == 7
    assert told["one"][2] == tensors["one"].numpy().tobytes() and told.keys() == tensors.keys() and has_digests


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(path):
    """One bit of every byte, another from byte to byte."""
    whole, expected = path.read_bytes(), content(path)
    refused = 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = content(path)
        except UnusableError as error:
            refused += 1
            assert str(path) in str(error) and str(error).endswith(("copy it again", "name another one"))
        else:
            assert found == expected, place
    assert refused > 0.95 * len(whole)


def test_a_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UnusableError, match=r"is not a readable thing \(.*\); copy it again"):
            Sealed(path, KIND)


def test_the_tensor_is_named(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(torch.arange(5.0).numpy().tobytes(), torch.arange(1.0, 6.0).numpy().tobytes()))
    file = Sealed(path, KIND)
    file.verify("two", file.read("two"))
    with pytest.raises(UnusableError, match=r"is damaged \(one has digest [0-9a-f]{12}, expected [0-9a-f]{12}\)"):
        file.verify("one", file.read("one"))


@pytest.mark.parametrize("swap", [{"one": "two", "two": "one"}, {"three": "one", "two": "two"}])
def test_tensors_under_each_others_names_are_refused(path, tensors, swap):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    renamed = {new: tensors[old] for new, old in swap.items()}
    save_file(renamed | {"none": tensors["none"]}, path, metadata)
    with pytest.raises(UnusableError, match="(one|two) has digest|do not belong together"):
        content(path)


def test_other_kinds_and_versions_are_told_from_damage(path, tensors):
    save_file(tensors, path, seal(Kind("other", "thing", "content", 7, "", ""), HEAD, tensors))
    with pytest.raises(UnusableError, match=r"holds no content, .* \(format None, expected 7\); name another one"):
        Sealed(path, KIND)
    save_file(tensors, path, seal(Kind("kind", "thing", "content", 8, "", ""), HEAD, tensors))
    with pytest.raises(UnusableError, match=r"\(format 8, expected 7\)"):
        Sealed(path, KIND)


def test_a_file_without_digests_is_read_and_told_of_once(path, tensors, caplog):
    save_file(tensors, path, {"kind": json.dumps({"format": 7, "x": 1})})
    for _ in range(2):
        file = Sealed(path, KIND)
        file.tell()
        assert not file.has_digests and torch.equal(file.verify("one", file.read("one")), tensors["one"])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and f"{path} carries no digests" in record.getMessage()


def test_one_digest_too_few_is_damage_not_an_old_file(path, tensors):
    for gone in ("digests", "sha256"):
        head = json.loads(seal(KIND, HEAD, tensors)["kind"])
        del head[gone]
        save_file(tensors, path, {"kind": json.dumps(head)})
        with pytest.raises(UnusableError, match="its head is not what was written"):
            Sealed(path, KIND)


def test_digests_follow_tensors_that_are_replaced_in_place(path, tensors):
    others = tensors | {"one": torch.arange(5.0) + 1}
    whole = path.read_bytes()
    path.write_bytes(whole.replace(tensors["one"].numpy().tobytes(), others["one"].numpy().tobytes()))
    named = json.loads(seal(KIND, HEAD, others)["kind"])["digests"]
    reseal(path, KIND, {"one": named["one"]})
    assert len(path.read_bytes()) == len(whole)
    assert content(path)[1]["one"][2] == others["one"].numpy().tobytes()
    assert all(torch.equal(tensor, others[name]) for name, tensor in load_file(path).items())
