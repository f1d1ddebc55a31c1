"""Where a row's pictures come from."""

from __future__ import annotations

import base64
import binascii
import io
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from dowser_pl.data.decoding import BROKEN, ON_WHITE, Decoding

_MAX_DOWNLOAD = 64 * 2**20


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk."""

    path: Path
    decoding: Decoding = ON_WHITE

    def load(self) -> Image.Image:
        """The upright RGB picture."""
        with self.path.open("rb") as file:
            return self.decoding.read(file)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ImageText:
    """A picture written into the row itself as base64, with or without the `data:image/...;base64,` head."""

    text: str
    decoding: Decoding = ON_WHITE

    def load(self) -> Image.Image:
        """The upright RGB picture."""
        body = self.text.split(",", 1)[1] if self.text.startswith("data:") else self.text
        try:
            content = base64.b64decode("".join(body.split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from error
        return self.decoding.read(io.BytesIO(content))

    def __str__(self) -> str:
        return f"base64 text {self.text[:32]!r}..."


@dataclass(frozen=True)
class ImageBytes:
    """A picture file inside a table, and what it is called there."""

    content: bytes
    decoding: Decoding = ON_WHITE
    name: str | None = None

    def load(self) -> Image.Image:
        """The upright RGB picture."""
        return self.decoding.read(io.BytesIO(self.content))

    def __str__(self) -> str:
        return f"{self.name or 'without a name'} ({len(self.content)} bytes in the table)"


@dataclass(frozen=True)
class ImageURL:
    """A picture on the web, fetched anew each time it is needed."""

    url: str
    decoding: Decoding = ON_WHITE

    def load(self) -> Image.Image:
        """The upright RGB picture."""
        with urllib.request.urlopen(self.url, timeout=30) as answer:  # http(s) only, see read_source
            content = answer.read(_MAX_DOWNLOAD + 1)
        if len(content) > _MAX_DOWNLOAD:
            raise ValueError(f"larger than {_MAX_DOWNLOAD // 2**20} MB")
        return self.decoding.read(io.BytesIO(content))

    def __str__(self) -> str:
        return self.url


class LazyImage(Protocol):
    """Anything that can make its picture when it is needed."""

    def load(self) -> Image.Image:
        """The upright RGB picture."""


ImageSource = Image.Image | LazyImage


def read_source(
    text: str, folder: Path | None, allow_urls: bool, row: str, decoding: Decoding = ON_WHITE
) -> ImageSource:
    """What a string in a data file points to; nothing is decoded yet.

    Args:
        text: path (relative to `folder`), `data:` URI, bare base64, or URL.
        folder: where relative paths start; None = the working directory.
        allow_urls: whether http(s) is fetched.
        row: for the message.
        decoding: how its bytes become a picture.

    Raises:
        ValueError: the file is missing, or it is a URL and they are off.
    """
    if text.startswith(("http://", "https://")):
        if not allow_urls:
            raise ValueError(
                f"{row}: the image {text!r} is a URL, and fetching is off. Download it and give its path "
                "relative to image_folder, or set `allow_urls: true`."
            )
        return ImageURL(text, decoding)
    if text.startswith("data:"):
        return ImageText(text, decoding)
    path = (folder or Path()) / text.removeprefix("file://")
    try:
        if path.is_file():
            return ImageFile(path, decoding)
    except OSError:  # "File name too long": what base64 looks like to the file system
        pass
    if len(text) > 100 and "." not in text:  # base64 has no dot, file names have
        return ImageText(text, decoding)
    raise ValueError(
        f"{row}: no image at {path}. Check the name, and `image_folder` (got {str(folder) if folder else None!r}), "
        "to which paths in the data file are relative; or set `skip_bad_rows: true`."
    )


def open_image(source: ImageSource, row: str) -> Image.Image:
    """The picture of `source`, upright (EXIF) and RGB; transparent ones that rows hold ready are put on white.

    Raises:
        ValueError: it cannot be read, or it claims more pixels than is plausible (a decompression bomb).
    """
    try:
        picture = source if isinstance(source, Image.Image) else source.load()
        return picture if picture is not source and picture.mode == "RGB" else ON_WHITE.upright_rgb(picture)
    except (*BROKEN, urllib.error.URLError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{row}: cannot read the image {source}: {reason}. Replace the file or remove the row; "
            "`skip_bad_rows: true` leaves such rows out and counts them."
        ) from error
