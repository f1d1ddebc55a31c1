"""Keys of rows: videos and sound are refused, a system text is a turn, switched-off turns, keys that nobody reads."""

import json
import warnings

import pytest

from dowser_pl.data import ConversationData
from dowser_pl.data.benchmarks import TaskFile, read_task
from dowser_pl.data.messages import MessageReader
from tests.data.builders import IMAGE, picture, turn


@pytest.fixture
def reader(tmp_path):
    picture().save(tmp_path / "a.png")
    return MessageReader(tmp_path)


def said(*texts, **changes):
    roles = ("human", "gpt") * len(texts)
    return {"conversations": [{"from": r, "value": t} for r, t in zip(roles, texts, strict=False)], **changes}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (said("q", "a", video="clips/3.mp4"), "video='clips/3.mp4'"),
        (said("q", "a", videos=["clips/3.mp4"]), "videos="),
        (said("q", "a", audio={"path": "a.wav"}), "audio="),
        (said("q", "a", audios=["a.wav"]), "audios="),
        (said("q", "a", video_path="3.mp4"), "video_path="),
        (said("<video>\nq", "a"), "placeholder '<video>'"),
        (said("q1", "a1", "and in <audio> ?", "a2"), "placeholder '<audio>'"),
        (said("<|vision_start|><|video_pad|><|vision_end|>q", "a"), r"placeholder '<\|video_pad\|>'"),
        (said("<|AUDIO|>q", "a"), r"placeholder '<\|AUDIO\|>'"),
        (said("q", "a", system="watch <video>"), "placeholder '<video>'"),
        (said([{"type": "video", "video": "3.mp4"}, {"type": "text", "text": "q"}], "a"), "part of type 'video'"),
        (said([{"type": "input_audio", "input_audio": {}}, "q"], "a"), "part of type 'input_audio'"),
        (said([{"type": "video_url", "video_url": {"url": "x"}}, "q"], "a"), "part of type 'video_url'"),
    ],
)
def test_videos_and_sound_are_refused_by_name(reader, row, named):
    with pytest.raises(ValueError, match=rf"^row 7.*{named}.*Videos and sound are not read.*skip_bad_rows"):
        reader.read("row 7", row)


@pytest.mark.parametrize("key", ["video", "audios"])
def test_questions_about_videos_are_refused(tmp_path, key):
    (tmp_path / "t.jsonl").write_text(json.dumps({"question": "q", "answer": "a", key: ["x"]}))
    with pytest.raises(ValueError, match=rf"t\.jsonl line 1: got {key}=.*Videos and sound are not read"):
        read_task(TaskFile("t", str(tmp_path / "t.jsonl")))
    (tmp_path / "t.jsonl").write_text(json.dumps({"question": "<video> q", "answer": "a"}))
    with pytest.raises(ValueError, match="line 1.*got the placeholder '<video>'"):
        read_task(TaskFile("t", str(tmp_path / "t.jsonl")))


@pytest.mark.parametrize(
    "empty", [None, "", [], float("nan"), False, [None], [""], {"path": None, "bytes": None}, [{"path": None}]]
)
def test_an_empty_video_column_is_none(reader, empty):
    assert reader.read("row 1", said("q", "use the <video> tag", video=empty))[0][1] == turn(
        "assistant", "use the <video> tag"
    )


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_text_of_the_row_is_its_system_turn(reader, key):
    spoken = [turn("system", "be brief"), turn("user", "q"), turn("assistant", "a")]
    assert reader.read("row 1", said("q", "a", **{key: " be brief"}))[0] == spoken
    both = said("q", "a", **{key: "be brief"})
    both["conversations"].insert(0, {"from": "system", "value": "be brief"})
    assert reader.read("row 1", both)[0] == spoken
    both["conversations"][0]["value"] = "be long"
    with pytest.raises(ValueError, match=f"row 1: `{key}` and the system turn of the row differ"):
        reader.read("row 1", both)


@pytest.mark.parametrize("empty", [None, "", "  ", []])
def test_an_empty_system_text_is_none(reader, empty):
    assert len(reader.read("row 1", said("q", "a", system=empty))[0]) == 2


def test_two_system_texts_that_differ(reader):
    with pytest.raises(ValueError, match="row 1: `system_prompt` and the system turn"):
        reader.read("row 1", said("q", "a", system="x", system_prompt="y"))


def test_questions_have_a_system_text_too(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"system": "be brief", "question": "q", "answer": "a"}))
    (question,) = read_task(TaskFile("t", str(tmp_path / "t.jsonl"))).questions
    assert question.messages == [turn("system", "be brief"), turn("user", "q")]


@pytest.mark.parametrize(
    "off", [{"loss": False}, {"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False, "weight": 0}]
)
def test_an_answer_that_is_switched_off(reader, off):
    row = said("q", "a", "r", "b")
    row["conversations"][1] |= off
    row["conversations"][0]["weight"] = 0  # what is not learnt anyway
    messages, _ = reader.read("row 1", row)
    assert messages == [
        turn("user", "q"),
        {**turn("assistant", "a"), "loss": False},
        turn("user", "r"),
        turn("assistant", "b"),
    ]


@pytest.mark.parametrize("on", [{"loss": True}, {"weight": 1}, {"weight": 1.0}, {"loss": None, "train": True}, {}])
def test_an_answer_that_is_switched_on(reader, on):
    row = said("q", "a")
    row["conversations"][1] |= on
    assert reader.read("row 1", row)[0] == [turn("user", "q"), turn("assistant", "a")]


@pytest.mark.parametrize(
    ("number", "flags", "message"),
    [
        (1, {"weight": 0.5}, "turn 2: weight must be 0 or 1 .false or true., got 0.5"),
        (1, {"weight": 2}, "turn 2: weight must be 0 or 1"),
        (1, {"weight": float("nan")}, "turn 2: weight must be 0 or 1"),
        (1, {"loss": "false"}, "turn 2: loss must be 0 or 1"),
        (1, {"loss": True, "weight": 0}, "turn 2: got .*which disagree"),
        (0, {"loss": True}, "turn 1: got .* on a turn of the user, but only what the assistant says is learnt"),
        (0, {"weight": 1}, "turn 1: got .* on a turn of the user"),
        (1, {"loss": False}, "no answer is left to learn from"),
    ],
)
def test_flags_that_cannot_be_honoured(reader, number, flags, message):
    row = said("q", "a")
    row["conversations"][number] |= flags
    with pytest.raises(ValueError, match=f"^row 1: {message}"):
        reader.read("row 1", row)


@pytest.mark.parametrize("off", [{"loss": False}, {"weight": 0}, {"weight": 0.0}, {"loss_weight": 0}])
def test_a_row_that_is_switched_off_is_not_learnt(reader, off):
    with pytest.raises(ValueError, match=r"^row 1: got .* for the whole row, so that nothing of it is learnt"):
        reader.read("row 1", said("q", "a", **off))
    assert reader.read("row 1", said("q", "a", weight=1, loss=0.7, train=False))[0][1] == turn("assistant", "a")


def test_the_reference_is_the_last_answer_that_is_learnt(tmp_path):
    row = said("q", "a", "r", "b")
    row["conversations"][3]["weight"] = 0
    (tmp_path / "t.json").write_text(json.dumps([row]))
    (question,) = read_task(TaskFile("t", str(tmp_path / "t.json"))).questions
    assert question.messages == [turn("user", "q")]
    assert question.references == ["a"]


def test_one_warning_names_and_counts_what_nobody_reads(tmp_path):
    rows = [said(f"q{i}", "a", id=i, source="web", rating=5, empty=None) for i in range(3)]
    rows[1]["tools"] = ["calculator"]
    rows[2]["conversations"][1]["reasoning_content"] = "hm"
    rows[2]["messages"] = [{"role": "user", "content": "r"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    data = ConversationData(str(tmp_path / "train.json"))
    with pytest.warns(UserWarning, match=r"train\.json: nothing reads these keys of its 3 rows") as caught:
        data.evaluation_tasks(), data.train_conversations()
    (warning,) = caught
    assert "'conversations[].reasoning_content' (1), 'messages' (1), 'rating' (3), 'tools' (1)." in str(warning.message)


def test_one_warning_per_evaluation_set(tmp_path):
    rows = [{"question_id": i, "question": "q", "text": "other", "answer": "a", "lecture": "l"} for i in range(2)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning, match=r"Task 't': nothing reads .*'lecture' \(2\), 'text' \(2\)\.") as caught:
        read_task(TaskFile("t", str(tmp_path / "t.json")))
    assert len(caught) == 1


def test_usual_keys_are_not_worth_a_warning(tmp_path):
    rows = [
        {
            "question_id": 1,
            "source": "web",
            "objects": {"ref": [], "box": [None]},
            "hint": "h",
            "question": "q",
            "A": "x",
            "B": "y",
            "answer": "B",
        }
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_task(TaskFile("t", str(tmp_path / "t.json")))


def test_image_and_images_that_differ(reader):
    row = said("<image> q", "a", image="a.png")
    assert reader.read("row 1", {**row, "images": ["a.png"]})[0][0] == turn("user", IMAGE, "q")
    with pytest.raises(ValueError, match="row 1: `image` and `images` name different images"):
        reader.read("row 1", {**row, "images": ["b.png"]})
