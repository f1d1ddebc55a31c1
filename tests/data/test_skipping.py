"""Rows that something refuses: named, or left out and counted, wherever they are found."""

import errno
import json
import os
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from dowser_pl.data import Conversation, ConversationData, MultimodalData, Question, Task, TaskFile
from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.images import ImageFile
from dowser_pl.data.loaders import LEFT_OUT, TrainingBatches
from dowser_pl.errors import FileError
from tests.data.builders import IMAGE, build_llava, chat_template, one_image, picture, question, text_only, turn
from tests.data.test_families import FAMILIES, nvila, qwen2_5_vl
from tests.data.test_resume import Diary

pytestmark = pytest.mark.filterwarnings("ignore:left out:UserWarning")


def strip():
    return Conversation("strip", [turn("user", IMAGE, "what?"), turn("assistant", "red")], [picture(size=(4000, 8))])


def too_many():
    return Conversation("many", [turn("user", *[IMAGE] * 30, "what?"), turn("assistant", "red")], [picture()] * 30)


def raising(kind):
    """A processor that refuses the word "bad" with an exception of this kind."""
    processor = build_llava(chat_template())

    class Refusing(type(processor)):
        def __call__(self, *, text, **options):
            if any("bad" in one for one in text):
                raise kind("not this one")
            return super().__call__(text=text, **options)

    processor.__class__ = Refusing
    return processor


def bad(name="bad"):
    return Conversation(name, [turn("user", "a bad word"), turn("assistant", "red")])


@pytest.mark.parametrize(
    "kind", [ValueError, IndexError, OverflowError, TypeError, RuntimeError, Image.DecompressionBombError]
)
@pytest.mark.parametrize(
    "rows", [[bad()], [text_only(), bad(), text_only()], [text_only(), bad("bad 1"), bad("bad 2")]]
)
def test_whatever_a_processor_raises_names_the_row(kind, rows):
    encoder = build_encoder(raising(kind))
    for encode, given in ((encoder.training_batch, rows), (encoder.evaluation_batch, [*map(question, rows)])):
        with pytest.raises(ValueError, match=r"^bad( 1)?: cannot be encoded: .*not this one.*skip_bad_rows") as caught:
            encode(given)
        assert isinstance(caught.value.__cause__, kind)


def test_memory_that_ends_is_no_fault_of_a_row():
    with pytest.raises(MemoryError):
        build_encoder(raising(MemoryError)).training_batch([bad()])


def test_an_absurd_strip_is_named_by_the_processor_that_refuses_it():
    with pytest.raises(ValueError, match="^strip: cannot be encoded: absolute aspect ratio must be smaller than 200"):
        build_encoder(qwen2_5_vl(chat_template())).training_batch([one_image(), strip()])


@pytest.mark.parametrize("build", FAMILIES)
def test_a_template_that_fails_names_the_row(build):
    template = chat_template().replace(
        "{{ p['text'] }}", "{{ p['text'] if 'bad' not in p['text'] else p['text'] / 2 }}"
    )
    encoder = build_encoder(build(template))
    with pytest.raises(ValueError, match="^bad: "):
        encoder.training_batch([text_only(), bad()])
    with pytest.raises(ValueError, match="^bad: "):
        encoder.evaluation_batch([question(text_only()), question(bad())])


@pytest.mark.parametrize("build", [build_llava, *FAMILIES])
def test_text_that_looks_like_python_is_text(build):
    said = "[{'type': 'text'}, 'b']"
    row = Conversation("python", [turn("user", f"what is {said}?"), turn("assistant", said)])
    encoder = build_encoder(build(chat_template()))
    batch, _ = encoder.training_batch([row, text_only()])
    learnt = encoder.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert said in learnt
    encoder.evaluation_batch([question(row)])
    if build is nvila:  # makes one text of the parts of a turn for templates such as this
        return
    objects = build_encoder(build("{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    with pytest.raises(ValueError, match="^python: .*prints the message parts as Python objects"):
        objects.training_batch([row])


def test_rows_that_fail_only_together_are_all_named_and_never_skipped():
    processor = build_llava(chat_template())

    class LocalReducer(type(processor)):
        def __call__(self, *, text, **options):
            if len(text) > 1:
                raise IndexError("two")
            return super().__call__(text=text, **options)

    processor.__class__ = LocalReducer
    rows = [text_only(), one_image()]
    batches = TrainingBatches(rows, build_encoder(processor), torch.zeros(2, dtype=torch.uint8), skip_bad=True)
    with pytest.raises(ValueError, match=r"text, one \(together, while each alone is fine\): .*IndexError: two"):
        batches[[0, 1]]


def batches_of(rows, skip_bad=True, max_length=64):
    encoder = build_encoder(qwen2_5_vl(chat_template()), max_length=max_length)
    return TrainingBatches(rows, encoder, torch.zeros(len(rows), dtype=torch.uint8), skip_bad)


def good(name):
    return Conversation(name, [turn("user", "hello"), turn("assistant", "no")])


def test_a_batch_is_smaller_by_what_is_left_out():
    batches = batches_of([good("a"), strip(), good("c"), too_many()])
    with pytest.warns(UserWarning, match=r"left out \(skip_bad_rows\): strip: .*aspect ratio"):
        assert batches[[2, 1, 0]]["ids"] == ["c", "a"]
    assert batches[[0, 3]]["ids"] == ["a"]
    assert batches.marks.tolist() == [0, LEFT_OUT, 0, LEFT_OUT]
    with pytest.raises(ValueError, match="^many: its .* image tokens end at token"):
        batches_of([good("a"), too_many()], skip_bad=False)[[0, 1]]


@pytest.mark.parametrize("known", [False, True])
def test_the_next_usable_row_stands_in_for_a_whole_batch(known):
    """Also where all of that is known already: what a batch is does not depend on what was read before it."""
    batches = batches_of([good("a"), strip(), too_many(), good("d"), strip()])
    if known:
        batches.marks[[1, 2, 4]] = LEFT_OUT
    assert batches[[1, 2]]["ids"] == ["d"]
    assert batches[[2]]["ids"] == ["d"]
    assert batches[[4, 1]]["ids"] == ["a"]


def test_no_row_at_all():
    with pytest.raises(ValueError, match=r"No row is usable: row 1 .*The reasons are above; the last: strip: "):
        batches_of([strip(), strip()])[[0]]


class Rows(MultimodalData):
    """Rows of which the third, the fourth and the tenth are refused."""

    skip_bad_rows = True

    def __init__(self, check="none", **options):
        super().__init__(check=check, **options)
        self.processor = raising(IndexError)

    def train_conversations(self):
        return [bad(f"bad {i}") if i in (2, 3, 9) else good(f"good {i}") for i in range(11)]

    def evaluation_tasks(self):
        asked = [Question(f"q{i}", [turn("user", "bad" if i == 3 else "x")], [], ["y"]) for i in range(5)]
        return [Task("t", "upstream", "exact_match", asked)]


def seen(data):
    data.setup("fit")
    return [batch["ids"] for batch in data.train_dataloader()]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_do_not_depend_on_workers_or_on_the_check(batch_size):
    expected = seen(Rows(batch_size=batch_size))
    assert len(expected) == -(-11 // batch_size)  # as many steps as with all rows
    assert {row for batch in expected for row in batch} == {f"good {i}" for i in (0, 1, 4, 5, 6, 7, 8, 10)}
    for options in ({"num_workers": 2}, {"check": "first"}, {"check": "all"}, {"check": "all", "num_workers": 2}):
        data = Rows(batch_size=batch_size, **options)
        assert seen(data) == expected, options
        assert data.left_out == [2, 3, 9], options


def test_a_check_of_all_rows_counts_them_before_the_first_batch():
    data = Rows("all", num_workers=1)
    with pytest.warns(UserWarning, match=r"(?s)checked: left out 3 of 11 rows.*\n  bad 2: .*\n  bad 3: .*\n  bad 9: "):
        data.setup("fit")
    assert data.left_out == [2, 3, 9]
    data = Rows("all")
    data.skip_bad_rows = False
    with pytest.raises(ValueError, match="^q3: cannot be encoded"):
        data.setup("fit")


def test_questions_are_the_same_for_all_who_ask():
    data = Rows("first", eval_batch_size=2)
    with pytest.warns(UserWarning, match=r"(?s)t: left out 1 of 5 rows.*q3: cannot be encoded"):
        data.setup("validate")
    assert [name for batch in data.val_dataloader()[0] for name in batch["ids"]] == ["q0", "q1", "q2", "q4"]
    assert data.tasks[0].left_out == 1


def fit(folder=None, ckpt_path=None, **options):
    checkpoints = [ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")] if folder else []
    trainer = Trainer(
        accelerator="cpu",
        callbacks=checkpoints,
        max_epochs=2,
        logger=False,
        enable_checkpointing=bool(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    module, data = Diary(), Rows(batch_size=2, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module, data


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"check": "first"}])
def test_a_resumed_run_leaves_out_and_counts_the_same_rows(tmp_path, options):
    whole, _ = fit(tmp_path, **options)
    for path in tmp_path.glob("*.ckpt"):
        resumed, data = fit(ckpt_path=str(path), **options)
        assert resumed.batches == whole.batches[len(whole.batches) - len(resumed.batches) :]
        assert torch.equal(resumed.weight, whole.weight)
        assert data.left_out == [2, 3, 9]


def write(folder, rows):
    picture().save(folder / "a.png")
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    (folder / "train.json").write_text(json.dumps([{"image": "a.png", "conversations": said, **row} for row in rows]))
    (folder / "test.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}))
    return str(folder / "train.json"), TaskFile("t", str(folder / "test.jsonl"), "downstream")


def test_other_rows_in_mid_epoch_are_refused(tmp_path):
    file, task = write(tmp_path, [{"id": i} for i in range(4)])
    data = ConversationData(file, tasks=[task])
    data.processor = build_llava(chat_template())
    data.setup("fit")
    data.train_dataloader()
    state = {"epoch": 0, "num_done": 1, **data._order.layout(), **data._content()}
    data.load_state_dict(state)
    write(tmp_path, [{"id": i + 1} for i in range(4)])
    other = ConversationData(file, tasks=[task])
    other.processor = build_llava(chat_template())
    other.setup("fit")
    with pytest.raises(ValueError, match=r"middle of an epoch of other training rows: got .*-4, expected .*-4"):
        other.load_state_dict(state)
    other.load_state_dict(state | {"num_done": 0})  # at an epoch's start anything may change


@pytest.mark.parametrize("skip_bad", [True, False])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_disk_that_fails_is_no_fault_of_a_row(number, skip_bad, tmp_path, monkeypatch):
    """Or the rows that it held would be left out one after the other, and the run would go on with the rest."""
    picture().save(tmp_path / "a.png")
    row = Conversation("a", [turn("user", IMAGE, "what?"), turn("assistant", "red")], [ImageFile(tmp_path / "a.png")])

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(FileError, match=os.strerror(number)) as failed:
        batches_of([row, good("b")], skip_bad)[[0, 1]]
    assert failed.value.errno == number and "a.png" in str(failed.value)


def test_a_picture_that_is_cut_off_is_a_fault_of_its_row(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    row = Conversation("a", [turn("user", IMAGE, "what?"), turn("assistant", "red")], [ImageFile(tmp_path / "a.png")])
    with pytest.raises(ValueError, match="a: cannot read the image .*a.png"):
        batches_of([row, good("b")], skip_bad=False)[[0, 1]]
