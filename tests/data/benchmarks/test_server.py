"""The files that evaluation servers take, read back by the servers' own rules."""

import io
import json

import pandas
import pytest

from dowser_pl.data import TaskFile
from dowser_pl.data.benchmarks import read_task
from dowser_pl.data.benchmarks.protocols import PROTOCOLS
from dowser_pl.data.benchmarks.server import SERVED
from dowser_pl.errors import DowserError
from tests.data.benchmarks import official_files

WRITE = {"okvqa": official_files.vqa, "vqav2": lambda root: official_files.vqa(root, "v2_")}


def served(root, benchmark, **options):
    WRITE.get(benchmark, getattr(official_files, benchmark, None))(root)
    return read_task(TaskFile(benchmark=benchmark, root=str(root), **options), labelled=False)


def file_of(task, *said):
    rows = [{"id": q.given["id"], "prediction": text} for q, text in zip(task.questions, said, strict=True)]
    return task.server.content(rows)


EXPECTED = {
    "gqa": [
        {"questionId": "201307251", "prediction": "no"},
        {"questionId": "201640614", "prediction": "the woman, i.e. her"},
    ],
    "vqav2": [{"question_id": 420000, "answer": "2 cats"}, {"question_id": 730001, "answer": "yes"}],
    "textvqa": [{"question_id": 34602, "answer": "caf\u00e9"}, {"question_id": 34603, "answer": ""}],
}
SAID = {
    "gqa": [" No. ", "The woman, i.e. her.."],
    "vqav2": ["Two cats.", "Yes"],
    "textvqa": ["Caf\u00e9.", ""],
}


@pytest.mark.parametrize("benchmark", EXPECTED)
def test_lists_of_answers(benchmark, tmp_path):
    task = served(tmp_path, benchmark)
    assert task.server.ending == ".json"
    assert json.loads(file_of(task, *SAID[benchmark]).decode("utf-8")) == EXPECTED[benchmark]


def test_okvqa_and_vizwiz(tmp_path):
    said = file_of(served(tmp_path / "a", "okvqa"), "Red", "a")
    assert json.loads(said) == [{"question_id": 420000, "answer": "red"}, {"question_id": 730001, "answer": ""}]
    said = file_of(served(tmp_path / "b", "vizwiz"), "Unanswerable")
    assert json.loads(said) == [{"image": "VizWiz_val_00000000.jpg", "answer": "unanswerable"}]


def test_the_table_of_mmbench_is_what_llava_makes_with_pandas(tmp_path):
    task = served(tmp_path, "mmbench")
    said = ["B", "=A1+1", "The\x0bcat,\n\u72ac"]
    found = pandas.read_excel(io.BytesIO(file_of(task, *said)))
    table = pandas.read_table(tmp_path / "mmbench_dev_20230712.tsv")
    unsent = ["hint", "category", "source", "image", "comment", "l2-category"]
    expected = table.drop(columns=[each for each in unsent if each in table])
    expected.insert(6, "prediction", ["B", "=A1+1", "The cat,\n\u72ac"])
    pandas.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert task.server.ending == ".xlsx" and [type(each) for each in found["index"].tolist()] == [int] * 3


def test_the_chinese_table_and_one_without_answers(tmp_path):
    official_files.mmbench(tmp_path, "mmbench_dev_cn_20231003.tsv")
    path = tmp_path / "mmbench_dev_cn_20231003.tsv"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("\n".join("\t".join(line[:7] + line[8:]) for line in lines) + "\n")
    task = read_task(TaskFile(benchmark="mmbench_cn", root=str(tmp_path)), labelled=False)
    found = pandas.read_excel(io.BytesIO(file_of(task, "A", "B", "C")))
    assert list(found.columns) == ["index", "question", "A", "B", "C", "D", "prediction"]
    assert found["prediction"].tolist() == ["A", "B", "C"]


def test_a_part_of_a_set_is_refused_and_so_are_answers_too_many(tmp_path):
    task = served(tmp_path, "gqa", limit=1)
    with pytest.raises(DowserError, match="gqa: got 1 of 2 questions, expected all of them"):
        task.server.check(len(task.questions))
    whole = served(tmp_path, "gqa")
    whole.server.check(len(whole.questions))
    with pytest.raises(DowserError, match="got 1 answers to 1 of 2 questions, expected one to each"):
        file_of(task, "no")
    with pytest.raises(DowserError, match="got 2 answers to 1 of 2 questions"):
        whole.server.content([{"id": "201307251", "prediction": each} for each in "ab"])


def test_without_openpyxl_it_is_told_before_anything_is_asked(tmp_path, monkeypatch):
    task = served(tmp_path, "mmbench")
    monkeypatch.setattr("dowser_pl.data.benchmarks.server.find_spec", lambda _: None)
    with pytest.raises(DowserError, match=r'pip install "dowser_pl\[xlsx\]"'):
        task.server.check(3)


def test_sets_without_a_server_have_none(tmp_path):
    assert served(tmp_path, "pope").server is None
    (tmp_path / "own.jsonl").write_text('{"question": "q", "answer": "a"}')
    assert read_task(TaskFile("own", str(tmp_path / "own.jsonl"))).server is None
    assert set(SERVED) <= set(PROTOCOLS["llava"])
