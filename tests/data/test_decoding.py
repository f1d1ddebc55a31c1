"""Transparent pictures on their background, pictures of any size and with any notes, Pillow left as it was."""

import base64
import io
import json
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from dowser_pl.data import ConversationData, TaskFile
from dowser_pl.data.images import MAX_PIXELS, ON_WHITE, Decoding, ImageFile, ImageText, open_image
from tests.data.builders import build_llava, chat_template

GRAY, RGB = 0, 2


def written_on_nothing() -> Image.Image:
    """Black on transparent black: without a background all of it is black."""
    image = Image.new("RGBA", (60, 24), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((4, 6), "E = mc2", fill=(0, 0, 0, 255))
    return image


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, depth, colour, row, before=(), after=()):
    """A PNG of one line, written by hand, with extra chunks."""
    head = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" + row))
    extra = [b"".join(chunk(*one) for one in chunks) for chunks in (before, after)]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra[0] + body + extra[1] + chunk(b"IEND", b"")


def pixels(content: bytes, decoding: Decoding = ON_WHITE) -> list:
    return np.asarray(decoding.read(io.BytesIO(content))).reshape(-1, 3).tolist()


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animated(image: Image.Image, kind: str) -> bytes:
    return saved(image, kind, save_all=True, append_images=[Image.new("RGBA", image.size, "red")])


@pytest.mark.parametrize(
    ("content", "is_exact"),
    [
        (saved(written_on_nothing(), "PNG"), True),
        (saved(written_on_nothing().convert("LA"), "PNG"), True),
        (saved(written_on_nothing(), "WEBP", lossless=True, exact=True), True),
        (saved(written_on_nothing(), "TIFF"), True),
        (saved(written_on_nothing(), "ICO", sizes=[(60, 24)]), True),
        (saved(written_on_nothing().quantize(8), "PNG"), False),
        (saved(written_on_nothing(), "GIF"), False),
        (animated(written_on_nothing(), "GIF"), False),
        (animated(written_on_nothing(), "PNG"), True),
        (animated(written_on_nothing(), "WEBP"), False),
    ],
    ids=["RGBA", "LA", "WebP", "TIFF", "ICO", "palette", "GIF", "GIFs", "APNG", "WebPs"],
)
@pytest.mark.parametrize(("background", "ground"), [("white", 255), ("#808080", 128)])
def test_transparent_parts_show_the_background(content, is_exact, background, ground):
    image = Decoding(background).read(io.BytesIO(content))
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (ground, ground, ground)
    assert np.asarray(image).min() < 40  # the writing
    if is_exact:
        alpha = np.asarray(written_on_nothing().getchannel("A"), dtype=np.float64)
        wanted = np.round(ground * (255 - alpha) / 255)
        assert np.abs(np.asarray(image)[..., 0] - wanted).max() <= 1


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (png(2, 8, RGB, bytes([1, 2, 3, 9, 9, 9]), [(b"tRNS", struct.pack(">3H", 1, 2, 3))]), [255, 9]),
        (
            png(
                2,
                16,
                RGB,
                struct.pack(">6H", 4660, 9029, 13398, *[2304] * 3),
                [(b"tRNS", struct.pack(">3H", 4660, 9029, 13398))],
            ),
            [255, 9],
        ),
        (png(2, 16, GRAY, struct.pack(">2H", 4660, 2304), [(b"tRNS", struct.pack(">H", 4660))]), [255, 9]),
        (png(2, 8, GRAY, bytes([7, 9]), [(b"tRNS", struct.pack(">H", 7))]), [255, 9]),
        (png(2, 4, GRAY, bytes([0x73]), [(b"tRNS", struct.pack(">H", 7))]), [255, 51]),
        (png(2, 2, GRAY, bytes([0b01_10_0000]), [(b"tRNS", struct.pack(">H", 1))]), [255, 170]),
        (png(2, 1, GRAY, bytes([0b0_1_000000]), [(b"tRNS", struct.pack(">H", 1))]), [0, 255]),
        (png(2, 1, GRAY, bytes([0b0_1_000000]), [(b"tRNS", struct.pack(">H", 0))]), [255, 255]),
    ],
    ids=["RGB", "RGB 16", "grey 16", "grey 8", "grey 4", "grey 2", "grey 1", "grey 1 black"],
)
def test_one_colour_of_a_png_is_transparent(content, seen):
    assert [pixel[0] for pixel in pixels(content)] == seen


def test_a_palette_with_half_transparent_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putdata([0, 1])
    content = saved(image, "PNG", transparency=bytes([0, 128]))
    assert pixels(content, Decoding("blue")) == [[0, 0, 255], [100, 0, 127]]


def test_an_opaque_picture_with_alpha_is_what_it_was():
    noise = np.random.default_rng(0).integers(0, 256, (1, 50, 4), dtype=np.uint8)
    noise[..., 3] = 255
    assert pixels(saved(Image.fromarray(noise), "PNG"), Decoding("red")) == noise[0, :, :3].tolist()


def test_pictures_that_rows_hold_ready_are_put_on_white():
    class Lazy:
        def load(self):
            return written_on_nothing()

    multiplied = [written_on_nothing().convert("RGBa"), written_on_nothing().convert("LA").convert("La")]
    for source in (written_on_nothing(), Lazy(), *multiplied):
        image = open_image(source, "row 1")
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_turned_and_transparent(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    written_on_nothing().save(tmp_path / "turned.png", exif=exif)
    image = open_image(ImageFile(tmp_path / "turned.png"), "row 1")
    assert image.size == (24, 60)
    assert image.getpixel((0, 0)) == (255, 255, 255)


NOTE = b"x" * (3 * 2**20)  # Pillow stops at 1 MB
PROFILE = (b"iCCP", b"icc\0\0" + zlib.compress(NOTE))
TEXT = (b"zTXt", b"Comment\0\0" + zlib.compress(NOTE))
XMP = (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>' + NOTE))
PLAIN = [(b"tEXt", b"Comment\0" + b"y" * 23 * 2**20)] * 3  # Pillow stops at 64 MB in all


@pytest.mark.parametrize("notes", [[PROFILE], [TEXT], [XMP], PLAIN], ids=["profile", "text", "XMP", "much text"])
def test_large_notes_in_a_png(notes):
    row = bytes([1, 2, 3, 9, 9, 9])
    assert pixels(png(2, 8, RGB, row, before=notes)) == [[1, 2, 3], [9, 9, 9]]
    assert pixels(png(2, 8, RGB, row, after=[n for n in notes if n[0] != b"iCCP"])) == [[1, 2, 3], [9, 9, 9]]


def test_large_notes_still_say_how_the_picture_stands():
    image = Decoding().read(io.BytesIO(png(2, 8, RGB, bytes(6), before=[XMP])))
    assert image.size == (1, 2)


def test_the_limit_is_pillows_own_error(monkeypatch):
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS == Decoding().max_pixels
    content = saved(Image.new("1", (12_000, 10_000)), "PNG")  # Pillow warns from 89 million on
    assert Decoding().read(io.BytesIO(content)).size == (12_000, 10_000)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "JPEG"])
def test_an_image_of_more_pixels_than_the_limit_is_refused(kind, tmp_path):
    path = tmp_path / "any"
    path.write_bytes(saved(Image.new("RGB", (5, 5)), kind))
    assert open_image(ImageFile(path, Decoding(max_pixels=25)), "row 7").size == (5, 5)
    with pytest.raises(ValueError, match=r"row 7: cannot read .*25 pixels.*max_image_pixels=24.*data\.max_image_pix"):
        open_image(ImageFile(path, Decoding(max_pixels=24)), "row 7")


def test_a_limit_beyond_pillows_and_no_limit(monkeypatch):
    content = saved(Image.new("RGBA", (5, 5)), "WEBP")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    for limit in (25, None):
        assert Decoding(max_pixels=limit).read(io.BytesIO(content)).size == (5, 5)


def test_pillow_is_left_as_it_was():
    def state():
        return Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY

    before = state()
    Decoding().read(io.BytesIO(png(2, 8, RGB, bytes(6), before=[TEXT])))
    with pytest.raises(ValueError, match="max_image_pixels=1,"):
        Decoding(max_pixels=1).read(io.BytesIO(png(2, 8, RGB, bytes(6))))
    assert state() == before


def test_threads_keep_their_own_limits():
    content = png(2, 8, RGB, bytes(6), before=[TEXT])
    refused, wrong = [], []

    def read(limit):
        for _ in range(20):
            try:
                Decoding(max_pixels=limit).read(io.BytesIO(content))
            except ValueError:
                refused.append(limit)
            else:
                wrong.extend([limit] if limit < 2 else [])

    threads = [threading.Thread(target=read, args=(limit,)) for limit in (1, 2) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [1] * 80
    assert not wrong


def test_a_fork_in_the_middle_of_another_threads_picture_is_not_stuck():
    inside, go_on = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def read(self, *args):
            inside.set()
            go_on.wait(5)
            return super().read(*args)

    content = saved(Image.new("RGB", (5, 5)), "PNG")
    thread = threading.Thread(target=lambda: Decoding(max_pixels=30).read(Slow(content)))
    thread.start()
    inside.wait(5)
    threading.Timer(0.1, go_on.set).start()
    child = os.fork()
    if child == 0:
        fine = Image.MAX_IMAGE_PIXELS == MAX_PIXELS // 2 and Decoding().read(io.BytesIO(content)).size == (5, 5)
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


@pytest.mark.parametrize("colour", ["whitish", "#12", "", "#11223344", "transparent"])
def test_a_background_that_is_no_colour(colour):
    with pytest.raises(ValueError, match=f"background must be the name of a colour or #rrggbb.*got '{colour}'"):
        ConversationData("t.json", background=colour)


def test_a_limit_that_is_none():
    with pytest.raises(ValueError, match="max_image_pixels must be at least 1, or null for no limit; got 0"):
        ConversationData("t.json", max_image_pixels=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_and_evaluation_see_the_same_background(tmp_path, workers):
    written_on_nothing().save(tmp_path / "a.png")
    row = {"image": "a.png", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    (tmp_path / "train.json").write_text(json.dumps([row]))
    (tmp_path / "task.json").write_text(json.dumps([{"image": "a.png", "question": "q", "answer": "a"}]))
    seen = {}
    for colour in ("white", "#000000"):
        task = TaskFile("t", str(tmp_path / "task.json"), "downstream")
        data = ConversationData(str(tmp_path / "train.json"), tasks=[task], background=colour, num_workers=workers)
        data.processor = build_llava(chat_template())
        data.setup("fit")
        (training,), (evaluation,) = list(data.train_dataloader()), list(data.val_dataloader()[0])
        assert training["pixel_values"].equal(evaluation["inputs"]["pixel_values"])
        seen[colour] = training["pixel_values"]
    assert not seen["white"].equal(seen["#000000"])


def test_base64_and_broken_rows_know_the_limit(tmp_path):
    written_on_nothing().save(tmp_path / "a.png")
    row = {"image": "a.png", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    other = [{"from": "human", "value": "r"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "train.json").write_text(json.dumps([row, {**row, "image": None}, {"conversations": other}]))
    data = ConversationData(str(tmp_path / "train.json"), max_image_pixels=10, skip_bad_rows=True)
    data.processor = build_llava(chat_template())
    with pytest.warns(UserWarning, match="left out 1 of 3 rows"):
        data.setup("fit")
    with pytest.raises(ValueError, match="max_image_pixels=10"):
        code = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
        open_image(ImageText(code, Decoding(max_pixels=10)), "row 1")
