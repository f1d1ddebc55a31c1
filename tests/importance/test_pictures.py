import pytest
from PIL import Image

from dowser_pl.functional.random_streams import stream
from dowser_pl.importance.pictures import MADE_OF_PICTURES, PICTURES

RED, BLUE = Image.new("RGB", (37, 23), (200, 0, 0)), Image.new("L", (50, 61), 40)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_without_pictures_have_the_side_and_depend_on_the_stream(name):
    first, again, other = (PICTURES[name](stream(seed, "x"), 11) for seed in (0, 0, 1))
    assert first.size == (11, 11) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert (len(first.getcolors(121)) == 1) == (name == "blank")


@pytest.mark.parametrize("name", MADE_OF_PICTURES)
def test_pictures_of_pictures_hold_their_pixels_alone(name):
    """Of any size and mode; a mosaic may have the mean colour of one of them, here the same."""
    seen = set()
    for seed in range(12):
        made, again = (MADE_OF_PICTURES[name](stream(seed, "x"), [RED, BLUE]) for _ in range(2))
        assert made.mode == "RGB" and made.size in (RED.size, BLUE.size)
        assert made.tobytes() == again.tobytes()
        colours = {colour for _, colour in made.getcolors(10_000)}
        assert colours <= {(200, 0, 0), (40, 40, 40)}
        seen.add(len(colours))
    assert seen == ({1} if name == "train" else {1, 2})


def test_a_shuffled_picture_moves_cells_and_keeps_them():
    """One picture that stands for both: of its two copies of every cell, as many as one has are left."""
    picture = Image.new("RGB", (12, 12))
    picture.putdata([(x * 20, y * 20, 0) for y in range(12) for x in range(12)])
    made = [MADE_OF_PICTURES["shuffle"](stream(seed, "x"), [picture]) for seed in range(6)]
    known = {colour for _, colour in picture.getcolors(200)}
    assert all({colour for _, colour in each.getcolors(200)} <= known for each in made)
    assert len({each.tobytes() for each in [picture, *made]}) == 7


def test_a_picture_smaller_than_a_grid():
    dot = Image.new("RGB", (1, 3), (9, 9, 9))
    for name in MADE_OF_PICTURES:
        assert MADE_OF_PICTURES[name](stream(0, "x"), [dot]).size == (1, 3)
