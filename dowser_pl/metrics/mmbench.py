"""MMBench: the letter by fixed rules, and circular evaluation. Liu et al., 2023. arXiv:2307.06281.

The rules are those that lmms-eval and VLMEvalKit try before they ask a language model, of which nothing is asked here:
an answer that they cannot read is wrong. In this order:

1. of the words of the answer (between spaces) exactly one is a letter of A to E: that is it, unless "A" is among more
   than three words, where it may be an article;
2. the same with marks around the letter: "B.", "B,", "B:", "B)", "(B)" and others, kind by kind;
3. exactly one option has its text in the answer, without case.

Circular: files ask a question once for each of its options, turned round; it counts if every one of these answers is
right. References of a row are the group that it belongs to, the right letter, and all options with theirs ("A. dog").
"""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.metrics.answers import LineMetric, check_rows, warn_of_nothing

LETTERS = "ABCDE"
_AROUND = [("", mark) for mark in (".", ",", ":", ")", ").")] + [("(", ")"), ("(", ").")]
_AROUND += [(":", mark) for mark in ("", ",", ".", ")", ").")]
_ARTICLE_FROM = 4  # words


def mmbench_letter(prediction: str, options: dict[str, str]) -> str | None:
    """The letter that the rules read from an answer; None where they read none.

    Args:
        prediction: the answer.
        options: letter -> text.
    """
    words = prediction.split()
    alone = [letter for letter in LETTERS if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) >= _ARTICLE_FROM):
        return alone[0]
    for before, behind in _AROUND:
        marked = [letter for letter in LETTERS if f"{before}{letter}{behind}" in words]
        if len(marked) == 1:
            return marked[0]
    said = prediction.lower()
    stated = [letter for letter, text in options.items() if text.lower() in said]
    return stated[0] if len(stated) == 1 else None


class MMBench(LineMetric):
    """Share of questions of which all turns are answered rightly; each row is one turn."""

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add turns of questions and their references.

        Raises:
            DowserError: lengths differ, or references are not group, letter and options.
        """
        check_rows("MMBench", predictions, references)
        pairs = zip(predictions, references, strict=True)
        self.add([_read(said, accepted) for said, accepted in pairs])

    def compute(self) -> Tensor:
        """Share of the groups without a wrong turn, over all ranks, a float32 scalar.

        Raises:
            DowserError: no row was added on any rank.
        """
        groups: dict[str, bool] = {}
        turns = [json.loads(line) for line in self.added()]
        for group, right, _ in turns:
            groups[group] = groups.get(group, True) and right
        if not groups:
            raise DowserError("MMBench: no row was scored, so there is no mean. Call update().")
        if not any(read for _, _, read in turns):
            warn_of_nothing("MMBench", len(turns))
        share = sum(groups.values()) / len(groups)
        return torch.tensor(share, dtype=torch.float32, device=self.device)


def _read(prediction: str, references: Sequence[str]) -> tuple[str, bool, bool]:
    """The group of a turn, whether it is right, and whether a letter could be read."""
    group, *rest = references
    letter, options = (rest[0], rest[1:]) if rest else ("", [])
    if len(letter) != 1 or letter not in LETTERS or len(options) < 2:
        raise DowserError(
            f"mmbench: got the references {list(references)}, expected the group, the right letter and the options, as "
            '["241", "B", "A. dog", "B. cat"]. For other files of questions with options use multiple_choice.'
        )
    said = mmbench_letter(prediction, dict(option.split(". ", 1) for option in options))
    return group, said == letter, said is not None
