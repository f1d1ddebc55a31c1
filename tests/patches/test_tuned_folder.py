"""The folder of a tuned model is that of its base, but for the numbers that were tuned."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from dowser_pl.models.loading import load_model
from dowser_pl.patches.safetensors_file import read_header
from dowser_pl.patches.tuned_folder import TunedFolder
from tests.patches.samples import fingerprints, load_folder, same_bits, save_base
from tests.tiny_experts import tiny_llava_mixtral
from tests.tiny_models import (
    FAMILIES,
    make_processor_folder,
    tiny_instructblip_t5,
    tiny_llava,
    tiny_paligemma,
)

TUNED = "language_model.layers.1.self_attn.q_proj.weight"
SAVED = "language_model.model.layers.1.self_attn.q_proj.weight"


def tune(folder: Path, out: Path, dtype="auto", tuned=TUNED, generation=None):
    """Load a base, move some weights of it, write it as a run does; the loaded model."""
    model = load_model(str(folder), dtype=dtype)
    with torch.no_grad():
        found = [weight for name, weight in model.named_parameters() if name.endswith(tuned)]
        assert found
        for weight in found:
            weight.view(-1)[::3] += 1
    TunedFolder.of(str(folder), model, model.state_dict(keep_vars=True)).write(out, generation or {})
    return model


def assert_read_as(model, folder):
    """Whoever loads the folder has the model, every bit of it."""
    loaded = type(model).from_pretrained(folder, dtype="auto")
    assert same_bits(dict(loaded.state_dict()), dict(model.state_dict()))


def differing(base: Path, out: Path) -> set[str]:
    before, after = fingerprints(base), fingerprints(out)
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def changed(base: Path, out: Path) -> set[str]:
    """Names of the tensors that differ; all names, dtypes and shapes must be there in both."""
    before, after = load_folder(base), load_folder(out)
    assert before.keys() == after.keys()
    return {name for name in before if not same_bits({"": before[name]}, {"": after[name]})}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_tuned_tensors_differ_in_names_files_and_headers_of_the_base(family, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    FAMILIES[family]().to(torch.bfloat16).save_pretrained(base, max_shard_size="40KB")
    make_processor_folder(base)
    names = {"instructblip_t5": "1.layer.0.SelfAttention.q.weight", "phi3": "1.self_attn.qkv_proj.weight"}
    tuned = names.get(family, "1.self_attn.q_proj.weight")
    before = fingerprints(base)
    model = tune(base, out, tuned=tuned)
    assert fingerprints(base) == before
    shards = {path.name for path in base.glob("*.safetensors")}
    assert len(shards) > 1 and differing(base, out) <= shards
    assert 0 < len(changed(base, out)) <= 2  # encoder and decoder of T5, vision and text of InternVL
    for name in shards:
        assert read_header(base / name) == read_header(out / name)
    assert_read_as(model, out)


def test_names_and_files_may_be_any_that_transformers_reads(tmp_path):
    """Old names, in an order and in shards that nobody writes today, and tensors that no model has."""
    base, out = save_base(tmp_path / "base"), tmp_path / "out"
    tensors = load_folder(base)
    assert any(name.startswith("language_model.model.layers") for name in tensors)
    (base / "model.safetensors").unlink()
    extra = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors[extra] = torch.tensor([1.0, float("nan"), -0.0])
    parts = {"model-00002-of-00002.safetensors": {}, "model-00001-of-00002.safetensors": {}}
    for number, name in enumerate(sorted(tensors, reverse=True)):
        list(parts.values())[number % 2][name] = tensors[name].contiguous()
    for file, part in parts.items():
        save_file(part, base / file, metadata={"format": "pt", "by": file})
    weight_map = {name: file for file, part in parts.items() for name in part}
    text = json.dumps({"weight_map": weight_map, "metadata": {"total_size": 1, "ü": 0.00001}}, ensure_ascii=False)
    (base / "model.safetensors.index.json").write_text(text)
    model = tune(base, out)
    assert changed(base, out) == {SAVED}
    assert differing(base, out) == {weight_map[SAVED]}
    assert_read_as(model, out)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(("old", "new"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")])
def test_another_dtype_is_one_word_of_the_config(tmp_path, key, old, new):
    base, out = save_base(tmp_path / "base", getattr(torch, old), "40KB"), tmp_path / "out"
    config = (base / "config.json").read_text().replace('"dtype"', f'"{key}"').replace("\n  ", "\n \t ")
    config = config.replace("{", '{\n "first": ["\\u00fc", "ü", 1e-5, 0.00001],', 1)
    (base / "config.json").write_text(config)
    model = tune(base, out, new)
    assert (out / "config.json").read_text() == config.replace(f'"{key}": "{old}"', f'"{key}": "{new}"')
    index = "model.safetensors.index.json"
    sizes = [sum(each.nbytes for each in load_folder(folder).values()) for folder in (base, out)]
    text = (base / index).read_text().replace(f'"total_size": {sizes[0]}', f'"total_size": {sizes[1]}')
    assert (out / index).read_text() == text
    shards = {path.name for path in base.glob("*.safetensors")}
    assert differing(base, out) == shards | {"config.json"} | ({index} if sizes[0] != sizes[1] else set())
    assert {path.name for path in out.glob("*.safetensors")} == shards
    for name in shards:
        with safe_open(base / name, "pt") as before, safe_open(out / name, "pt") as after:
            assert set(before.keys()) == set(after.keys()) and before.metadata() == after.metadata()
    assert {each.dtype for each in load_folder(out).values()} == {getattr(torch, new)}
    assert_read_as(model, out)


def test_files_wider_than_the_model_keep_the_digits_of_what_did_not_move(tmp_path):
    """The config asks for half precision, the files hold more: so they did, and so they do."""
    base, out = save_base(tmp_path / "base"), tmp_path / "out"
    config = base / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"float16"'))
    model = tune(base, out)
    assert model.dtype == torch.float16
    assert differing(base, out) == {"model.safetensors"} and changed(base, out) == {SAVED}
    before, after = (load_folder(folder)[SAVED].flatten() for folder in (base, out))
    moved = torch.arange(len(before)) % 3 == 0
    assert torch.equal(before[~moved], after[~moved])
    assert torch.equal(after[moved], (before[moved].half() + 1).float())
    assert_read_as(model, out)


def test_a_tensor_of_another_dtype_than_the_rest_keeps_it(tmp_path):
    base, out = save_base(tmp_path / "base", torch.bfloat16), tmp_path / "out"
    tensors = load_folder(base)
    norm = "language_model.model.norm.weight"
    tensors[norm] = tensors[norm].float() + 1e-6
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert_read_as(tune(base, out), out)
    assert changed(base, out) == {SAVED}


def test_a_config_without_a_dtype_is_read_as_the_first_tensor(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16)
    config = {k: v for k, v in json.loads((base / "config.json").read_text()).items() if k != "dtype"}
    (base / "config.json").write_text(json.dumps(config))
    assert_read_as(tune(base, tmp_path / "same"), tmp_path / "same")
    assert differing(base, tmp_path / "same") == {"model.safetensors"}
    tune(base, tmp_path / "wide", "float32")
    assert differing(base, tmp_path / "wide") == {"model.safetensors"}
    assert {each.dtype for each in load_folder(tmp_path / "wide").values()} == {torch.float32}


ENDS = {
    "one": (
        '{\n  "eos_token_id": 2,\n  "top_p": 1e-05\n}\n',
        [2, 7],
        '{\n  "eos_token_id": [2, 7],\n  "top_p": 1e-05\n}\n',
    ),
    "several": ('{"eos_token_id": [5, 2]}', [2, 7], '{"eos_token_id": [5, 2, 7]}'),
    "there": ('{"eos_token_id": [7, 2, 9]}', [2, 7], '{"eos_token_id": [7, 2, 9]}'),
    "the one": ('{"eos_token_id": 2}', [2], '{"eos_token_id": 2}'),
    "null": ('{"eos_token_id": null}', [2], '{"eos_token_id": 2}'),
    "none": ('{\n  "do_sample": true\n}', [2, 7], '{\n  "do_sample": true,\n  "eos_token_id": [2, 7]\n}'),
    "nothing to add": ('{"do_sample": true}', [], '{"do_sample": true}'),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_ends_of_an_answer_are_added_to_the_generation_config(tmp_path, case):
    before, stop, after = ENDS[case]
    base, out = save_base(tmp_path / "base"), tmp_path / "out"
    (base / "generation_config.json").write_text(before)
    tune(base, out, generation={"eos_token_id": stop, "pad_token_id": 0})
    assert (out / "generation_config.json").read_text() == after
    assert differing(base, out) <= {"model.safetensors", "generation_config.json"}


def test_a_base_without_a_generation_config_gets_one_only_where_it_needs_it(tmp_path):
    base = save_base(tmp_path / "base")
    (base / "generation_config.json").unlink()
    own = {"eos_token_id": 2, "pad_token_id": 0}
    tune(base, tmp_path / "same", generation=own | {"eos_token_id": [2]})
    assert not (tmp_path / "same" / "generation_config.json").exists()
    tune(base, tmp_path / "more", generation=own | {"eos_token_id": [2, 7]})
    assert json.loads((tmp_path / "more" / "generation_config.json").read_text()) == own | {"eos_token_id": [2, 7]}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "more")
    assert loaded.generation_config.eos_token_id == [2, 7] and loaded.generation_config.pad_token_id == 0


@pytest.mark.parametrize("shard", ["50GB", "40KB"])
def test_pickled_weights_become_safetensors_under_the_same_names(tmp_path, shard):
    base, out = save_base(tmp_path / "base", torch.bfloat16, shard), tmp_path / "out"
    pickle(base)
    model = tune(base, out)
    assert not list(out.glob("*.bin*"))
    written, before = load_folder(out), unpickled(base)
    assert list(written) and written.keys() == before.keys()
    assert {name for name in written if not torch.equal(written[name], before[name])} == {SAVED}
    others = {path for path in fingerprints(base) if "pytorch_model" not in path}
    assert {name: fingerprints(out)[name] for name in others} == {name: fingerprints(base)[name] for name in others}
    if shard != "50GB":
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(before)
        assert all(name in load_file(out / file) for name, file in index["weight_map"].items())
        assert index["metadata"] == {"total_size": sum(each.nbytes for each in written.values())}
    assert_read_as(model, out)
    with safe_open(next(out.glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_pickled_weights_of_before_2020(tmp_path):
    base, out = save_base(tmp_path / "base"), tmp_path / "out"
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(tensors, base / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_read_as(tune(base, out), out)
    assert load_folder(out).keys() == tensors.keys()


def pickle(base: Path) -> None:
    for path in base.glob("*.safetensors"):
        torch.save(load_file(path), base / path.name.replace("model", "pytorch_model").replace("safetensors", "bin"))
        path.unlink()
    index = base / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        (base / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def unpickled(base: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in base.glob("*.bin") for name, tensor in torch.load(path, weights_only=True).items()}


def with_both_copies(base: Path, head: torch.Tensor | None = None) -> None:
    """lm_head.weight beside the embeddings it is tied to, as some converters leave it."""
    tensors = load_file(base / "model.safetensors")
    tied = next(tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
    save_file(tensors | {HEAD: tied.clone() if head is None else head}, base / "model.safetensors", {"format": "pt"})


HEAD = "language_model.lm_head.weight"
EMBEDDINGS = "language_model.model.embed_tokens.weight"


@pytest.fixture
def tied(tmp_path):
    tiny_paligemma().save_pretrained(tmp_path / "base")
    return make_processor_folder(tmp_path / "base")


@pytest.mark.parametrize("copies", ["one", "two", "two that differ"])
def test_tied_weights_are_as_the_files_have_them(tied, tmp_path, copies):
    if copies != "one":
        with_both_copies(tied, None if copies == "two" else torch.full((96, 32), 0.5))
    names = set(load_folder(tied))
    assert (HEAD in names) == (copies != "one") and EMBEDDINGS in names
    tune(tied, tmp_path / "other")
    assert HEAD not in changed(tied, tmp_path / "other") and EMBEDDINGS not in changed(tied, tmp_path / "other")
    model = tune(tied, tmp_path / "out", tuned="embed_tokens.weight")
    both = {EMBEDDINGS} if copies == "two that differ" else {HEAD, EMBEDDINGS} & names  # transformers unties those
    assert changed(tied, tmp_path / "out") == both
    written = load_folder(tmp_path / "out")
    assert all(torch.equal(written[name], model.get_input_embeddings().weight) for name in both)
    assert_read_as(model, tmp_path / "out")


def test_tied_weights_that_lie_under_another_of_their_names(tmp_path):
    tiny_instructblip_t5().save_pretrained(tmp_path / "base")
    base = make_processor_folder(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    shared = "language_model.shared.weight"
    tensors["language_model.encoder.embed_tokens.weight"] = tensors[shared].clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    model = tune(base, tmp_path / "out", tuned="shared.weight")
    assert changed(base, tmp_path / "out") == {shared, "language_model.encoder.embed_tokens.weight"}
    assert_read_as(model, tmp_path / "out")


def test_what_is_joined_in_memory_is_apart_in_the_files(tmp_path):
    tiny_llava_mixtral().save_pretrained(tmp_path / "base")
    base = make_processor_folder(tmp_path / "base")
    model = tune(base, tmp_path / "out", tuned="layers.1.mlp.experts.gate_up_proj")
    names = changed(base, tmp_path / "out")
    assert len(names) == 8 and all(".layers.1." in name and ".experts." in name for name in names)
    assert_read_as(model, tmp_path / "out")


def test_what_would_be_another_model_is_left_out_and_the_rest_is_kept(tmp_path):
    base, out = save_base(tmp_path / "base"), tmp_path / "out"
    kept = [
        "LICENSE",
        "README.md",
        "modeling_x.py",
        "tokenizer.model",
        "additional_chat_templates/rag.jinja",
        "x/y/z.py",
    ]
    stale = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"]
    stale += [
        "model.fp16.safetensors",
        "onnx/model.onnx",
        ".git/lfs/objects/1",
        ".cache/x",
        "model.gguf",
        "tf_model.h5",
    ]
    stale += ["dowser_patches/applied.json", "dowser_patches/01.undo.safetensors", "checkpoint-5/model.safetensors"]
    for name in kept + stale:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text('{"weight_map": {}}' if name.endswith(".json") else name)
    before = set(fingerprints(base))
    tune(base, out)
    assert before - set(fingerprints(out)) == set(stale)
    assert differing(base, out) == {"model.safetensors", *stale}


def test_links_of_the_cache_are_followed(tmp_path):
    blobs, base, out = save_base(tmp_path / "blobs"), tmp_path / "base", tmp_path / "out"
    base.mkdir()
    for path in blobs.iterdir():
        (base / path.name).symlink_to(path)
    tune(base, out)
    assert differing(base, out) == {"model.safetensors"}
    assert not any(path.is_symlink() for path in out.iterdir())


def test_a_folder_that_is_not_that_of_the_model_is_refused(tmp_path):
    base = save_base(tmp_path / "base")
    model = load_model(str(base))
    state = model.state_dict(keep_vars=True)
    tensors = load_file(base / "model.safetensors")
    gone = {name: tensor for name, tensor in tensors.items() if name != SAVED}
    save_file(gone, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"base has no tensor {SAVED}, which the loaded model has"):
        TunedFolder.of(str(base), model, state)
    save_file(tensors | {SAVED: torch.zeros(32, 31)}, base / "model.safetensors")
    with pytest.raises(ValueError, match=r"has shape \(32, 32\) in the loaded model and \(32, 31\) in"):
        TunedFolder.of(str(base), model, state)
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match="base"):
        TunedFolder.of(str(base), model, state)
    with pytest.raises(FileNotFoundError, match="the cache of the hub has no such model"):
        TunedFolder.of("nobody/nothing-of-the-kind", model, state)


def test_its_size_is_known_before(tmp_path):
    base = save_base(tmp_path / "base", torch.bfloat16)
    for dtype in ("auto", "float32"):
        model = load_model(str(base), dtype=dtype)
        folder = TunedFolder.of(str(base), model, model.state_dict(keep_vars=True))
        folder.write(tmp_path / dtype, {})
        written = sum(path.stat().st_size for path in (tmp_path / dtype).rglob("*"))
        assert 0.8 * written < folder.num_bytes <= written


def test_no_tensor_of_the_base_is_read_for_one_that_the_model_has(tmp_path):
    """Or writing the model would take twice the time."""
    base = save_base(tmp_path / "base")
    model = tiny_llava()
    folder = TunedFolder.of(str(base), model, model.state_dict(keep_vars=True))
    for shard in folder._shards:
        for stored in shard.tensors.values():
            object.__setattr__(stored, "raw", lambda: pytest.fail("read"))
            object.__setattr__(stored, "read", lambda: pytest.fail("read"))
    folder.write(tmp_path / "out", {})
    assert same_bits(load_folder(base), load_folder(tmp_path / "out"))
