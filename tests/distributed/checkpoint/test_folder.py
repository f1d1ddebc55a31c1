"""Folders that several ranks write together: whole to PyTorch's own tools, and to any reader of any rows."""

import errno
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dowser_pl.distributed import collectives
from dowser_pl.distributed.checkpoint import Share, extents, is_folder, open_folder, read_folder, share_of, write_folder
from dowser_pl.functional.masks import pack, to_rows
from tests.distributed.harness import outcomes, run

pytestmark = pytest.mark.slow

RANKS = 3
CUTS = {  # of the first dimension; the first rank holds no value, the last one no row
    "values": [0, 0, 4, 10],
    "moments": [0, 7, 7, 10],
    "rows": [0, 2, 5, 5],
    "nothing": [0, 0, 0, 0],
    "mask": [0, 2, 5, 5],
}


def wholes() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "values": torch.randn(10, generator=random),
        "moments": torch.randn(10, generator=random).to(torch.bfloat16),
        "rows": torch.randn(5, 3, 2, generator=random),
        "nothing": torch.empty(0),
        "mask": torch.rand(5, 11, generator=random) < 0.4,
    }


def checkpoint(rank: int) -> dict:
    """What a rank gives; the plain data of the first is to be kept."""
    shares = {}
    for name, tensor in wholes().items():
        first, end = CUTS[name][rank : rank + 2]
        rows = to_rows(pack(tensor), tensor.shape) if name == "mask" else tensor
        shares[name] = Share(rows[first:end].clone(), first, tuple(rows.shape), 11 if name == "mask" else None)
    tied = share_of(torch.arange(6.0).view(2, 3))
    return {
        "state_dict": {"head": tied, "embeddings": tied, "scale": share_of(torch.tensor(3.5))},
        "callbacks": {"Dowser": {"entries": {"layers.0.proj": shares}, "seed": torch.tensor(rank)}},
        "optimizer_states": [{"state": {0: {"exp_avg": shares["moments"], "step": rank}}}],
        "rank": rank,
    }


def write(path: Path) -> None:
    write_folder(checkpoint(collectives.rank()), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "last.ckpt"
    run(write, path, ranks=RANKS)
    return path


@pytest.mark.slow
def test_it_is_read_as_one_process_would_have_written_it(folder):
    assert is_folder(folder)
    assert [each.name for each in folder.parent.iterdir()] == ["last.ckpt"]
    found, expected = read_folder(folder), wholes()
    entries = found["callbacks"]["Dowser"]["entries"]["layers.0.proj"]
    assert torch.equal(entries.pop("mask"), pack(expected.pop("mask")))
    assert entries.keys() == expected.keys()
    for name, tensor in expected.items():
        assert entries[name].dtype == tensor.dtype and torch.equal(entries[name], tensor), name
    assert found["rank"] == found["callbacks"]["Dowser"]["seed"] == 0
    state = found["state_dict"]
    assert state["head"] is state["embeddings"] and torch.equal(state["head"], torch.arange(6.0).view(2, 3))
    assert state["scale"].shape == () and state["scale"] == 3.5
    assert found["optimizer_states"][0]["state"][0]["exp_avg"] is entries["moments"]
    assert found["optimizer_states"][0]["state"][0]["step"] == 0
    assert "optimizer_states" not in read_folder(folder, without=["optimizer_states"])


def test_tools_of_pytorch_read_whole_tensors(folder, tmp_path):
    dcp_to_torch_save(folder, tmp_path / "all.pt")
    found = torch.load(tmp_path / "all.pt", weights_only=True)
    expected = {f"callbacks.Dowser.entries.layers.0.proj.{name}": tensor for name, tensor in wholes().items()}
    mask = expected.pop("callbacks.Dowser.entries.layers.0.proj.mask")
    bits = found.pop("callbacks.Dowser.entries.layers.0.proj.mask")
    for row, byte_pair in zip(mask.tolist(), bits.tolist(), strict=True):
        assert [bool(byte_pair[i // 8] >> i % 8 & 1) for i in range(16)] == [*row, *[False] * 5]
    expected |= {"state_dict.head": torch.arange(6.0).view(2, 3), "state_dict.scale": torch.tensor(3.5)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_any_rows_are_read_from_the_files_that_hold_them(folder):
    stored = open_folder(folder)["callbacks"]["Dowser"]["entries"]["layers.0.proj"]
    for name in ("values", "moments", "rows", "nothing"):
        tensor = wholes()[name]
        assert stored[name].shape == tensor.shape and stored[name].dtype == tensor.dtype
        for first in range(len(tensor) + 1):
            for end in range(first, len(tensor) + 1):
                assert torch.equal(stored[name][first:end], tensor[first:end]), (name, first, end)


def test_a_process_opens_only_what_it_reads(folder, monkeypatch):
    opened, real = [], torch.serialization.load
    entry = open_folder(folder)["callbacks"]["Dowser"]["entries"]["layers.0.proj"]
    monkeypatch.setattr(torch, "load", lambda *args, **kw: opened.append(real(*args, **kw)) or opened[-1])
    entry["values"][1:3]
    assert [part.tolist() for part in opened] == [wholes()["values"][:4].tolist()]


def where(lengths):
    return extents(lengths[collectives.rank()])


def test_extents_are_the_sums_of_what_lies_before():
    assert run(where, [[0, 7], [4, 0]], ranks=2) == [[(0, 4), (0, 7)], [(0, 4), (7, 7)]]


class Code:
    def __reduce__(self):
        return print, ("run",)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def garble(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))


def without_tensor(path: Path) -> None:
    metadata = pickle.loads(path.read_bytes())
    del metadata.state_dict_metadata["state_dict.scale"]
    path.write_bytes(pickle.dumps(metadata))


def without_part(path: Path) -> None:
    metadata = pickle.loads(path.read_bytes())
    del metadata.state_dict_metadata["callbacks.Dowser.entries.layers.0.proj.values"].chunks[0]
    path.write_bytes(pickle.dumps(metadata))


DAMAGES = {
    "no description": (".metadata", Path.unlink, "not a whole checkpoint: got no readable .metadata"),
    "a garbled description": (".metadata", garble, "not a whole checkpoint: got no readable .metadata"),
    "code in it": (".metadata", lambda file: file.write_bytes(pickle.dumps(Code())), "print does not belong in it"),
    "no plain data": ("meta.pt", Path.unlink, "got no readable meta.pt in it .FileNotFoundError"),
    "garbled plain data": ("meta.pt", garble, "got no readable meta.pt in it"),
    "of another program": ("meta.pt", lambda file: torch.save({}, file), "written by another program or version"),
    "code in the plain data": ("meta.pt", lambda file: torch.save({"a": Code()}, file), "got no readable meta.pt"),
    "a missing file": ("__1_0.distcp", Path.unlink, "got no file of __1_0.distcp, expected .* bytes. Copy the folder"),
    "a file cut short": ("__1_0.distcp", shorten, "got .* bytes of __1_0.distcp, expected .* bytes. Copy the folder"),
    "a garbled file": ("__1_0.distcp", garble, "is damaged: got .* for the tensor .* Copy the folder again"),
    "a missing tensor": (".metadata", without_tensor, "is damaged: got no tensor 'state_dict.scale'"),
    "a missing part": (".metadata", without_part, "is damaged: got too few parts for the tensor .*values"),
}


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def flat(value: object, path: str = "") -> dict[str, object]:
    """Leaf by leaf, tensors as their bits."""
    if isinstance(value, torch.Tensor):
        return {path: (str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).tolist())}
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, each in pairs for key, leaf in flat(each, f"{path}.{name}").items()}
    return {path: value}


@pytest.mark.parametrize("file", ["__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt"])
def test_a_flipped_bit_anywhere_is_told_or_changes_nothing(folder, tmp_path, file):
    """One bit of every few bytes."""
    shutil.copytree(folder, tmp_path / "last.ckpt")
    path, expected, told = tmp_path / "last.ckpt" / file, flat(read_folder(folder)), 0
    whole = path.read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 150))
    for number, place in enumerate(places):
        flip(path, place, number % 8)
        try:
            assert flat(read_folder(tmp_path / "last.ckpt")) == expected, place
        except ValueError as error:
            told += 1
            assert str(tmp_path / "last.ckpt") in str(error) and "got" in str(error) and "expected" in str(error)
        path.write_bytes(whole)
    assert told > len(places) / 20


def test_a_flipped_bit_of_a_tensor_is_told_with_its_name_and_only_to_who_reads_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "last.ckpt")
    values = wholes()["values"]
    for file in (tmp_path / "last.ckpt").glob("*.distcp"):
        content = file.read_bytes()
        part = values[4:10].numpy().tobytes()  # of the last rank
        file.write_bytes(content.replace(part, part[:-1] + bytes([part[-1] ^ 128])))
    entry = open_folder(tmp_path / "last.ckpt")["callbacks"]["Dowser"]["entries"]["layers.0.proj"]
    assert torch.equal(entry["values"][0:4], values[:4]) and torch.equal(entry["rows"].whole(), wholes()["rows"])
    for read in (lambda: entry["values"][3:6], entry["values"].whole):
        with pytest.raises(ValueError, match=r"damaged: got digest \w+, from row 4 on, for the tensor '.*proj.values'"):
            read()


def test_a_folder_of_an_earlier_version_is_read_and_told_of(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "last.ckpt")
    plain = torch.load(tmp_path / "last.ckpt" / "meta.pt", weights_only=True)
    del plain["digests_of_tensors"], plain["digest_of_the_rest"], plain["digests_of_parts"]
    torch.save(plain, tmp_path / "last.ckpt" / "meta.pt")
    assert flat(read_folder(tmp_path / "last.ckpt")) == flat(read_folder(folder))
    (record,) = caplog.records
    assert "carries no digests" in record.getMessage()


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told(folder, tmp_path, name, capsys):
    file, damage, said = DAMAGES[name]
    shutil.copytree(folder, tmp_path / "last.ckpt")
    damage(tmp_path / "last.ckpt" / file)
    with pytest.raises(ValueError, match=said):
        read_folder(tmp_path / "last.ckpt")
    assert capsys.readouterr().out == ""


def write_where_it_fails(path: Path, code: int) -> None:
    """The second rank cannot write."""
    if collectives.rank() == 1:
        FileSystemWriter.write_data = failing(code)
    write(path)


def failing(code: int):
    def write_data(self, plan, planner):
        (Path(self.path) / "__1_0.distcp").write_bytes(b"half")
        raise OSError(code, "of the second")

    return write_data


@pytest.mark.parametrize(
    "code, said",
    [
        (errno.ENOSPC, "FileError: .*The disk is full"),
        (errno.EIO, "FileError: .* process 1 got OSError: .*of the second. The old one is unchanged"),
    ],
    ids=["a full disk", "another error"],
)
def test_what_one_rank_cannot_write_leaves_the_old_one(tmp_path, code, said):
    path = tmp_path / "last.ckpt"
    path.write_text("old")
    for outcome in outcomes(write_where_it_fails, path, code, ranks=RANKS):
        assert re.match(said, outcome.message), outcome
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def write_where_it_is_not_seen(path: Path) -> None:
    """As where the second rank writes to a disk of its own."""
    if collectives.rank() == 1:
        real = FileSystemWriter.write_data

        def write_data(self, plan, planner):
            written = real(self, plan, planner)
            (Path(self.path) / "__1_0.distcp").unlink()
            return written

        FileSystemWriter.write_data = write_data
    write(path)


def test_a_disk_that_not_all_ranks_see_is_told_at_once(tmp_path):
    for outcome in outcomes(write_where_it_is_not_seen, tmp_path / "last.ckpt", ranks=RANKS):
        assert outcome.message.startswith("FileError") and "got no file of __1_0.distcp" in outcome.message
        assert "expected a folder that all processes write to and see" in outcome.message
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_overwritten(tmp_path):
    left = tmp_path / ".last.tmp.ckpt"
    left.mkdir()
    (left / "__7_0.distcp").write_text("half")
    for number in (1.0, 2.0):  # also over a folder
        write_folder({"state_dict": {"scale": share_of(torch.tensor(number))}}, tmp_path / "last.ckpt")
    assert sorted(each.name for each in (tmp_path / "last.ckpt").iterdir()) == [".metadata", "__0_0.distcp", "meta.pt"]
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
    assert read_folder(tmp_path / "last.ckpt")["state_dict"]["scale"] == 2.0
