"""Tokens that the base did not expect, which selective token masking leaves out of the loss (arXiv 2501.14315).

The perplexity of a token is exp(-log p) = 1 / p, with p the base's probability of it after the tokens before it. The
paper learns no token of a perplexity above 2.5, that is of p below .4.

Legend: N answer tokens of a batch, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["unexpected"]

_CHUNK = 2**23  # log-probabilities at a time: 32 MiB of float32


def unexpected(logits: Tensor, tokens: Tensor, rows: Tensor, max_perplexity: float) -> Tensor:
    """Which tokens are of a larger perplexity than that, and are not the last resort of their row.

    Of a row whose tokens are all above it, the one of the least perplexity is kept, the first of several: a row always
    has something to learn. The authors' code leaves such a row without any.

    Args:
        logits: (N, V) what the base says where each token is to be told.
        tokens: (N,) int64.
        rows: (N,) int64 number of the row that each token is of.
        max_perplexity: at least 1; a token that is exactly so is kept.

    Returns:
        (N,) bool.
    """
    size = max(1, _CHUNK // logits.shape[-1])
    parts = zip(logits.split(size), tokens.split(size), strict=True)
    losses = torch.cat([cross_entropy(_precise(part), said, reduction="none") for part, said in parts])
    found = losses.exp() > max_perplexity
    for row in rows.unique():
        places = (rows == row).nonzero()[:, 0]
        if bool(found[places].all()):
            found[places[losses[places].argmin()]] = False
    return found


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
