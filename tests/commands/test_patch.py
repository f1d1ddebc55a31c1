import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dowser_pl.commands.patch import SUB_VERBS, build_parser, main
from dowser_pl.models.sources import EMBEDDED
from tests.commands.test_main import loaded_after
from tests.patches.samples import (
    fingerprints,
    load_folder,
    make_patch,
    naive_changes,
    same_bits,
    save_base,
    save_tuned,
)

WORLD = EMBEDDED["embedded:world"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, two tuned models and their patches; tests must not change it."""
    folder = tmp_path_factory.mktemp("made")
    base = save_base(folder / "base")
    for name, seed in (("one", 1), ("two", 2)):
        make_patch(folder / f"{name}.safetensors", base, save_tuned(folder / name, seed=seed))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that works prints."""
    capsys.readouterr()  # transformers shows progress while fixtures save models
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return captured.out


def error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that does not."""
    capsys.readouterr()  # transformers shows progress while fixtures save models
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


def test_apply_and_remove(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patches = [made / "one.safetensors", made / "two.safetensors"]
    out = run(capsys, "apply", made / "base", *patches, "--out", tmp_path / "out")
    lines = [line.split() for line in out.splitlines()[1:3]]
    counts = [
        sum(c.values.numel() for c in naive_changes(made / "base", made / name).values()) for name in ("one", "two")
    ]
    assert [line[:2] for line in lines] == [
        ["one.safetensors", f"{counts[0]:,}"],
        ["two.safetensors", f"{counts[1]:,}"],
    ]
    assert lines[0][2:] == ["0", "0"]
    assert int(lines[1][2].replace(",", "")) >= int(lines[1][3].replace(",", "")) > 0
    assert "the later one wins" in out
    assert "takes two.safetensors off again" in out
    failed = error(capsys, "remove", tmp_path / "out", patches[0])
    assert "before" in failed and "remove two.safetensors" in failed
    assert "two.safetensors is off" in run(capsys, "remove", tmp_path / "out", patches[1], "--out", tmp_path / "out1")
    assert same_bits(load_folder(tmp_path / "out1"), load_folder(made / "one"))
    assert f"{counts[0]:,} entries restored" in run(capsys, "remove", tmp_path / "out1")
    assert fingerprints(tmp_path / "out1") == fingerprints(made / "base")


def test_diff_and_info(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch = tmp_path / "made.safetensors"
    out = run(capsys, "diff", made / "base", made / "one", "--out", patch)
    changes = naive_changes(made / "base", made / "one")
    entries = sum(change.values.numel() for change in changes.values())
    total = sum(torch.Size(change.shape).numel() for change in changes.values())
    facts = dict(
        line.split(maxsplit=1) for line in run(capsys, "info", patch, "--json", tmp_path / "i.json").splitlines()
    )
    assert facts["entries"].startswith(f"{entries:,} of {total:,} in these tensors ({entries / total:.2%})")
    assert (facts["dtype"], facts["base"], facts["tensors"]) == ("float32", str(made / "base"), str(len(changes)))
    assert facts["method"] == "name: diff"
    assert facts["checked"] == "every tensor, by its digest"
    assert facts["size"].startswith(f"{patch.stat().st_size:,} bytes")
    assert f"Patch written to {patch}" in out
    content = json.loads((tmp_path / "i.json").read_text())
    assert content["command"][:5] == ["python", "-m", "dowser_pl", "patch", "info"]
    assert {"machine", "versions"} <= set(content)
    assert {name: entry["entries"] for name, entry in content["patch"]["tensors"].items()} == {
        name: change.values.numel() for name, change in changes.items()
    }
    run(capsys, "apply", made / "base", patch, "--out", tmp_path / "out")
    assert same_bits(load_folder(tmp_path / "out"), load_folder(made / "one"))


def test_diff_with_a_ratio_says_what_it_leaves_out(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, "diff", made / "base", made / "one", "--out", tmp_path / "p", "--update-ratio", "0.1")
    assert "Left out, being no matrix: 1 changed tensor, first language_model.model.norm.weight" in out
    assert "update_ratio: 0.1" in out


def test_cast_is_suggested_and_noted(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = save_base(tmp_path / "base", torch.bfloat16), save_tuned(tmp_path / "tuned", torch.bfloat16)
    patch = make_patch(tmp_path / "p.safetensors", base, tuned)
    assert "add --cast" in error(capsys, "apply", made / "base", patch, "--out", tmp_path / "out")
    out = run(capsys, "apply", made / "base", patch, "--out", tmp_path / "out", "--cast")
    assert "Converted to bfloat16, which removing does not undo.\n" in out
    assert same_bits(load_folder(tmp_path / "out"), load_folder(tuned))
    assert "It stays in bfloat16" in run(capsys, "remove", tmp_path / "out")


def test_the_embedded_world_is_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = error(capsys, "diff", "embedded:world", "embedded:world", "--out", tmp_path / "p")
    assert "no entry of" in failed
    assert "world" in failed


def test_the_embedded_world_is_widened_for_a_patch_in_full_precision_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: tensor.float() for name, tensor in load_folder(WORLD).items()}
    tuned = {name: tensor.clone() for name, tensor in before.items()}
    for name in [name for name in before if name.endswith("down_proj.weight")]:
        tuned[name][::5] += 0.1
    for folder, tensors in (("base", before), ("tuned", tuned)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    patch = make_patch(tmp_path / "p.safetensors", tmp_path / "base", tmp_path / "tuned")
    out = run(capsys, "apply", "embedded:world", patch, "--out", tmp_path / "out")
    assert "Converted from float16 to float32, which loses nothing; removing undoes it.\n" in out
    assert same_bits(load_folder(tmp_path / "out"), tuned)
    assert "It is float16 again" in run(capsys, "remove", tmp_path / "out")
    assert fingerprints(tmp_path / "out") == fingerprints(WORLD)


@pytest.mark.parametrize("verb", ["info", "apply"])
def test_a_flipped_bit_is_one_line(made: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((made / "one.safetensors").read_bytes())
    content[-1] ^= 128
    (tmp_path / "one.safetensors").write_bytes(content)
    words = ["info"] if verb == "info" else ["apply", made / "base", "--out", tmp_path / "out"]
    failed = error(capsys, *words, tmp_path / "one.safetensors")
    assert re.search(r"one.safetensors is damaged \(language_model.*\); copy or make it again", failed), failed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["info", "{made}/oen.safetensors"],
            "there is no patch file .*oen.safetensors, did you mean .*one.safetensors",
        ),
        (["info", "{made}/base/model.safetensors"], "holds no patch"),
        (["apply", "{made}/bsae", "{made}/one.safetensors", "--out", "{out}"], "bsae.*did you mean .*/base"),
        (["apply", "no-such/model-here", "{made}/one.safetensors", "--out", "{out}"], "cache of the hub.*hf download"),
        (["apply", "{made}/base", "{made}/nope", "--out", "{out}"], "there is no patch file .*nope"),
        (["apply", "{made}/one", "{made}/two.safetensors", "--out", "{out}"], "was made from another base"),
        (["apply", "{made}/base", "{made}/one.safetensors", "--out", "{made}/two"], "two exists already"),
        (["remove", "{made}/base"], "has no patch to remove"),
        (
            ["diff", "{made}/base", "{made}/one", "--out", "{out}", "--update-ratio", "2"],
            r"must lie in \[0, 1\], got 2",
        ),
    ],
)
def test_errors_are_one_line(
    made: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = error(capsys, *(argument.format(made=made, out=tmp_path / "out") for argument in arguments))
    assert re.search(message, failed), failed
    assert list(tmp_path.iterdir()) == []


def test_help_states_the_order_and_loads_nothing() -> None:
    assert "the later one wins" in " ".join(build_parser().format_help().split())
    assert loaded_after("import dowser_pl.commands.patch as p; p.build_parser().format_help()") == []
    code = "import sys; from dowser_pl.commands.patch import main; main(sys.argv[1:])"
    for verb in SUB_VERBS:
        done = subprocess.run([sys.executable, "-c", code, verb, "--help"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"usage: python -m dowser_pl patch {verb} ")
