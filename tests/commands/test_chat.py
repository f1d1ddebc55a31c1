"""The verb `chat`: base and tuned model side by side, of runs, patches, models and adapters."""

import io

import pytest
import torch

from dowser_pl.__main__ import main
from dowser_pl.methods import Lora, Magnitude
from dowser_pl.models.lora import LoraSettings
from dowser_pl.module import MultimodalModule
from dowser_pl.module.asking import ask
from tests.tiny_models import save_text_model, save_tiny_llava
from tests.tiny_run import TinyData, TinyTextData, build_module, build_trainer, pictures

FEW = ["--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("base"))


def fit(folder, base, method, data=None, **module):
    trainer = build_trainer(folder, method, export=True, max_epochs=1, limit_val_batches=1)
    trainer.fit(build_module(base, lr=5e-2, **module), datamodule=data or TinyData())
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("run"), base, Magnitude(0.5))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "red.png"
    pictures(1)[0][1].save(path)
    return path


def said(capsys, *words) -> str:
    assert main(["chat", *map(str, words), *FEW]) == 0
    return capsys.readouterr().out


def error(capsys, *words) -> str:
    assert main(["chat", *map(str, words)]) == 1
    return capsys.readouterr().err


def alone(path, question, images) -> str:
    module = MultimodalModule(str(path))
    module.configure_model()
    return ask(module, module.network.eval(), question, images, 4)


@pytest.mark.slow
def test_base_and_tuned_answer_beside_each_other(base, run, image, capsys):
    question = "what colour is it ?"
    expected = [alone(path, question, [image]) or "(nothing)" for path in (base, run / "model")]
    assert expected[0] != expected[1]
    answers = f"> {question}\nbase   {expected[0]}\ntuned  {expected[1]}\n"
    given = ["--question", question, "--image", image]
    assert said(capsys, run, *given) == answers
    assert said(capsys, run / "model", "--base", base, *given) == answers
    twice = said(capsys, run / "patch.safetensors", *given, "--question", question)  # on, off, and on again
    assert twice == f"{answers}\n{answers}"


@pytest.mark.slow
def test_lines_are_questions_until_an_empty_one(base, run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("is it red ?\nwhat is it ?\n\nnot this\n"))
    out = said(capsys, run / "patch.safetensors")
    assert out.count("base   ") == out.count("tuned  ") == 2
    assert alone(base, "is it red ?", []) in out
    assert out.endswith("2 questions.\n")


@pytest.mark.slow
def test_a_model_of_text_alone_and_its_adapter(tmp_path, image, capsys):
    base = save_text_model(tmp_path / "base", "llama")
    folder = fit(tmp_path / "run", base, Lora(), TinyTextData(), lora=LoraSettings(r=4))
    capsys.readouterr()
    out = said(capsys, folder / "adapter", "--question", "what colour is the sky ?")
    assert out.startswith("> what colour is the sky ?\nbase   ") and "\ntuned  " in out
    assert "reads text alone" in error(capsys, folder, "--image", image)


def test_what_cannot_be_asked_is_said_before_anything_is_loaded(base, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dowser_pl.commands.chat_run.loaded", lambda *_: pytest.fail("it was loaded"))
    assert "expected at least 1" in error(capsys, run, "--max-new-tokens", "0")
    assert "there is no image" in error(capsys, run, "--image", tmp_path / "none.png")
    assert "does not say which model it was tuned from" in error(capsys, run / "model")
    assert torch.is_grad_enabled()
