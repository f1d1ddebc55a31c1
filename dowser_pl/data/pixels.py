"""How large images may be: pixels that a processor keeps of one, and the tokens that come of it."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from dowser_pl.data.encoding import Encoder
from dowser_pl.data.rows import Question

# (height, width) of images in which every known way of cutting them into tiles takes as many as it ever does
_LARGE = [(4096, 4096), (4096, 2048), (2048, 4096), (4096, 1024), (1024, 4096), (4096, 3072), (3072, 4096)]


def limit_pixels(processor: ProcessorMixin, min_pixels: int | None, max_pixels: int | None) -> None:
    """Have the processor resize images to at least and at most so many pixels; None = as it was loaded.

    It is changed in place, so that the model is trained, evaluated and exported with one setting.

    Raises:
        ValueError: the processor does not resize to a number of pixels, or the numbers make no sense.
    """
    asked = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return
    images: Any = processor.image_processor
    if not _counts_pixels(images):
        raise ValueError(
            f"{' and '.join(asked)}: got {', '.join(map(str, asked.values()))}, but {type(images).__name__} does not "
            "resize images to a number of pixels (those of Qwen-VL do). Leave the settings out for this model."
        )
    changed = type(images).from_dict({**images.to_dict(), **asked})
    smallest, largest = _limits(changed)
    if not 0 < smallest <= largest:
        raise ValueError(
            f"min_pixels must be above 0 and at most max_pixels, got {smallest} and {largest} for "
            f"{type(images).__name__} (with its own setting where none was given)."
        )
    processor.image_processor = changed


def largest_image_tokens(encoder: Encoder) -> int:
    """Tokens of the largest image that the processor makes of any.

    Raises:
        ValueError: neither the processor says so nor can it be tried.
    """
    processor = encoder.processor
    images: Any = getattr(processor, "image_processor", None)
    if _counts_pixels(images) and hasattr(images, "merge_size"):
        return int(_limits(images)[1]) // (images.patch_size * images.merge_size) ** 2
    if hasattr(processor, "_get_num_multimodal_tokens"):
        told: Any = processor._get_num_multimodal_tokens(image_sizes=_LARGE)
        return max(told["num_image_tokens"])
    return _tried(encoder)


def _tried(encoder: Encoder) -> int:
    """Of one image, in models that have a fixed number."""
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    image = Image.new("RGB", (1024, 1024), "white")
    batch = encoder.evaluation_batch([Question("an image to measure", question, [image], [])])
    return int(encoder.image_positions(batch["inputs"]["input_ids"]).sum())


def _counts_pixels(images: Any) -> bool:
    known = getattr(getattr(images, "valid_kwargs", None), "__annotations__", {})
    return {"min_pixels", "max_pixels"} <= known.keys() and hasattr(images, "patch_size")


def _limits(images: Any) -> tuple[int, int]:
    size = images.size
    return size["shortest_edge"], size["longest_edge"]
