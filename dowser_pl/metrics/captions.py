"""BLEU-4, ROUGE-L and METEOR of captions through pycocoevalcap: words are those of `cider.tokenise`.

- BLEU: A Method for Automatic Evaluation of Machine Translation. Papineni et al., 2002. doi:10.3115/1073083.1073135. Up
  to four words in a row, over the whole set at once, with the reference closest in length.
- ROUGE: A Package for Automatic Evaluation of Summaries. Lin, 2004. The longest common subsequence, beta 1.2, as mean.
- Meteor Universal: Language Specific Translation Evaluation for Any Target Language. Denkowski, Lavie, 2014. Version
  1.5 for English, a program of its own in Java, which also counts stems, synonyms and paraphrases.

All lie in [0, 1].
"""

import shutil
from collections.abc import Sequence
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.meteor.meteor import Meteor as MeteorProgram
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


class Meteor(CaptionMetric):
    """METEOR of the whole evaluation set; refused where there is no Java."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if shutil.which("java") is None:
            raise DowserError(
                "meteor: got no program `java` on the PATH, which METEOR is written for. Fix: install a Java runtime "
                "(8 or later), or score by cider, bleu4 or rouge_l, which need none"
            )

    def of_pairs(self, pairs: Pairs) -> float:
        """METEOR of all rows; some seconds go into starting the program."""
        predictions, captions = _by_number("Meteor", pairs)
        program = MeteorProgram()
        try:
            return float(program.compute_score(captions, predictions)[0])
        except (ValueError, OSError) as error:  # it has ended, or says something else than a number
            program.meteor_p.kill()
            program.lock.release()  # for which its end waits
            said = program.meteor_p.stderr.read().decode(errors="replace").strip()[-300:]
            raise DowserError(f"meteor: its Java program failed: {said or error}") from error


def _by_number(metric: str, pairs: Pairs) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Predictions and captions as pycocoevalcap takes them."""
    if not pairs:
        raise DowserError(f"{metric}: no row was scored, so there is no mean. Call update().")
    predictions = {number: [prediction] for number, (prediction, _) in enumerate(pairs)}
    return predictions, {number: [each for each in captions if each] for number, (_, captions) in enumerate(pairs)}
