"""CIDEr through pycocoevalcap, over all rows of all ranks.

CIDEr: Consensus-based Image Description Evaluation. Vedantam, Zitnick, Parikh, 2015. arXiv:1411.5726. What
pycocoevalcap computes is the variant CIDEr-D, from 0 to 10 (papers print it times 100: 1.12 is their 112).

Where this differs from published numbers: pycocoevalcap tokenises with Stanford's PTBTokenizer, which needs
java. `tokenise` below follows its rules for captions without java (clitics apart, hyphenated words, numbers
and abbreviations whole, brackets as "-lrb-", other punctuation dropped): the tokens are the same for all 1000
captions of pycocoevalcap's example, and for all but 9 of the 30,010 of COCO and Flickr30k that Model-Dowser
tests on. It does not join "AT&T" or "#tag", and drops "!!". Its rules are for English; a sentence of a script
without spaces would be one word here, and any caption but a perfect one worth nothing. Chinese, Japanese, Thai,
Lao, Khmer, Burmese and Tibetan are therefore counted by characters, and their punctuation is dropped as well.
Korean, Hindi, Arabic and others have spaces and stay in words, vowel signs included. Composed and decomposed
letters are the same, and so are full-width and plain ones.

CIDEr weighs n-grams by their frequency over the whole set, so it is not a mean of batches: the strings
themselves are the state.
"""

import json
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence

import torch
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.cider.cider_scorer import precook
from torch import Tensor

from dowser_pl.errors import DowserError
from dowser_pl.metrics.answers import LineMetric, check_rows, plain_width, warn_of_nothing

CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b")
# vowel signs and accents, which are no word characters to `re`
MARKS = "".join(re.escape(chr(code)) for code in range(0x300, 0x1E00) if unicodedata.category(chr(code))[0] == "M")
WORD = rf"[\w{MARKS}\u1ab0-\u1aff\u20d0-\u20f0\ufe20-\ufe2f]"
ABBREVIATED = (
    "mr|mrs|ms|dr|prof|rev|gen|sgt|lt|col|capt|gov|sen|rep|pres|hon|messrs|jr|sr|st|ave|blvd|rd|mt|ft|sq|inc|ltd|co|corp|"
    "bros|cos|dept|est|vs|etc|al|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|calif|fla"
)
PARTED = re.compile(r"\b(?:(can)(not)|(gon|wan)(na)|(got)(ta)|(gim|lem)(me))\b")
BRACKETS = {mark: f"-{name}-" for mark, name in zip("()[]{}", ("lrb", "rrb", "lsb", "rsb", "lcb", "rcb"), strict=True)}
TOKEN = re.compile(
    r"(?:[^\W\d_]\.){2,}"  # u.s., a.m.
    r"|\d+(?:[.,:/]\d+)+"  # 3.5, 1,000, 10:30
    r"|n't\b|'(?:s|m|d|re|ve|ll)\b"
    rf"|(?<![\w.'])(?:[^\W\d_i]|{ABBREVIATED})\.(?!\w)"  # a., mr.
    rf"|{WORD}+(?:[-/'.]{WORD}+)*"  # t-shirt, red/blue, o'clock
    r"|[^\w\s]"
)
SPACELESS = re.compile(  # one character each; marks above and below letters are characters of their own
    r"[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
PUNCTUATION = frozenset(".,;:!?-'\"`…—«»„“”\u2013\u2018\u2019\u060c\u061b\u061f\u06d4\u0964\u0965")


def is_punctuation(token: str) -> bool:
    """Whether a token only separates: the usual marks, and those of the scripts that are read by characters."""
    if token in PUNCTUATION:
        return True
    eastern = len(token) == 1 and (SPACELESS.match(token) or "\u3000" <= token <= "\u303f" or token >= "\uff00")
    return bool(eastern) and unicodedata.category(token).startswith("P")


def tokenise(text: str) -> str:
    """Lower-case tokens joined by spaces, punctuation dropped; empty if the text has no words."""
    text = plain_width(unicodedata.normalize("NFC", text)).lower().replace("\u2019", "'")
    text = PARTED.sub(lambda found: " ".join(filter(None, found.groups())), SPACELESS.sub(r" \g<0> ", text))
    tokens = (token for token in TOKEN.findall(CLITIC.sub(r" \1", text)) if not is_punctuation(token))
    return " ".join(BRACKETS.get(token, token) for token in tokens)


def check_captions(captions: Sequence[Sequence[str]]) -> None:
    """Refuse a set in which every n-gram weighs nothing: the weight is log(images / images that have it).

    Args:
        captions: per image its reference captions, as `tokenise` made them.

    Raises:
        DowserError: fewer than two images, or the same n-grams in all.
    """
    if len(captions) < 2:
        raise DowserError(
            f"Cider: got {len(captions)} image(s), expected at least 2: with one image every n-gram weighs "
            "log(1/1) = 0. Evaluate more rows, or use the metric exact_match for this task."
        )
    first, *others = ({gram for caption in each for gram in precook(caption)} for each in captions)
    if all(each == first for each in others):
        raise DowserError(
            f"Cider: the captions of all {len(captions)} images consist of the same words, so that every n-gram weighs "
            "log(1) = 0 and no answer could score. Give each image its own captions."
        )


class CaptionMetric(LineMetric):
    """A score of the whole evaluation set; each row is one image with its reference captions."""

    @abstractmethod
    def of_pairs(self, pairs: Sequence[tuple[str, list[str]]]) -> float:
        """The score of all (prediction, captions), as `tokenise` made them."""

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add rows; an empty prediction is kept and scores 0.

        Raises:
            DowserError: lengths differ, or a row has no reference with a word in it.
        """
        name = type(self).__name__
        check_rows(name, predictions, references)
        rows = []
        for row, (prediction, captions) in enumerate(zip(predictions, references, strict=True)):
            tokenised = [tokenise(caption) for caption in captions]
            if not any(tokenised):
                raise DowserError(
                    f"{name}: row {row} has the references {list(captions)!r}, expected captions with words."
                )
            rows.append([tokenise(prediction), tokenised])
        self.add(rows)

    def compute(self) -> Tensor:
        """The score over all rows of all ranks, a float32 scalar.

        Raises:
            DowserError: there are too few rows to tell.
        """
        pairs = [json.loads(line) for line in sorted(self.added())]  # the same float sum on any number of ranks
        score = self.of_pairs(pairs)
        if not any(prediction for prediction, _ in pairs):
            warn_of_nothing(type(self).__name__, len(pairs))
        return torch.tensor(score, dtype=torch.float32, device=self.device)


class Cider(CaptionMetric):
    """CIDEr of the whole evaluation set, in [0, 10]; fewer than two rows, or the same words in all, are refused."""

    def of_pairs(self, pairs: Sequence[tuple[str, list[str]]]) -> float:
        """CIDEr of all rows; see `check_captions` for what is refused."""
        return _scores(pairs)[0]

    def row_scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The score of each row among all of these; it raises as `update` and `compute` do, and nothing is added."""
        check_rows("Cider", predictions, references)
        tokenised = [[tokenise(caption) for caption in captions] for captions in references]
        return _scores(list(zip(map(tokenise, predictions), tokenised, strict=True)))[1]


def _scores(pairs: Sequence[tuple[str, list[str]]]) -> tuple[float, list[float]]:
    """CIDEr of all (prediction, captions), as `tokenise` made them, and of each."""
    check_captions([captions for _, captions in pairs])
    score, of_each = CocoCider().compute_score(
        {index: captions for index, (_, captions) in enumerate(pairs)},
        {index: [prediction] for index, (prediction, _) in enumerate(pairs)},
    )
    return float(score), [float(one) for one in of_each]
