"""The base model's scores are kept: the very same report without asking, and asked anew if anything differs."""

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback
from safetensors.torch import load_file, save_file

from dowser_pl.callbacks.evaluation_cache import EvaluationCache
from dowser_pl.methods import Magnitude
from dowser_pl.module import MultimodalModule
from dowser_pl.module.evaluation_identity import _versions
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import TinyData, build_module, build_trainer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def fit(folder, model_folder, cache, name="run"):
    """The report of a run, and how often the base model was asked."""
    trainer = build_trainer(folder / name, Magnitude(0.1), evaluation_cache=cache, max_steps=2)
    module = build_module(model_folder)
    asked = []
    with patch.object(
        type(module), "validation_step", autospec=True, side_effect=MultimodalModule.validation_step
    ) as step:
        step.side_effect = _counting(step.side_effect, asked)
        trainer.fit(module, datamodule=TinyData())
    assert trainer.num_sanity_val_steps == float("inf"), "the next fit of this trainer may ask again"
    return json.loads((folder / name / "report.json").read_text()), asked.count(True), trainer


def _counting(validate, asked):
    def step(self, *arguments):
        asked.append(self.trainer.sanity_checking)
        return validate(self, *arguments)

    return step


def same(report):
    return {key: value for key, value in report.items() if key not in ("seconds", "run", "peak_memory_bytes")}


def test_a_second_run_writes_the_very_same_report_without_asking_the_base(tmp_path, model_folder):
    plain, asked, trainer = fit(tmp_path, model_folder, None, "plain")
    first, asked_first, _ = fit(tmp_path, model_folder, tmp_path / "cache", "first")
    second, asked_second, again = fit(tmp_path, model_folder, tmp_path / "cache", "second")
    assert asked == asked_first == 4 and asked_second == 0, "two tasks of two batches"
    assert same(plain) == same(first) == same(second)
    answers = [(tmp_path / name / "answers.jsonl").read_text() for name in ("plain", "first", "second")]
    assert answers[0] == answers[1] == answers[2] and answers[0].count('"before_score"') == 8
    trained, other = (dict(each.lightning_module.network.state_dict()) for each in (trainer, again))
    assert all(torch.equal(value, other[key]) for key, value in trained.items())
    assert len(list((tmp_path / "cache").glob("*.evaluation.json"))) == 1


@pytest.mark.slow
def test_a_file_with_a_changed_score_is_told_and_measured_anew(tmp_path, model_folder):
    report, *_ = fit(tmp_path, model_folder, tmp_path / "cache", "first")
    (file,) = (tmp_path / "cache").glob("*.evaluation.json")
    text = file.read_text()
    content = json.loads(text)
    content["scores"]["colour"] += 0.25
    for broken in (json.dumps(content), text[: len(text) // 2], "[]", "{}"):
        file.write_text(broken)
        with pytest.warns(UserWarning, match="cannot be used .* the base model is measured anew"):
            anew, asked, _ = fit(tmp_path, model_folder, tmp_path / "cache", "second")
        assert asked == 4 and same(anew) == same(report)
        assert file.read_text().split('"seconds"')[0] == text.split('"seconds"')[0]


class Asked(Exception):  # noqa: N818 - ends a run where it looks for what is kept
    pass


def identity_of(tmp_path, model_folder, data=None, module=None, param_dtype=None, **options):
    """What a run would look for; None if it would not."""

    def told(self):
        raise Asked(self.identity)

    trainer = build_trainer(
        tmp_path / "run", Magnitude(0.1), evaluation_cache=tmp_path / "cache", max_steps=1, **options
    )
    trainer.strategy.param_dtype = param_dtype  # as FSDP2 has it
    measured = patch.object(EvaluationCache, "find", autospec=True, side_effect=told)
    anew = patch.object(type(trainer), "_run_sanity_check", side_effect=Asked(None))
    with measured, anew, pytest.raises(Asked) as asked:
        trainer.fit(module or build_module(model_folder), datamodule=data or TinyData())
    return asked.value.args[0]


class Changed(TinyData):
    """Other evaluation data.

    Args:
        change: of the list of tasks.
    """

    def __init__(self, change=lambda tasks: tasks, **settings):
        super().__init__()
        self.change = change
        vars(self).update(settings)

    def evaluation_tasks(self):
        return self.change(super().evaluation_tasks())


def question(**changed):
    """Changes the first question of the first task."""

    def change(tasks):
        first, *others = tasks[0].questions
        new = {name: value(getattr(first, name)) for name, value in changed.items()}
        return [replace(tasks[0], questions=[replace(first, **new), *others]), tasks[1]]

    return change


def brighter(images):
    picture = images[0].copy()
    picture.putpixel((3, 3), (0, 0, 0))
    return [picture]


def asked_otherwise(messages):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]}]


OTHER = {
    "image": lambda: Changed(question(images=brighter)),
    "words": lambda: Changed(question(messages=asked_otherwise)),
    "references": lambda: Changed(question(references=lambda _: ["no"])),
    "metric": lambda: Changed(lambda tasks: [replace(tasks[0], metric="exact_match_strict"), tasks[1]]),
    "length": lambda: Changed(lambda tasks: [replace(tasks[0], max_new_tokens=4), tasks[1]]),
    "fewer": lambda: Changed(lambda tasks: [replace(tasks[0], questions=tasks[0].questions[:3]), tasks[1]]),
    "name": lambda: Changed(question(id=lambda _: "another")),
    "batches": lambda: Changed(eval_batch_size=4),
    "template": lambda: Changed(chat_template="plain"),
}


@pytest.fixture(scope="module")
def known(tmp_path_factory, model_folder):
    return identity_of(tmp_path_factory.mktemp("known"), model_folder)


@pytest.mark.slow
def test_what_is_looked_for_is_the_same_in_another_run(tmp_path, model_folder, known):
    assert known is not None and identity_of(tmp_path, model_folder) == known
    assert identity_of(tmp_path, model_folder, callbacks=[EarlyStopping("val/upstream_mean")]) == known


@pytest.mark.slow
@pytest.mark.parametrize("what", OTHER)
def test_other_questions_are_others(what, tmp_path, model_folder, known):
    other = identity_of(tmp_path, model_folder, OTHER[what]())
    assert other is not None and other["protocol"] != known["protocol"]
    assert {**other, "protocol": 0} == {**known, "protocol": 0}


@pytest.mark.slow
def test_other_weights_numbers_and_settings_are_others(tmp_path, model_folder, known):
    folder = save_tiny_llava(tmp_path / "model")
    assert identity_of(tmp_path, folder) == known, "wherever it lies"
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name][0, 0] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert identity_of(tmp_path, folder)["weights"] != known["weights"]
    assert identity_of(tmp_path, model_folder, precision="bf16-mixed")["protocol"] != known["protocol"]
    rounded = identity_of(tmp_path, model_folder, precision="bf16-true")
    assert rounded["weights"] != known["weights"]
    assert identity_of(tmp_path, model_folder, param_dtype="bfloat16")["protocol"] != known["protocol"]
    sampled = build_module(model_folder, generation="model")
    assert identity_of(tmp_path, model_folder, module=sampled)["protocol"] != known["protocol"]
    slower = build_module(model_folder, attn_implementation="eager")
    assert identity_of(tmp_path, model_folder, module=slower)["model"] != known["model"]
    assert identity_of(tmp_path, model_folder, limit_val_batches=1)["protocol"] != known["protocol"]
    with patch("dowser_pl.module.evaluation_identity._versions", return_value={"transformers": "0"}):
        assert identity_of(tmp_path, model_folder)["protocol"] != known["protocol"]


class Watching(Callback):
    def on_validation_batch_end(self, *_):
        pass


class ChangesBatches(TinyData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class OfAnother(MultimodalModule):
    pass


@pytest.mark.slow
def test_what_others_may_change_is_always_asked(tmp_path, model_folder):
    assert identity_of(tmp_path, model_folder, callbacks=[Watching()]) is None
    assert identity_of(tmp_path, model_folder, callbacks=[LambdaCallback(on_validation_start=lambda *_: None)]) is None
    assert identity_of(tmp_path, model_folder, data=ChangesBatches()) is None
    assert identity_of(tmp_path, model_folder, module=OfAnother(str(model_folder))) is None
    assert identity_of(tmp_path, model_folder, module=build_module(model_folder, trust_remote_code=True)) is None


def test_a_library_that_is_not_installed_is_told_as_such(tmp_path, model_folder, monkeypatch):
    def found(name):
        if name == "pycocoevalcap":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("dowser_pl.reporting.provenance.version", found)
    monkeypatch.setattr("dowser_pl.module.evaluation_identity._versions", _versions.__wrapped__)
    (process,) = identity_of(tmp_path, model_folder)["protocol"]["processes"]
    assert process["versions"]["pycocoevalcap"] == "not installed" and process["versions"]["torch"] == "1.0"
