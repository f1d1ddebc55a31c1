"""The importance of a weight: output sensitivity x magnitude x input activation.

Hwang, Nguyen, Kim: "Model-Dowser: Data-Free Importance Probing to Mitigate Catastrophic Forgetting in
Multimodal Large Language Models", ICML 2026, arXiv 2602.04509, section 3:

    S_ij = ||J_i||_2 * |W_ij| * |h_j|        z = W h,  J = d logits / d z

averaged over prompts. Within one prompt the activation does not depend on the probe, so the average of the
outer products is one matrix product of two thin factors; no (O, I) matrix is accumulated while probing.

Legend: O outputs, I inputs of a matrix; N prompts; R probes per prompt; T positions of a prompt; G groups.
"""

import torch
from torch import Tensor

from dowser_pl.errors import DowserError

__all__ = ["group_means", "hutchinson_norm", "importance", "importance_of_statistic", "mean_outer"]

_CHUNK = 1 << 20  # entries of the score that are formed in float64 at a time
_ON_GPU = 16  # times as many, which keeps it busy


def hutchinson_norm(mean_square: Tensor) -> Tensor:
    """Row norms of the Jacobian, from Rademacher probes (Hutchinson; arXiv 2602.04509, section 3).

    For a Rademacher vector xi over the logits f, `E[(d(xi . f) / dz_i)^2] = ||J_i||_2^2`.

    Args:
        mean_square: (N, O) mean over probes (and positions) of the squared probe gradients, >= 0.

    Returns:
        (N, O) estimate of `||J_i||_2`.
    """
    return mean_square.sqrt()


def group_means(factors: Tensor, group_size: int) -> Tensor:
    """Means over consecutive groups of prompts; the last group may be smaller.

    The released code of arXiv 2602.04509 averages |g| and |h| over a batch of prompts *before* it multiplies
    them; a group is that batch. `group_size=1` leaves every prompt on its own.

    Args:
        factors: (N, D) one row per prompt.
        group_size: prompts per group, >= 1.

    Returns:
        (G, D) with `G = ceil(N / group_size)`.
    """
    if group_size < 1:
        raise DowserError(f"group_size must be at least 1, got {group_size}")
    if group_size == 1:
        return factors
    return torch.stack([group.mean(dim=0) for group in factors.split(group_size)])


def mean_outer(sensitivity: Tensor, activation: Tensor) -> Tensor:
    """Mean over rows of `outer(sensitivity[n], activation[n])`, as one product `Psi^T A / N`.

    Args:
        sensitivity: (N, O) float.
        activation: (N, I) float, rows matching `sensitivity`.

    Returns:
        (O, I) in the precision of the factors.
    """
    if sensitivity.shape[0] != activation.shape[0]:
        raise DowserError(
            f"sensitivity has {sensitivity.shape[0]} rows and activation {activation.shape[0]}; "
            "both need one row per prompt"
        )
    return sensitivity.T @ activation / sensitivity.shape[0]


def importance(weight: Tensor, sensitivity: Tensor, activation: Tensor) -> Tensor:
    """Model-Dowser's score `S = |W| * mean_n outer(||J||, |h|)` (arXiv 2602.04509, section 3).

    Formed in float64, a few rows at a time: the order of a sum then decides no mask, and neither does TF32.

    Args:
        weight: (O, I) pretrained weights, any float dtype.
        sensitivity: (N, O) float32, >= 0.
        activation: (N, I) float32, >= 0.

    Returns:
        (O, I) float32, >= 0; low = trainable. Costs one float32 matrix beside the weight.
    """
    exact = torch.float32 if weight.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    scores = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    activation = activation.to(exact)
    entries = _CHUNK if weight.device.type == "cpu" else _CHUNK * _ON_GPU
    rows = max(1, entries // weight.shape[1])
    for first in range(0, weight.shape[0], rows):
        part = slice(first, first + rows)
        product = mean_outer(sensitivity[:, part].to(exact), activation)
        scores[part] = product.mul_(weight[part].detach().abs())
    return scores


def importance_of_statistic(weight: Tensor, statistic: Tensor) -> Tensor:
    """`|W| * statistic` for sensitivities that were measured entry by entry and do not factorise.

    Args:
        weight: (O, I) pretrained weights, any float dtype.
        statistic: (O, I) float32, >= 0.

    Returns:
        (O, I) float32, >= 0; low = trainable.
    """
    return weight.detach().abs().float().mul_(statistic)
