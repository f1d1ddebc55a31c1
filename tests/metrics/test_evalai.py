import pytest

from dowser_pl.metrics.vqa import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog", "dog"),
        ("a an the", ""),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("10,000", "10000"),
        ("3.5 kg.", "3.5 kg"),
        (".5", ".5"),
        ("yes.", "yes"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("red- blue-green", "red bluegreen"),
        ("what?", "what"),
        ("dog's", "dog 's"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("oclock", "o'clock"),
        ("shed", "shed"),
        ("were", "were"),
        ("im", "im"),
        ("stop!", "stop"),
        ("one\ntwo\tthree", "1 2 3"),
        ("", ""),
    ],
)
def test_published_rules(text: str, expected: str) -> None:
    assert normalise(text) == expected
