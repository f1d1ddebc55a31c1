"""What a selection or a statistic asks of a matrix whose parts lie on several processes, asked of all of them."""

from torch import Tensor

from dowser_pl.distributed import collectives
from dowser_pl.distributed.tensors import added, to_be_sent

__all__ = ["Ranks"]


class Ranks:
    """Counts and sums over the processes, for what concerns a matrix of which each holds a part."""

    def add_up(self, counts: Tensor) -> Tensor:
        """The sum over all processes."""
        device = counts.device
        return collectives.add_up(to_be_sent(counts)).to(device)

    def before(self, count: int) -> tuple[int, int]:
        """What the processes before this one counted together, and what all did."""
        counts = [0] * collectives.world_size()
        counts[collectives.rank()] = count
        totals = added(counts)
        return sum(totals[: collectives.rank()]), sum(totals)

    def beside(self, values: Tensor) -> Tensor:
        """(P, n) what all P processes have of these (n,), each in a row."""
        rows = values.new_zeros(collectives.world_size(), len(values))
        rows[collectives.rank()] = values
        return self.add_up(rows)
