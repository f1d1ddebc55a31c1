r"""Texts and pictures to what NVILA takes: which tokens stand for a picture, and how a conversation is written.

A tile is so many image tokens and one newline, whose embedding is the encoder's end token. The picture of a text that
has no other is cut into tiles, each of which a newline of the text follows as well; of several pictures each is one
tile, without that. All of it is VILA's (github.com/NVlabs/VILA at b760c34): `generate_content` of
`llava/model/llava_arch.py`, `llava/model/encoders/image/basic.py`, `llava/model/language_model/builder.py` and its
`qwen2.jinja`.

A question has two forms. A row that holds `<image>\nQ` becomes the tiles and `Q`, as VILA's `generate_content` asks
`[image, Q]` and its class `LLaVADataset` trains such rows. With the chat template named `newline_after_image` the
newline of the row stays, as its class `LLaVANextDataset` trains them; with that of the last tile it is one token of
two newlines.

VILA's training differs in three ways that are not followed: it cuts each of several pictures; `LLaVADataset` moves
pictures before all words; and of an answer of several lines it learns the newline behind the answer's end token instead
of the first one inside, as it finds answers by comparing tokens.
"""

import re
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import MultiModalData
from transformers.utils import cached_file

from dowser_pl.errors import DowserError
from dowser_pl.models.nvila.config import NVILAConfig
from dowser_pl.models.nvila.published import HUB, MEDIA
from dowser_pl.models.nvila.tiles import NVILAImageProcessor

__all__ = ["NVILAProcessor"]

_IMAGE, _VIDEO = MEDIA[1:]
_TURN_END = "<|im_end|>"
_TURNS, _CHAT = ((Path(__file__).parent / f"{name}.jinja").read_text(encoding="utf-8") for name in ("turns", "chat"))
_LINE = "{%- set newline_after_image = true -%}\n"
_SAID = [{"role": role, "content": f"the {role}"} for role in ("system", "user", "assistant", "user")]


class NVILAProcessor(ProcessorMixin):
    """Processor of NVILA: tokenizer, tiles and chat template, from any of the three layouts that are published.

    Args:
        image_processor: an `NVILAImageProcessor`.
        tokenizer: of Qwen2; gets the tokens of pictures where it lacks them, with the numbers that VILA gives them.
        chat_template: Jinja text, or several by name; None = as the tokenizer's own writes conversations, VILA's
            where it has none; and the same with a newline behind pictures, named `newline_after_image`.
        image_seq_length: image tokens of a tile.

    Raises:
        DowserError: a tokenizer that splits or lacks the newline.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        image_seq_length: int = 121,
    ) -> None:
        if _IMAGE not in tokenizer.added_tokens_encoder:
            new = [AddedToken(token, special=True, normalized=False) for token in MEDIA]
            tokenizer.add_tokens(new, special_tokens=True)
        self.image_seq_length = image_seq_length
        self.image_token, self.video_token = _IMAGE, _VIDEO
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([_IMAGE, _VIDEO])
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        if len(newline) != 1:
            raise DowserError(
                f"the tokenizer of an NVILA reads a newline as the tokens {newline}, expected one token, which ends "
                "each tile. Fix: take the files of the tokenizer from the model"
            )
        self._newline = int(newline[0])
        own = chat_template or (tokenizer.get_chat_template() if tokenizer.chat_template else None)
        templates = own if isinstance(own, dict) else _templates(tokenizer, own)
        super().__init__(image_processor, tokenizer, chat_template=templates)

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Encode texts and their pictures, one for each `<image>` of the texts.

        Args:
            images: of all texts in order, or a list of each text's.
            text: one or several.
            videos: refused.
            kwargs: as those of any processor of transformers.

        Returns:
            `input_ids` and `attention_mask` of the texts, and `pixel_values` (tiles of all texts, 3, side, side).

        Raises:
            DowserError: another number of pictures than of `<image>` in a text, or videos.
        """
        if videos is not None:
            raise DowserError(f"NVILA takes no videos here. Fix: give their frames as images, one {_IMAGE} for each")
        encoded = super().__call__(images=images, text=text, **kwargs)
        for row in encoded.get("input_ids", []):
            ids = row.tolist() if hasattr(row, "tolist") else row
            places = [place for place, token in enumerate(ids) if token == self.image_token_id]
            for place in places[self.image_seq_length :: self.image_seq_length + 1]:
                row[place] = self._newline
        return encoded

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> Any:
        """Lay pictures out as a list for each text, because it depends on their number whether they are cut."""
        images, text, *others = super().prepare_inputs_layout(images, text, videos, audio, **kwargs)
        return (images if images is None else _by_text(images, text), text, *others)

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **_: Any) -> str:
        """Write what stands for a picture: image tokens, the last of each tile in the place of its newline."""
        tile = self.image_token * (self.image_seq_length + 1) + ("\n" if image_inputs["is_cut"][image_idx] else "")
        return tile * int(image_inputs["num_patches"][image_idx])

    def get_text_with_replacements(self, text: list[str], images: Sequence[str] = (), *others: Any) -> Any:
        """Put pictures into texts; turns are stripped, so that no newline follows a picture that ends one."""
        if images:
            ends = [sample.startswith(_TURN_END, mark.end()) for sample in text for mark in _marks(sample)]
            images = [each.removesuffix("\n") if is_last else each for each, is_last in zip(images, ends, strict=True)]
        return super().get_text_with_replacements(text, list(images), *others)

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        """`pixel_values` of all texts, and what stands for each picture."""
        made: dict[str, list[Any]] = {"pixel_values": [], "num_patches": [], "is_cut": []}
        for row in filter(None, images):
            is_cut = self.image_processor.crop_to_patches and len(row) == 1
            found = self.image_processor(row, **kwargs | {"crop_to_patches": is_cut, "return_tensors": None})
            for name, values in (*found.items(), ("is_cut", [is_cut] * len(row))):
                made[name] += values
        texts = [self.replace_image_token(made, place) for place in range(len(made["is_cut"]))]
        return {"pixel_values": made["pixel_values"]} if texts else {}, texts

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """What a text grows by for a picture of each (height, width) that has it to itself."""
        settings = self._merge_kwargs(**kwargs)["images_kwargs"]
        tiles = [self.image_processor.get_number_of_image_patches(*size, settings) for size in image_sizes or []]
        each = self.image_seq_length + 1 + bool(self.image_processor.crop_to_patches)
        return MultiModalData(num_image_tokens=[each * number for number in tiles], num_image_patches=tiles)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Read the settings of a folder or hub id; what published ones lack of them follows from the model's config."""
        settings, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "image_seq_length" not in settings:
            config = _config(pretrained_model_name_or_path, kwargs)
            vision = config.vision_config
            settings["image_seq_length"] = ceil(vision.image_size // vision.patch_size / config.downsample) ** 2
            if "chat_template" not in settings and (name := getattr(config, "chat_template", None)) is not None:
                settings["chat_template"] = _named(name, pretrained_model_name_or_path)
        return settings, rest

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Image processor and tokenizer, from the root or from the folders of VILA's parts."""
        path = pretrained_model_name_or_path
        place = "" if _has(path, "tokenizer_config.json", kwargs) else "llm"
        tokenizer = AutoTokenizer.from_pretrained(path, subfolder=place, **kwargs)
        at_root = "image_processor" in (processor_dict or {}) or _has(path, "preprocessor_config.json", kwargs)
        place = "" if at_root else "vision_tower"
        settings, _ = NVILAImageProcessor.get_image_processor_dict(path, subfolder=place, **kwargs)
        if settings.get("image_processor_type") != NVILAImageProcessor.__name__:
            settings |= _tile_settings(path, settings, _config(path, kwargs))
        return [NVILAImageProcessor.from_dict(settings), tokenizer]


def _marks(text: str) -> list[re.Match[str]]:
    return list(re.finditer(re.escape(_IMAGE), text))


def _by_text(images: Any, text: list[str] | None) -> list[list[Any]]:
    flat: Any = make_flat_list_of_images(images)
    if text is None:
        return [[image] for image in flat]
    expected = [len(_marks(sample)) for sample in text]
    is_nested = isinstance(images, list | tuple) and any(isinstance(each, list | tuple) for each in images)
    got = [len(each) for each in images] if is_nested else len(flat)
    if got != (expected if is_nested else sum(expected)):
        raise DowserError(
            f"got {got} pictures for {expected} places {_IMAGE} in the texts, expected one for each. Fix: write "
            f"{_IMAGE} where each picture belongs, or leave the others out"
        )
    column = iter(flat)
    return [[next(column) for _ in range(number)] for number in expected]


def _templates(tokenizer: Any, own: str | None) -> str | dict[str, str]:
    """The chat templates by name, from the model's own; one for turns in parts is taken as it is."""

    def written(template: str) -> list[str]:
        options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
        return [tokenizer.apply_chat_template(said, **options) for said in (_SAID, _SAID[1:])]

    if not own or written(own) == written(_CHAT):
        return _in_both_forms(_CHAT)
    takes_texts = all(turn["content"] in written(own)[0] for turn in _SAID)
    return _in_both_forms(own) if takes_texts else own


def _in_both_forms(chat: str) -> dict[str, str]:
    return {"default": _TURNS + chat, "newline_after_image": _LINE + _TURNS + chat}


def _named(name: str, path: Any) -> dict[str, str]:
    """The chat templates that VILA keeps in its code and names in config.json."""
    if name != "qwen2":
        raise DowserError(
            f"got chat_template {name!r} in config.json of {path}, expected qwen2, the one of NVILA. Fix: take an "
            "NVILA-Lite model"
        )
    return _in_both_forms(_CHAT)


def _config(path: Any, kwargs: Mapping[str, Any]) -> Any:
    return NVILAConfig.from_pretrained(path, **{name: kwargs[name] for name in HUB if name in kwargs})


def _has(path: Any, name: str, kwargs: Mapping[str, Any]) -> bool:
    options = {name: kwargs[name] for name in HUB if name in kwargs}
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **options) is not None


def _tile_settings(path: Any, settings: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """How pictures are cut, by the keys that VILA has in the model's config, before SigLIP's image processor."""
    if not str(got := settings.get("image_processor_type")).startswith("Siglip"):
        raise DowserError(
            f"got a {got} in preprocessor_config.json of {path}, expected the SiglipImageProcessor of an NVILA. Fix: "
            "take that file from the model"
        )
    if config.image_aspect_ratio not in ("dynamic", "resize", None):
        raise DowserError(
            f"got image_aspect_ratio {config.image_aspect_ratio!r} in config.json of {path}, expected dynamic or "
            "resize: pictures are cut into tiles or stretched to one here. Fix: take an NVILA-Lite model"
        )
    cut = config.image_aspect_ratio == "dynamic"
    return {"crop_to_patches": cut, "min_patches": config.min_tiles, "max_patches": config.max_tiles}


AutoImageProcessor.register(NVILAConfig, image_processor_classes={"pil": NVILAImageProcessor})
AutoProcessor.register(NVILAConfig, NVILAProcessor)
