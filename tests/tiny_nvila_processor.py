"""The files of an NVILA's processor in all three published layouts, with a tokenizer of Qwen2's kind, made small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from transformers import AddedToken, Qwen2Config, Qwen2Tokenizer, SiglipVisionConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dowser_pl.models.nvila.processing import NVILAProcessor
from dowser_pl.models.nvila.tiles import NVILAImageProcessor

Layout = Literal["original", "remote", "hf"]
LAYOUTS: tuple[Layout, ...] = ("original", "remote", "hf")

MERGES = [("Ċ", "Ċ"), ("q", "u")]  # two newlines are one token, as they are of Qwen2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]"]
MEDIA = ["<vila/sentinel>", "<image>", "<vila/video>"]
VOCABULARY = [*bytes_to_unicode().values(), *("".join(pair) for pair in MERGES), *SPECIALS, *MEDIA]
"""Bytes first, in the order of Qwen2's vocabulary, where a newline is number 198; then merges and control tokens."""

NEWLINE, TWO_NEWLINES = 198, VOCABULARY.index("ĊĊ")
ENDOFTEXT, IM_START, IM_END, BOS, PAD, SENTINEL, IMAGE, VIDEO = range(len(VOCABULARY) - 8, len(VOCABULARY))
SIDE, PATCH = 70, 14  # 5 x 5 patches a tile, 2 x 2 image tokens of it where 3 x 3 are one

# VILA's own, as its training leaves it in the tokenizer: for turns that are texts.
QWEN2_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": SIDE, "width": SIDE},
}


def spelled(text: str) -> list[int]:
    """The tokens of a text without newlines in a row, and without the letters q and u in one."""
    return [VOCABULARY.index(bytes_to_unicode()[byte]) for byte in text.encode()]


def tiny_qwen2_tokenizer(media: bool = True, chat_template: str | None = QWEN2_TEMPLATE) -> Qwen2Tokenizer:
    """Byte-level BPE with the control tokens of NVILA; `media` = those of pictures among them."""
    tokens = VOCABULARY if media else VOCABULARY[: -len(MEDIA)]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=list(MERGES),
        unk_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        bos_token="[BOS]",
        pad_token="[PAD]",
        model_max_length=4096,
    )
    control = [AddedToken(token, special=True, normalized=False) for token in SPECIALS + MEDIA if token in tokens]
    tokenizer.add_tokens(control, special_tokens=True)
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_nvila_processor(**settings: Any) -> NVILAProcessor:
    """Four image tokens for each tile of 70 x 70 pixels; `settings` are those of the image processor."""
    images = NVILAImageProcessor(size={"height": SIDE, "width": SIDE}, **settings)
    return NVILAProcessor(images, tiny_qwen2_tokenizer(), image_seq_length=4)


def write_processor_files(folder: Path, layout: Layout, media: bool | None = None, **config: Any) -> Path:
    """Write config.json and what a processor is read from, as a layout has them; returns the folder.

    Args:
        folder: made where it is not there.
        layout: whose folders and names.
        media: whether the tokenizer has the tokens of pictures; None = as that layout is published.
        config: over the keys of config.json.
    """
    is_single = layout == "hf"
    has_media = layout != "original" if media is None else media
    tokenizer = tiny_qwen2_tokenizer(has_media)
    tokenizer.save_pretrained(folder if is_single else folder / "llm")
    seen = folder if is_single else folder / "vision_tower"
    seen.mkdir(parents=True, exist_ok=True)
    made_for = {"processor_class": "NVILALiteProcessor" if is_single else "SiglipProcessor"}
    (seen / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | made_for))
    text = Qwen2Config(vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=48, num_hidden_layers=2).to_dict()
    vision = SiglipVisionConfig(image_size=SIDE, patch_size=PATCH, hidden_size=16, vision_use_head=False).to_dict()
    shared = {"image_aspect_ratio": "dynamic", "min_tiles": 1, "max_tiles": 12}
    if is_single:
        told = {"model_type": "nvila_lite", "text_config": text, "vision_config": vision}
        told |= {"image_token_id": IMAGE, "video_token_id": VIDEO}
        told |= {"auto_map": {"AutoProcessor": "processing_nvila_lite.NVILALiteProcessor"}}
    else:
        told = {"model_type": "llava_llama" if layout == "original" else "vila", "llm_cfg": text}
        told |= {"vision_tower_cfg": vision, "mm_projector_cfg": {"mm_projector_type": "mlp_downsample_3x3_fix"}}
        told |= {"chat_template": None, **shared}
        for part in ("llm", "vision_tower"):
            (folder / part / "config.json").write_text(json.dumps((told | config)[f"{part}_cfg"]))
    (folder / "config.json").write_text(json.dumps(told | config))
    return folder
