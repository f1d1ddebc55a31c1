"""Where a row's pictures come from, and how they become upright RGB."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import urllib.error
import urllib.request
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image, ImageOps

_BROKEN = (
    OSError,  # truncated, or not an image at all
    SyntaxError,  # what Pillow raises for broken PNG chunks
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_MAX_DOWNLOAD = 64 * 2**20


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk."""

    path: Path

    def load(self) -> Image.Image:
        """The upright RGB picture."""
        with self.path.open("rb") as file:
            return _decode(file)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ImageText:
    """A picture written into the row itself as base64, with or without the `data:image/...;base64,` head."""

    text: str

    def load(self) -> Image.Image:
        """The upright RGB picture."""
        body = self.text.split(",", 1)[1] if self.text.startswith("data:") else self.text
        try:
            content = base64.b64decode("".join(body.split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from error
        return _decode(io.BytesIO(content))

    def __str__(self) -> str:
        return f"base64 text {self.text[:32]!r}..."


@dataclass(frozen=True)
class ImageURL:
    """A picture on the web, fetched anew each time it is needed."""

    url: str

    def load(self) -> Image.Image:
        """The upright RGB picture."""
        with urllib.request.urlopen(self.url, timeout=30) as answer:  # http(s) only, see read_source
            content = answer.read(_MAX_DOWNLOAD + 1)
        if len(content) > _MAX_DOWNLOAD:
            raise ValueError(f"larger than {_MAX_DOWNLOAD // 2**20} MB")
        return _decode(io.BytesIO(content))

    def __str__(self) -> str:
        return self.url


class LazyImage(Protocol):
    """Anything that can make its picture when it is needed."""

    def load(self) -> Image.Image:
        """The upright RGB picture."""


ImageSource = Image.Image | LazyImage


def read_source(text: str, folder: Path | None, allow_urls: bool, row: str) -> ImageSource:
    """What a string in a data file points to; nothing is decoded yet.

    Args:
        text: path (relative to `folder`), `data:` URI, bare base64, or URL.
        folder: where relative paths start; None = the working directory.
        allow_urls: whether http(s) is fetched.
        row: for the message.

    Raises:
        ValueError: the file is missing, or it is a URL and they are off.
    """
    if text.startswith(("http://", "https://")):
        if not allow_urls:
            raise ValueError(
                f"{row}: the image {text!r} is a URL, and fetching is off. Download it and give its path "
                "relative to image_folder, or set `allow_urls: true`."
            )
        return ImageURL(text)
    if text.startswith("data:"):
        return ImageText(text)
    path = (folder or Path()) / text.removeprefix("file://")
    try:
        if path.is_file():
            return ImageFile(path)
    except OSError:  # "File name too long": what base64 looks like to the file system
        pass
    if len(text) > 100 and "." not in text:  # base64 has no dot, file names have
        return ImageText(text)
    raise ValueError(
        f"{row}: no image at {path}. Check the name, and `image_folder` (got {str(folder) if folder else None!r}), "
        "to which paths in the data file are relative; or set `skip_bad_rows: true`."
    )


def open_image(source: ImageSource, row: str) -> Image.Image:
    """The picture of `source`, upright (EXIF) and RGB.

    Raises:
        ValueError: it cannot be read, or it claims more pixels than is plausible (a decompression bomb).
    """
    try:
        return _upright_rgb(source) if isinstance(source, Image.Image) else source.load()
    except (*_BROKEN, urllib.error.URLError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{row}: cannot read the image {source}: {reason}. Replace the file or remove the row; "
            "`skip_bad_rows: true` leaves such rows out and counts them."
        ) from error


def _decode(file: BinaryIO | io.BytesIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as image:
            return _upright_rgb(image)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    try:
        image = ImageOps.exif_transpose(image)  # copies in any case
    except _BROKEN:  # damaged notes of the camera; the picture itself is whole
        image = image.copy()
    if image.mode == "F":
        raise ValueError("its pixels are 32-bit floats; save it with 8 bits per channel")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scale
        image = image.convert("I").point(lambda level: level / 256).convert("L")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency loses it here without a warning
    return image if image.mode == "RGB" else image.convert("RGB")
