"""How NVILA cuts pictures: by a table worked out by hand, by colours, and by Pillow alone."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from dowser_pl.models.nvila.tiles import NVILAImageProcessor

# Width and height, columns and rows, tiles with the whole picture, tokens for it: 121 image tokens, the newline that
# ends a tile and the newline of the text, 123 a tile. A tile is 448 pixels wide; half of its pixels are 100,352.
TABLE = [
    ((448, 448), (1, 1), 1, 123),  # one tile is the whole picture already
    ((633, 633), (1, 1), 1, 123),  # 400,689 pixels are not more than half of 2 x 2 tiles, 401,408
    ((634, 634), (2, 2), 5, 615),  # 401,956 are
    ((950, 950), (2, 2), 5, 615),  # 902,500 of 903,168 for 3 x 3
    ((951, 951), (3, 3), 10, 1230),  # 904,401
    ((640, 480), (4, 3), 13, 1599),  # 4:3, whatever its size: no other grid is as near
    ((64, 48), (4, 3), 13, 1599),
    ((375, 500), (3, 4), 13, 1599),
    ((640, 427), (3, 2), 7, 861),  # 1.499, by .001 from 3:2
    ((427, 640), (2, 3), 7, 861),
    ((800, 400), (2, 1), 3, 369),  # 320,000 pixels, of 802,816 for 4 x 2
    ((1600, 800), (4, 2), 9, 1107),  # 1,280,000
    ((1920, 1080), (4, 2), 9, 1107),  # 1.778, by .222 from 2 and by .278 from 1.5
    ((1200, 1000), (4, 3), 13, 1599),  # 1.2, by .133 from 4:3 and by .2 from 1
    ((1100, 1000), (3, 3), 10, 1230),  # 1.1, by .1 from 1; 1,100,000 pixels
    ((300, 900), (1, 3), 4, 492),  # 270,000 pixels, of 1,204,224 for 2 x 6
    ((1200, 3600), (2, 6), 13, 1599),  # 4,320,000
    ((350, 100), (3, 1), 4, 492),  # 3.5, as far from 3 as from 4: too few pixels for 4 x 1
    ((1400, 400), (4, 1), 5, 615),  # 560,000 of 401,408
    ((2800, 800), (6, 2), 13, 1599),  # as far from 6 x 2 too: 2,240,000 of 1,204,224
    ((1, 1000), (1, 12), 13, 1599),  # beyond all grids
    ((3000, 200), (12, 1), 13, 1599),
]


@pytest.fixture(scope="module")
def processor() -> NVILAImageProcessor:
    return NVILAImageProcessor()


def drawn(size: tuple[int, int]) -> Image.Image:
    """A picture that looks different everywhere, with edges in it."""
    ramp = Image.linear_gradient("L")
    channels = ramp, ramp.rotate(90), Image.effect_noise((256, 256), 200).point(lambda level: level // 128 * 255)
    return Image.merge("RGB", channels).resize(size, Image.Resampling.NEAREST)


def tiles_of(picture: Image.Image, columns: int, rows: int, side: int = 448) -> Iterator[Image.Image]:
    """What Pillow alone makes of a picture."""
    stretched = picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
    for row in range(rows):
        for column in range(columns):
            left, top = column * side, row * side
            yield stretched.crop((left, top, left + side, top + side))
    if columns * rows > 1:
        yield picture.resize((side, side), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("size", "grid", "tiles", "tokens"), TABLE)
def test_the_grid_of_a_size(processor, size, grid, tiles, tokens):
    picture = drawn(size)
    made = processor(picture)
    assert made["num_patches"] == [tiles] and processor.get_number_of_image_patches(*size[::-1]) == tiles
    assert tokens == tiles * 123
    for got, wanted in zip(made["pixel_values"], tiles_of(picture, *grid), strict=True):
        assert got.shape == (3, 448, 448) and got.dtype == np.float32
        few = np.asarray(wanted)[::7, ::5].astype(np.float64) / 127.5 - 1  # all of them take seconds
        np.testing.assert_allclose(got[:, ::7, ::5], few.transpose(2, 0, 1), atol=1e-6)


def test_tiles_are_in_reading_order_and_the_whole_picture_is_last(processor):
    colours = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 85, 255)]
    picture = Image.new("RGB", (4 * 448, 3 * 448))
    for number, colour in enumerate(colours):
        picture.paste(colour, (number % 4 * 448, number // 4 * 448, number % 4 * 448 + 448, number // 4 * 448 + 448))
    *tiles, whole = processor(picture)["pixel_values"]
    seen = [tuple(np.round((tile.transpose(1, 2, 0) + 1) * 127.5).reshape(-1, 3)[0].astype(int)) for tile in tiles]
    assert seen == colours
    assert all(np.ptp(tile, axis=(1, 2)).max() < 1e-6 for tile in tiles)  # of one colour each
    cells = [whole[:, 75 + 149 * row, 56 + 112 * column] for row in range(3) for column in range(4)]
    assert [tuple(np.round((cell + 1) * 127.5).astype(int)) for cell in cells] == colours


def test_one_tile_where_pictures_are_not_cut(processor):
    picture = drawn((640, 480))
    made = processor([picture, drawn((48, 64))], crop_to_patches=False, return_tensors="pt")
    assert made["pixel_values"].shape == (2, 3, 448, 448)
    expected = np.asarray(next(tiles_of(picture, 1, 1)), np.float64).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(made["pixel_values"][0].numpy(), expected, atol=1e-6)


def test_fewest_and_most_tiles(processor):
    picture = Image.new("RGB", (500, 500))
    assert processor(picture, min_patches=4)["num_patches"] == [5]  # 2 x 2, the first square with as many
    assert processor(Image.new("RGB", (640, 480)), max_patches=6)["num_patches"] == [7]  # 3:2 is nearer than 1
    assert processor(picture, max_patches=1)["num_patches"] == [1]


def test_greys_and_palettes_become_three_channels(processor):
    for mode in ("L", "P", "RGBA"):
        assert processor(Image.new(mode, (448, 448)))["pixel_values"][0].shape == (3, 448, 448)
