"""NVILA's processor from the folders that are published, and from its own."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, SiglipVisionConfig

from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.rows import Conversation
from dowser_pl.data.templates import ChatTemplate
from dowser_pl.errors import DowserError
from dowser_pl.models.agreement import check_agreement
from dowser_pl.models.loading import load_model, load_processor, read_config
from dowser_pl.models.nvila.config import NVILAConfig
from dowser_pl.models.nvila.processing import NVILAProcessor
from dowser_pl.models.nvila.tiles import NVILAImageProcessor
from tests.data.builders import IMAGE as PICTURE
from tests.data.builders import turn
from tests.tiny_models import tiny_tokenizer
from tests.tiny_nvila import save_nvila
from tests.tiny_nvila_processor import (
    LAYOUTS,
    QWEN2_TEMPLATE,
    tiny_nvila_processor,
    tiny_qwen2_tokenizer,
    write_processor_files,
)

ROW = Conversation(
    "row", [turn("user", PICTURE, "What?"), turn("assistant", "A cat.")], [Image.linear_gradient("L").resize((140, 70))]
)


def encoded(processor: NVILAProcessor) -> dict[str, torch.Tensor]:
    batch, _ = build_encoder(processor).training_batch([ROW])
    return {name: value for name, value in batch.items() if name != "ids"}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_processor(layout, tmp_path):
    folder = write_processor_files(tmp_path / "model", layout)
    processor = NVILAProcessor.from_pretrained(folder)
    assert isinstance(AutoProcessor.from_pretrained(folder, config=NVILAConfig.from_pretrained(folder)), NVILAProcessor)
    assert isinstance(processor, NVILAProcessor) and isinstance(processor.image_processor, NVILAImageProcessor)
    assert same(encoded(processor), encoded(tiny_nvila_processor()))
    assert processor.chat_template == tiny_nvila_processor().chat_template


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_agrees_with_its_model(layout, tmp_path):
    """As many image tokens as the model has features for them, whatever the folders are."""
    save_nvila(tmp_path / "model", layout)
    said = []
    processor = load_processor(str(tmp_path / "model"), say=said.append)
    assert isinstance(processor, NVILAProcessor) and said == []
    assert processor.image_token_id == load_model(str(tmp_path / "model")).config.image_token_id
    processor.image_seq_length = 9
    config = read_config("model", str(tmp_path / "model"))
    with pytest.raises(DowserError, match="writes 117 image tokens for one of 64x48 pixels, which the model refuses"):
        check_agreement("model", str(tmp_path / "model"), processor, config)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_read_again(layout, tmp_path):
    changed = {"max_tiles": 1, "min_tiles": 1}
    first = NVILAProcessor.from_pretrained(write_processor_files(tmp_path / "model", layout, **changed))
    first.save_pretrained(tmp_path / "saved")
    NVILAConfig.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert again.to_dict() == first.to_dict() and again.chat_template == first.chat_template
    assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    assert same(encoded(again), encoded(first)) and len(encoded(again)["pixel_values"]) == 1
    again.save_pretrained(tmp_path / "twice")
    for name in ("processor_config.json", "chat_template.jinja", "additional_chat_templates/newline_after_image.jinja"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_settings_are_those_of_the_model(tmp_path):
    folder = write_processor_files(tmp_path / "model", "original", min_tiles=2, max_tiles=4)
    processor = NVILAProcessor.from_pretrained(folder)
    assert (processor.image_processor.min_patches, processor.image_processor.max_patches) == (2, 4)
    assert processor.image_seq_length == 4
    projector = {"mm_projector_type": "mlp_downsample_2x2_fix"}
    folder = write_processor_files(
        tmp_path / "two", "original", mm_projector_cfg=projector, image_aspect_ratio="resize"
    )
    processor = NVILAProcessor.from_pretrained(folder)
    assert processor.image_seq_length == 9  # 5 x 5 patches, the last ones padded
    assert encoded(processor)["pixel_values"].shape == (1, 3, 70, 70)


def test_the_real_models_numbers(tmp_path):
    """448 pixels, patches of 14: 32 x 32, and 121 tokens of them."""
    vision = SiglipVisionConfig(image_size=448, patch_size=14).to_dict()
    folder = write_processor_files(tmp_path / "model", "original", vision_tower_cfg=vision)
    assert NVILAProcessor.from_pretrained(folder).image_seq_length == 121


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"image_aspect_ratio": "dynamic_s2"},
            "got image_aspect_ratio 'dynamic_s2' in config.json of .*expected dyn",
        ),
        ({"mm_projector_cfg": {"mm_projector_type": "mlp2x_gelu"}}, "got mm_projector_type 'mlp2x_gelu' in .*, exp"),
        ({"chat_template": "vicuna_v1"}, "got chat_template 'vicuna_v1' in config.json of .*expected qwen2"),
    ],
)
def test_what_is_not_built_is_refused_by_name(config, message, tmp_path):
    with pytest.raises(DowserError, match=message):
        NVILAProcessor.from_pretrained(write_processor_files(tmp_path / "model", "original", **config))


def test_another_image_processor_is_refused(tmp_path):
    folder = write_processor_files(tmp_path / "model", "original")
    (folder / "vision_tower" / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(
        DowserError, match="got a CLIPImageProcessor in preprocessor_config.json of .*expected the Siglip"
    ):
        NVILAProcessor.from_pretrained(folder)


def test_a_tokenizer_that_splits_newlines_is_refused():
    images = NVILAImageProcessor()
    with pytest.raises(DowserError, match="reads a newline as the tokens .*expected one token, which ends each tile"):
        NVILAProcessor(images, tiny_tokenizer())


class TestChatTemplates:
    """The tokenizer's own template counts, whatever it says; VILA's where it has none, or config.json names it."""

    def test_the_tokenizers_own(self):
        """For turns that are texts, as VILA leaves it; with another system turn here."""
        own = QWEN2_TEMPLATE.replace("You are a helpful assistant", "Be brief.")
        processor = NVILAProcessor(tiny_nvila_processor().image_processor, tiny_qwen2_tokenizer(chat_template=own))
        text = ChatTemplate(processor).render(ROW.messages)
        said = "<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        assert text == f"<|im_start|>system\nBe brief.<|im_end|>\n{said}"
        form = ChatTemplate(processor, "newline_after_image").render(ROW.messages)
        assert form == text.replace("<image>What?", "<image>\nWhat?")
        _, spans = ChatTemplate(processor).render_spans(ROW.messages, "row")
        assert [text[a:b] for a, b in spans] == ["A cat.<|im_end|>"]

    def test_one_for_turns_in_parts_is_taken_as_it_is(self):
        own = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] or '<image>' }}|{% endfor %}{% endfor %}"
        processor = NVILAProcessor(tiny_nvila_processor().image_processor, tiny_qwen2_tokenizer(chat_template=own))
        assert ChatTemplate(processor).render(ROW.messages) == "<image>|What?|A cat.|"

    def test_vilas_where_there_is_none_or_config_json_names_it(self, tmp_path):
        images, expected = tiny_nvila_processor().image_processor, tiny_nvila_processor().chat_template
        assert NVILAProcessor(images, tiny_qwen2_tokenizer(chat_template=None)).chat_template == expected
        folder = write_processor_files(tmp_path / "model", "original", chat_template="qwen2")
        tiny_qwen2_tokenizer(chat_template="other").save_pretrained(folder / "llm")
        assert NVILAProcessor.from_pretrained(folder).chat_template == expected
