"""Tasks of likelihood in whole runs: scores against an oracle of one row at a time, in float64."""

import json
import math

import pytest
import torch

from dowser_pl.data import Question, Task
from dowser_pl.methods import Full
from tests.tiny_models import make_processor, save_tiny_llava, tiny_llava
from tests.tiny_run import COLOURS, TinyData, build_module, build_trainer, pictures, turn

TEXTS = ["the sky is blue .", "it is small", "this dog is in the house on the right of the tree"]


class Measured(TinyData):
    """A perplexity of texts, one of captions, and a choice among the colours of a picture."""

    def __init__(self, eval_batch_size=3):
        super().__init__()
        self.eval_batch_size = eval_batch_size

    def evaluation_tasks(self):
        options = [*COLOURS, "a big house"]
        asked = [turn("user", "what colour is it ?", True)]
        shown = pictures(4)
        return [
            Task(
                "text", "upstream", "perplexity", [Question(text, [], [], [text], candidates=[text]) for text in TEXTS]
            ),
            Task(
                "caption",
                "upstream",
                "perplexity",
                [
                    Question(f"c {i}", asked, [image], [word], candidates=[word])
                    for i, (word, image) in enumerate(shown)
                ],
            ),
            Task(
                "colour",
                "downstream",
                "choice_likelihood",
                [
                    Question(f"q {i}", asked, [image], [word], candidates=options)
                    for i, (word, image) in enumerate(shown)
                ],
            ),
        ]

    def questions_to_choose_on(self):
        return self.evaluation_tasks()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def oracle(model, text, target, image=None):
    """Nats and tokens of the words from `target` on, of one row without padding, by the processor alone."""
    processor = make_processor()
    inputs = processor(
        text=[text], images=None if image is None else [[image]], return_tensors="pt", add_special_tokens=False
    )
    inputs = {key: each.double() if each.is_floating_point() else each for key, each in inputs.items()}
    with torch.no_grad():
        chances = model(**inputs).logits.log_softmax(-1)[0]
    ids = inputs["input_ids"][0]
    count = len(processor.tokenizer(target, add_special_tokens=False)["input_ids"])
    return -sum(float(chances[place - 1, ids[place]]) for place in range(len(ids) - count, len(ids))), count


def prompt(answer):
    return f"<s> user : <image> what colour is it ? assistant : {answer} </s>"


def expected(model):
    texts = [oracle(model, text, text.split(" ", 1)[1]) for text in TEXTS]
    captions = [oracle(model, prompt(word), f"{word} </s>", image) for word, image in pictures(4)]
    right = 0
    for word, image in pictures(4):
        nats = {each: oracle(model, prompt(each), f"{each} </s>", image)[0] for each in [*COLOURS, "a big house"]}
        right += min(nats, key=nats.get) == word
    found = [math.exp(sum(nats for nats, _ in rows) / sum(count for _, count in rows)) for rows in (texts, captions)]
    return {"text": found[0], "caption": found[1], "colour": right / 4}


@pytest.mark.parametrize("eval_batch_size", [1, 3, 8])
def test_scores_are_those_of_the_oracle_in_batches_of_any_size(folder, tmp_path, eval_batch_size):
    module = build_module(folder)
    (logged,) = build_trainer(tmp_path).validate(module, Measured(eval_batch_size))[:1]
    assert module.scores == pytest.approx(expected(tiny_llava().double()), rel=2e-5)
    assert {name for name in logged if name.endswith("mean") or name == "val/h_score"} == {"val/downstream_mean"}
    assert logged["val/text/perplexity"] == pytest.approx(module.scores["text"], rel=1e-5)


@pytest.mark.slow
def test_a_run_reports_perplexities_and_counts_them_by_role(folder, tmp_path):
    module = build_module(folder, lr=3e-2, also_train=["lm_head"])
    build_trainer(tmp_path, Full(), max_epochs=3, check_val_every_n_epoch=3).fit(module, Measured())
    report = json.loads((tmp_path / "report.json").read_text())
    text, caption = (report["tasks"][name] for name in ("text", "caption"))
    assert text["before"] == pytest.approx(expected(tiny_llava().double())["text"], rel=2e-5)
    assert text["after"] > text["before"], "texts are forgotten"
    assert caption["after"] < caption["before"], "captions are what is learnt"
    assert report["upstream"] == {"before": 1.0, "after": pytest.approx((text["before"] / text["after"] + 1) / 2)}
    assert report["downstream"]["after"] == report["tasks"]["colour"]["after"]
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    chosen = [row["after"] for row in rows if row["task"] == "colour"]
    right = [word == choice for (word, _), choice in zip(pictures(4), chosen, strict=True)]
    assert sum(right) / 4 == report["tasks"]["colour"]["after"]
    assert all(" nats over " in row["before"] for row in rows if row["task"] == "text")
    assert "perplexity, lower is better" in (tmp_path / "report.md").read_text()


def test_tasks_to_choose_on_are_measured_too(folder, tmp_path):
    module, data = build_module(folder), Measured()
    trainer = build_trainer(tmp_path)
    trainer.validate(module, data)
    scores = module.score_tasks(data.selection_tasks, data.selection_dataloader())
    assert scores == module.scores
