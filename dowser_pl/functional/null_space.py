"""A move of a matrix, without what would change its outputs on given inputs.

With A (I, I) the second moment of the inputs and m the mean of its I eigenvalues,

    P = (I + A / (eps m))^-1 = I - U diag(d) U^T,    d_i = l_i / (l_i + eps m),

where l_i and the columns of U are eigenvalues and eigenvectors of A. A move times P from the right is the least squares
answer to "keep the move, but let outputs on these inputs stay": D P is the D' that minimises |D' - D|^2 +
tr(D' A D'^T) / (eps m). P is symmetric with eigenvalues in (0, 1]; eps -> 0 is the projection onto the null space of A,
eps -> infinity is no change. With the r greatest l_i alone it takes r (I + 1) numbers, and moves along what inputs
seldom have stay free.

Legend: O outputs, I inputs of a matrix, r directions.
"""

from dataclasses import dataclass

from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.functional.eigenpairs import leading_eigenpairs

__all__ = ["Directions", "check_directions", "directions_of", "projected", "taken_out"]


_LEAST = 2.0**-25


@dataclass(frozen=True, eq=False)
class Directions:
    """What of a move is taken out.

    Attributes:
        vectors: (I, r), orthonormal columns: U; of outputs (O, r).
        shares: (r,) float32 in (0, 1], how much of each is taken out: d, falling.
        left: whether these are directions of outputs, taken out from the left.
        outputs: (O, r), orthonormal columns, where as much is taken out from the left as well; None = nothing.
    """

    vectors: Tensor
    shares: Tensor
    left: bool = False
    outputs: Tensor | None = None


def directions_of(moment: Tensor, eps: float, rank: int | None) -> Directions:
    """The directions that inputs mostly have; see `leading_eigenpairs` for how exactly.

    Args:
        moment: (I, I) symmetric, the mean of h h^T over inputs h.
        eps: which eigenvalue is taken out by half, in mean eigenvalues; > 0, may be infinite.
        rank: the most directions to keep; None = all.

    Returns:
        `min(rank, I)` directions or fewer: those of which less than half a unit in the last place of float32 is taken
        out are left out.

    Raises:
        DowserError: if a setting is out of its range, or the moment is not finite, or zero.
    """
    check_directions(eps, rank)
    trace = float(moment.double().trace())
    if not (trace > 0 and bool(moment.isfinite().all())):
        raise DowserError(
            f"got a second moment of inputs with trace {trace}, expected finite numbers and a trace above 0: nothing "
            "is known of inputs that are all zero or overflow. Load the model in bfloat16 or float32 (--model.dtype)"
        )
    values, vectors = leading_eigenpairs(moment, rank)
    shares = (values / (values + eps * trace / len(moment))).float()
    kept = shares > _LEAST  # what float32 cannot tell from nothing is nothing
    return Directions(vectors[:, kept].contiguous(), shares[kept])


def check_directions(eps: float, rank: int | None) -> None:
    """Refuse settings out of their range.

    Raises:
        DowserError: saying which.
    """
    if not eps > 0:
        raise DowserError(f"eps is in mean eigenvalues of the inputs' second moment, above 0; got {eps}")
    if rank is not None and rank < 1:
        raise DowserError(f"rank is the number of directions to keep, at least 1, or null for all; got {rank}")


def taken_out(move: Tensor, directions: Directions) -> Tensor:
    """`D U diag(d) U^T`, or `U diag(d) U^T D` of outputs, or of both, what `projected` leaves out of a move.

    Args:
        move: (O, I), D.
        directions: of its inputs or outputs; taken in the dtype of the move.
    """
    vectors, shares = directions.vectors.to(move.dtype), directions.shares.to(move.dtype)
    if directions.left:
        return vectors @ (shares[:, None] * (vectors.T @ move))
    taken = ((move @ vectors) * shares) @ vectors.T
    if directions.outputs is None:
        return taken
    outputs = directions.outputs.to(move.dtype)
    return taken + outputs @ (shares[:, None] * (outputs.T @ (move - taken)))


def projected(move: Tensor, directions: Directions) -> Tensor:
    """`D P = D - D U diag(d) U^T`, `P D` of outputs, or `P D P'`; the bits of the move where there are no directions.

    Args:
        move: (O, I), D.
        directions: of its inputs or outputs.
    """
    return move - taken_out(move, directions)
