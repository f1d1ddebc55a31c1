"""From the characters the assistant wrote to the tokens that carry loss.

Legend: T tokens of a row after the processor has put in the image tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch

from dowser_pl.data.templates import Span
from dowser_pl.errors import DowserError


def close_turns(text: str, spans: list[Span], last_words: str, eos: str | None) -> tuple[str, list[Span]]:
    """Make every assistant turn end with something that says "I am done", and make that part of the turn.

    A model that never sees an end of turn as a target forgets to stop. Three cases:

    - the template writes one inside the turn: nothing changes;
    - it writes one after `{% endgeneration %}`: the spans grow over it;
    - it writes none at all (LLaVA-1.5's "ASSISTANT: Red "): the tokenizer's eos token is written right behind each
      answer, as the original LLaVA training did.

    Args:
        text: a rendered conversation that ends with an assistant turn.
        spans: (start, end) characters of the assistant turns, in order.
        last_words: how the last assistant message ends; what the template writes behind them is an end of turn.
        eos: the tokenizer's end token, if it has one.

    Returns:
        The text and its spans.
    """
    start, end = spans[-1]
    if not text[start:end].rstrip().endswith(last_words.rstrip()):
        return text, spans
    if after := text[end:].rstrip():
        return text, [(a, b + len(after) if text.startswith(after, b) else b) for a, b in spans]
    if eos is None:
        return text, spans
    closed_text, closed, position = "", [], 0
    for start, end in spans:
        said = text[start:end].rstrip()
        closed_text += text[position:start]
        closed.append((len(closed_text), len(closed_text) + len(said) + len(eos)))
        closed_text += said + eos
        position = start + len(said)
    return closed_text + text[position:], closed


def shift_spans(text: str, spans: list[Span], replacements: Sequence[dict[str, Any]], row: str) -> list[Span]:
    """The spans after the processor has replaced each image placeholder by its many image tokens.

    Args:
        text: as given to the processor.
        spans: characters in `text`.
        replacements: per placeholder `span`, `new_span` and `text`, as the processor reports them.
        row: for the message.

    Raises:
        DowserError: the processor has also changed other text, so that the places cannot be known.
    """
    for one in replacements:
        if text[slice(*one["span"])] != one["text"]:
            raise DowserError(
                f"{row}: the processor edits the text around {one['text']!r} before it splits it into tokens, so the "
                "assistant's part cannot be located. This processor is not supported for training."
            )
    ends = [one["span"][1] for one in replacements]
    gains = [0, *(one["new_span"][1] - one["span"][1] for one in replacements)]
    return [(start + gains[bisect_right(ends, start)], end + gains[bisect_right(ends, end)]) for start, end in spans]


def mark_tokens(offsets: Sequence[Span], spans: list[Span]) -> torch.Tensor:
    """Which tokens have at least one character inside a span.

    A token that crosses the edge of a turn counts: it holds characters that the assistant must be able to write.

    Args:
        offsets: (T, 2) first and one-past-last character of each token; equal for padding and added specials.
        spans: (start, end) characters of the assistant turns in the same text.

    Returns:
        (T,) bool.
    """
    begin, end = torch.tensor(offsets, dtype=torch.long).reshape(-1, 2).T
    marked = torch.zeros_like(begin, dtype=torch.bool)
    for first, last in spans:
        marked |= (begin < last) & (end > first) & (begin < end)
    return marked
