"""Taking entries of a matrix back while its other entries make up for it: the Optimal Brain Surgeon, column by column.

For inputs h of a matrix W the squared change of its outputs is `tr(dW H dW^T) / 2` with `H = 2 E[h h^T]`. If entry
j of a row must go from w_j to q_j, that is least when the entries after it move by

    d = -(w_j - q_j) / [H^-1]_jj * [H^-1]_j

(Hassibi and Stork 1993), H being that of the columns not yet dealt with. The rows of one triangular factor of the
inverse hold these for every column at once (Frantar and Alistarh, arXiv 2301.00774), whatever the mask of a row.

Legend: O outputs, I inputs of a matrix, C columns of a block.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dowser_pl.errors import DowserError

__all__ = ["fused_score", "inverse_factor", "reverted"]


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper triangular U with `U^T U = (H + damping * mean(diag H) * I)^-1` and `H = 2 * gram`.

    An input that is always zero stands on the diagonal as 1, so that there is an inverse.

    Args:
        gram: (I, I), the mean over tokens of h h^T.
        damping: share of the mean of the diagonal that is added to it, > 0.

    Returns:
        (I, I) float64 (float32 on Apple's GPUs); `U.square().sum(0)` is the diagonal of the inverse.

    Raises:
        DowserError: if the matrix is not positive definite; NaN included.
    """
    hessian = 2 * gram.to(_exact(gram))
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise DowserError(
            f"the mean of h h^T with damping {damping} is not positive definite ({error}); raise the damping, and look "
            "whether the calibration inputs are finite"
        ) from error


def reverted(
    base: Tensor,
    tuned: Tensor,
    factor: Tensor,
    choose: Callable[[slice, Tensor], Tensor],
    sign: float = 1.0,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """The tuned matrix with all but the chosen entries taken back to the base, and the chosen ones compensated.

    Columns from the first to the last; entries of later columns move, also those that are then taken back themselves.

    Args:
        base: (O, I) pretrained weights.
        tuned: (O, I) weights after training, same dtype.
        factor: (I, I) from `inverse_factor`.
        choose: told the columns of a block and what stands there by now, (O, C) in the dtype of the factor, it says
            which entries stay, (O, C) bool.
        sign: 1 moves entries as derived above, -1 the opposite way, 0 not at all.
        block: columns whose compensation is carried to all later columns in one product.

    Returns:
        (O, I) in the dtype of the base, with its bits wherever an entry was taken back, and the (O, I) bool mask of
        the chosen.
    """
    working, target = tuned.to(factor.dtype, copy=True), base.to(factor.dtype)
    mask = torch.zeros(base.shape, dtype=torch.bool, device=base.device)
    for first in range(0, base.shape[1], block):
        part = slice(first, min(first + block, base.shape[1]))
        own, local = working[:, part], factor[part, part]
        mask[:, part] = choose(part, own)
        errors = torch.zeros_like(own)
        for column in range(own.shape[1]):
            kept = mask[:, first + column]
            error = torch.where(kept, 0, own[:, column] - target[:, first + column]) / local[column, column]
            own[:, column + 1 :] -= sign * torch.outer(error, local[column, column + 1 :])
            errors[:, column] = error
        working[:, part.stop :] -= sign * (errors @ factor[part, part.stop :])
    return torch.where(mask, working.to(base.dtype), base), mask


def fused_score(move: Tensor, sensitivity: Tensor, fusion: float) -> Tensor:
    """`fusion * z(|move|) + (1 - fusion) * z(sensitivity)`, z standardising every row.

    Args:
        move: (O, C) how far each entry moved.
        sensitivity: (O, C).
        fusion: weight of the move, in [0, 1].

    Returns:
        (O, C), shifted so that the lowest is 0; high = keep.
    """
    score = fusion * _standardised(move.abs()) + (1 - fusion) * _standardised(sensitivity)
    return score - score.min() if score.numel() else score


def _standardised(values: Tensor) -> Tensor:
    """Each row with mean 0 and deviation 1; a row of one value becomes zeros."""
    centred = values - values.mean(dim=1, keepdim=True)
    deviation = (centred.square().sum(dim=1, keepdim=True) / max(1, values.shape[1] - 1)).sqrt()
    return centred / torch.where(deviation > 0, deviation, 1)


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
