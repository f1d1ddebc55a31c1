"""Tokens that the base did not expect, which selective token masking leaves out of the loss.

Chao-Chung Wu, Zhi Rui Tam, Chieh-Yen Lin, Yun-Nung Chen, Shao-Hua Sun, Hung-yi Lee: "Mitigating Forgetting in LLM
Fine-Tuning via Low-Perplexity Token Learning", 2025, arXiv 2501.14315.

The perplexity of a token is exp(-log p) = 1 / p, with p the base's probability of it after the tokens before it. The
paper learns no token of a perplexity above 2.5, that is of p below .4.

As in the authors' code (github.com/appier-research/robust-llm-finetunes) the base reads each row as it is learnt, the
end of the answer included, in eval mode, and what is strictly above the limit has no label. There it reads all rows
before training, in bfloat16 and one at a time; here in the precision of the run, beside the rows of its batch. Its
other ways of masking (at random, the lowest, what a tuned model says of more perplexity than the base) are not here.

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
    precise = torch.promote_types(logits.dtype, torch.float32)
    parts = zip(logits.split(size), tokens.split(size), strict=True)
    losses = torch.cat([cross_entropy(part.to(precise), said, reduction="none") for part, said in parts])
    found = losses.exp() > max_perplexity
    for row in rows.unique():
        places = (rows == row).nonzero()[:, 0]
        if bool(found[places].all()):
            found[places[losses[places].argmin()]] = False
    return found
