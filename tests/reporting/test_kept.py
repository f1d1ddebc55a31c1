"""Which validated model was kept: the sentence in every form of the report, and the file."""

import json

import pytest

from dowser_pl.errors import DowserError
from dowser_pl.reporting import KeptModel, Report, Validated, markdown_page, text_table
from dowser_pl.reporting.html import html_page
from tests.reporting.samples import report

KEPT = KeptModel(1200, (Validated(600, 1, 0.5), Validated(1200, 2, 0.75), Validated(1800, 3, 0.625)))


def test_every_form_says_which_model_it_is_of():
    said = (
        "Kept: the model of epoch 2 (step 1,200), whose score of 0.750 is the best of 3 validations; the last, of step "
        "1,800, has 0.625."
    )
    for text in (markdown_page(report(kept=KEPT)), text_table(report(kept=KEPT)), html_page(report(kept=KEPT))):
        assert said in " ".join(text.split())
    for text in (markdown_page(report()), text_table(report()), html_page(report())):
        assert "Kept:" not in text


def test_the_file_keeps_it():
    written = report(kept=KEPT)
    assert Report.from_json(written.to_json()).to_dict() == written.to_dict()
    assert json.loads(report().to_json())["kept"] is None


def test_a_model_that_was_not_validated_cannot_have_been_kept():
    with pytest.raises(DowserError, match="step 7 was kept, expected one that was validated: 600, 1800"):
        KeptModel(7, (KEPT.validated[0], KEPT.validated[2]))
    text = report(kept=KEPT).to_json().replace('"step": 1200', '"step": -1', 1)
    with pytest.raises(DowserError, match="report.json: kept: the field 'step' is the number -1"):
        Report.from_json(text)
