"""Parquet and folders of `datasets` as rows, for training and for evaluation."""

import builtins
import json
import pickle
import re

import pytest

from dowser_pl.data import ConversationData, TaskFile
from dowser_pl.data.benchmarks import read_task
from dowser_pl.data.images import ImageBytes, ImageFile
from dowser_pl.data.reading.formats import read_rows
from dowser_pl.data.reading.tables import Table
from tests.data.builders import build_llava, chat_template, picture
from tests.data.tables import SAID, colours, features, png

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def table():
    return datasets.Dataset.from_list(colours(20), features=features())


def parquet(table, folder):
    table.to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


def saved(table, folder):
    table.save_to_disk(folder / "saved")
    return folder / "saved"


def several(table, folder):
    datasets.DatasetDict(train=table, test=table.select([3])).save_to_disk(folder / "several")
    return folder / "several"


def parts(table, folder):
    """A clone of a data set of the hub: two files of one split, one of another."""
    (folder / "clone" / "data").mkdir(parents=True)
    for number in (0, 1):
        half = table.select(range(10 * number, 10 * number + 10))
        half.to_parquet(folder / "clone" / "data" / f"train-0000{number}-of-00002.parquet")
    table.select([3]).to_parquet(folder / "clone" / "data" / "test-00000-of-00001.parquet")
    return folder / "clone"


LAYOUTS = [parquet, saved, several, parts]


def build(path, **options):
    data = ConversationData(str(path), **options)
    data.processor = build_llava(chat_template())
    data.setup("fit")
    return data


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_as_from_json(tmp_path, table, layout, num_workers):
    """The same batches as from a JSON file with the pictures beside it, pixel for pixel."""
    rows = colours(20)
    for row in rows:
        (tmp_path / f"{row['id']}.png").write_bytes(row["image"]["bytes"])
    listed = [{**row, "image": f"{row['id']}.png"} for row in rows]
    (tmp_path / "train.json").write_text(json.dumps(listed))
    options = {"holdout": 0, "batch_size": 3, "num_workers": num_workers}
    plain, tabular = build(tmp_path / "train.json", **options), build(layout(table, tmp_path), **options)
    for one, other in zip(plain.train_dataloader(), tabular.train_dataloader(), strict=True):
        assert [name.split(" ", 1)[1] for name in one.pop("ids")] == [
            name.split(" ", 1)[1] for name in other.pop("ids")
        ]
        assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_by_number_by_itself_and_in_another_process(tmp_path, table, layout):
    rows = read_rows(layout(table, tmp_path), otherwise="train")
    again = pickle.loads(pickle.dumps(rows))
    assert len(rows) == len(again) == 20 and rows.digest == again.digest
    for number in (19, 0, 7):
        name, row = again[number]
        assert name.endswith(f" row {number + 1} (id {number:03})") and row == rows[number][1]
        assert row["conversations"] == SAID and row["image"]["bytes"] == png(picture((number, 0, 0)))
    with pytest.raises(IndexError):
        rows[20]


def test_rows_are_looked_through_without_their_pictures(table):
    rows = Table(table, "t")
    for number in (0, 19, 5):
        name, row = rows.light(number)
        assert name == rows[number][0] and row["conversations"] == SAID
        assert len(row["image"]["bytes"]) == 1
    assert rows.sizes[5] > 0


def test_lists_of_pictures_and_missing_ones(tmp_path):
    listed = [{"id": str(i), "images": [{"bytes": png(picture()), "path": f"{i}.png"}] * i or None} for i in range(3)]
    kinds = datasets.Features(id=datasets.Value("string"), images=datasets.List(datasets.Image()))
    rows = read_rows(saved(datasets.Dataset.from_list(listed, features=kinds), tmp_path))
    for number in range(3):
        (_, row), (_, light) = rows[number], rows.light(number)
        assert len(row.get("images", [])) == len(light.get("images", [])) == number
        assert [image["path"] for image in light.get("images", [])] == [f"{number}.png"] * number


def test_paths_start_at_the_folder(tmp_path):
    picture().save(tmp_path / "a.png")
    rows = [{"id": "a", "image": {"bytes": None, "path": "a.png"}, "conversations": SAID}]
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(datasets.Dataset.from_list(rows, features=features()).data.table, path)
    data = build(path, holdout=0, tasks=[TaskFile("t", str(path), "downstream")])
    (conversation,) = data.train_conversations()
    assert conversation.images == [ImageFile(tmp_path / "a.png")]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"train\.parquet row 1 \(id a\): no image at .*a\.png"):
        build(path, holdout=0)


def test_pandas_tables_without_what_datasets_writes(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [{"id": i, "image": png(picture((i, 0, 0))), "question": "q", "answer": float(i)} for i in range(4)]
    pandas.DataFrame(rows)[1:].to_parquet(tmp_path / "t.parquet")  # the index becomes a column
    _, row = read_rows(tmp_path / "t.parquet")[0]
    assert row == {"id": 1, "image": rows[1]["image"], "question": "q", "answer": 1.0}
    (question, *_) = read_task(TaskFile("t", str(tmp_path / "t.parquet"))).questions
    assert isinstance(question.images[0], ImageBytes) and "without a name" in str(question.images[0])


def test_messages_with_pictures_in_their_parts(tmp_path):
    part = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
    turn = {"role": datasets.Value("string"), "content": datasets.List(part)}
    image = {"bytes": png(picture("blue")), "path": None}
    asked = [{"type": "image", "image": image, "text": None}, {"type": "text", "text": "what?", "image": None}]
    said = [{"type": "text", "text": "blue", "image": None}]
    row = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
    kinds = datasets.Features(messages=datasets.List(turn))
    path = saved(datasets.Dataset.from_list([row], features=kinds), tmp_path)
    (conversation,) = build(path, holdout=0, tasks=[TaskFile("t", str(path), "downstream")]).train_conversations()
    assert conversation.images[0].load().getpixel((0, 0)) == (0, 0, 255)
    assert [part["type"] for part in conversation.messages[0]["content"]] == ["image", "text"]


def test_turns_in_columns_of_their_own(tmp_path):
    """As older versions of `datasets` kept a list of objects."""
    said = {"from": ["human", "gpt"], "value": ["hi", "red"]}
    rows = read_rows(saved(datasets.Dataset.from_list([{"conversations": said}]), tmp_path))
    assert rows[0][1]["conversations"] == [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "red"}]


def test_class_numbers_are_answers_by_name(tmp_path):
    kinds = datasets.Features(question=datasets.Value("string"), answer=datasets.ClassLabel(names=["no", "yes"]))
    rows = [{"question": "q", "answer": 1}, {"question": "q", "answer": 0}]
    path = parquet(datasets.Dataset.from_list(rows, features=kinds), tmp_path)
    assert [q.references for q in read_task(TaskFile("t", str(path))).questions] == [["yes"], ["no"]]


def test_splits(tmp_path, table):
    path = several(table, tmp_path)
    assert len(read_rows(path, otherwise="train")) == 20
    assert len(read_task(TaskFile("t", str(path), split="test")).questions) == 1
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\], no split was named. Set `split`"):
        read_task(TaskFile("t", str(path)))
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\], got split: val"):
        build(path, split="val")
    with pytest.raises(ValueError, match="a file of one part: leave out split: test"):
        (tmp_path / "a.json").write_text("[]")
        read_rows(tmp_path / "a.json", "test")


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["a.parquet", "b.parquet"], {"train": 2}),
        (["train.parquet", "val.parquet"], {"train": 1, "val": 1}),
        (["data/train-00000-of-00002-abc.parquet", "data/train-00001-of-00002-abc.parquet"], {"train": 2}),
        (
            ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"],
            {"train": 2, "test": 1},
        ),
        (["one/train-00000-of-00001.parquet", "two/train-00000-of-00001.parquet"], {"one/train": 1, "two/train": 1}),
    ],
)
def test_splits_by_the_names_of_files(tmp_path, table, files, splits):
    """Never two configurations as one set, and nothing else that lies in the folder."""
    picture().save(tmp_path / "a.png")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table.select([3]).to_parquet(tmp_path / name)
    assert {split: len(read_rows(tmp_path, split)) for split in splits} == splits
    with pytest.raises(ValueError, match=re.escape(str(sorted(splits))) if len(splits) > 1 else "got split: nothing"):
        read_rows(tmp_path, "nothing")


def test_a_holdout_keeps_equal_pictures_together(tmp_path):
    rows = colours(10)
    rows += [{**row, "id": row["id"] + "b"} for row in rows]
    data = build(saved(datasets.Dataset.from_list(rows, features=features()), tmp_path), holdout=0.2)
    held = {q.id.partition("id ")[2].strip("b)") for q in data.tasks[0].questions}
    kept = {row.id.partition("id ")[2].strip("b)") for row in data.train_conversations()}
    assert len(data.tasks[0].questions) == 4 and not held & kept


def test_bad_rows_of_a_table_are_named_and_left_out(tmp_path):
    rows = colours(6)
    rows[2]["image"] = {"bytes": b"nothing", "path": "2.png"}
    rows[4]["conversations"] = SAID[:1]
    path = parquet(datasets.Dataset.from_list(rows, features=features()), tmp_path)
    tasks = [
        TaskFile("t", str(saved(datasets.Dataset.from_list(rows[:2], features=features()), tmp_path)), "downstream")
    ]
    with pytest.raises(ValueError, match=r"train\.parquet row 5 \(id 004\): no assistant turn"):
        build(path, tasks=tasks)
    with pytest.warns(UserWarning, match=r"(?s)left out 2 of 6 rows.*id 002\): .* image 2\.png \(7 bytes in.*id 004"):
        data = build(path, tasks=tasks, skip_bad_rows=True)
    assert sum(len(batch["ids"]) for batch in data.train_dataloader()) == 4


def test_the_split_of_a_folder_of_one(tmp_path, table):
    with_split = datasets.Dataset.from_dict(table.to_dict(), split="validation")
    path = saved(with_split, tmp_path)
    assert len(read_rows(path)) == len(read_rows(path, "validation")) == 20
    with pytest.raises(ValueError, match=r"has the splits \['validation'\], got split: test"):
        read_rows(path, "test")


def test_what_cannot_be_read_says_so(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"bad\.parquet: `datasets` cannot read this: .*Expected a Parquet file"):
        read_rows(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="a folder with neither Parquet files nor what save_to_disk writes"):
        (tmp_path / "empty").mkdir()
        read_rows(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected hub:owner/name"):
        read_rows("hub:")
    with pytest.raises(FileNotFoundError, match=r"A data set of the hub is written hub:owner/name\."):
        read_rows("owner/name")


def test_the_hub_is_asked_for_what_was_named(monkeypatch, table):
    asked = []

    def load(path, name, revision, split):
        asked.append((path, name, revision, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["test", "train"])
    assert (
        read_rows("hub:owner/name:some@v1", otherwise="train")[0][0] == "hub:owner/name:some@v1[train] row 1 (id 000)"
    )
    read_rows("hub:owner/name", "test")
    assert asked == [("owner/name", "some", "v1", "train"), ("owner/name", None, None, "test")]
    with pytest.raises(ValueError, match=r"hub:owner/name has the splits \['test', 'train'\], no split was named"):
        read_rows("hub:owner/name")


def test_without_the_library(tmp_path, table, monkeypatch):
    path, load = parquet(table, tmp_path), builtins.__import__

    def without(name, *args):
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'which is not installed .*pip install "dowser_pl\[datasets\]"'):
        read_rows(path)
