"""The greatest eigenvalues of a second moment and their vectors, without the others where few of many are wanted.

An eigen-decomposition in float64 is exact and takes about 10 I^3 operations. Where r << I directions are wanted, a
randomized block Krylov method takes 2 I^2 for each of a few times r columns: from a random block Q of its own stream,

    B = orth[Q, A Q, A^2 Q, ...],    B^T A B = S diag(l) S^T,    U = B S,

block after block, each made orthogonal twice to all before, everything in float64, until the r greatest pairs have

    |A u_i - l_i u_i| <= 4e-3 l_i + 2^-24 l_1,

where the second term is what sums in float32 leave of the greatest eigenvalue. An eigenvalue of A is as near to l_i as
that, and mostly far nearer, so the share d = l / (l + c) is right to 4e-3 d (1 - d) <= 1e-3. Along each u_i

    |P u_i - (1 - d_i) u_i| <= |A u_i - l_i u_i| / (l_i + c),    P = (I + A / c)^-1,    d_i = l_i / (l_i + c),

so a move is changed along the directions that are kept as the exact P changes it, to 4e-3 of what is taken out.
Where the spectrum falls, so is the whole move; where eigenvalues about the r-th are equal to 4e-3, others of these may
be kept than of an exact decomposition, which chooses among them by rounding. Where a third of I columns do not reach
that, all is computed exactly.

Halko, Martinsson, Tropp: "Finding Structure with Randomness: Probabilistic Algorithms for Constructing Approximate
Matrix Decompositions", SIAM Review 53(2), 2011, arXiv 0909.4061; the blocks that are kept: Musco, Musco: "Randomized
Block Krylov Methods for Stronger and Faster Approximate Singular Value Decomposition", NeurIPS 2015, arXiv 1504.05477.
"""

import torch
from torch import Tensor

from dowser_pl.functional.random_streams import stream

__all__ = ["leading_eigenpairs"]

_SMALL = 1024  # up to here all eigenvalues take seconds
_FEW = 8  # so many times fewer than all are few
_NEAR = 4e-3
_ROUNDING = 2.0**-24


def leading_eigenpairs(moment: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """The greatest eigenvalues and their vectors; the same bits whenever it is asked on one device.

    Args:
        moment: (I, I) symmetric without negative eigenvalues but for rounding, finite.
        count: how many; None = all.

    Returns:
        (r,) float64 eigenvalues, falling, none below 0, and (I, r) float64 orthonormal vectors, r = `min(count, I)`.
    """
    moment = moment.double()
    found = _by_krylov(moment, count) if count is not None and len(moment) > max(_SMALL, _FEW * count) else None
    if found is None:
        values, vectors = torch.linalg.eigh(moment)
        found = values.flip(0)[:count], vectors.flip(1)[:, :count]
    return found[0].clamp(min=0), found[1]


def _by_krylov(moment: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """The pairs that a third of I columns tell well enough; None where they do not."""
    inputs, width = len(moment), max(8, -(-count // 4))
    drawn = torch.randn(inputs, width, generator=stream(0, "eigenpairs", inputs), dtype=torch.float64)
    block = torch.linalg.qr(drawn.to(moment.device)).Q
    basis, inner = moment.new_empty(inputs, 0), moment.new_empty(0, 0)
    unchecked = -count
    while basis.shape[1] + width <= inputs // 3:
        basis = torch.cat([basis, block], dim=1)
        image = moment @ block
        onto = basis.T @ image
        inner = torch.cat([torch.cat([inner, onto[:-width].T]), onto], dim=1)
        rest = image - basis @ onto  # all that A makes of the basis beyond its span: earlier rests lie within
        unchecked += width
        if unchecked >= count:
            unchecked = 0
            values, small = (each.flip(-1)[..., :count] for each in torch.linalg.eigh(inner))
            if bool(((rest @ small[-width:]).norm(dim=0) <= _NEAR * values + _ROUNDING * values[0]).all()):
                return values, basis @ small
        block = torch.linalg.qr(rest).Q
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return None
