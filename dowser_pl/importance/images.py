"""Images of uniform noise, as the processor of the model makes them."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dowser_pl.functional.random_streams import stream
from dowser_pl.importance.settings import Probe

__all__ = ["noise_images"]

_SIDE = 336  # pixels before the processor resizes; CLIP's own resolution


def noise_images(processor: Any, settings: Probe, indices: range) -> list[dict[str, Tensor]]:
    """One noise image per prompt, without text.

    Args:
        processor: Hugging Face processor with an image token.
        settings: the seed.
        indices: numbers of the prompts.

    Returns:
        Per prompt the processor's output: ``input_ids`` (1, L) and the image inputs.

    Raises:
        ValueError: if the processor has no image token to place an image by.
    """
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str):
        raise ValueError(
            f"{type(processor).__name__} has no image token, so probe.noise_images cannot place an image; "
            "set --dowser.probe.noise_images false"
        )
    start = (processor.tokenizer.bos_token or "") + token
    encoded = []
    for index in indices:
        random = stream(settings.seed, "noise", index)
        pixels = torch.randint(0, 256, (_SIDE, _SIDE, 3), generator=random, dtype=torch.uint8)
        image = Image.fromarray(pixels.numpy())
        encoded.append(dict(processor(text=[start], images=[image], return_tensors="pt", add_special_tokens=False)))
    return encoded
