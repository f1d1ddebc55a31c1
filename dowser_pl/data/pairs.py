"""Models that take the answer apart from the question: PaliGemma (as `suffix`) and encoder-decoders (T5).

They know one question and one answer, so a row must have exactly one assistant turn, the last one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from dowser_pl.data.encoding import Batch, Encoder
from dowser_pl.data.rows import Conversation, Question
from dowser_pl.data.truncation import IGNORED


class PairEncoder(Encoder):
    """Question and answer apart; see `Encoder` for the arguments."""

    def encode(self, rows: Sequence[Conversation]) -> Batch:
        """See `Encoder.encode`."""
        prompts, answers = zip(*map(self._split, rows), strict=True)
        batch = self.encode_pairs(list(prompts), list(answers), rows)
        self.set_qformer(batch, list(prompts))
        return batch

    @abstractmethod
    def encode_pairs(self, prompts: list[str], answers: list[str], rows: Sequence[Conversation]) -> Batch:
        """The batch with its labels."""

    def _split(self, row: Conversation) -> tuple[str, str]:
        roles = [message["role"] for message in row.messages]
        if roles.count("assistant") != 1 or roles[-1] != "assistant":
            raise ValueError(
                f"{row.id}: {type(self.processor).__name__} takes one question and one answer per row, got the turns "
                f"{roles}. Split the row so that each part ends with its only assistant turn."
            )
        (answer,) = self.words.hide(row.id, row.messages[-1:])
        return self.prompt(row, row.messages[:-1]), "".join(
            part["text"] for part in answer["content"] if part["type"] == "text"
        )


class SuffixEncoder(PairEncoder):
    """Prefix language models (PaliGemma): the processor takes the answer as `suffix` and writes the labels itself."""

    def check_images(self, row: Conversation | Question, text: str) -> None:
        """See `Encoder.check_images`; the processor puts the start token in the wrong place without an image."""
        super().check_images(row, text)
        if not row.images:
            raise ValueError(
                f"{row.id}: {type(self.processor).__name__} takes at least one image per row, got 0. Remove the row, "
                "or use a model that reads text alone."
            )

    def encode_pairs(self, prompts: list[str], answers: list[str], rows: Sequence[Conversation]) -> Batch:
        """See `PairEncoder.encode_pairs`."""
        return self.process(prompts, rows, "right", suffix=answers, return_tensors="pt")


class DecoderEncoder(PairEncoder):
    """Encoder-decoders (InstructBLIP and BLIP-2 with T5): the answer is what the decoder says."""

    def encode_pairs(self, prompts: list[str], answers: list[str], rows: Sequence[Conversation]) -> Batch:
        """See `PairEncoder.encode_pairs`."""
        batch = self.process(prompts, rows, "right", return_tensors="pt")
        said = self.words.processor_for(*answers).tokenizer(
            answers, padding=True, padding_side="right", return_tensors="pt"
        )
        batch["labels"] = said["input_ids"].masked_fill(said["attention_mask"] == 0, IGNORED)
        return batch
