"""BLEU-4 and ROUGE-L of captions through pycocoevalcap, without Java: words are those of `cider.tokenise`.

- BLEU: A Method for Automatic Evaluation of Machine Translation. Papineni et al., 2002. doi:10.3115/1073083.1073135. Up
  to four words in a row, over the whole set at once, with the reference closest in length.
- ROUGE: A Package for Automatic Evaluation of Summaries. Lin, 2004. The longest common subsequence, beta 1.2, as mean.

Both lie in [0, 1]. METEOR is not here: it is a program of its own in Java.
"""

from collections.abc import Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.rouge.rouge import Rouge

from dowser_pl.errors import DowserError
from dowser_pl.metrics.cider import CaptionMetric

Pairs = Sequence[tuple[str, list[str]]]


class Bleu4(CaptionMetric):
    """BLEU-4 of the whole evaluation set."""

    def of_pairs(self, pairs: Pairs) -> float:
        """BLEU-4 of all rows."""
        predictions, captions = _by_number("Bleu4", pairs)
        return float(Bleu(4).compute_score(captions, predictions, verbose=0)[0][3])


class RougeL(CaptionMetric):
    """ROUGE-L, the mean over rows."""

    def of_pairs(self, pairs: Pairs) -> float:
        """ROUGE-L of all rows."""
        predictions, captions = _by_number("RougeL", pairs)
        return float(Rouge().compute_score(captions, predictions)[0])


def _by_number(metric: str, pairs: Pairs) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Predictions and captions as pycocoevalcap takes them."""
    if not pairs:
        raise DowserError(f"{metric}: no row was scored, so there is no mean. Call update().")
    predictions = {number: [prediction] for number, (prediction, _) in enumerate(pairs)}
    return predictions, {number: captions for number, (_, captions) in enumerate(pairs)}
