"""Build the embedded world's twin with outlier channels.

    python tools/build_outlier_world.py --out runs/worlds/outlier

The same function in other weights: pairs of channels are scaled against each other by exp(N(0, 1)), as in real models,
whose channels differ in size by orders of magnitude. In the shipped world, where they hardly differ, the smallest
weights are nearly the least important ones; here they are not.

- norm / linear: the norm's weight times s, the columns of the matrices behind it by s;
- v / o: rows of the value projection times s, columns of the output projection by s, within each head;
- up / down: rows of the up projection times s, columns of the down projection by s.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from dowser_pl.files.atomic import atomic_path
from dowser_pl.models import load_model, load_processor


@torch.no_grad()
def rescale(model: LlavaForConditionalGeneration, seed: int, spread: float = 1.0) -> None:
    """Scale pairs of channels of every decoder layer in place; the model's answers stay as they are.

    Args:
        model: with a Llama decoder, in float32.
        seed: of the scales.
        spread: standard deviation of their logarithms.

    Raises:
        ValueError: if heads share their values, or a matrix has a bias: then the pairs are others.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if attention.v_proj.weight.shape[0] != attention.o_proj.weight.shape[1] or attention.v_proj.bias is not None:
            raise ValueError(
                "got heads that share values or matrices with a bias, expected a decoder with values of its own for "
                "each head and no bias, as the embedded world's"
            )
        queries = (attention.q_proj, attention.k_proj, attention.v_proj)
        _scale(layer.input_layernorm.weight, queries, generator, spread)
        _scale(layer.post_attention_layernorm.weight, (mlp.gate_proj, mlp.up_proj), generator, spread)
        _scale(attention.v_proj.weight, (attention.o_proj,), generator, spread)
        _scale(mlp.up_proj.weight, (mlp.down_proj,), generator, spread)


def _scale(front: Tensor, behind: Sequence[nn.Linear], generator: torch.Generator, spread: float) -> None:
    """Multiply the outputs of `front`, (C,) or (C, I), and divide the inputs of all that reads them, (O, C)."""
    scales = torch.exp(spread * torch.randn(len(front), generator=generator))
    front.mul_(scales if front.dim() == 1 else scales[:, None])
    for matrix in behind:
        matrix.weight.div_(scales)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, rescale, write in float32: float16 would round the scales away."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--base", default="embedded:world", help="folder of the model to rescale")
    parser.add_argument("--seed", type=int, default=0, help="of the scales")
    parser.add_argument("--spread", type=float, default=1.0, help="standard deviation of the scales' logarithms")
    options = parser.parse_args(arguments)
    model = load_model(options.base, dtype="float32")
    rescale(model, options.seed, options.spread)
    with atomic_path(options.out) as temporary:
        model.save_pretrained(temporary)
        load_processor(options.base).save_pretrained(temporary)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
