"""A script for transformers 4.57: writes small models as that version does, and reads what runs wrote.

Needs nothing of this project, which wants transformers 5. ``build FOLDER`` writes a base of every family, ``read OUT
FOLDER ...`` what the tokenizers and models of these folders make of fixed text.
"""

import json
import sys
from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>", "<vision_start>", "<vision_end>"]
WORDS = "user assistant system : . , ? ! yes no what colour is it red green blue".split()
VOCABULARY = SPECIAL + WORDS + [f"w{number}" for number in range(96 - len(SPECIAL) - len(WORDS))]
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ ' ' + m['role'] + ' :' }}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ ' <image>' }}{% else %}{{ ' ' + p['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ ' </s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)
# a theta that no class has as its default
TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 700.0,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 8}
QWEN_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
QWEN_VISION |= {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}


def llava():
    config = t.LlavaConfig(t.CLIPVisionConfig(**VISION), t.LlamaConfig(**TEXT), 4, vision_feature_layer=-1)
    return t.LlavaForConditionalGeneration(config)


def llava_next():
    vision, text = t.CLIPVisionConfig(**VISION), t.MistralConfig(**TEXT)
    points = [[16, 32], [32, 16], [32, 32]]
    return t.LlavaNextForConditionalGeneration(
        t.LlavaNextConfig(vision, text, 4, vision_feature_layer=-1, image_grid_pinpoints=points)
    )


def qwen2_5_vl():
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    tokens = {"image_token_id": 4, "video_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7}
    return t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(vision_config=QWEN_VISION, **TEXT, rope_scaling=rope, **tokens)
    )


def internvl():
    return t.InternVLForConditionalGeneration(
        t.InternVLConfig(VISION | {"patch_size": 4}, t.Qwen2Config(**TEXT), image_token_id=4, image_seq_length=4)
    )


FAMILIES = {"llava": llava, "llava_next": llava_next, "qwen2_5_vl": qwen2_5_vl, "internvl": internvl}


def build(folder: Path, family: str) -> None:
    torch.manual_seed(0)
    FAMILIES[family]().to(torch.bfloat16).save_pretrained(folder, max_shard_size="30KB")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = t.LlamaTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 16, "width": 16}
    t.LlavaProcessor(
        t.CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def read(folder: Path) -> dict:
    found = {"version": t.__version__}
    for name, part in {"ids": _ids, "logits": _logits}.items():
        try:
            found[name] = part(folder)
        except Exception as error:  # noqa: BLE001 - of any kind: that is what is asked
            found[name] = f"{type(error).__name__}: {error}"
    return found


def _ids(folder: Path) -> list[int]:
    return t.AutoTokenizer.from_pretrained(folder)("what colour is it ?", add_special_tokens=False)["input_ids"]


def _logits(folder: Path) -> list:
    model = t.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    text = torch.arange(8, 72).view(2, 32)
    with torch.no_grad():
        return model(input_ids=text, attention_mask=torch.ones_like(text)).logits.tolist()


if __name__ == "__main__":
    verb, first, *others = sys.argv[1:]
    if verb == "build":
        for family in FAMILIES:
            build(Path(first) / family, family)
    else:
        Path(first).write_text(json.dumps({folder: read(Path(folder)) for folder in others}))
