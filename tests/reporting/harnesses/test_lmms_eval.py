import json

import pytest

from dowser_pl.errors import DowserError
from dowser_pl.reporting.harnesses import read_results
from tests.reporting.harnesses.result_files import DATE, change, lmms_task, write_lmms_eval

SCORES = (1.0, 0.0, 0.6, 1.0)


@pytest.fixture
def one(tmp_path):
    """A file with one task, and its samples."""
    return write_lmms_eval(tmp_path / "out" / "my__base", "my/base", {"gqa": lmms_task(SCORES, error=0.123)})


def task(path, name="gqa"):
    return read_results([path])[1][name]


def test_tasks_with_every_question(one):
    name, tasks = read_results([one])
    assert name == "my/base" and list(tasks) == ["gqa"], "a group is none"
    gqa = tasks["gqa"]
    assert list(gqa.values) == ["exact_match"] and gqa.count == 4
    value = gqa.values["exact_match"]
    assert (value.score, value.standard_error, value.singles) == (pytest.approx(0.65), 0.123, SCORES)
    asked = {"question": "is it 2 ?", "references": ["yes"], "prediction": "yes"}
    assert gqa.rows[2] == {"id": "2"} | asked, "in the order of the questions"


def test_the_folder_is_as_good_as_the_file(one):
    assert read_results([one.parent]) == read_results([one])
    assert read_results([one.parent.parent]) == read_results([one]), "lmms-eval makes a folder for each model"


def test_how_a_task_was_asked(one):
    found = task(one).protocol
    assert (found["name"], found["scorer"], found["max_new_tokens"], found["n-shot"]) == (
        "lmms-eval",
        "lmms-eval",
        16,
        0,
    )
    assert found["model_args"] == ["dtype=float32"], "neither which model nor where it ran"
    assert found["task.doc_to_text"] == "<function text>", "without an address, which is another in every process"
    change(one, "lmms_eval_version", to="main@75571cfe")
    assert task(one).protocol["scorer"] == "lmms-eval main@75571cfe"


def test_without_samples(one):
    (one.parent / f"{DATE}_samples_gqa.jsonl").unlink()
    gqa = task(one)
    assert gqa.rows == [] and gqa.values["exact_match"].singles == () and gqa.count == 4
    change(one, "n-samples", "gqa", to={"original": 99, "effective": -1})  # what `--limit -1` leaves
    assert task(one).count == 99
    change(one, "n-samples", to={})
    assert task(one).count is None


def test_scores_in_objects(tmp_path):
    scores = [{"question_id": 1, "score": 1.0}, {"question_id": 2, "score": 0.0}]
    path = write_lmms_eval(tmp_path, "base", {"pope": lmms_task((1.0, 0.0), "pope_accuracy")})
    lines = [json.loads(line) for line in (tmp_path / f"{DATE}_samples_pope.jsonl").read_text().splitlines()]
    for line, score in zip(lines, scores, strict=True):
        line["pope_accuracy"] = score
    (tmp_path / f"{DATE}_samples_pope.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert task(path, "pope").values["pope_accuracy"].singles == (1.0, 0.0)


def test_what_is_no_score_of_single_questions_is_none(tmp_path):
    path = write_lmms_eval(tmp_path, "base", {"coco": lmms_task((1.0, 0.0), "coco_CIDEr")})
    file = tmp_path / f"{DATE}_samples_coco.jsonl"
    file.write_text(file.read_text().replace('"coco_CIDEr": 1.0', '"coco_CIDEr": {"answer": "a", "pred": "b"}'))
    assert task(path, "coco").values["coco_CIDEr"].singles == ()


def test_several_filters_are_several_scores_without_single_ones(one):
    change(one, "results", "gqa", "exact_match,flexible", to=0.9)
    file = one.parent / f"{DATE}_samples_gqa.jsonl"
    file.write_text(file.read_text() * 2)  # a line for each filter, which none of them names
    gqa = task(one)
    assert list(gqa.values) == ["exact_match", "exact_match,flexible"] and gqa.rows == [] and gqa.count == 4


def test_what_is_no_number_is_no_score(one):
    for name, word in (("submission,none", None), ("other,none", "N/A"), ("exact_match,none", float("nan"))):
        change(one, "results", "gqa", name, to=word)
    assert task(one).values == {}


def test_damage_is_named(one):
    file = one.parent / f"{DATE}_samples_gqa.jsonl"
    file.write_text(file.read_text() + '{"doc_id": ')
    with pytest.raises(DowserError, match=r"samples_gqa\.jsonl, line 5: .*expected an object with doc_id"):
        read_results([one])
    one.write_text("{")
    with pytest.raises(DowserError, match="results.json is not valid JSON"):
        read_results([one])


def test_what_else_may_lie_there(one, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file or folder .*nowhere.* Expected the \\*_results.json"):
        read_results([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DowserError, match="has no results. Expected"):
        read_results([tmp_path / "empty"])
    again = write_lmms_eval(tmp_path / "again", "my/base", {"gqa": lmms_task(SCORES)})
    with pytest.raises(DowserError, match="task gqa is in .* and in .*again"):
        read_results([one, again])
    with pytest.raises(DowserError, match="got results of two models, my/base and other"):
        read_results([one, write_lmms_eval(tmp_path / "other", "other", {"ok_vqa": lmms_task(SCORES)})])
    more = write_lmms_eval(tmp_path / "more", "my/base", {"ok_vqa": lmms_task(SCORES)})
    assert list(read_results([one, more])[1]) == ["gqa", "ok_vqa"]
    for content, told in (({"tasks": {}, "models": []}, "is a report of our own"), ({"a": 1}, "is no result file")):
        (tmp_path / "mine.json").write_text(json.dumps(content))
        with pytest.raises(DowserError, match=told):
            read_results([tmp_path / "mine.json"])
