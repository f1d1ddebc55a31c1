"""How long training rows are, found by encoding some of them."""

from __future__ import annotations

from collections.abc import Sequence

from dowser_pl.data.checking import rows_to_check
from dowser_pl.data.encoding import Encoder
from dowser_pl.data.rows import Conversation


def row_lengths(
    rows: Sequence[Conversation], encoder: Encoder, most: int, skip_bad_rows: bool
) -> tuple[int, list[int], int]:
    """How many rows there are, and tokens of some of them.

    Args:
        rows: all of them.
        encoder: of the model that is trained.
        most: rows that are encoded, evenly spread; those that look longest come on top.
        skip_bad_rows: whether rows that cannot be encoded are left out.

    Returns:
        Rows; tokens of each of the spread ones, images included, as training cuts them; tokens of the longest of all
        that were encoded, 0 where none could be.

    Raises:
        DowserError: a row cannot be encoded.
    """
    spread = [number * len(rows) // most for number in range(most)] if len(rows) > most else [*range(len(rows))]
    lengths: dict[int, int] = {}
    for number in sorted({*spread, *rows_to_check(rows, "first", [])}):
        try:
            lengths[number] = int(encoder.training_batch([rows[number]])[0]["input_ids"].shape[1])
        except ValueError:
            if not skip_bad_rows:
                raise
    return len(rows), [lengths[number] for number in spread if number in lengths], max(lengths.values(), default=0)
