"""Image sources: where they point, and what becomes of broken, rotated and unusual pictures."""

import base64
import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image, ImageOps

from dowser_pl.data.images import ImageFile, ImageText, ImageURL, open_image, read_source


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
    return tmp_path


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_paths_are_relative_to_the_folder(folder):
    for text in ("red.png", str(folder / "red.png"), f"file://{folder / 'red.png'}"):
        source = read_source(text, folder, False, "row 1")
        assert isinstance(source, ImageFile)
        assert open_image(source, "row 1").getpixel((0, 0)) == (255, 0, 0)


def test_base64_with_and_without_head(folder):
    code = encoded(folder / "red.png")
    for text in (f"data:image/png;base64,{code}", code.ljust(120, "\n")):
        assert open_image(ImageText(text), "row 1").size == (4, 3)
    assert isinstance(read_source(f"data:image/png;base64,{code}", folder, False, "row 1"), ImageText)


def test_long_bare_base64_is_not_taken_for_a_path(folder):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    source = read_source(encoded(folder / "noise.png"), folder, False, "row 1")
    assert np.array_equal(np.asarray(open_image(source, "row 1")), noise)


def test_missing_file_names_row_path_and_fix(folder):
    with pytest.raises(ValueError, match=r"row 7: no image at .*blue\.png.*image_folder.*skip_bad_rows"):
        read_source("blue.png", folder, False, "row 7")


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated", "broken chunk"])
def test_corrupt_file_names_row_path_and_fix(folder, content):
    good = (folder / "red.png").read_bytes()
    content = {"truncated": good[:-32], "broken chunk": good[:40] + b"\0" * 8 + good[48:]}.get(content, content)
    (folder / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"row 7: cannot read the image .*bad\.png.*skip_bad_rows"):
        open_image(read_source("bad.png", folder, False, "row 7"), "row 7")


def test_broken_base64(folder):
    with pytest.raises(ValueError, match=r"row 7: cannot read the image base64 text .*not base64"):
        open_image(ImageText("data:image/png;base64,@@@@"), "row 7")


def test_urls_are_off_unless_asked(folder):
    with pytest.raises(ValueError, match=r"row 7: the image .* is a URL, and fetching is off.*allow_urls"):
        read_source("https://example.org/a.png", folder, False, "row 7")
    assert isinstance(read_source("https://example.org/a.png", folder, True, "row 7"), ImageURL)


def test_url_is_fetched(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert open_image(read_source(f"{address}/red.png", None, True, "row 7"), "row 7").size == (4, 3)
        with pytest.raises(ValueError, match=r"row 7: cannot read the image .*404"):
            open_image(read_source(f"{address}/blue.png", None, True, "row 7"), "row 7")
        server.shutdown()


def test_exif_orientation_is_applied(folder):
    image = Image.new("RGB", (4, 3), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    image.save(folder / "turned.jpg", exif=exif)
    assert open_image(ImageFile(folder / "turned.jpg"), "row 1").size == (3, 4)


def test_damaged_exif_does_not_cost_the_picture(folder):
    Image.new("RGB", (4, 3), "red").save(folder / "odd.jpg", exif=b"Exif\0\0nonsense")
    assert open_image(ImageFile(folder / "odd.jpg"), "row 1").size == (4, 3)


def test_a_picture_is_turned_and_copied_once(folder, monkeypatch):
    turned = []
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda image: turned.append(image) or image.copy())
    open_image(ImageFile(folder / "red.png"), "row 1")
    assert len(turned) == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(folder, mode):
    buffer = io.BytesIO()
    kind = "JPEG" if mode == "CMYK" else "PNG"
    Image.new("RGB", (4, 3), "white").convert(mode).save(buffer, kind)
    (folder / "any").write_bytes(buffer.getvalue())
    picture = open_image(ImageFile(folder / "any"), "row 1")
    assert picture.mode == "RGB"
    assert picture.getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped(folder):
    Image.fromarray(np.full((3, 4), 256 * 100, dtype=np.uint16)).save(folder / "deep.png")
    assert open_image(ImageFile(folder / "deep.png"), "row 1").getpixel((0, 0)) == (100, 100, 100)


def test_float_pixels_are_refused(folder):
    Image.fromarray(np.ones((3, 4), dtype=np.float32)).save(folder / "float.tiff")
    with pytest.raises(ValueError, match=r"row 7: .*32-bit floats"):
        open_image(ImageFile(folder / "float.tiff"), "row 7")
