r"""One row of a data file -> chat messages and images, whichever of the usual formats it has.

- LLaVA: `{"id", "image": path or list, "conversations": [{"from": "human", "value": "<image>\nWhat?"}, ...]}`;
- `{"messages": [{"role", "content": text or parts}], "images": [...]}`, with image parts
  `{"type": "image", "path" | "url" | "base64" | "image": ...}`, `{"type": "image"}` for the next one of the image
  column, or `{"type": "image_url", "image_url": {"url": ...}}`.

`<image>` in a text stands for the next image of the column. If the row has images but nothing says where, they come
before the first question. Space at both ends of a turn is dropped, also around images there, because the chat template
brings its own; all other space stays as written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.data.decoding import ON_WHITE, Decoding
from dowser_pl.data.images import ImageSource, ImageText, open_image, read_source
from dowser_pl.data.rows import Message

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = "<image>"
_SOURCES = ("path", "url", "base64", "image")


@dataclass(frozen=True)
class MessageReader:
    """Reads rows; holds what is the same for all rows of a file.

    Attributes:
        folder: where relative image paths start.
        allow_urls: whether http(s) images are fetched.
        verify: decode every image at once; otherwise they are only looked for.
        decoding: how the bytes of images become pictures.
    """

    folder: Path
    allow_urls: bool = False
    verify: bool = False
    decoding: Decoding = ON_WHITE

    def read(self, name: str, row: dict[str, Any]) -> tuple[list[Message], list[ImageSource]]:
        """Messages and images of a row; `name` is for error messages.

        Raises:
            ValueError: unknown format or role, roles out of order, empty turn, image missing or miscounted.
        """
        turns = row.get("conversations") or row.get("messages")  # null where tables were exported
        if not isinstance(turns, list) or not turns:
            raise ValueError(
                f'{name}: expected a list "conversations" (LLaVA) or "messages" with at least one turn, got the keys '
                f"{sorted(row)}."
            )
        messages: list[Message] = []
        placed: list[Any] = []
        for number, turn in enumerate(turns, start=1):
            role, value = _role_and_value(f"{name}: turn {number}", turn)
            content = read_content(f"{name}: turn {number}", value)
            placed += [part.pop("source") for part in content if part["type"] == "image"]
            messages.append({"role": role, "content": content})
        check_order(name, [message["role"] for message in messages])
        return messages, self.place(name, messages, placed, image_column(row))

    def place(self, name: str, messages: list[Message], placed: list[Any], images: list[Any]) -> list[ImageSource]:
        """The source of every image part; images that no text places come before the first question.

        Args:
            name: of the row.
            messages: changed in place if nothing places the images.
            placed: per image part its own source, or None = the next one of `images`.
            images: the row's image column.

        Raises:
            ValueError: the numbers differ, or an image is missing.
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
            raise ValueError(
                f"{name}: got {len(images)} images, expected {num_open}: one per {PLACEHOLDER} in the text. {fix}"
            )
        column = iter(images)
        sources = [next(column) if source is None else source for source in placed]
        return [self.source(name, source) for source in sources]

    def source(self, name: str, value: Any) -> ImageSource:
        """What one image entry (string, or an object with path, url, base64 or image) points to."""
        kind = None
        if isinstance(value, dict):
            kind = next((key for key in _SOURCES if value.get(key)), None)
            value = value.get(kind)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name}: an image must be a path, a URL or base64 text, got {str(value)[:60]!r}.")
        if kind == "base64":  # said, so nothing has to be guessed from its length
            source: ImageSource = ImageText(value, self.decoding)
        else:
            source = read_source(value, self.folder, self.allow_urls, name, self.decoding)
        if self.verify:
            open_image(source, name)
        return source


def read_content(turn: str, value: Any) -> list[dict[str, Any]]:
    """The parts of a turn; image parts carry their `source` (None = the next one of the image column).

    Raises:
        ValueError: it is empty, or a part is of an unknown type.
    """
    pieces = value if isinstance(value, list) else [value]
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        kind = piece.get("type") if isinstance(piece, dict) else None
        if kind == "image":
            own = any(piece.get(key) for key in _SOURCES)
            parts.append({"type": "image", "source": piece if own else None})
        elif kind == "image_url":
            url = piece.get("image_url")
            parts.append({"type": "image", "source": url if isinstance(url, dict) else {"url": url}})
        elif kind == "text" or isinstance(piece, str):
            parts += _split_text(piece if isinstance(piece, str) else str(piece.get("text", "")))
        else:
            raise ValueError(
                f"{turn}: expected text or parts of type text, image or image_url, got {str(piece)[:60]!r}."
            )
    if not (parts := _trim(parts)):
        raise ValueError(f"{turn} is empty: expected text or an image.")
    return parts


def image_column(row: dict[str, Any]) -> list[Any]:
    """The row's `image` or `images`, as a list."""
    value = row.get("images") or row.get("image")
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list) else [value]


def check_order(name: str, roles: list[str]) -> None:
    """Raise ValueError unless the turns are [system], user, assistant, user, assistant, ... ending with assistant."""
    spoken = roles[1:] if roles[0] == "system" else roles
    if "assistant" not in spoken:
        raise ValueError(f"{name}: no assistant turn, so there is nothing to learn; got the turns {roles}.")
    expected = ["user", "assistant"] * (len(spoken) // 2 + 1)
    if spoken != expected[: len(spoken)] or len(spoken) % 2:
        raise ValueError(
            f"{name}: the turns are out of order: got {roles}, expected an optional system turn and then user and "
            "assistant in turn, ending with assistant."
        )


def _split_text(text: str) -> list[dict[str, Any]]:
    """Text and image parts; every space stays."""
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
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


def _role_and_value(turn: str, said: Any) -> tuple[str, Any]:
    role = said.get("from", said.get("role")) if isinstance(said, dict) else None
    if role not in ROLES:
        raise ValueError(f"{turn} has the role {role!r}, expected one of {list(ROLES)}.")
    return ROLES[role], said.get("value", said.get("content"))
