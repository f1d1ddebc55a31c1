"""One question to a loaded model, outside of any loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.images import read_source
from dowser_pl.data.rows import Question
from dowser_pl.errors import DowserError
from dowser_pl.models.generation import greedy_answers
from dowser_pl.models.text_only import reads_images, tokenizer_of
from dowser_pl.module.evaluation import EvaluatedModule

__all__ = ["ask", "check_images_are_read"]


def check_images_are_read(module: EvaluatedModule, images: Sequence[Path]) -> None:
    """Refuse pictures for a model that cannot see, before its weights are loaded.

    Raises:
        DowserError: saying so.
    """
    if images and not reads_images(module.processor):
        raise DowserError(f"got the image {images[0]}, expected none: the model reads text alone. Fix: leave it out")


@torch.no_grad()
def ask(module: EvaluatedModule, network: Any, question: str, images: Sequence[Path], max_new_tokens: int) -> str:
    """The greedy answer of a model to one question, as an evaluation would have it.

    Args:
        module: whose processor, chat template and ends of answers are used.
        network: that answers: of the module, or one of the same kind.
        question: of a user, behind the pictures.
        images: files.
        max_new_tokens: longest answer.

    Raises:
        DowserError: if a picture cannot be read, or there is no chat template.
    """
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    sources = [read_source(str(path), None, False, "the question") for path in images]
    row = Question("the question", [{"role": "user", "content": content}], sources, [])
    inputs = build_encoder(module.processor, module.chat_template).evaluation_batch([row])["inputs"]
    moved = {
        name: each.to(network.device, network.dtype if each.is_floating_point() else None)
        for name, each in inputs.items()
    }
    network.eval()
    return greedy_answers(network, tokenizer_of(module.processor), moved, max_new_tokens, module.ending())[0]
