"""`ConversationData`: a folder of one's own, without code."""

import json

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from dowser_pl.data import ConversationData, TaskFile
from tests.data.builders import build_llava, chat_template, picture


@pytest.fixture
def folder(tmp_path):
    """20 LLaVA rows with one picture each, and an evaluation set of two questions."""
    rows = []
    (tmp_path / "images").mkdir()
    for i in range(20):
        picture("red" if i % 2 else "blue").save(tmp_path / "images" / f"{i}.png")
        answer = "red" if i % 2 else "blue"
        said = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"{i:03}", "image": f"{i}.png", "conversations": said})
    (tmp_path / "train.json").write_text(json.dumps(rows))
    asked = [
        {"image": "images/1.png", "question": "What colour?", "answer": "red"},
        {"question": "1 + 1?", "answer": 2},
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return tmp_path


def build(folder, **options):
    data = ConversationData(str(folder / "train.json"), str(folder / "images"), **options)
    data.processor = build_llava(chat_template())
    return data


def edit(folder, change):
    path = folder / "train.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_a_training_file_alone_is_enough(folder):
    data = build(folder, batch_size=4)
    data.setup("fit")
    (task,) = data.tasks
    assert (task.name, task.role, len(task.questions)) == ("holdout", "downstream", 1)
    batches = list(data.train_dataloader())
    seen = [row for batch in batches for row in batch["ids"]]
    assert len(set(seen)) == 19
    assert task.questions[0].id not in seen
    assert batches[0]["pixel_values"].shape == (4, 3, 16, 16)
    assert all(row.startswith("train.json row ") for row in seen)


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_from_yaml(folder):
    config = f"""
    class_path: ConversationData
    init_args:
      train_file: {folder}/train.json
      image_folder: {folder}/images
      tasks:
      - name: colours
        file: {folder}/test.jsonl
        role: downstream
        metric:
          exact_match: {{strict: true}}
      - name: known
        file: {folder}/test.jsonl
        metric: vqa
        limit: 1
    """
    assert len(config.strip().splitlines()) < 17
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    (folder / "data.yaml").write_text(config)
    data = parser.instantiate_classes(parser.parse_args([f"--data={folder}/data.yaml"])).data
    data.processor = build_llava(chat_template())
    data.setup("fit")
    assert [(task.name, task.role, task.metric) for task in data.tasks] == [
        ("colours", "downstream", "exact_match_strict"),
        ("known", "upstream", "vqa"),
    ]
    assert [len(task.questions) for task in data.tasks] == [2, 1]
    assert sum(len(batch["ids"]) for batch in data.train_dataloader()) == 20  # nothing is held out


def test_tasks_look_for_images_where_the_training_rows_do_unless_they_say_where(folder):
    (folder / "sets").mkdir()
    (folder / "elsewhere").mkdir()
    file = folder / "sets" / "test.json"
    file.write_text(json.dumps([{"image": "own.png", "question": "Which colour?", "answer": "red"}]))

    def asked(own=None):
        data = build(folder, tasks=[TaskFile("t", str(file), "downstream", image_folder=own)])
        (question,) = data.evaluation_tasks()[0].questions
        assert question.given["images"] == ["own.png"]
        return question.images[0].path.parent

    for there in ("sets", "images", "elsewhere"):  # beside the file, where it is nowhere else
        picture("red").save(folder / there / "own.png")
        assert asked() == folder / ("sets" if there == "sets" else "images")
    assert asked(str(folder / "elsewhere")) == folder / "elsewhere"
    (folder / "elsewhere" / "own.png").unlink()
    with pytest.raises(ValueError, match=r"no image at \S*elsewhere/own.png\. Check"):
        asked(str(folder / "elsewhere"))
    (folder / "sets" / "own.png").unlink()
    (folder / "images" / "own.png").unlink()
    with pytest.raises(ValueError, match=r"no image at \S*images/own.png or \S*sets/own.png"):
        asked()


def test_evaluation_alone_does_not_read_the_training_file(folder):
    (folder / "train.json").unlink()
    data = build(folder, tasks=[TaskFile("t", str(folder / "test.jsonl"), "downstream")])
    data.setup("validate")
    (loader,) = data.val_dataloader()
    assert next(iter(loader))["references"] == [["red"], ["2"]]


def test_held_out_answers_have_room_by_the_tokens_of_the_model(folder):
    edit(folder, lambda rows: [row["conversations"][1].update(value="\u732b" * 50) for row in rows])
    data = build(folder)
    data.setup("validate")
    num_tokens = len(data.processor.tokenizer("\u732b" * 50)["input_ids"])
    assert data.tasks[0].max_new_tokens == num_tokens + 16 > 128


def test_upstream_sets_alone_still_get_a_holdout(folder):
    data = build(folder, tasks=[TaskFile("t", str(folder / "test.jsonl"))])
    data.setup("validate")
    assert [task.name for task in data.tasks] == ["t", "holdout"]
    data = build(folder, tasks=[TaskFile("t", str(folder / "test.jsonl"))], holdout=0)
    data.setup("validate")
    assert [task.name for task in data.tasks] == ["t"]


def test_a_missing_image_ends_the_setup(folder):
    (folder / "images" / "7.png").unlink()
    with pytest.raises(ValueError, match=r"train\.json row 8 \(id 007\): no image at .*7\.png"):
        build(folder).setup("fit")


def test_a_corrupt_image_ends_the_setup_or_the_epoch(folder):
    (folder / "images" / "7.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"train\.json row 8 \(id 007\): cannot read the image .*7\.png"):
        build(folder).setup("fit")  # before anything long begins
    data = build(folder, check="none")
    data.setup("fit")
    with pytest.raises(ValueError, match=r"train\.json row 8 \(id 007\): cannot read the image .*7\.png"):
        list(data.train_dataloader())


def test_bad_rows_are_left_out_counted_and_named(folder):
    (folder / "images" / "7.png").write_bytes(b"nothing")
    (folder / "images" / "8.png").unlink()
    edit(folder, lambda rows: rows[9]["conversations"].pop())
    data = build(folder, skip_bad_rows=True, tasks=[TaskFile("t", str(folder / "test.jsonl"), "downstream")])
    with pytest.warns(UserWarning) as warned:
        data.setup("fit")
    message = next(str(warning.message) for warning in warned if "left out" in str(warning.message))
    assert "left out 3 of 20 rows" in message
    assert all(f"(id 00{i})" in message for i in (7, 8, 9))
    assert sum(len(batch["ids"]) for batch in data.train_dataloader()) == 17


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "train.json is empty"),
        ('[{"a":', "train.json:1:7: not valid JSON"),
        ('{"data": [{"conversations": []}]}', r"line 1: expected a list .*got the keys \['data'\]"),
    ],
)
def test_no_rows(folder, text, message):
    (folder / "train.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        build(folder).setup("fit")


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"holdout must be at least 0 and below 1.*got 5"):
        ConversationData("train.json", holdout=5)
    with pytest.raises(ValueError, match="eval_batch_size must be at least 1, got 0"):
        ConversationData("train.json", eval_batch_size=0)
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        ConversationData("train.json", num_workers=-1)


def test_truncated_rows_are_counted_once(folder):
    edit(folder, lambda rows: rows[3]["conversations"][1].update(value="green " * 40))
    data = build(folder, max_length=60, holdout=0)
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        assert max(batch["input_ids"].shape[1] for batch in loader) == 60
    assert data.num_truncated == 1


def test_truncated_rows_are_counted_in_workers(folder):
    edit(folder, lambda rows: rows[3]["conversations"][1].update(value="green " * 40))
    data = build(folder, max_length=60, holdout=0, num_workers=2)
    data.setup("fit")
    assert sum(len(batch["ids"]) for batch in data.train_dataloader()) == 20
    assert data.num_truncated == 1


def test_bad_rows_are_left_out_before_the_holdout_is_chosen(folder):
    (folder / "images").joinpath("5.png").write_bytes(b"no picture")
    edit(folder, lambda rows: rows.__setitem__(slice(None), rows[5:7]))  # alone, 5.png would be held out
    edit(folder, lambda rows: rows.append({**rows[-1], "image": "7.png"}))
    data = build(folder, skip_bad_rows=True)
    with pytest.warns(UserWarning, match="left out 1 of 3 rows"):
        data.setup("fit")
    assert (len(data.train_conversations()), len(data.tasks[0].questions)) == (1, 1)


@pytest.mark.parametrize("turn", [{"from": ["human"], "value": "q"}, {"from": {}, "value": "q"}, 7, None])
def test_turns_of_any_shape_are_bad_rows(folder, turn):
    edit(folder, lambda rows: rows[3]["conversations"].__setitem__(0, turn))
    with pytest.raises(ValueError, match=r"^train\.json row 4 \(id 003\): "):
        build(folder).setup("fit")
    data = build(folder, skip_bad_rows=True, holdout=0, tasks=[TaskFile("t", str(folder / "test.jsonl"), "downstream")])
    with pytest.warns(UserWarning, match=r"left out 1 of 20 rows"):
        data.setup("fit")
