"""`predict` asks questions that nobody has answered yet; all that scores refuses them."""

import base64
import json

import pytest

from dowser_pl.data import ConversationData, TaskFile
from tests.data.builders import build_llava, chat_template, picture, turn

ASKED = "What colour?"
QUESTIONS = {
    "no answer": {"question_id": 7, "image": "a.png", "question": ASKED},
    "null": {"id": "x-1", "images": ["a.png"], "text": ASKED, "answer": None},
    "empty": {"id": 0, "image": "a.png", "prompt": ASKED, "answers": []},
    "options": {"uid": "u", "image": "a.png", "question": ASKED, "options": ["red", "blue"]},
    "conversation": {"id": 3, "image": "a.png", "conversations": [{"from": "human", "value": f"<image>\n{ASKED}"}]},
    "room for an answer": {
        "id": 5,
        "image": "a.png",
        "conversations": [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ""}],
    },
    "a null for an answer": {
        "id": 6,
        "image": "a.png",
        "messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": None}],
    },
    "messages": {
        "id": 4,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": "yes?"},
            {"role": "user", "content": ASKED},
        ],
    },
}


@pytest.fixture
def build(tmp_path):
    picture().save(tmp_path / "a.png")

    def make(*rows, **options):
        (tmp_path / "ask.jsonl").write_text("\n".join(map(json.dumps, rows)))
        tasks = [TaskFile("t", str(tmp_path / "ask.jsonl"), **options)]
        data = ConversationData(str(tmp_path / "train.json"), tasks=tasks)  # which is not there
        data.processor = build_llava(chat_template())
        return data

    return make


@pytest.mark.parametrize("row", QUESTIONS.values(), ids=QUESTIONS)
def test_rows_without_references_are_asked_and_told_as_the_file_has_them(build, row):
    data = build(row)
    data.setup("predict")
    (loader,) = data.predict_dataloader()
    (batch,) = loader
    assert batch["references"] == [[]]
    own = next(row[key] for key in ("id", "question_id", "uid") if key in row)
    (told,) = batch["told"]
    assert (told["id"], told["images"]) == (own, ["a.png"])
    assert told["question"].split("\n")[0] == ASKED
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("row", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_all_that_scores_refuses_them(build, row, stage):
    with pytest.raises(ValueError, match=r"ask\.jsonl line 1.*(no reference|no assistant turn|with assistant|turn 2)"):
        build(row).setup(stage)


def test_nor_do_they_pass_because_predict_came_first(build):
    data = build(QUESTIONS["no answer"])
    data.setup("predict")
    with pytest.raises(ValueError, match="no reference"):
        data.setup("validate")


def test_answered_and_open_rows_may_stand_side_by_side(build):
    answered = {"id": 1, "question": "q", "answer": "red"}
    spoken = {"id": 2, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "blue"}]}
    data = build(answered, QUESTIONS["no answer"], spoken)
    data.setup("predict")
    assert [question.references for question in data.tasks[0].questions] == [["red"], [], ["blue"]]


def test_a_reference_that_cannot_be_scored_is_refused_all_the_same(build):
    with pytest.raises(ValueError, match="multiple_choice: the first reference"):
        build({"question": "q", "answer": "a dog"}, metric="multiple_choice").setup("predict")


def test_no_training_rows_are_needed_without_training(build):
    answered = {"question": "q", "answer": "red"}
    for stage in ("validate", "test", "predict"):
        data = build(answered)
        data.setup(stage)
        assert [task.name for task in data.tasks] == ["t"]
    data = ConversationData(tasks=build(answered).task_files)
    data.processor = build_llava(chat_template())
    data.setup("predict")
    with pytest.raises(FileNotFoundError, match="train.json"):
        build(answered).setup("fit")
    with pytest.raises(ValueError, match="train_file is not set"):
        ConversationData(tasks=build(answered).task_files).evaluation_tasks()


def test_predict_reads_no_training_rows_though_they_are_there(build, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([{"conversations": [{"from": "human", "value": "no answer"}]}]))
    data = build({"question": "q"})
    data.setup("predict")
    assert [task.name for task in data.tasks] == ["t"]


def test_images_that_are_no_files_are_told_in_a_few_words(build, tmp_path):
    code = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    data = build({"question": "q", "image": f"data:image/png;base64,{code}"}, {"question": "q"})
    data.setup("predict")
    told = [question.told() for question in data.tasks[0].questions]
    assert told[0]["images"][0].startswith("base64 text")
    assert told[0]["id"] == "ask.jsonl line 1"  # none of its own
    assert told[1]["images"] == []


def test_turns_are_still_in_order(build):
    row = {"messages": [turn("user", "a"), turn("user", "b")]}
    with pytest.raises(ValueError, match="the turns are out of order"):
        build(row).setup("predict")
    with pytest.raises(ValueError, match="the turns are out of order"):
        build({"messages": [turn("system", "a")]}).setup("predict")
