"""Questions with candidates: how files say them, and what the model gets of them."""

import json

import pytest
import torch
from transformers import PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from dowser_pl.data import Question, Task
from dowser_pl.data.benchmarks import TaskFile, read_task
from dowser_pl.data.encoders import build_encoder
from dowser_pl.data.rows import checked_tasks
from tests.data.builders import IMAGE, build_llava, build_tokenizer, chat_template, picture, turn

QUESTION = {"question": "what colour is it?", "options": ["red", "dark green", "blue"], "answer": "C"}


@pytest.fixture
def ask(tmp_path):
    def make(row, metric, **options):
        path = tmp_path / "task.jsonl"
        path.write_text(json.dumps(row))
        task = read_task(TaskFile("t", str(path), metric=metric, **options))
        return checked_tasks([task])[0].questions[0]

    return make


@pytest.fixture
def encoder():
    return build_encoder(build_llava(chat_template()))


def words(encoder, ids):
    return encoder.tokenizer.decode(ids)


def test_options_are_tried_and_not_written(ask):
    found = ask(QUESTION, {"choice_likelihood": {"per_token": True}})
    assert (found.candidates, found.references) == (["red", "dark green", "blue"], ["blue"])
    assert found.told()["question"] == "what colour is it?"
    assert ask(QUESTION, "multiple_choice").candidates == []


def test_references_are_measured_with_their_question_or_without(ask):
    asked = ask({"question": "name it", "answers": ["red", "dark red"]}, "perplexity")
    assert asked.candidates == asked.references == ["red", "dark red"]
    text = ask({"answer": "Ice floats on water."}, "perplexity")
    assert (text.messages, text.candidates, text.told()["question"]) == ([], ["Ice floats on water."], "")
    talk = {"messages": [{"role": "user", "content": "name it"}, {"role": "assistant", "content": "red"}]}
    assert ask(talk, "perplexity").candidates == ["red"]
    assert ask({"answer": "red"}, "perplexity", prompt_suffix="Say a word.").told()["question"] == "Say a word."


@pytest.mark.parametrize(
    ("row", "metric", "message"),
    [
        ({"question": "q", "answer": "a"}, "choice_likelihood", "chooses among the `options` of a row, got none"),
        ({"question": "q", "options": ["x", "x", "y"], "answer": "y"}, "choice_likelihood", "at least two that differ"),
        ({"options": ["a", "b"], "answer": "b"}, "choice_likelihood", "no question"),
        ({"question": "q"}, "perplexity", "no reference"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "choice_likelihood",
            "takes a row with a question and `options`",
        ),
    ],
)
def test_rows_without_what_is_measured_are_refused(ask, row, metric, message):
    with pytest.raises(ValueError, match=message):
        ask(row, metric)


def test_a_task_and_its_questions_must_agree():
    asked = [turn("user", "q")]
    with pytest.raises(
        ValueError, match="got 0 candidates in task 'a', expected at least one, whose likelihood perplex"
    ):
        checked_tasks([Task("a", "upstream", "perplexity", [Question("q", asked, [], ["x"])])])
    with pytest.raises(
        ValueError, match="got 1 candidates in task 'a', expected none, as an answer is what exact_match"
    ):
        checked_tasks([Task("a", "upstream", "exact_match", [Question("q", asked, [], ["x"], candidates=["x"])])])


def test_only_the_candidate_and_the_end_of_its_turn_are_targets(encoder):
    asked = [turn("user", IMAGE, "which?"), turn("assistant", "no"), turn("user", "and now?")]
    found = [
        Question(f"q {n}", asked, [picture()], ["red"], candidates=["red", "dark green", "blue"]) for n in range(2)
    ]
    batch = encoder.evaluation_batch(found)
    assert batch["candidates"] == [["red", "dark green", "blue"]] * 2
    assert [len(each["input_ids"]) for each in batch["inputs"]] == [2, 2, 2], "no more rows at a time than questions"
    labels = [row[row != -100] for each in batch["inputs"] for row in each["labels"]]
    said = [words(encoder, row).lstrip(": ") for row in labels]  # a token may begin before the turn
    assert said == ["red</s>", "dark green</s>", "blue</s>"] * 2
    assert all("pixel_values" in each for each in batch["inputs"])


def test_a_text_without_a_question_is_read_by_itself(encoder):
    texts = ["Ice floats.", "A long text about water and ice, with </s> in it."]
    batch = encoder.evaluation_batch([Question(text, [], [], [text], candidates=[text]) for text in texts])
    (inputs,) = batch["inputs"]
    for row, text in enumerate(texts):
        kept = inputs["labels"][row] != -100
        assert torch.equal(kept, inputs["attention_mask"][row].bool()), "all but padding"
        assert words(encoder, inputs["input_ids"][row][kept]).removeprefix("<s>").strip() == text
    end = encoder.tokenizer.eos_token_id
    assert end not in inputs["labels"][1].tolist(), "a control token in a text is words"


def test_questions_and_texts_may_be_mixed(encoder):
    plain = Question("plain", [], [], ["ice"], candidates=["ice"])
    asked = Question("asked", [turn("user", "what floats?")], [], ["ice"], candidates=["ice"])
    batch = encoder.evaluation_batch([plain, asked, plain])
    assert [len(each["input_ids"]) for each in batch["inputs"]] == [1, 1, 1]


def test_models_that_take_the_answer_apart_need_a_question():
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 4
    paligemma = build_encoder(PaliGemmaProcessor(images, build_tokenizer()))
    with pytest.raises(ValueError, match="plain: PaliGemmaProcessor takes question and answer apart"):
        paligemma.evaluation_batch([Question("plain", [], [], ["ice"], candidates=["ice"])])
    asked = Question("asked", [turn("user", IMAGE, "what?")], [picture()], ["red"], candidates=["red", "dark green"])
    said = [each["labels"][each["labels"] != -100] for each in paligemma.evaluation_batch([asked])["inputs"]]
    assert [words(paligemma, each) for each in said] == ["red</s>", "dark green</s>"]
