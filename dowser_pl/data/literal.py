"""Words that look like control tokens stay words.

A tokenizer takes any `</s>`, `<|im_end|>` or `<image>` in a text for the control token, whether the chat template or a
person has written it. So such pieces of the words are spelled differently while the template and the processor work
with them, and the tokenizer that finally reads the text knows the genuine ones under other names, which no text has:
everything else it splits exactly as the model's own tokenizer splits ordinary text. Each spelling has as many
characters as the original, so that places in the text stay what they are.

Tokens that the tokenizer does not call special, such as `<think>` and `<tool_call>` of most models, are left alone:
they are what models are meant to write.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from dowser_pl.data.rows import Message
from dowser_pl.errors import DowserError
from dowser_pl.models.text_only import reads_images

_WORDS, _CONTROL, _FILL = "\ufdd0", "\ufdd1", "\ufdd2"  # noncharacters, which are for inside programs alone
_NUMBERED = 0xF0000  # a private character says which token is meant
_TOKENIZERS = ("tokenizer", "qformer_tokenizer")
_WRITTEN_IN_FILES = "<image>"  # in a data file; where it stands for an image, `messages.py` has made it a part


class LiteralWords:
    """Keeps control tokens in the words of rows apart from those that the template and the processor write.

    Args:
        processor: of the model, with its tokenizers, or a tokenizer.
        meant: control tokens that rows may write as such, like those around the boxes of some models' answers.

    Raises:
        DowserError: one of `meant` is none of this model, or stands for an image.
    """

    def __init__(self, processor: Any, meant: Sequence[str] = ()) -> None:
        self.processor = processor
        tokenizers: list[Any] = [processor]
        media: list[Any] = []  # tokenizers of models of text alone may name some that mean nothing
        if reads_images(processor):
            tokenizers = [getattr(processor, name) for name in _TOKENIZERS if hasattr(processor, name)]
            media = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        self._media = {str(token) for token in media if token} - {_WRITTEN_IN_FILES}
        controls = {str(token) for token in media if token}.union(*map(control_tokens, tokenizers))
        if odd := sorted(set(meant) - (controls - self._media - {_WRITTEN_IN_FILES})):
            raise DowserError(
                f"control_tokens has {odd[0]!r}, expected some of this model's that stand for no image: "
                f"{', '.join(sorted(controls - self._media - {_WRITTEN_IN_FILES})[:20])}"
            )
        controls -= set(meant)
        self._controls = sorted(controls, key=lambda token: (-len(token), token))  # the longest match counts
        self._pattern = re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")
        self._spelled = {token: _spell(_WORDS, i, token) for i, token in enumerate(self._controls)}
        self._reading: Any = None
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """For workers that do not share memory: the other tokenizer is made again where it is needed."""
        return self.__dict__ | {"_reading": None}

    def hide(self, row: str, messages: Sequence[Message]) -> list[Message]:
        """The messages with control tokens in their words spelled differently.

        Args:
            row: for messages.
            messages: with parts; left as they are.

        Raises:
            DowserError: a question writes the model's own placeholder, or the words cannot be kept apart.
        """
        return [{**message, "content": self._hidden_parts(row, message)} for message in messages]

    def processor_for(self, *texts: str) -> Any:
        """The processor, with tokenizers that read hidden words as words if any of `texts` has some."""
        if not any(_WORDS in text for text in texts):
            return self.processor
        if self._reading is None and not reads_images(self.processor):
            self._reading = self._reads_words(self.processor)
        elif self._reading is None:
            self._reading = copy.copy(self.processor)
            for name in _TOKENIZERS:
                if hasattr(self.processor, name):
                    setattr(self._reading, name, self._reads_words(getattr(self.processor, name)))
        return self._reading

    def _hidden_parts(self, row: str, message: Message) -> list[dict[str, Any]]:
        parts = [self._hidden(row, message["role"], part) for part in message["content"]]
        for before, after in zip(message["content"], message["content"][1:], strict=False):
            texts = [part.get("text", "") for part in (before, after)]
            if len(self._pattern.findall("".join(texts))) != sum(len(self._pattern.findall(text)) for text in texts):
                raise DowserError(
                    f"{row}: two parts of a turn make a control token where they meet. Write them as one."
                )
        return parts

    def _hidden(self, row: str, role: str, part: dict[str, Any]) -> dict[str, Any]:
        text = part.get("text", "")
        if any(mark in text for mark in (_WORDS, _CONTROL, _FILL)):
            raise DowserError(f"{row}: its text has one of the noncharacters U+FDD0 to U+FDD2. Remove it.")
        found = set(self._pattern.findall(text))
        if not found:
            return part
        if role != "assistant" and found & self._media:
            raise DowserError(
                f"{row}: the turn of the {role} has {sorted(found & self._media)[0]!r}, this model's own placeholder. "
                f"Write {_WRITTEN_IN_FILES} where an image of the row belongs, or nothing to have the images first."
            )
        self._check(row, found)
        return {**part, "text": self._pattern.sub(lambda match: self._spelled[match[0]], text)}

    def _check(self, row: str, found: set[str]) -> None:
        """Raise ValueError unless the tokens `found` in a row can be read as words; say once that they are."""
        try:
            self.processor_for(_WORDS)
            if short := [token for token in found if len(token) < 2]:
                raise DowserError(f"a single character, {short[0]!r}, is a token of its own")
        except (ValueError, AttributeError) as error:
            raise DowserError(
                f"{row}: its words have {sorted(found)[0]!r}, which is a control token, and the tokenizer cannot be "
                f"made to read it as words: {error}. Remove it from the row, or leave such rows out with "
                "`skip_bad_rows: true`."
            ) from error
        for token in sorted(found - self._warned):
            self._warned.add(token)
            rank_zero_warn(
                f"{row}: its words have {token!r}, which is a control token of this model. It is read as plain text, "
                "here and in all other rows; `data.control_tokens` lists those that rows may write as such.",
                category=UserWarning,
            )

    def _reads_words(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """A copy of `tokenizer` for texts with hidden words."""
        own = {*control_tokens(tokenizer), *tokenizer.added_tokens_encoder}
        names = {token: _spell(_CONTROL, i, token) for i, token in enumerate(self._controls) if token in own}
        genuine = re.compile("|".join([*map(re.escape, self._spelled.values()), *map(re.escape, names)]))
        meant = names | {spelled: token for token, spelled in self._spelled.items()}
        reading = copy.copy(tokenizer)
        backend = tokenizer.backend_tokenizer  # AttributeError: said above
        reading._tokenizer = _Renamed(backend, renamed(backend, names), genuine, meant)
        return reading


class _Renamed:
    """A backend that encodes with another one in which control tokens have other names, and is the first in all else.

    Args:
        own: of the model.
        other: with other names.
        pattern: what to replace in a text before `other` reads it.
        meant: by what.
    """

    def __init__(self, own: Tokenizer, other: Tokenizer, pattern: re.Pattern[str], meant: dict[str, str]) -> None:
        self.__dict__.update(own=own, other=other, pattern=pattern, meant=meant)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["own"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.own, name, value)

    def encode_batch(self, texts: Iterable[Any], *args: Any, **options: Any) -> Any:
        """As the model's own does, with its settings of the moment."""
        other = self.other
        other.no_padding() if self.own.padding is None else other.enable_padding(**self.own.padding)
        other.no_truncation() if self.own.truncation is None else other.enable_truncation(**self.own.truncation)
        return other.encode_batch([self._read(text) for text in texts], *args, **options)

    encode_batch_fast = encode_batch

    def encode(self, text: str, pair: str | None = None, *args: Any, **options: Any) -> Any:
        """As `encode_batch`, of one text."""
        return self.encode_batch([text if pair is None else (text, pair)], *args, **options)[0]

    def _read(self, text: Any) -> Any:
        if isinstance(text, str):
            return self.pattern.sub(lambda match: self.meant[match[0]], text)
        return type(text)(map(self._read, text))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens that the tokenizer finds in a text before it splits the rest into words, and calls special."""
    listed = getattr(tokenizer, "added_tokens_decoder", {})  # tokenizers of other libraries have none
    added = {token.content for token in listed.values() if token.special}
    return {token for token in added | set(map(str, tokenizer.all_special_tokens)) if token}


def renamed(tokenizer: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """A copy of `tokenizer` in which the tokens have new names and their old numbers.

    Args:
        tokenizer: with all its parts.
        names: old name to new name.

    Raises:
        DowserError: the copy does not read the new names as the tokenizer reads the old ones.
    """
    parts = json.loads(tokenizer.to_str())
    for token in parts["added_tokens"]:
        if token["content"] in names and token["single_word"]:
            raise DowserError(f"{token['content']!r} is only a token where it stands alone")
        token["content"] = names.get(token["content"], token["content"])
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), *rest] for piece, *rest in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _makes(pair, names)]
    copied = Tokenizer.from_str(json.dumps(parts))
    for old, new in names.items():
        numbers = [one.encode(name, add_special_tokens=False).ids for one, name in ((tokenizer, old), (copied, new))]
        if tokenizer.token_to_id(old) != copied.token_to_id(new) or numbers[0] != numbers[1]:
            raise DowserError(f"{old!r} has number {numbers[0]} and, under another name, {numbers[1]}")
    return copied


def _makes(pair: Any, names: dict[str, str]) -> bool:
    """Whether a merge of a byte-pair vocabulary has to do with one of the names."""
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return bool({left, right, left + right} & names.keys())


def _spell(mark: str, number: int, token: str) -> str:
    """Another spelling of a token, with as many characters."""
    return (mark + chr(_NUMBERED + number)).ljust(len(token), _FILL)
