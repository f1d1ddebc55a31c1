r"""One row of a data file -> chat messages and images, whichever of the usual formats it has.

- LLaVA: `{"id", "image": path or list, "conversations": [{"from": "human", "value": "<image>\nWhat?"}, ...]}`;
- `{"messages": [{"role", "content": text or parts}], "images": [...]}`, with image parts
  `{"type": "image", "path" | "url" | "base64" | "image": ...}`, `{"type": "image"}` for the next one of the image
  column, or `{"type": "image_url", "image_url": {"url": ...}}`.

`<image>` in a question stands for the next image of the column, unless the image parts of the row already account for
all of them; in an answer it is text. If the row has images but nothing says where, they come before the first question.
Space at both ends of a turn is dropped, also around images there, because the chat template brings its own; all other
space stays as written.

`system` (or `system_prompt`) of a row is its system turn. A turn with `loss: false`, `weight: 0` or `train: false` is
read but not learnt. Videos and sound are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.data.images import ON_WHITE, Decoding, ImageBytes, ImageSource, ImageText, open_image, read_source
from dowser_pl.data.row_keys import (
    LOSS_KEYS,
    SYSTEM_KEYS,
    absent,
    is_blank,
    refuse_media,
    refuse_media_part,
    refuse_media_placeholder,
    refuse_switched_off,
)
from dowser_pl.data.rows import Message, is_learnt, no_images
from dowser_pl.errors import DowserError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = "<image>"
_SOURCES = ("bytes", "path", "url", "base64", "image")


@dataclass(frozen=True)
class MessageReader:
    """Reads rows; holds what is the same for all rows of a file.

    Attributes:
        folder: where relative image paths start.
        allow_urls: whether http(s) images are fetched.
        verify: decode every image at once; otherwise they are only looked for.
        decoding: how the bytes of images become pictures.
        beside: where image paths start that lead to no file in `folder`; None = nowhere.
        words_only: the class of what reads the rows, where it takes no images and rows may have none; "" = it does.
    """

    folder: Path
    allow_urls: bool = False
    verify: bool = False
    decoding: Decoding = ON_WHITE
    beside: Path | None = None
    words_only: str = ""

    def read(self, name: str, row: dict[str, Any], answered: bool = True) -> tuple[list[Message], list[ImageSource]]:
        """Messages and images of a row; `name` is for error messages.

        Args:
            name: of the row, for messages.
            row: as it stands in the file.
            answered: whether its last turn must be an answer, and one must carry loss.

        Raises:
            DowserError: unknown format or role, roles out of order, empty turn, image missing or miscounted.
        """
        refuse_media(name, row)
        refuse_switched_off(name, row)
        turns = next((row[key] for key in ("conversations", "messages") if not absent(row.get(key))), None)
        if not isinstance(turns, list) or not turns:
            raise DowserError(
                f'{name}: expected a list "conversations" (LLaVA) or "messages" with at least one turn, got the keys '
                f"{sorted(row)}."
            )
        if not answered and len(turns) > 1 and _is_open(turns[-1]):
            turns = turns[:-1]
        messages = [_message(f"{name}: turn {number}", turn) for number, turn in enumerate(turns, start=1)]
        messages = with_system(name, row, messages)
        check_order(name, [message["role"] for message in messages], answered)
        if answered and not any(map(is_learnt, messages)):
            raise DowserError(
                f"{name}: no answer is left to learn from, every one is switched off by one of {list(LOSS_KEYS)}."
            )
        return messages, self.sources(name, row, messages)

    def sources(self, name: str, row: dict[str, Any], messages: list[Message]) -> list[ImageSource]:
        """The images of a row, one per image part; finishes its messages in place (see `settle`).

        Raises:
            DowserError: images missing, miscounted or not wanted, or see `settle`.
        """
        images = image_column(row)
        if images != image_column({**row, "images": row.get("image") or images}):
            raise DowserError(f"{name}: `image` and `images` name different images; keep the one that is meant.")
        placed = settle(name, messages, len(images))
        if self.words_only and (images or placed):
            raise DowserError(f"{name}: {no_images(max(len(images), len(placed)), self.words_only)}")
        return self.place(name, messages, placed, images)

    def place(self, name: str, messages: list[Message], placed: list[Any], images: list[Any]) -> list[ImageSource]:
        """The source of every image part; images that no text places come before the first question.

        Args:
            name: of the row.
            messages: changed in place if nothing places the images.
            placed: per image part its own source, or None = the next one of `images`.
            images: the row's image column.

        Raises:
            DowserError: the numbers differ, or an image is missing.
        """
        if images and not placed:
            first = next(message for message in messages if message["role"] == "user")
            first["content"][:0] = [{"type": "image"} for _ in images]
            placed = [None] * len(images)
        num_open = placed.count(None)
        if num_open != len(images):
            fix = (
                "Remove the surplus, or write no placeholder at all to put all images before the first question."
                if num_open < len(images)
                else "Add the missing ones under `image`, or remove the placeholder from the text."
            )
            raise DowserError(
                f"{name}: got {len(images)} images, expected {num_open}: one per {PLACEHOLDER} in the text. {fix}"
            )
        column = iter(images)
        sources = [next(column) if source is None else source for source in placed]
        return [self.source(name, source) for source in sources]

    def source(self, name: str, value: Any) -> ImageSource:
        """What one image entry (string, bytes, or an object with bytes, path, url, base64 or image) points to."""
        kind = called = None
        while isinstance(value, dict):  # `datasets` keeps {"bytes", "path"}, also below `image`
            kind, called = next((key for key in _SOURCES if value.get(key)), None), value.get("path")
            value = value.get(kind)
        if isinstance(value, bytes) and value:
            return self._seen(ImageBytes(value, self.decoding, called), name)
        if not isinstance(value, str) or not value:
            raise DowserError(f"{name}: an image must be a path, a URL or base64 text, got {str(value)[:60]!r}.")
        if kind == "base64":  # said, so nothing has to be guessed from its length
            return self._seen(ImageText(value, self.decoding), name)
        return self._seen(read_source(value, self.folder, self.allow_urls, name, self.decoding, self.beside), name)

    def _seen(self, source: ImageSource, name: str) -> ImageSource:
        if self.verify:
            open_image(source, name)
        return source


def with_system(name: str, row: dict[str, Any], messages: list[Message]) -> list[Message]:
    """The messages with what the row's `system` or `system_prompt` says as their system turn.

    Raises:
        DowserError: there is another system turn already.
    """
    for key in SYSTEM_KEYS:
        value = row.get(key)
        if absent(value.strip() if isinstance(value, str) else value):
            continue
        turn = {"role": "system", "content": _trim(read_content(f"{name}: {key}", value))}
        if not messages or messages[0]["role"] != "system":
            messages = [turn, *messages]
        elif _trim(messages[0]["content"]) != turn["content"]:
            raise DowserError(f"{name}: `{key}` and the system turn of the row differ; keep the one that is meant.")
    return messages


def read_content(turn: str, value: Any) -> list[dict[str, Any]]:
    """The parts of a turn as they stand; image parts carry their `source` (None = the next one of the image column).

    Raises:
        DowserError: it is empty, a part is of an unknown type, or says null where text belongs.
    """
    parts = [_part(turn, piece) for piece in (value if isinstance(value, list) else [value])]
    if not any(part["type"] == "image" or part["text"].strip() for part in parts):
        raise DowserError(f"{turn} is empty: expected text or an image.")
    return parts


def settle(name: str, messages: list[Message], num_images: int) -> list[Any]:
    """Split the texts of questions at `<image>` where it stands for an image, and trim all turns, in place.

    Args:
        name: of the row.
        messages: with parts as `read_content` has them.
        num_images: in the row's image column.

    Returns:
        Per image part its own source, or None = the next one of the image column.

    Raises:
        DowserError: an answer shows an image, a question has the place of a video, or `<image>`
            repeats an image part.
    """
    asked = [message for message in messages if message["role"] != "assistant"]
    parts = [part for message in asked for part in message["content"]]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    for text in texts:
        refuse_media_placeholder(name, text)
    num_parts = sum(part["type"] == "image" for part in parts)
    num_open = sum(part["type"] == "image" and part["source"] is None for part in parts)
    is_text = num_parts > 0 and num_open == num_images
    if is_text and any(text.strip().startswith(PLACEHOLDER) or text.strip().endswith(PLACEHOLDER) for text in texts):
        raise DowserError(
            f"{name}: each of its images has a part of its own, and a text has the placeholder {PLACEHOLDER} as well. "
            "Remove the placeholder from the text."
        )
    placed = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            if any(part["type"] == "image" for part in content):
                raise DowserError(f"{name}: an assistant turn shows an image, but models answer with text alone.")
        elif not is_text:
            content = [piece for part in content for piece in _split(part)]
        message["content"] = _trim(content)
        placed += [part.pop("source") for part in message["content"] if part["type"] == "image"]
    return placed


def image_column(row: dict[str, Any]) -> list[Any]:
    """The row's `image` or `images`, as a list."""
    value = row.get("image") if absent(row.get("images")) else row["images"]
    if absent(value) or (isinstance(value, dict) and is_blank(value)):
        return []
    return list(value) if isinstance(value, list) else [value]


def check_order(name: str, roles: list[str], answered: bool = True) -> None:
    """Raise ValueError unless the turns are [system], user, assistant, user, assistant, ... ending with assistant.

    Without `answered` they may end with a question as well.
    """
    spoken = roles[1:] if roles[0] == "system" else roles
    if answered and "assistant" not in spoken:
        raise DowserError(f"{name}: no assistant turn, so there is nothing to learn; got the turns {roles}.")
    expected = ["user", "assistant"] * (len(spoken) // 2 + 1)
    if not spoken or spoken != expected[: len(spoken)] or (answered and len(spoken) % 2):
        raise DowserError(
            f"{name}: the turns are out of order: got {roles}, expected an optional system turn and then user and "
            f"assistant in turn{', ending with assistant' if answered else ''}."
        )


def _part(turn: str, piece: Any) -> dict[str, Any]:
    """A part of a turn; see `read_content`."""
    refuse_media_part(turn, piece)
    kind = piece.get("type") if isinstance(piece, dict) else None
    if kind == "image":
        return {"type": "image", "source": piece if any(piece.get(key) for key in _SOURCES) else None}
    if kind == "image_url":
        url = piece.get("image_url")
        return {"type": "image", "source": url if isinstance(url, dict) else {"url": url}}
    text = piece.get("text") if kind == "text" else piece
    if not isinstance(text, str):
        raise DowserError(f"{turn}: expected text or parts of type text, image or image_url, got {str(piece)[:60]!r}.")
    return {"type": "text", "text": text}


def _split(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Text and image parts; every space stays."""
    if part["type"] == "image":
        return [part]
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(part["text"].split(PLACEHOLDER)):
        if number:
            parts.append({"type": "image", "source": None})
        parts.append({"type": "text", "text": piece})
    return parts


def _trim(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without space before the first and behind the last word of a turn, and without empty parts."""
    texts = [part for part in parts if part["type"] == "text"]
    for order, strip in ((texts, str.lstrip), (texts[::-1], str.rstrip)):
        for part in order:
            part["text"] = strip(part["text"])
            if part["text"]:
                break
    return [part for part in parts if part.get("text") != ""]


def _message(turn: str, said: Any) -> Message:
    """A turn with its parts as they stand, and `"loss": False` if it is an answer that is not learnt."""
    given = said if isinstance(said, dict) else {}
    role = given.get("role") if absent(given.get("from")) else given["from"]
    if not isinstance(role, str) or role not in ROLES:
        raise DowserError(f"{turn} has the role {role!r}, expected one of {list(ROLES)}.")
    value = given.get("content") if given.get("value") is None else given["value"]
    message: Message = {"role": ROLES[role], "content": read_content(turn, value)}
    return message if _carries_loss(turn, given, ROLES[role]) else {**message, "loss": False}


def _is_open(said: Any) -> bool:
    """Whether a turn is the assistant's and there is nothing in it, as files of questions leave room for an answer."""
    given = said if isinstance(said, dict) else {}
    speaker = given.get("role") if absent(given.get("from")) else given["from"]
    return ROLES.get(str(speaker)) == "assistant" and all(absent(given.get(key)) for key in ("value", "content"))


def _carries_loss(turn: str, said: dict[str, Any], role: str) -> bool:
    """Whether the file leaves the loss of a turn on; a turn that is none of the assistant's cannot have any.

    Raises:
        DowserError: a weight between, keys that disagree, or loss on a question.
    """
    given = {key: said[key] for key in LOSS_KEYS if said.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DowserError(f"{turn}: {key} must be 0 or 1 (false or true), got {value!r}: a turn is learnt or not.")
    if len(set(given.values())) > 1:
        raise DowserError(f"{turn}: got {given}, which disagree about whether the turn is learnt.")
    if role != "assistant" and any(given.values()):
        raise DowserError(
            f"{turn}: got {given} on a turn of the {role}, but only what the assistant says is learnt. Remove the key, "
            "or set it to 0."
        )
    return role != "assistant" or all(given.values())
