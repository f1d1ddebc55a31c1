import inspect
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dowser_pl import methods
from dowser_pl.commands.merge import METHODS, build_parser, main
from dowser_pl.commands.patch import main as patch
from dowser_pl.functional.random_streams import stream
from dowser_pl.methods import AfterFit
from dowser_pl.models.sources import EMBEDDED
from dowser_pl.patches.patch import save_patch
from tests.commands.test_main import loaded_after
from tests.patches.samples import load_folder, naive_changes, same_bits, save_base, save_tuned


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with base and two tuned models; tests must not change it."""
    folder = tmp_path_factory.mktemp("made")
    save_base(folder / "base")
    for name, seed in (("one", 1), ("two", 2)):
        save_tuned(folder / name, seed=seed)
    return folder


def run(capsys, *arguments):
    """What a command that works prints."""
    capsys.readouterr()  # transformers shows progress while fixtures save models
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return captured.out


def error(capsys, *arguments):
    """The one line of a command that does not."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err


def models(made, *tuned):
    return ["--base", made / "base", *(word for name in tuned for word in ("--tuned", made / name))]


def test_the_help_tells_the_methods_as_they_are():
    offered = {
        name: cls.of_patches or cls
        for name, cls in inspect.getmembers(methods, inspect.isclass)
        if issubclass(cls, AfterFit) and not inspect.isabstract(cls) and (cls.of_patches or cls)().needs == {"tuned"}
    }
    assert METHODS.keys() == offered.keys()
    text = build_parser().format_help()
    for name, cls in offered.items():
        defaults = {key: each.default for key, each in inspect.signature(cls).parameters.items()}
        assert METHODS[name][1] == defaults
        assert all(f"--method.{option} " in text for option in defaults)
        assert cls.reference.arxiv in METHODS[name][0]


def test_merge_writes_a_folder_and_says_what_it_did(made, tmp_path, capsys):
    options = ["--method", "Dare", "--method.update_ratio", "0.5", "--method.rescale=false", "--method.seed", "3"]
    out = run(capsys, *models(made, "one"), *options, "--out", tmp_path / "out", "--json", tmp_path / "numbers.json")
    before, after, found = (load_folder(folder) for folder in (made / "base", made / "one", tmp_path / "out"))
    name = "language_model.model.layers.1.self_attn.q_proj.weight"
    drawn = torch.rand(32, 32, generator=stream(3, "drop", name.removesuffix(".weight")))
    kept = drawn <= drawn.flatten().sort().values[511]
    assert torch.equal(found[name], torch.where(kept, after[name], before[name]))
    entries = 3 * (32 * 32 + 32 * 48)
    changed = sum(int((found[n] != before[n]).sum()) for n in found if found[n].ndim == 2)
    lines = out.splitlines()
    assert lines[0] == "Dare (update_ratio 0.5, rescale False, scale 1.0, seed 3), 1 tuned"
    assert [" ".join(line.split()) for line in lines[2:5]] == [
        "tensors entries not as in the base",
        f"matrices, merged 6 {entries:,} {changed:,}",
        "others, tuned 1 32 32",
    ]
    assert lines[-1] == f"Merged model written to {tmp_path / 'out'}."
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["merge"]["tensors"]["matrices, merged"] == {"tensors": 6, "entries": entries, "changed": changed}
    assert numbers["merge"]["method"]["seed"] == 3
    assert numbers["command"][:4] == ["python", "-m", "dowser_pl", "merge"]
    assert {"machine", "versions"} <= set(numbers)


@pytest.mark.parametrize("option", [[], ["--patch"]])
def test_merge_writes_a_patch(made, tmp_path, capsys, option):
    out = tmp_path / ("merged.bin" if option else "merged.safetensors")
    options = ["--method", "Ties", "--others", "base"]
    text = run(capsys, *models(made, "one", "two"), *options, "--out", out, *option)
    assert text.endswith(f"Patch written to {out}.\n")
    assert "others, left as in the base" in text
    run(capsys, *models(made, "one", "two"), *options, "--out", tmp_path / "folder")
    assert patch(["apply", str(made / "base"), str(out), "--out", str(tmp_path / "patched")]) == 0
    assert same_bits(load_folder(tmp_path / "patched"), load_folder(tmp_path / "folder"))
    capsys.readouterr()
    assert patch(["info", str(out)]) == 0
    assert "update_ratio: 0.2" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["base", "one"])
def test_a_patch_replaces_no_file_of_the_models(made, capsys, source):
    (file,) = (made / source).glob("model.safetensors")
    before = file.read_bytes()
    told = error(capsys, *models(made, "one"), "--method", "Wise", "--out", file)
    assert f"is inside {made / source}, which is merged; name a file elsewhere with --out" in told
    assert file.read_bytes() == before


def tailored(path, base, tuned, method):
    head = {"base": {"model": "tiny"}, "method": {"method": method}, "created_by": "a test"}
    save_patch(path, naive_changes(base, tuned), head)
    return path


@pytest.mark.parametrize("overlap", ["sum", "mean"])
def test_patches_of_several_tasks_are_stitched(made, tmp_path, capsys, overlap):
    """From the files, in NumPy: every patch by its own mask, added up where patches overlap."""
    runs = []
    for name in ("one", "two"):
        run_folder = tmp_path / name
        run_folder.mkdir()
        (run_folder / "report.json").write_text("{}")
        tailored(run_folder / "patch.safetensors", made / "base", made / name, "ModelTailor")
        runs += ["--tuned", run_folder]
    options = ["--base", made / "base", *runs, "--method", "ModelTailor", "--method.overlap", overlap]
    out = run(capsys, *options, "--out", tmp_path / "both")
    assert out.splitlines()[0] == f"ModelTailor (overlap {overlap}), 2 tuned"
    before, one, two, found = (
        {name: tensor.double().numpy() for name, tensor in load_folder(folder).items()}
        for folder in (made / "base", made / "one", made / "two", tmp_path / "both")
    )
    several = 0
    for name, start in before.items():
        masks = [each[name] != start for each in (one, two)]
        moves = sum(np.where(mask, each[name] - start, 0.0) for mask, each in zip(masks, (one, two), strict=True))
        count = masks[0].astype(int) + masks[1]
        is_matrix = start.ndim == 2
        several += int((count > 1).sum()) if is_matrix else 0
        share = np.maximum(count, 1) if overlap == "mean" or not is_matrix else 1
        np.testing.assert_allclose(found[name], start + moves / share, rtol=1e-6, atol=1e-6)
        assert (found[name][count == 0] == start[count == 0]).all()
    assert several > 100
    assert f"{several:,} entries are moved by several of them." in out
    run(capsys, *options, "--out", tmp_path / "both.safetensors")
    assert patch(["apply", str(made / "base"), str(tmp_path / "both.safetensors"), "--out", str(tmp_path / "put")]) == 0
    assert same_bits(load_folder(tmp_path / "put"), load_folder(tmp_path / "both"))
    third = ["--base", made / "base", *runs[:2], "--tuned", tmp_path / "both.safetensors", "--method", "ModelTailor"]
    run(capsys, *third, "--out", tmp_path / "three")


def test_only_tailored_patches_of_one_base_are_stitched(made, tmp_path, capsys):
    file = tailored(tmp_path / "p.safetensors", made / "base", made / "one", "ModelDowser")
    stitch = ["--method", "ModelTailor", "--out", tmp_path / "out"]
    told = error(capsys, "--base", made / "base", "--tuned", file, *stitch)
    assert f"merges patches of ModelTailor and Stitch, got {file}, made by ModelDowser; give runs of it" in told
    told = error(capsys, "--base", made / "two", "--tuned", file, *stitch)
    assert f"{file} was made from another base than {made / 'two'}" in told
    assert not (tmp_path / "out").exists()


def test_the_embedded_world_is_a_base_of_models_in_full_precision(tmp_path, capsys):
    tuned = {name: tensor.float() for name, tensor in load_folder(EMBEDDED["embedded:world"]).items()}
    for name in [name for name in tuned if name.endswith("down_proj.weight")]:
        tuned[name] += 0.1
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.json").write_text("{}")
    save_file(tuned, tmp_path / "tuned" / "model.safetensors")
    arguments = ["--base", "embedded:world", "--tuned", tmp_path / "tuned", "--method", "Wise", "--method.alpha", "1"]
    out = run(capsys, *arguments, "--out", tmp_path / "out")
    assert "The base was converted to float32, the tuned model's, which loses nothing." in out
    assert same_bits(load_folder(tmp_path / "out"), tuned)


def test_a_base_is_narrowed_where_it_is_asked_for(made, tmp_path, capsys):
    tuned = {name: tensor.bfloat16() for name, tensor in load_folder(made / "one").items()}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.json").write_text("{}")
    save_file(tuned, tmp_path / "tuned" / "model.safetensors")
    arguments = ["--base", made / "base", "--tuned", tmp_path / "tuned", "--method", "Wise", "--method.alpha", "1"]
    assert "or add --cast to convert the base" in error(capsys, *arguments, "--out", tmp_path / "out")
    out = run(capsys, *arguments, "--out", tmp_path / "out", "--cast")
    assert "The base was converted to bfloat16, the tuned model's, which may lose digits." in out
    assert same_bits(load_folder(tmp_path / "out"), tuned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "ModelTailor"], "made by nothing that is told; give runs of it, or their patch.safetensors"),
        (["--method", "Magnitude"], "Magnitude decides before or during training"),
        (["--method", "Daer"], "got --method Daer, expected one of: Dare, FAPM, Grafting, ModelTailor, Ties"),
        (["--method", "Layer"], "got --method Layer, expected one of"),
        (["--method", "Dare", "--method.drop", "1"], "Dare has no option --method.drop, expected one of: --method.upd"),
        (["--method", "Dare", "--method.seed", "1.5"], "expected a whole number such as 0"),
        (["--method", "Dare", "--method.rescale", "1"], "expected true or false"),
        (["--method", "Dare", "--method.update_ratio", "x"], "expected a number such as 0.1"),
        (["--method", "Dare", "--method.update_ratio", "2"], "update_ratio is the trainable share"),
        (["--method", "Dare", "--method.seed"], "got '--method.seed', expected options of the method"),
        (["--method", "Dare", "--ratio", "0.1"], "got '--ratio', expected options of the method"),
        (["--method", "Dare", "--only", "vision*"], "no matrix that matches vision* was tuned"),
    ],
)
def test_what_is_wrong_is_said(made, tmp_path, capsys, options, message):
    assert message in error(capsys, *models(made, "one"), *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_and_wrong_options_load_nothing_heavy(made):
    assert (
        loaded_after("from dowser_pl.__main__ import main\ntry: main(['merge', '--help'])\nexcept SystemExit: pass")
        == []
    )
