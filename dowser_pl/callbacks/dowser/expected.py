"""How much of rows that the base writes is going to be kept, told before any is written."""

from dowser_pl.callbacks.dowser.drift import head_is_trained
from dowser_pl.callbacks.dowser.rows import RowBank
from dowser_pl.importance.base_outputs import bytes_per_position
from dowser_pl.importance.prompts import counted
from dowser_pl.importance.replay import Replay
from dowser_pl.planning.activations import Batch
from dowser_pl.planning.written import WrittenRows

__all__ = ["expected_rows"]


def expected_rows(bank: RowBank, replay: Replay | None, drift: bool, sharded: bool) -> list[WrittenRows]:
    """What replay and the meter will keep; nothing for what is off. All processes must call it.

    Args:
        bank: of the run; its model may have no weights yet.
        replay: of the run.
        drift: whether it is measured.
        sharded: whether processes hold parts of the model.

    Raises:
        DowserError: if rows of a source cannot be written.
    """
    network = bank.module.network
    each = bytes_per_position(network, head_is_trained(network) or sharded)
    found = [] if replay is None else [_kept("replay", bank, False, replay, each)]
    return [*found, _kept("drift", bank, True, None, each)] if drift else found


def _kept(use: str, bank: RowBank, held_out: bool, replay: Replay | None, each: int) -> WrittenRows:
    sources = replay.sources if replay is not None else None
    count, tokens, words, pictures, longest, said = 0, 0.0, 0.0, 0.0, 0, 0
    for kind, number, examples in bank.expected(held_out):
        if sources is not None and kind not in sources:
            continue
        share = number / len(examples)
        count += number
        tokens += share * sum(len(row.tokens) for row in examples)
        words += share * sum(int(counted(row).sum()) for row in examples)
        pictures += share * sum(value.nbytes for row in examples for value in row.image.values())
        longest = max(longest, *(len(row.tokens) for row in examples))
        said = max(said, *(int(counted(row).sum()) for row in examples))
    step = None
    if replay is not None and count:
        rows = min(replay.rows, count)
        step = Batch(rows, longest, False, rows * said)
    return WrittenRows(use, count, round(words * each), round(tokens), round(pictures), step)
