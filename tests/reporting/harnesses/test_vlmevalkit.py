import sys

import pytest

from dowser_pl.errors import DowserError
from dowser_pl.reporting.harnesses import read_results
from tests.reporting.harnesses.result_files import write_table, write_vlmevalkit


@pytest.mark.parametrize("kind", ["xlsx", "tsv", "json"])
def test_tables_with_every_question(kind, tmp_path):
    name, tasks = read_results([write_vlmevalkit(tmp_path, "my_llava_7b", kind=kind)])
    assert name == "my_llava_7b" and set(tasks) == {"MMBench_DEV_EN", "TextVQA_VAL", "POPE", "COCO_VAL"}
    choice, words, yes, captions = (tasks[each] for each in ("MMBench_DEV_EN", "TextVQA_VAL", "POPE", "COCO_VAL"))
    assert {name: value.score for name, value in choice.values.items()} == {"Overall": 0.75, "AR": 0.5}
    assert choice.values["Overall"].singles == (1, 0, 1, 1) and choice.count == 4
    asked = {"question": "is it 1 ?", "references": ["yes"], "prediction": "no"}
    assert choice.rows[1] == {"id": "1"} | asked
    assert words.values["Overall"].score == pytest.approx(100 * 1.9 / 3) and words.values["Overall"].singles == (
        1,
        0.3,
        0.6,
    )
    assert yes.values["Overall|acc"].score == 50 and yes.values["Overall|acc"].singles == (1, 0)
    assert yes.values["Overall|Overall"].singles == (), "F1 is no mean over questions"
    told = {"Bleu1": 70, "Bleu2": 50, "Bleu3": 40, "Bleu4": 30, "ROUGE_L": 55, "CIDEr": 110}
    assert {name: value.score for name, value in captions.values.items()} == told
    assert captions.count == 7 and captions.rows == []


def test_how_a_set_was_scored(tmp_path):
    told = {
        name: read_results([write_vlmevalkit(tmp_path / name, "llava", status=name == "new")])[1]
        for name in ("new", "old")
    }
    asked = {"name": "VLMEvalKit", "scorer": "VLMEvalKit e8e78f05", "judge": "exact_matching"}
    assert told["new"]["MMBench_DEV_EN"].protocol == asked
    assert told["old"]["MMBench_DEV_EN"].protocol == {"name": "VLMEvalKit", "scorer": "VLMEvalKit", "judge": None}


def test_one_file_and_none_beside_it(tmp_path):
    folder = write_vlmevalkit(tmp_path, "llava")
    for file in folder.glob("*MMBench*.xlsx"):
        file.unlink()
    (found,) = read_results([folder / "llava_MMBench_DEV_EN_acc.csv"])[1].values()
    assert found.count is None and found.values["Overall"].singles == ()


def test_single_scores_that_do_not_lead_to_the_table_are_not_used(tmp_path):
    folder = write_vlmevalkit(tmp_path, "llava")
    write_table(folder / "llava_MMBench_DEV_EN_acc.csv", [{"split": "dev", "Overall": 0.4}])  # by another judge
    found = read_results([folder])[1]["MMBench_DEV_EN"]
    assert found.values["Overall"].singles == () and found.rows == [] and found.count == 4


def test_what_cannot_be_read_is_told(tmp_path, monkeypatch):
    folder = write_vlmevalkit(tmp_path, "llava", status=False)
    (tmp_path / "moved").mkdir()
    moved = (folder / "llava_POPE_score.csv").rename(tmp_path / "moved" / "llava_POPE_score.csv")
    with pytest.raises(DowserError, match="which part of the name is the model cannot be told"):
        read_results([moved])
    (folder / "llava_COCO_VAL_score.json").write_text("[]")
    with pytest.raises(DowserError, match="has no table of scores"):
        read_results([folder / "llava_COCO_VAL_score.json"])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DowserError, match=r"for which openpyxl is needed. Fix: pip install openpyxl"):
        read_results([folder / "llava_TextVQA_VAL_acc.csv"])
