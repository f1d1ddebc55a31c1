"""What replay and the drift meter keep of rows that the base wrote, and what a step of replay computes."""

from dataclasses import dataclass

from dowser_pl.planning.activations import Batch

__all__ = ["WrittenRows"]


@dataclass(frozen=True)
class WrittenRows:
    """The rows of one use, all of them as long as they can get; every process keeps all.

    Args:
        use: `replay` or `drift`.
        count: of the rows.
        outputs: bytes of what the base said on them, in host memory and in each checkpoint.
        tokens: how many there are; a checkpoint has 8 bytes of each, host memory 9.
        pictures: bytes of their pictures as the processor makes them, in host memory.
        step: what an optimizer step of replay computes on a device beside its batch, with gradient checkpointing if
            that has it; None = nothing.
        unknown: why nothing is known of the rows; "" = it is.
    """

    use: str
    count: int = 0
    outputs: int = 0
    tokens: int = 0
    pictures: int = 0
    step: Batch | None = None
    unknown: str = ""

    @property
    def checkpoint(self) -> int:
        """Bytes in each checkpoint."""
        return self.outputs + 8 * self.tokens

    @property
    def host(self) -> int:
        """Bytes in host memory, of each process."""
        return self.outputs + 9 * self.tokens + self.pictures
