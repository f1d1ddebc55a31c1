"""Answers end where the chat template ends them, in every loop that writes some."""

import json
import logging
from dataclasses import replace

import pytest

from dowser_pl.callbacks import Predictions
from dowser_pl.data import Task
from dowser_pl.importance.cache import read_head
from dowser_pl.methods import Full, ModelDowser
from dowser_pl.models.generation import Ending
from tests.tiny_models import CHAT_TEMPLATE, EOS, VOCABULARY, make_processor, save_tiny_llava, tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer
from tests.tiny_sizes import VISION_END

OWN_TOKEN = CHAT_TEMPLATE.replace("' </s>'", "' <vision_end>'")
OWN_WORDS = CHAT_TEMPLATE.replace("' </s>'", "' right moon'")


@pytest.fixture(scope="module", params=[OWN_TOKEN, OWN_WORDS], ids=["token", "words"])
def folder(request, tmp_path_factory):
    """A model whose template closes turns with something that neither model nor tokenizer names as the end."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llava().save_pretrained(folder)
    processor = make_processor(request.param)
    processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<vision_end>"]})
    processor.save_pretrained(folder)
    return folder


class Colours(TinyData):
    """One task, whose answers have room for more than a colour and the end behind it."""

    def __init__(self, template=None):
        super().__init__(num_rows=12, batch_size=6)
        self.chat_template = template

    def evaluation_tasks(self):
        return super().evaluation_tasks()[:1]


@pytest.mark.slow
def test_a_model_that_learnt_its_answers_scores(folder, tmp_path, caplog):
    module = build_module(folder, lr=1e-2, also_train=["projector", "lm_head"])
    with caplog.at_level(logging.INFO):
        build_trainer(tmp_path, Full(), max_epochs=20, check_val_every_n_epoch=20).fit(module, Colours())
    assert module.scores == {"colour": 1.0}
    (line,) = (line for line in caplog.messages if line.startswith("Answers end"))
    assert "the model's own '</s>' (2)" in line
    assert "which the chat template writes behind them" in line


@pytest.mark.slow
@pytest.mark.parametrize("template", [None, OWN_TOKEN, OWN_WORDS], ids=["none", "token", "words"])
def test_prompts_end_there_too_and_probe_fills_the_cache_of_fit(tmp_path, template):
    """A template of the data module counts in both, though `probe` reads no data."""
    folder, expected = (
        save_tiny_llava(tmp_path / "model"),
        {
            None: Ending((EOS,)),
            OWN_TOKEN: Ending((EOS, VISION_END)),
            OWN_WORDS: Ending((EOS,), "right moon"),
        },
    )
    written = []
    for verb in ("probe", "fit"):
        module, data = build_module(folder), Colours(template)
        module.processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<vision_end>"]})
        trainer = build_trainer(tmp_path, ModelDowser(0.1), cache_dir=str(tmp_path / "cache"), max_steps=1)
        getattr(trainer, verb)(module, datamodule=data)
        assert module.ending() == expected[template]
        written.append(sorted(path.name for path in (tmp_path / "cache").iterdir()))
    assert len(written[0]) == 1
    assert written[0] == written[1]
    assert read_head(tmp_path / "cache" / written[0][0])["identity"]["ending"]["text"] == expected[template].text


def test_a_model_without_any_end_says_so(tmp_path, caplog):
    module = build_module(save_tiny_llava(tmp_path), also_train=[])
    module.configure_model()
    for settings in (module.network.generation_config, module.network.config, module.network.config.text_config):
        settings.eos_token_id = None
    module.processor.tokenizer.eos_token = None
    module.processor.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    with caplog.at_level(logging.INFO):
        assert module.ending() == Ending(())
    assert "max_new_tokens alone" in caplog.text


def test_answers_may_be_written_with_the_settings_of_the_model(tmp_path):
    folder = save_tiny_llava(tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"suppress_tokens": list(range(3, 90))}))
    said = []
    for generation in ("greedy", "model"):
        module = build_module(folder, generation=generation)
        trainer = build_trainer(tmp_path)
        rows = trainer.predict(module, Colours())
        said.append({word for batch in rows for row in batch for word in row["prediction"].split()})
    assert said[1] <= set(VOCABULARY[90:])
    assert not said[0] <= set(VOCABULARY[90:])


class Mixed(TinyData):
    """Rows with and without references, under every kind of metric."""

    def evaluation_tasks(self):
        known, asked = super().evaluation_tasks()
        several = [replace(question, references=["red", "blue"]) for question in known.questions[:2]]
        opened = [replace(asked.questions[0], references=[], given={"id": 17, "images": ["a.png"]})]
        return [
            Task("both", "downstream", "exact_match", [*known.questions[:2], *opened], 3),
            Task("open", "upstream", "vqa", opened, 3),
            Task("captions", "upstream", "cider", [*known.questions[:3], *opened], 3),
            Task("one caption", "upstream", "cider", several[:1], 3),
        ]


def test_predict_scores_what_has_references_and_keeps_what_the_rows_say(tmp_path, caplog):
    module = build_module(save_tiny_llava(tmp_path / "model"))
    trainer = build_trainer(tmp_path, callbacks=[Predictions()])
    with caplog.at_level(logging.INFO):
        trainer.predict(module, Mixed(), return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["both"] * 3 + ["open"] + ["captions"] * 4 + ["one caption"]
    assert all(("score" in row) == bool(row["references"]) for row in rows[:-1])
    assert "score" not in rows[-1]
    assert (rows[2]["id"], rows[2]["images"], rows[2]["question"]) == (17, ["a.png"], "is it red ?")
    assert (rows[0]["id"], rows[0]["question"]) == ("q 0", "what colour is it ?")
    assert rows[0]["score"] == float(rows[0]["prediction"] == rows[0]["references"][0])
    said = " ".join(caplog.messages)
    assert "over the 2 of 3 with references" in said
    assert "open: 1 answers, no reference to score them by" in said
    assert "one caption: no scores: Cider: got 1 image(s)" in said
    with pytest.raises(ValueError, match="t 0: no reference to score answers of task 'both'"):
        trainer.validate(module, Mixed())
