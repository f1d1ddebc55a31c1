import pytest

from dowser_pl.reporting.table import bytes_text, change_text, seconds_text, share_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (245, "4 min 05 s"), (7380, "2 h 03 min")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**30 // 2, "1.5 GiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_bytes(num_bytes: int | None, text: str) -> None:
    assert bytes_text(num_bytes) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [(None, "-"), (0.25, "+0.250"), (-0.25, "-0.250"), (0.0004, "0.000"), (-0.0004, "0.000"), (0.0, "0.000")],
)
def test_change(change: float | None, text: str) -> None:
    assert change_text(change) == text


def test_share_of_nothing() -> None:
    assert share_text(0, 0) == "-"
