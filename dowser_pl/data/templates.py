"""Chat templates: which one is used, and where in the rendered text the assistant speaks.

A template with `{% generation %}` says itself which characters the assistant wrote. For others the conversation is
rendered turn by turn and the new characters of each assistant turn are taken, which is exact when every shorter
rendering is the beginning of the longer one, and refused when it is not.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import ProcessorMixin

from dowser_pl.data.rows import Message
from dowser_pl.errors import DowserError
from dowser_pl.models.text_only import Processor, reads_images, tokenizer_of

Span = tuple[int, int]

_TAG = re.compile(r"({%[-+]?\s*)(end)?generation(\s*[-+]?%})")
_MARKS = ("\ue000\ue0f0\ue001", "\ue001\ue0f1\ue000")  # private-use characters: no text contains these
_WORDS = ("qzxvw", "jkvxq", "wxzqk", "vqjzx")  # of two questions and answers; no template writes them itself
_OBJECTS = "[{'type': "
# Words and images one after the other, one message per line, and the end token behind each answer.
_PLAIN = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    "{% else %}IMAGE{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)
# As InstructBLIP's own training has it: the instruction, a space and the answer.
_INSTRUCTBLIP = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' }}{% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] | trim }}{% else %}IMAGE{% endif %}"
    "{% endfor %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
_NAMED = {"plain": _PLAIN, "instructblip": _INSTRUCTBLIP}


class ChatTemplate:
    """Messages -> text, by a Jinja template.

    Args:
        processor: renders, and has the default template.
        template: Jinja text, a path, "plain" or "instructblip", or the name of one of several that the processor has;
            None = the one of the processor or of its tokenizer.

    Raises:
        DowserError: there is none, or the path does not exist.
    """

    def __init__(self, processor: Processor, template: str | None = None) -> None:
        self.processor = processor
        self.source = find_template(processor, template)
        self._marked: str | None = None
        if _TAG.search(self.source):
            start, end = (f"print '{mark}'" for mark in _MARKS)
            self._marked = _TAG.sub(lambda tag: tag[1] + (end if tag[2] else start) + tag[3], self.source)
        self._takes_parts = reads_images(processor)
        if not self._takes_parts and not self._writes_words():  # most templates of text alone take each turn as a text
            self._takes_parts = True
            self._takes_parts = self._writes_words()

    def render(self, messages: list[Message], prompt: bool = False) -> str:
        """The text of `messages`; with `prompt`, up to where the assistant would start to speak."""
        return self._render(self.source, messages, prompt)

    def render_spans(self, messages: list[Message], row: str) -> tuple[str, list[Span]]:
        """The text, and the (start, end) characters of each assistant turn in it, in order.

        Raises:
            DowserError: neither way of finding the turns applies.
        """
        if self._marked is None:
            return self._spans_by_prefix(messages, row)
        pieces = re.split("|".join(_MARKS), self._render(self._marked, messages, False))
        if len(pieces) < 3:
            raise DowserError(f"{row}: the chat template marks no assistant turn by {{% generation %}} in this row.")
        spans: list[Span] = []
        position = 0
        for number, piece in enumerate(pieces):
            start, position = position, position + len(piece)
            if number % 2 == 0 or not piece:
                continue
            if spans and spans[-1][1] == start:  # one turn of several parts
                start = spans.pop()[0]
            spans.append((start, position))
        text = "".join(pieces)
        self._check_prompt(messages, text, row)
        return text, spans

    def closings(self) -> tuple[str, str]:
        """What is written behind the last words of an assistant, and between them and the next question's words.

        Empty where the template cannot write such a conversation, or writes other words than it was given.
        """
        _, found, last = self._sample(2).rpartition(_WORDS[1])
        _, _, rest = self._sample(4).partition(_WORDS[1])
        between, follows, _ = rest.partition(_WORDS[2])
        return last if found else "", between if follows else ""

    def openers(self) -> tuple[str, str, str | None] | None:
        """Text before a user's words, between them and an assistant's, and before those of a user with a picture.

        The last is None where pictures have no place in the text; all is None where the template writes no such
        conversation, or other words than it was given.
        """
        user, is_asked, rest = self._sample(2).partition(_WORDS[0])
        assistant, is_answered, _ = rest.partition(_WORDS[1])
        if not is_asked or not is_answered:
            return None
        picture, found, _ = self._sample(2, picture=True).partition(_WORDS[0])
        token = getattr(self.processor, "image_token", None)
        return user, assistant, picture if found and isinstance(token, str) and token in picture else None

    def _writes_words(self) -> bool:
        """Whether the words of a conversation are found in its text."""
        text = self._sample(2)
        return all(words in text for words in _WORDS[:2])

    def _sample(self, num_turns: int, picture: bool = False) -> str:
        """A conversation of `_WORDS`; a template that is asked for text alone may have been written for that."""
        for as_parts in (True,) if picture else (True, False):
            turns = [
                {"role": role, "content": [{"type": "text", "text": words}] if as_parts else words}
                for role, words in zip(("user", "assistant") * (num_turns // 2), _WORDS, strict=False)
            ]
            if picture:
                turns[0]["content"] = [{"type": "image"}, {"type": "text", "text": _WORDS[0]}]
            with suppress(ValueError):
                return self.render(turns)
        return ""

    def _check_prompt(self, messages: list[Message], text: str, row: str) -> None:
        """What is asked in evaluation must be the beginning of what is learnt."""
        asked = self.render(messages[:-1], prompt=True).rstrip()
        if messages[-1]["role"] == "assistant" and not text.startswith(asked):
            raise DowserError(
                f"{row}: the chat template ends a question with {asked[-60:]!r}, expected the beginning of what is "
                f"learnt, which has {text[max(len(asked) - 60, 0) : len(asked)]!r} there; a model so trained would not "
                f"be asked in the way it learnt to answer.{self._about_thinking()} Fix: give a `chat_template` that "
                "opens the assistant's turn in one way."
            )

    def _about_thinking(self) -> str:
        """What is probably the matter, for templates of models that reason."""
        if "think" not in self.source.lower():
            return ""
        return (
            " It is a template of a model that reasons, which leaves the reasoning of earlier turns out or opens it by "
            "itself: train rows of one question and one answer, with the reasoning where the template has it, or give "
            "a template that writes every turn as it is in the row."
        )

    def check_answers(
        self, messages: list[Message], learnt: list[bool], text: str, spans: list[Span], row: str
    ) -> None:
        """What is learnt must be what the row says; white space is the template's business.

        Args:
            messages: of the row.
            learnt: of each assistant turn, whether it carries loss.
            text: that was rendered.
            spans: of the assistant's turns in it.
            row: for the message.

        Raises:
            DowserError: the template leaves out or changes words of an answer that is learnt.
        """
        said = [_said(message) for message in messages if message["role"] == "assistant"]
        written, position = _solid(text[: spans[-1][1]]), 0
        for words, is_on in zip(said, learnt, strict=True):
            found = written.find(words, position)
            if found >= 0:
                position = found + len(words)
            elif is_on:
                raise DowserError(
                    f"{row}: the chat template does not write what the assistant says: got {text[-120:]!r} at the end "
                    f"of its text, expected all of {words[:120]!r} (white space aside).{self._about_thinking()} Fix: "
                    "give a `chat_template` that writes answers as they are, or change the row; an earlier answer that "
                    'is not to be learnt takes "loss": false.'
                )

    def _spans_by_prefix(self, messages: list[Message], row: str) -> tuple[str, list[Span]]:
        text = self.render(messages)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self.render(messages[:turn], prompt=True), self.render(messages[: turn + 1])
            for part in (before, after):
                if not text.startswith(part):
                    raise DowserError(
                        f"{row}: cannot tell which characters are the assistant's, because the chat template writes "
                        f"a conversation of {turn + 1} messages differently when more follow. Wrap what the "
                        "assistant says in {% generation %} ... {% endgeneration %} in a copy of the template, and "
                        f"give its path as `chat_template`. Got {part[-60:]!r} where the whole text has "
                        f"{text[max(len(part) - 60, 0) : len(part)]!r}.{self._about_thinking()}"
                    )
            spans.append((len(before), len(after.rstrip())))
        return text, spans

    def _render(self, source: str, messages: list[Message], prompt: bool) -> str:
        if not self._takes_parts:
            messages = [{**message, "content": _joined(message["content"])} for message in messages]
        try:
            text: Any = self.processor.apply_chat_template(
                messages, chat_template=source, add_generation_prompt=prompt, tokenize=False
            )
        except (TemplateError, TypeError) as error:  # the latter where a text is joined with a list of parts
            roles = [message["role"] for message in messages]
            raise DowserError(f"The chat template cannot write a conversation of {roles}: {error}") from error
        contents = [message["content"] for message in messages]
        parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
        own = sum((part if isinstance(part, str) else part.get("text", "")).count(_OBJECTS) for part in parts)
        if text.count(_OBJECTS) > own:  # what a row says itself is its own affair
            raise DowserError(
                "The chat template prints the message parts as Python objects: it was written for plain text messages, "
                "not for parts like {'type': 'image'}. Give another one as `chat_template` (path or Jinja text)."
            )
        return str(text)


def _said(message: Message) -> str:
    return _solid(_joined(message["content"]))


def _joined(content: str | list[dict[str, Any]]) -> str:
    """The words of a turn."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def _solid(text: str) -> str:
    """Without white space."""
    return "".join(text.split())


def find_template(processor: Processor, template: str | None) -> str:
    """The Jinja text to use; see `ChatTemplate`."""
    if template in _NAMED:
        return _NAMED[template].replace(
            "IMAGE", str(getattr(processor, "image_token", "")) if has_placeholders(processor) else ""
        )
    if template is not None:
        if "{" in template:
            return template
        if (named := own_template(processor, template)) is not None:
            return named
        path = Path(template).expanduser()
        if not path.is_file():
            raise DowserError(
                'chat_template: expected Jinja text, the path of a file with it, "plain", "instructblip", or the name '
                f"of one of the processor's own; got {template!r}."
            )
        return path.read_text(encoding="utf-8")
    if (own := own_template(processor)) is not None:
        return own
    raise DowserError(
        f"{type(processor).__name__} has no chat template. Set `chat_template`, of data or of the call, to a path or "
        'Jinja text with the format that the model was trained on, or to "plain" (messages line by line, end token '
        'behind each answer), for InstructBLIP and BLIP-2 to "instructblip" (an answer behind a space).'
    )


def own_template(processor: Processor, name: str = "default") -> str | None:
    """The Jinja text of that name, of the processor or of its tokenizer; None if neither has one."""
    for owner in (processor, tokenizer_of(processor)):
        found = getattr(owner, "chat_template", None)
        named = found if isinstance(found, dict) else {"default": found}
        if named.get(name):
            return str(named[name])
    return None


def has_placeholders(processor: Processor) -> bool:
    """Whether images have a placeholder in the text; InstructBLIP and BLIP-2 put image tokens in front instead."""
    return (
        isinstance(processor, ProcessorMixin)
        and type(processor).replace_image_token is not ProcessorMixin.replace_image_token
    )
