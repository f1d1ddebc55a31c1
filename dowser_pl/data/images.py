"""Where a row's pictures come from, and how their bytes become upright RGB of a size that can be held."""

from __future__ import annotations

import base64
import binascii
import errno
import io
import os
import struct
import threading
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageColor, ImageOps, PngImagePlugin

from dowser_pl.errors import DowserError, FileError

MAX_PIXELS = 178_956_970
"""Where Pillow refuses a picture unless told otherwise: twice as many pixels as where it warns."""
_OF_THE_DISK = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
BROKEN = (
    OSError,  # truncated, or not an image at all
    SyntaxError,  # what Pillow raises for broken PNG chunks
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)
_WITH_ALPHA = {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}  # what keeps transparency another way
_MAX_NOTES = 256 * 2**20  # bytes of text and of colour profile in one PNG

# Pillow keeps its limits in its modules. They are changed for as long as one picture is decoded, by one thread at a
# time, and a fork waits for that, so that no child begins with them.
_LIMITS = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LIMITS.acquire, after_in_parent=_LIMITS.release, after_in_child=_LIMITS.release)


class Decoding(NamedTuple):
    """What is the same for all pictures of a data module.

    Attributes:
        background: what shows through transparent pixels, a colour name or "#rrggbb".
        max_pixels: a picture of more is refused; None = no limit.
        square: the colour (RGB, 0 to 255) with which pictures are padded to a square, themselves in the middle; None =
            they are not. LLaVA: Visual Instruction Tuning. Liu et al., 2023. arXiv:2304.08485.
    """

    background: str = "white"
    max_pixels: int | None = MAX_PIXELS
    square: tuple[int, ...] | None = None

    def checked(self) -> Decoding:
        """Itself; ValueError for a colour or a limit that is none."""
        try:
            channels = len(ImageColor.getrgb(self.background))
        except (ValueError, TypeError, AttributeError):
            channels = 0
        if channels != 3:
            raise DowserError(
                f"background must be the name of a colour or #rrggbb (in quotes, because # begins a comment in YAML), "
                f"got {self.background!r}."
            )
        if self.max_pixels is not None and self.max_pixels < 1:
            raise DowserError(f"max_image_pixels must be at least 1, or null for no limit; got {self.max_pixels}.")
        return self

    def read(self, file: BinaryIO | BytesIO) -> Image.Image:
        """The upright RGB picture of a file; of an animation the first frame.

        Raises:
            OSError, SyntaxError, ValueError, ...: one of `BROKEN`: it cannot be read, or has too many pixels.
        """
        try:
            with self._limits(), Image.open(file) as image:
                return self._padded(self.upright_rgb(image))
        except Image.DecompressionBombError as error:
            size = str(error).partition(" exceeds")[0]
            raise DowserError(
                f"{size} exceeds max_image_pixels={self.max_pixels}, which guards against decompression bombs. If the "
                "file can be trusted, raise `data.max_image_pixels`"
            ) from error

    def upright_rgb(self, image: Image.Image) -> Image.Image:
        """A copy of `image`, turned as its EXIF notes say, on the background, and RGB.

        Raises:
            DowserError: its pixels are floats.
        """
        depth = _stored_as(image)
        image.load()
        try:
            image = ImageOps.exif_transpose(image)  # copies in any case
        except BROKEN:  # damaged notes of the camera; the picture itself is whole
            image = image.copy()
        if image.mode == "F":
            raise DowserError("its pixels are 32-bit floats; save it with 8 bits per channel")
        image = _with_alpha(image, depth)
        if image.mode not in ("RGBA", "LA"):
            return image if image.mode == "RGB" else image.convert("RGB")
        ground = Image.new("RGB", image.size, self.background)
        return Image.composite(image.convert("RGB"), ground, image.getchannel("A"))

    def _padded(self, image: Image.Image) -> Image.Image:
        """The picture as a square, if it is to be one."""
        side = max(image.size)
        if self.square is None or image.size == (side, side):
            return image
        if self.max_pixels is not None and side**2 > self.max_pixels:
            raise DowserError(
                f"{image.width} x {image.height} pixels padded to a square exceed max_image_pixels={self.max_pixels}; "
                "cut the strip, or raise `data.max_image_pixels`"
            )
        whole = Image.new("RGB", (side, side), self.square)
        whole.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return whole

    @contextmanager
    def _limits(self) -> Iterator[None]:
        """Pillow as this says: it warns at half of what it refuses, and of text in PNGs it refuses very little."""
        with _LIMITS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
            limit = None if self.max_pixels is None else self.max_pixels / 2
            try:
                Image.MAX_IMAGE_PIXELS = limit  # type: ignore[assignment]  # half of an odd number
                PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_NOTES
                yield
            finally:
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


ON_WHITE = Decoding()


def _stored_as(image: Image.Image) -> str:
    """How a PNG that is not loaded yet stores its pixels, such as "L;4" or "RGB;16B"; empty for anything else."""
    tiles = getattr(image, "tile", [])
    return str(tiles[0][3]) if image.format == "PNG" and tiles else ""


def _with_alpha(image: Image.Image, stored_as: str) -> Image.Image:
    """8 bits per channel, and a channel for transparency if there is any, however the file says it.

    A PNG may name one colour as transparent, in the depth in which it is stored; Pillow compares it with pixels of
    8 bits, and never finds it where the depth is 2, 4 or 16.
    """
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scale
        grey = image.convert("I").point(lambda level: level / 256).convert("L")
        if not isinstance(clear, int):
            return grey
        return Image.merge("LA", (grey, Image.fromarray((np.asarray(image) != clear).astype(np.uint8) * 255)))
    if image.mode in _WITH_ALPHA:
        return image.convert(_WITH_ALPHA[image.mode])
    if (image.mode == "RGB" and isinstance(clear, tuple)) or (image.mode in ("1", "L") and isinstance(clear, int)):
        image.info["transparency"] = _in_eight_bits(clear, stored_as)
        return image.convert("RGBA")
    return image


def _in_eight_bits(level: Any, stored_as: str) -> Any:
    """The transparent level (grey) or levels (RGB) of a PNG, as its loaded pixels have them."""
    if isinstance(level, tuple):
        return tuple(one >> 8 for one in level) if stored_as == "RGB;16B" else level
    return level * {"L;2": 85, "L;4": 17}.get(stored_as, 1)


_MAX_DOWNLOAD = 64 * 2**20


@dataclass(frozen=True)
class ImageFile:
    """A picture that is a file on the disk."""

    path: Path
    decoding: Decoding = ON_WHITE

    def load(self) -> Image.Image:
        """Read the upright RGB picture."""
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
        """Read the upright RGB picture."""
        body = self.text.split(",", 1)[1] if self.text.startswith("data:") else self.text
        try:
            content = base64.b64decode("".join(body.split()), validate=True)
        except binascii.Error as error:
            raise DowserError(f"not base64: {error}") from error
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
        """Read the upright RGB picture."""
        return self.decoding.read(io.BytesIO(self.content))

    def __str__(self) -> str:
        return f"{self.name or 'without a name'} ({len(self.content)} bytes in the table)"


@dataclass(frozen=True)
class ImageURL:
    """A picture on the web, fetched anew each time it is needed."""

    url: str
    decoding: Decoding = ON_WHITE

    def load(self) -> Image.Image:
        """Read the upright RGB picture."""
        with urllib.request.urlopen(self.url, timeout=30) as answer:  # http(s) only, see read_source
            content = answer.read(_MAX_DOWNLOAD + 1)
        if len(content) > _MAX_DOWNLOAD:
            raise DowserError(f"larger than {_MAX_DOWNLOAD // 2**20} MB")
        return self.decoding.read(io.BytesIO(content))

    def __str__(self) -> str:
        return self.url


class LazyImage(Protocol):
    """Anything that can make its picture when it is needed."""

    def load(self) -> Image.Image:
        """Read the upright RGB picture."""


ImageSource = Image.Image | LazyImage


def read_source(
    text: str,
    folder: Path | None,
    allow_urls: bool,
    row: str,
    decoding: Decoding = ON_WHITE,
    beside: Path | None = None,
) -> ImageSource:
    """What a string in a data file points to; nothing is decoded yet.

    Args:
        text: path (relative to `folder`), `data:` URI, bare base64, or URL.
        folder: where relative paths start; None = the working directory.
        allow_urls: whether http(s) is fetched.
        row: for the message.
        decoding: how its bytes become a picture.
        beside: where relative paths start that lead to no file in `folder`; None = nowhere.

    Raises:
        DowserError: the file is missing, or it is a URL and they are off.
    """
    if text.startswith(("http://", "https://")):
        if not allow_urls:
            raise DowserError(
                f"{row}: the image {text!r} is a URL, and fetching is off. Download it and give its path "
                "relative to image_folder, or set `allow_urls: true`."
            )
        return ImageURL(text, decoding)
    if text.startswith("data:"):
        return ImageText(text, decoding)
    paths = [(start or Path()) / text.removeprefix("file://") for start in dict.fromkeys((folder, beside or folder))]
    try:
        found = next((path for path in paths if path.is_file()), None)
    except OSError:  # "File name too long": what base64 looks like to the file system
        found = None
    if found is not None:
        return ImageFile(found, decoding)
    if len(text) > 100 and "." not in text:  # base64 has no dot, file names have
        return ImageText(text, decoding)
    raise DowserError(
        f"{row}: no image at {' or '.join(map(str, paths))}. Check the name, and `image_folder` (got "
        f"{str(folder) if folder else None!r}), to which paths in the data file are relative; or set "
        "`skip_bad_rows: true`."
    )


def open_image(source: ImageSource, row: str) -> Image.Image:
    """The picture of `source`, upright (EXIF) and RGB; transparent ones that rows hold ready are put on white.

    Raises:
        DowserError: it cannot be read, or it claims more pixels than is plausible (a decompression bomb).
        FileError: the disk fails, or the process may open no more files: no fault of the row, which is not left out.
    """
    try:
        picture = source if isinstance(source, Image.Image) else source.load()
        return picture if picture is not source and picture.mode == "RGB" else ON_WHITE.upright_rgb(picture)
    except (*BROKEN, urllib.error.URLError) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            said = f"{row}: {error.strerror}; look at the disk, then go on"
            raise FileError(error.errno, said, str(source)) from error
        reason = str(error) or type(error).__name__
        raise DowserError(
            f"{row}: cannot read the image {source}: {reason}. Replace the file or remove the row; "
            "`skip_bad_rows: true` leaves such rows out and counts them."
        ) from error
