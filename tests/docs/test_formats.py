"""The page of file formats names every field of report, patch and importance cache."""

import re

import pytest

from dowser_pl.importance import cache
from dowser_pl.patches import patch
from tests.docs.pages import ROOT
from tests.reporting.samples import report

PAGE = (ROOT / "docs" / "reference" / "files.md").read_text()


def section(name: str) -> set[str]:
    """The words between backticks under a heading."""
    return set(re.findall(r"`([^`]+)`", PAGE.split(f"### {name}\n")[1].split("\n### ")[0]))


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("Report", set(report().to_dict())),
        ("Patch", {*patch._FIELDS, "tensors", patch.KIND.key}),
        ("Importance cache", {*cache._KEYS, cache._KIND.key}),
    ],
)
def test_every_field_is_named(heading, fields):
    assert fields <= section(heading), fields - section(heading)
