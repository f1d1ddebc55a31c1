"""The embedded world: its shipped model, its data, and that the two fit together."""

from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import dowser_pl
from dowser_pl.data.world.datamodule import WorldData, user_turn
from dowser_pl.data.world.scenes import bitmap
from dowser_pl.data.world.tasks import UPSTREAM, digits_split, downstream_examples, examples, invented_names
from dowser_pl.data.world.text import CREATURES, facts, vocabulary

ASSETS = Path(dowser_pl.__file__).parent / "assets" / "world"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ASSETS)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(ASSETS).eval()


def drawn(task, split, count, seed=0):
    if task in UPSTREAM:
        return list(islice(examples(task, split, seed), count))
    return list(islice(downstream_examples(task, split, True, seed), count))


def fingerprint(example):
    shown = example.scene.pixels().tobytes() if example.scene else example.question.encode()
    return sha256(shown).hexdigest()


def answers(model, processor, questions):
    """Greedy answers, all questions in one left-padded batch."""
    text = [processor.apply_chat_template([user_turn(q)], add_generation_prompt=True) for q in questions]
    images = [q.scene.load() for q in questions if q.scene]
    inputs = processor(text=text, images=images or None, padding=True, return_tensors="pt")
    new = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)


def test_assets_are_small_and_load_in_float32(model, processor):
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) < 10e6
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor.image_processor).__name__.startswith("CLIPImageProcessor")
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_every_word_is_one_token(processor):
    words = vocabulary()
    assert len(set(words)) == len(words)
    assert processor.tokenizer.convert_tokens_to_ids(list(words)) == list(range(len(words)))
    for task in (*UPSTREAM, "digits", "icon", "zucap"):
        for example in drawn(task, "test", 50):
            assert set(f"{example.question} {example.answer}".split()) <= set(words)


def test_pictures_reach_the_model_unchanged(processor):
    scene = drawn("caption", "test", 1)[0].scene
    values = processor.image_processor(scene.load(), return_tensors="pt")["pixel_values"][0]
    assert values.shape == (3, 36, 36)
    expected = torch.from_numpy(scene.pixels()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(values, expected)


def test_the_template_renders_a_conversation(processor):
    example = drawn("colour", "test", 1)[0]
    first = user_turn(example)
    first["content"][0]["image"] = example.scene.load()
    messages = [
        first,
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": "name the shape ."},
        {"role": "assistant", "content": "ring"},
    ]
    text = processor.apply_chat_template(messages)
    assert text == (
        f"<s> user : <image> {example.question} assistant : red </s> user : name the shape . assistant : ring </s>"
    )
    whole = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    apart = processor(text=text, images=example.scene.load(), return_tensors="pt")
    assert torch.equal(whole["input_ids"], apart["input_ids"])
    ids, mask = whole["input_ids"][0], torch.as_tensor(whole["assistant_masks"])[0].bool()
    assert (ids == processor.image_token_id).sum() == 9
    assert (ids == processor.tokenizer.bos_token_id).sum() == 1
    assert processor.tokenizer.convert_ids_to_tokens(ids[mask]) == ["red", "</s>", "ring", "</s>"]
    prompt = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
    assert prompt.endswith(f"{example.question} assistant :")
    assert text.startswith(prompt)


def test_other_roles_are_refused(processor):
    with pytest.raises(Exception, match="knows the roles user and assistant, got system"):
        processor.apply_chat_template([{"role": "system", "content": "be good ."}])


@pytest.mark.parametrize("task", [*UPSTREAM, "digits", "icon", "zucap"])
def test_data_repeat_and_splits_are_disjoint(task):
    first, again = (drawn(task, "test", 60) for _ in range(2))
    assert first == again
    assert [fingerprint(e) for e in first] == [fingerprint(e) for e in again]
    assert [e.answer for e in first] != [e.answer for e in drawn(task, "test", 60, seed=1)]
    seen = {split: {fingerprint(e) for e in drawn(task, split, 300)} for split in SPLITS}
    assert not seen["test"] & (seen["train"] | seen["validation"])
    assert not seen["validation"] & seen["train"]


def test_digits_are_split_by_writing():
    train, validation, test = (set(digits_split(split, tuning=True)) for split in SPLITS)
    assert (len(train), len(validation), len(test)) == (1000, 200, 597)
    assert not train & validation and not (train | validation) & test
    assert set(digits_split("train", tuning=False)) == train | validation


def test_what_the_world_knows_never_changes():
    assert len(facts()) == 96
    assert facts()["zu ra", "home"] == next(iter(facts().values()))
    assert not set(invented_names()) & set(CREATURES)
    assert len(set(invented_names()[:36])) == 36


def test_unknown_glyph():
    with pytest.raises(ValueError, match=r"got 'blob', expected a sign, icon:<index> or digit:<index>"):
        bitmap("blob")


def test_the_model_answers_upstream_questions(model, processor):
    exact = {}
    for task in UPSTREAM:
        questions = drawn(task, "test", 20)
        got = answers(model, processor, questions)
        exact[task] = np.mean([a == q.answer for a, q in zip(got, questions, strict=True)])
    assert np.mean(list(exact.values())) >= 0.9, exact


def test_the_model_does_not_know_the_digits(model, processor):
    questions = drawn("digits", "test", 20)
    got = answers(model, processor, questions)
    assert np.mean([a == q.answer for a, q in zip(got, questions, strict=True)]) <= 0.1


def test_world_data(processor):
    data = WorldData(num_eval=4, num_train=6, batch_size=3, eval_batch_size=4)
    data.processor = processor
    data.setup("fit")
    assert [task.name for task in data.tasks] == ["digits", *UPSTREAM]
    assert [task.role for task in data.tasks] == ["downstream"] + ["upstream"] * len(UPSTREAM)
    assert all(len(task.questions) == 4 for task in data.tasks)
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (3, 3, 36, 36)
    answer_lengths = (batch["labels"] != -100).sum(dim=1)
    assert answer_lengths.tolist() == [3, 3, 3]
    questions = next(iter(data.val_dataloader()[0]))
    assert questions["inputs"]["input_ids"].shape[0] == 4
    assert questions["references"] == [q.references for q in data.tasks[0].questions]


@pytest.mark.slow
def test_validation_never_touches_test_or_training_digits():
    def digits(rows):
        return {row.images[0].items[0].glyph for row in rows}

    tuning = WorldData(split="validation", num_eval=200)
    train, measured = digits(tuning.train_conversations()), digits(tuning.evaluation_tasks()[0].questions)
    assert (len(train), len(measured)) == (1000, 200)
    tested = digits(WorldData(num_eval=597).evaluation_tasks()[0].questions)
    assert not train & measured and not (train | measured) & tested


def test_upstream_rows_are_mixed_in_at_a_share():
    learnt, mixed = (WorldData(num_train=30, upstream_share=share).train_conversations() for share in (0.0, 0.4))
    assert [fingerprint_of(row) for row in mixed[:30]] == [fingerprint_of(row) for row in learnt]
    names = [row.id.split()[0] for row in mixed[30:]]
    assert names == [*UPSTREAM, *UPSTREAM]  # 20 of 50
    assert len({row.id for row in mixed}) == 50
    for name, row in zip(names[-len(UPSTREAM) :], mixed[-len(UPSTREAM) :], strict=True):
        example = drawn(name, "train", 2)[1]
        assert row.messages[0] == user_turn(example) and row.images == ([example.scene] if example.scene else [])
        assert row.messages[1] == {"role": "assistant", "content": [{"type": "text", "text": example.answer}]}


@pytest.mark.parametrize("split", ["test", "validation"])
def test_no_upstream_row_that_is_trained_on_is_asked(split):
    data = WorldData(split=split, num_eval=100, num_train=100, upstream_share=0.9)
    trained = {shown(row) for row in data.train_conversations()[100:]}
    asked = {shown(row) for task in data.evaluation_tasks()[1:] for row in task.questions}
    assert len(trained) > 500 and len(asked) > 500 and not trained & asked


def shown(row):
    """The picture, whatever is asked about it; the question where there is none."""
    return (
        sha256(b"".join(image.pixels().tobytes() for image in row.images)).hexdigest()
        if row.images
        else str(row.messages[0])
    )


def test_a_share_that_leaves_nothing_to_learn_is_refused():
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"upstream_share must be at least 0 and below 1, .* got {share}"):
            WorldData(upstream_share=share)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="num_eval must be at least 1, got 0"):
        WorldData(num_eval=0)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_choices_are_made_on_upstream_questions_of_the_validation_split(split):
    def asked(tasks):
        return {
            task.name: [(q.id, fingerprint_of(q)) for q in task.questions] for task in tasks if task.role == "upstream"
        }

    data = WorldData(split=split, num_eval=5)
    reported, chosen = asked(data.evaluation_tasks()), asked(data.selection_tasks)
    assert set(chosen) == set(UPSTREAM) and chosen == asked(
        WorldData(split="validation", num_eval=5).evaluation_tasks()
    )
    if split == "test":
        for name, questions in chosen.items():
            assert not {what for _, what in questions} & {what for _, what in reported[name]}, name


def fingerprint_of(question):
    pixels = b"".join(image.pixels().tobytes() for image in question.images)
    return sha256(pixels + str(question.messages).encode()).hexdigest()
