"""The processors of other families, as far as they can be built without torchvision."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma3Processor,
    Idefics3Processor,
    InstructBlipProcessor,
    InternVLProcessor,
    LlavaNextProcessor,
    MllamaProcessor,
    PaliGemmaProcessor,
    Qwen2_5_VLProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dowser_pl.data.encoders import build_encoder
from dowser_pl.models.nvila import NVILAImageProcessor, NVILAProcessor
from tests.data.builders import IMAGE, build_tokenizer, chat_template, many_images, one_image, question, text_only, turn
from tests.data.test_labels import huggingface_mask

SIZE = {"height": 16, "width": 16}
GRID = [[16, 32], [32, 16], [32, 32]]


def llava_next(template):
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE, image_grid_pinpoints=GRID)
    return LlavaNextProcessor(
        images,
        build_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def idefics3(template):
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return Idefics3Processor(images, build_tokenizer(), image_seq_len=4, chat_template=template)


def gemma3(template):
    tokenizer = build_tokenizer()
    for name, token in {"boi": "<boi>", "eoi": "<eoi>", "image": "<image>"}.items():
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    template = template.replace("<image>", "<boi>")
    return Gemma3Processor(Gemma3ImageProcessorPil(size=SIZE), tokenizer, template, image_seq_length=4)


class WithoutVideo:
    """Skips the class check of the video processor, which cannot be built without torchvision."""

    def check_argument_for_proper_class(self, name, argument):
        return None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)


class Qwen(WithoutVideo, Qwen2_5_VLProcessor):
    pass


class InternVL(WithoutVideo, InternVLProcessor):
    pass


def qwen2_5_vl(template):
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096})
    tokenizer = build_tokenizer()
    template = template.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    return Qwen(images, tokenizer, None, chat_template=template)


def internvl(template):
    tokenizer = build_tokenizer()
    names = {"start_image": "<boi>", "end_image": "<eoi>", "context_image": "<image>", "video": "<video>"}
    for name, token in names.items():
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    images = GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    return InternVL(images, tokenizer, None, image_seq_length=4, chat_template=template)


def nvila(template):
    images = NVILAImageProcessor(size=SIZE, max_patches=4)
    return NVILAProcessor(images, build_tokenizer(), template, image_seq_length=4)


def mllama(template):
    tokenizer = build_tokenizer()
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    return MllamaProcessor(MllamaImageProcessorPil(size=SIZE, max_image_tiles=2), tokenizer, chat_template=template)


FAMILIES = [llava_next, idefics3, gemma3, qwen2_5_vl, internvl, nvila, mllama]


@pytest.mark.parametrize("build", FAMILIES)
@pytest.mark.parametrize("generation", [True, False])
def test_labels_equal_huggingfaces_mask(build, generation):
    rows = [one_image(), many_images(), text_only()]
    ids, mask = huggingface_mask(build(chat_template()), rows)
    batch, _ = build_encoder(build(chat_template(generation))).training_batch(rows)
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["labels"] != -100, mask)


@pytest.mark.parametrize("rows", [[one_image()], [text_only()]], ids=["picture", "text"])
def test_a_template_that_leaves_the_first_token_to_mllamas_processor_is_refused(rows):
    begin = build_tokenizer().bos_token
    encoder = build_encoder(mllama(chat_template().replace(begin, "")))
    with pytest.raises(ValueError, match=f"{rows[0].id}: MllamaProcessor puts '{begin}' before a text that has none"):
        encoder.training_batch(rows)


@pytest.mark.parametrize("build", FAMILIES)
def test_questions_end_where_the_assistant_starts(build):
    processor = build(chat_template())
    inputs = build_encoder(processor).evaluation_batch([question(many_images()), question(text_only())])["inputs"]
    texts = processor.tokenizer.batch_decode(inputs["input_ids"])
    assert all(text.endswith("ASSISTANT:") for text in texts)


def test_paligemma_takes_the_answer_as_suffix():
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, build_tokenizer())
    encoder = build_encoder(processor)
    batch, _ = encoder.training_batch([one_image(), one_image()])
    assert processor.tokenizer.decode(batch["input_ids"][0]) == "<image>" * 4 + "<s>what colour is it?\nred</s>"
    assert processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100]) == "red</s>"
    assert torch.equal(batch["token_type_ids"] == 1, batch["labels"] != -100)  # what the model's mask rests on
    inputs = encoder.evaluation_batch([question(one_image())])["inputs"]
    assert "labels" not in inputs
    assert processor.tokenizer.decode(inputs["input_ids"][0]).endswith("<s>what colour is it?\n")
    for row in (text_only(), many_images()):  # alone or not: else it would depend on the batch
        with pytest.raises(ValueError, match=f"{row.id}: PaliGemmaProcessor takes"):
            encoder.training_batch([one_image(), row])
    with pytest.raises(ValueError, match="text: PaliGemmaProcessor takes at least one image per row, got 0"):
        encoder.evaluation_batch([question(text_only())])
    with pytest.raises(ValueError, match="many: PaliGemmaProcessor takes one question and one answer"):
        encoder.training_batch([many_images()])


def test_instructblip_shows_its_qformer_the_question_only():
    processor = InstructBlipProcessor(
        BlipImageProcessorPil(size=SIZE), build_tokenizer(), build_tokenizer(), num_query_tokens=4
    )
    with pytest.raises(ValueError, match="InstructBlipProcessor has no chat template"):
        build_encoder(processor)
    encoder = build_encoder(processor, chat_template(generation=False, image=""))
    batch, _ = encoder.training_batch([one_image(), one_image()])
    decode = processor.tokenizer.decode
    assert decode(batch["input_ids"][0]) == "<image>" * 4 + "<s>USER: \nwhat colour is it?\nASSISTANT: red</s>\n"
    assert decode(batch["labels"][0][batch["labels"][0] != -100]) == ": red</s>"
    assert "red" not in decode(batch["qformer_input_ids"][0])
    with pytest.raises(ValueError, match="text: InstructBlipProcessor takes exactly one image per row, got 0"):
        encoder.training_batch([one_image(), text_only()])
    plain, _ = build_encoder(processor, "plain").training_batch([one_image()])
    assert decode(plain["input_ids"][0]) == "<image>" * 4 + "what colour is it?\nred</s>"
    inputs = encoder.evaluation_batch([question(one_image())])["inputs"]
    assert torch.equal(inputs["qformer_input_ids"][0], batch["qformer_input_ids"][0])
    short = replace(one_image(), id="short", messages=[turn("user", IMAGE, "why?"), turn("assistant", "so")])
    inputs = encoder.evaluation_batch([question(one_image()), question(short)])["inputs"]
    seen = zip(inputs["qformer_input_ids"], inputs["qformer_attention_mask"].sum(dim=1).tolist(), strict=True)
    assert ["what colour" in decode(ids[:length]) for ids, length in seen] == [True, False]
    assert inputs["input_ids"][1, 4] == processor.tokenizer.pad_token_id  # behind the picture, as in its training
    candidates = [replace(question(row), candidates=["red", "blue"]) for row in (one_image(), short)]
    measured = encoder.evaluation_batch(candidates)["inputs"]
    assert all("red" not in decode(ids) for part in measured for ids in part["qformer_input_ids"])
    processor.qformer_tokenizer.model_max_length = 3
    with pytest.raises(ValueError, match=r"one: .* \d+ tokens for the Q-Former, expected 3 at most"):
        encoder.training_batch([one_image()])


def test_instructblip_is_trained_on_an_answer_behind_a_space():
    processor = InstructBlipProcessor(
        BlipImageProcessorPil(size=SIZE), build_tokenizer(), build_tokenizer(), num_query_tokens=4
    )
    encoder = build_encoder(processor, "instructblip")
    batch, _ = encoder.training_batch([one_image()])
    decode = processor.tokenizer.decode
    assert decode(batch["input_ids"][0]) == "<image>" * 4 + "what colour is it? red</s>"
    assert decode(batch["labels"][0][batch["labels"][0] != -100]) == " red</s>"
    assert decode(batch["qformer_input_ids"][0]) == "what colour is it?"
    inputs = encoder.evaluation_batch([question(one_image())])["inputs"]
    assert decode(inputs["input_ids"][0]) == "<image>" * 4 + "what colour is it?"
    assert encoder.turn_ends() == ((processor.tokenizer.eos_token_id,), "")
