"""Pretraining rows of the embedded world: conversations about pictures, and running text, padded."""

from dataclasses import dataclass

import numpy as np
import torch

from dowser_pl.data.world.tasks import TEXT_TOPICS, TOPICS, Rng, draw_example, one_of
from dowser_pl.data.world.text import BOS, EOS, IMAGE, PAD, draw_fact, draw_sum, draw_words
from world.model import NUM_IMAGE_TOKENS, WORD_ID

ANSWER, PROMPT, TEXT = 1.0, 0.1, 0.2  # weights of a token in the loss
ROW_LENGTH, TEXT_LENGTH = 48, 72  # tokens
SAME_SCENE = ("colour", "shape", "place")  # topics that can be asked about one picture
PICTURE_ROWS = {"colour": 2, "count": 3, "caption": 4, "ocr": 4, "letter": 3}  # how often each is drawn
SENTENCES = (
    "{sum} is {result} .",
    "the {attribute} of the {creature} is {value} .",
    "the {creature} has {attribute} {value} .",
    "it is called {words} .",
    "in the old language it is called {words} .",
    "the sign is called {words} and this is called {words} .",
    "say {words} and repeat {words} .",
)


@dataclass
class Row:
    """Token ids, the loss weight of predicting each, and the picture (uint8, 36 x 36 x 3) if there is one."""

    ids: list[int]
    weights: list[float]
    picture: np.ndarray | None = None

    def add(self, words: str, weight: float) -> None:
        """Append words that all weigh the same."""
        tokens = [WORD_ID[word] for word in words.split()]
        self.ids += tokens
        self.weights += [weight] * len(tokens)

    def ask(self, question: str, answer: str, with_picture: bool = False) -> None:
        """Append one turn of each speaker."""
        self.add("user :", PROMPT)
        if with_picture:
            self.add(" ".join([IMAGE] * NUM_IMAGE_TOKENS), 0.0)
        self.add(f"{question} assistant :", PROMPT)
        self.add(f"{answer} {EOS}", ANSWER)


def train_example(task: str, rng: Rng):
    """An example of the training split."""
    while (example := draw_example(task, rng)).split != "train":
        pass
    return example


def picture_row(rng: Rng) -> Row:
    """A conversation that starts with a picture and goes on with it or with anything else."""
    kinds, odds = list(PICTURE_ROWS), np.array(list(PICTURE_ROWS.values()))
    kind = kinds[rng.choice(len(kinds), p=odds / odds.sum())]
    topics = list(rng.permutation(SAME_SCENE)) if kind == "colour" else [kind]
    example = train_example(topics[0], rng)
    row = Row([WORD_ID[BOS]], [0.0], example.scene.pixels())
    row.ask(example.question, example.answer, with_picture=True)
    for topic in topics[1:]:
        row.ask(one_of(rng, TOPICS[topic].wordings), TOPICS[topic].answer(example.scene))
    return more_turns(row, rng)


def more_turns(row: Row, rng: Rng) -> Row:
    """Fill a row with questions that need no picture."""
    while len(row.ids) < ROW_LENGTH - 16:
        example = train_example(one_of(rng, tuple(TEXT_TOPICS)), rng)
        row.ask(example.question, example.answer)
    return row


def text_row(rng: Rng) -> Row:
    """Running text cut out at any word, so that after the beginning mark any word may come."""
    sentences = []
    while len(" ".join(sentences).split()) < TEXT_LENGTH + 12:
        terms, result = draw_sum(rng)
        creature, attribute, value = draw_fact(rng)
        known = {"sum": terms, "result": result, "creature": creature, "attribute": attribute, "value": value}
        sentences.append(one_of(rng, SENTENCES).format(**known, words=draw_words(rng)))
    words = " ".join(sentences).split()
    first = int(rng.integers(12))
    row = Row([WORD_ID[BOS]], [0.0])
    row.add(" ".join(words[first : first + TEXT_LENGTH - 2]), TEXT)
    row.add(EOS, TEXT)
    return row


def batch(rows: list[Row]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Right-padded model inputs, and the loss weights (rows, length)."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), WORD_ID[PAD])
    weights = torch.zeros(len(rows), length)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        weights[index, : len(row.ids)] = torch.tensor(row.weights)
    inputs = {"input_ids": ids, "attention_mask": (ids != WORD_ID[PAD]).long()}
    pictures = [row.picture for row in rows if row.picture is not None]
    if pictures:
        inputs["pixel_values"] = pixel_values(pictures)
    return inputs, weights


def pixel_values(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures as the processor normalises them: (n, 3, 36, 36) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
