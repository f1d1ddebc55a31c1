"""Pictures on light and dark slides, for all eyes."""

import io
import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from dowser_pl.reporting import plot_comparison, plot_curve, plot_report
from dowser_pl.reporting.plots.curve import draw_curve_page
from dowser_pl.reporting.plots.run import draw_report
from dowser_pl.reporting.plots.runs import draw_comparison
from dowser_pl.reporting.plots.style import (
    DARK,
    FAINT,
    GAIN,
    INK,
    LOSS,
    MUTED,
    PAPER,
    RUN_COLOURS,
    VARIABLES,
    inline_svg,
    page_colours,
    recolour,
)
from tests.reporting.samples import report, with_budget

DRAWN = {
    "run": lambda: draw_report(report()),
    "runs": lambda: draw_comparison([report(), report()]),
    "curve": lambda: draw_curve_page(with_budget()),
}
# Machado, Oliveira and Fernandes, 2009: what linear RGB looks like to eyes without one kind of cones
BLINDNESS = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour: str) -> tuple[float, ...]:
    return tuple(x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour))


def luminance(colour: str) -> float:
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(one: str, other: str) -> float:
    """As WCAG has it: 4.5 is asked of text, 3 of what is drawn."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def seen(colour: str, rows: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """Lightness and two opponent channels (OKLab) of a colour as such eyes have it."""
    red, green, blue = (max(0.0, sum(w * x for w, x in zip(row, linear(colour), strict=True))) for row in rows)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    middle = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_gain_loss_and_neither_are_told_apart_by_all_eyes(kind: str, theme: str) -> None:
    colours = [DARK[each] if theme == "dark" else each for each in (GAIN, LOSS, MUTED)]
    for one, other in combinations([seen(colour, BLINDNESS[kind]) for colour in colours], 2):
        assert sum((x - y) ** 2 for x, y in zip(one, other, strict=True)) ** 0.5 > 0.06


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_and_marks_be_seen(theme: str) -> None:
    shown = DARK if theme == "dark" else {colour: colour for colour in DARK}
    assert all(contrast(shown[each], shown[PAPER]) > 4.5 for each in (INK, MUTED))
    assert all(contrast(shown[each], shown[PAPER]) > 3 for each in (GAIN, LOSS))
    assert set(RUN_COLOURS) <= set(DARK) and len(set(DARK.values())) == len(DARK)


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_light_is_left_on_a_dark_slide(name: str) -> None:
    figure = DRAWN[name]()
    recolour(figure, DARK)
    file = io.StringIO()
    figure.savefig(file, format="svg", facecolor=DARK[PAPER])
    left = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", file.getvalue())}
    assert not left & {colour.lower() for colour in DARK}
    assert left <= set(DARK.values()) | {"#000000"}, "no colour of matplotlib's own"


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_in_a_page_takes_the_colours_of_the_page(name: str) -> None:
    text = inline_svg(DRAWN[name](), name)
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and set(root.attrib) == {"viewBox"}
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", text.replace("#000000", "")), "all are variables"
    assert f"var({VARIABLES[INK]})" in text and f"var({VARIABLES[MUTED]})" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and all(each.startswith(f"{name}-") for each in ids)
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert text == inline_svg(DRAWN[name](), name), "the same every time"


def test_colours_of_a_page() -> None:
    light, dark = page_colours({}), page_colours(DARK)
    assert f"{VARIABLES[PAPER]}: #ffffff;" in light and f"{VARIABLES[PAPER]}: {DARK[PAPER]};" in dark
    assert light.count(";") == dark.count(";") == len(DARK)
    assert FAINT in light and FAINT not in dark


def test_dark_files(tmp_path: Path) -> None:
    plot_report(report(), tmp_path / "a.png", dark=True)
    plot_comparison([report(), report()], tmp_path / "b.png", dark=True)
    plot_curve(with_budget(), tmp_path / "c.png", dark=True)
    for name in "abc":
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.convert("RGB").getpixel((3, 3)) == (0x14, 0x18, 0x1F)
