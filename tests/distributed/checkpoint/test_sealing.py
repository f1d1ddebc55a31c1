"""A checkpoint's file says what it must hold: whatever else is in it is told, tensors by their names."""

from collections import OrderedDict

import pytest
import torch

from dowser_pl.distributed.checkpoint import checked, read_file, sealed


def checkpoint() -> dict:
    random = torch.Generator().manual_seed(0)
    moment = torch.randn(3, 5, generator=random)
    return {
        "state_dict": OrderedDict(weight=torch.randn(4, 3, generator=random).t(), half=torch.ones(3).bfloat16()),
        "callbacks": {"Dowser": {"entries": {"layer": {"mask": torch.tensor([7], dtype=torch.uint8)}}, "none": None}},
        "optimizer_states": [
            {"state": {0: {"exp_avg": moment, "step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        ],
        "loops": {"epoch": 3, "seen": (1, 2), "names": {"b", "a"}, "rate": float("nan"), "text": "\u732b \udc80"},
        "dtype": torch.bfloat16,
        "empty": torch.empty(0, 3),
    }


def flat(value, path=""):
    if isinstance(value, torch.Tensor):
        return {path: (str(value.dtype), value.contiguous().view(-1).view(torch.uint8).tolist(), tuple(value.shape))}
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, each in pairs for key, leaf in flat(each, f"{path}.{name}").items()}
    return {path: sorted(value) if isinstance(value, set) else str(value)}


@pytest.fixture
def path(tmp_path):
    torch.save(sealed(checkpoint()), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize("mmap", [False, True])
def test_what_was_written_is_read_without_a_word(path, caplog, mmap):
    assert flat(read_file(path, mmap=mmap)) == flat(checkpoint()) and not caplog.records


def test_sealing_leaves_the_checkpoint_as_it_is():
    given = checkpoint()
    sealed(given)
    assert flat(given) == flat(checkpoint())


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_told_or_changes_nothing(path):
    whole, expected, told = path.read_bytes(), flat(checkpoint()), 0
    places = range(0, len(whole), 7)
    for number, place in enumerate(places):
        changed = bytearray(whole)
        changed[place] ^= 1 << number % 8
        path.write_bytes(changed)
        try:
            assert flat(read_file(path)) == expected, place
        except ValueError as error:
            told += 1
            assert str(path) in str(error)
    assert told > len(places) / 20


def test_a_file_cut_anywhere_is_told(path):
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"last.ckpt is not a readable checkpoint \(\w+\), expected a .ckpt file"):
            read_file(path)


CHANGES = {
    "one weight": (lambda c: c["state_dict"]["weight"].view(torch.int32).__ixor__(1), "state_dict.weight"),
    "a bit of a mask": (lambda c: c["callbacks"]["Dowser"]["entries"]["layer"]["mask"].add_(8), "layer.mask"),
    "a moment": (lambda c: c["optimizer_states"][0]["state"][0]["exp_avg"].neg_(), "optimizer_states.0.state.0.exp_a"),
    "a step": (lambda c: c["optimizer_states"][0]["state"][0]["step"].add_(1), "optimizer_states.0.state.0.step"),
    "a dtype": (lambda c: c["state_dict"].update(half=torch.ones(3).half()), "state_dict.half"),
    "a shape": (lambda c: c.update(empty=torch.empty(0, 4)), "'empty'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_tensor_is_named(tmp_path, name):
    change, tensor = CHANGES[name]
    content = sealed(checkpoint())
    change(content)
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(
        ValueError, match=rf"got digest \w{{12}} for the tensor '?.*{tensor}.*, expected \w{{12}}. Copy"
    ):
        read_file(tmp_path / "last.ckpt", mmap=True)


PLAIN = {
    "a number": lambda c: c["loops"].update(epoch=4),
    "a learning rate": lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=0.2),
    "another kind of number": lambda c: c["loops"].update(epoch=3.0),
    "true for one": lambda c: c["loops"].update(epoch=True),
    "a text": lambda c: c["loops"].update(text="other"),
    "nothing": lambda c: c["callbacks"]["Dowser"].update(none=0),
    "a key": lambda c: c["loops"].update(epochs=c["loops"].pop("epoch")),
    "a tensor's name": lambda c: c["state_dict"].update(other=c["state_dict"].pop("half")),
    "a tensor more": lambda c: c["state_dict"].update(more=torch.ones(1)),
    "a tensor less": lambda c: c["state_dict"].pop("half"),
    "a member of a set": lambda c: c["loops"]["names"].add("c"),
    "a digest": lambda c: c["digests_of_tensors"].pop("empty"),
    "digests": lambda c: c.pop("digests_of_tensors"),
    "the other digest": lambda c: c.pop("digest_of_the_rest"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_data_counts_as_well(name):
    content = sealed(checkpoint())
    PLAIN[name](content)
    with pytest.raises(ValueError, match="here is damaged: got other names, numbers or text in it than were written"):
        checked(content, "here")


def test_a_file_of_an_earlier_version_is_read_and_told_of_once(tmp_path, caplog):
    torch.save(checkpoint(), tmp_path / "old.ckpt")
    for _ in range(2):
        assert flat(read_file(tmp_path / "old.ckpt")) == flat(checkpoint())
    (record,) = caplog.records
    assert "old.ckpt carries no digests" in record.getMessage()


def test_what_is_no_checkpoint_is_left_to_the_caller(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    assert read_file(tmp_path / "list.pt") == [1, 2]
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "gone.ckpt")


def test_an_error_of_the_disk_is_told_as_one(tmp_path, monkeypatch):
    """Not as damage, which would send people to copy a file that is whole."""

    def fail(*args, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_file(tmp_path / "last.ckpt")


@pytest.mark.parametrize("mmap", [False, True])
def test_wherever_a_file_is_cut_off_it_is_told_as_damaged(tmp_path, mmap):
    """Where the cut falls decides which error torch ends in; one of them looks like the disk's."""
    torch.save({**checkpoint(), "large": torch.arange(5000.0)}, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    for end in range(0, len(whole), len(whole) // 40):
        (tmp_path / "cut.ckpt").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            read_file(tmp_path / "cut.ckpt", mmap=mmap)


def test_a_place_that_changed_bytes_made_up_is_no_error_of_the_disk(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_file(tmp_path / "last.ckpt")
