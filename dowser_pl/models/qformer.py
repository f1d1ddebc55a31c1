"""The Q-Former of InstructBLIP and BLIP-2: its layers, and which positions its matrices read.

It stands between vision tower and text decoder, and its queries take in what the text decoder is shown of a picture.
That of InstructBLIP reads the instruction as well (Dai et al. 2023, arXiv 2305.06500, section 2.3).

Legend: B rows of a batch, Q queries, T tokens of the instruction, P patches of the picture, L positions of an input.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["QFORMER", "positions_read", "qformer_layers", "qformer_matrices"]

QFORMER = "qformer"
"""The name of the module, and of the target that means all of its matrices."""


def qformer_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Run-time name -> layer of the Q-Former, first to last; empty where a model has none."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and QFORMER in name.split(".")
    ]
    return {f"{name}.{number}": layer for name, layers in lists[:1] for number, layer in enumerate(layers)}


def qformer_matrices(model: nn.Module) -> Iterator[tuple[str, str, nn.Linear]]:
    """Every matrix in the layers of the Q-Former: run-time name, name in its layer, and module, in model order."""
    for layer, block in qformer_layers(model).items():
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                yield f"{layer}.{name}", name, module


def positions_read(name: str, length: int, instruction: Tensor | None) -> Tensor | None:
    """Which positions of its input a matrix of the Q-Former reads.

    Queries come before the words of the instruction; what is made of the queries alone, and the patches of the picture,
    is read whole.

    Args:
        name: of the matrix, at run time.
        length: L of its input.
        instruction: (B, T) mask of the tokens of the instruction, 0 at padding; None = it reads none.

    Returns:
        (B, L) bool, or None where all positions are real. Matrices that are not of a Q-Former are not asked.
    """
    parts = name.split(".")
    queries_alone = {"crossattention", "intermediate_query", "output_query"} & set(parts)
    if instruction is None or queries_alone:
        return None
    words = instruction.bool()
    if "attention" not in parts:  # the MLP of the words
        return words
    queries = words.new_ones(len(words), length - words.shape[1])
    return torch.cat([queries, words], dim=1)
