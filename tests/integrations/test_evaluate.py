"""Evaluation in a script: scores and answers of the verb bit for bit, and a model left as it was."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import dowser_pl
from dowser_pl.__main__ import main
from dowser_pl.data import TaskFile
from dowser_pl.errors import DowserError, MissingFileError
from dowser_pl.integrations import evaluate, train_only
from dowser_pl.models.layers import find_layers
from tests.docs.pages import ROOT, blocks
from tests.integrations.untouched import left_untouched
from tests.tiny_models import save_text_model, save_tiny_llava
from tests.tiny_run import TinyData, pictures

PAGE = ROOT / "docs" / "how-to" / "own_training_code.md"
ROWS = [{"id": str(i), "question": "what colour is it ?", "answer": "red", "image": f"{i}.png"} for i in range(3)]
TASKS = [
    {"name": "colour", "file": "colour.json", "role": "downstream", "max_new_tokens": 3},
    {"name": "likely", "file": "likely.json", "metric": "perplexity"},
    {"name": "choice", "file": "choice.json", "metric": "choice_likelihood"},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of images, one of text alone, and questions for both."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny_llava(folder / "llava")
    save_text_model(folder / "text")
    for row, (_, image) in zip(ROWS, pictures(3), strict=True):
        image.save(folder / row["image"])
    said = [{"id": str(i), "question": "is it red ?", "answer": answer} for i, answer in enumerate(["yes", "no"])]
    (folder / "colour.json").write_text(json.dumps(ROWS))
    (folder / "likely.json").write_text(json.dumps(said))
    (folder / "choice.json").write_text(
        json.dumps([{"id": "a", "question": "is it red ?", "choices": ["yes", "no"], "answer": "B"}])
    )
    return folder


def asked_by_the_verb(folder, model, tasks, out):
    """Task -> what the verb keeps of it."""
    content = {
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "data": {"class_path": "ConversationData", "init_args": {"tasks": tasks, "eval_batch_size": 2}},
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        Path("mine.yaml").write_text(yaml.safe_dump(content))
        assert main(["evaluate", "--model", str(model), "-c", "mine.yaml", "--out", str(out)]) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("tasks/*/*.json")}


def task_files(folder, tasks):
    return [TaskFile(**each | {"file": str(folder / each["file"])}) for each in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llava", "text"])
def test_scores_and_answers_are_those_of_the_verb_bit_for_bit(tmp_path, files, kind):
    tasks = TASKS if kind == "llava" else TASKS[1:]
    expected = asked_by_the_verb(files, files / kind, tasks, tmp_path / "out")
    auto, reader = (
        (AutoModelForImageTextToText, AutoProcessor) if kind == "llava" else (AutoModelForCausalLM, AutoTokenizer)
    )
    model, processor = auto.from_pretrained(files / kind), reader.from_pretrained(files / kind)
    found = evaluate(model, processor, task_files(files, tasks), batch_size=2)
    assert list(found) == [each["name"] for each in tasks] and set(expected) == set(found)
    for name, each in found.items():
        assert each.score == expected[name]["score"] and vars(each.asked) == expected[name]["asked"]
        assert json.loads(json.dumps(each.rows, default=str)) == expected[name]["rows"]
    assert found["likely"].score > 1 and found["likely"].standard_error is None
    whole = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]["tasks"]
    for name, each in found.items():
        told = whole[name]
        assert (each.score, each.count, each.standard_error) == (told["score"], told["count"], told["standard_error"])


def test_a_standard_error_is_that_of_a_mean(files):
    model, processor = AutoModelForImageTextToText.from_pretrained(files / "llava"), AutoProcessor
    found = evaluate(model, processor.from_pretrained(files / "llava"), TinyData().evaluation_tasks())
    for each in found.values():
        scores = [row["score"] for row in each.rows]
        assert each.score == pytest.approx(statistics.fmean(scores), abs=1e-6) and each.count == 4 == len(scores)
        assert each.standard_error == pytest.approx(statistics.stdev(scores) / math.sqrt(4))
        assert {"question", "prediction", "references"} <= set(each.rows[0])


def test_it_is_printed_as_a_table_and_read_by_reports(tmp_path, files, capsys):
    model = AutoModelForImageTextToText.from_pretrained(files / "llava")
    found = evaluate(model, AutoProcessor.from_pretrained(files / "llava"), TinyData().evaluation_tasks())
    said = " ".join(str(found).split())
    assert "task role metric n 1" in said and "yesno upstream exact_match 4" in said
    (tmp_path / "evaluation.json").write_text(found.to_json())
    assert main(["report", str(tmp_path)]) == 0
    assert " ".join(capsys.readouterr().out.split()).startswith(said.partition("Asked")[0])
    assert json.loads(found.to_json())["answers"]["colour"][0]["references"] == ["red"]


def test_the_model_is_left_as_it_was(files):
    model = AutoModelForImageTextToText.from_pretrained(files / "llava")
    processor = AutoProcessor.from_pretrained(files / "llava")
    processor.tokenizer.pad_token = None
    with left_untouched(model, processor):
        evaluate(model, processor, [*TinyData().evaluation_tasks(), *task_files(files, TASKS[1:])])
    assert processor.tokenizer.pad_token is None
    with left_untouched(model, processor), pytest.raises(DowserError, match="is empty"):
        evaluate(model, processor, [replace(TinyData().evaluation_tasks()[0], questions=[])])


def test_inside_of_a_block_it_is_the_tuned_model_that_answers_and_training_goes_on(files):
    processor = AutoProcessor.from_pretrained(files / "llava")
    tokens, tasks = torch.tensor([[5, 9, 11, 20, 7, 3]]), [*task_files(files, TASKS[1:2])]

    def trained(looking):
        model = AutoModelForImageTextToText.from_pretrained(files / "llava")
        masks = {n: torch.ones_like(m.weight, dtype=torch.bool) for n, m in find_layers(model, 1, ["mlp"]).items()}
        with train_only(model, masks) as entries:
            optimizer = torch.optim.AdamW(entries.parameters(), lr=1e-2)
            for _ in range(2):
                model(input_ids=tokens, labels=tokens).loss.backward()
                scores = evaluate(model, processor, tasks)["likely"].score if looking else None
                optimizer.step()
                optimizer.zero_grad()
        return model, scores

    (model, scores), (other, _) = trained(True), trained(False)
    assert all(torch.equal(each, other.state_dict()[name]) for name, each in model.state_dict().items())
    ends = evaluate(model, processor, tasks)["likely"].score
    base = AutoModelForImageTextToText.from_pretrained(files / "llava")
    assert len({evaluate(base, processor, tasks)["likely"].score, scores, ends}) == 3


def test_half_precision_is_that_of_the_weights(files):
    model = AutoModelForImageTextToText.from_pretrained(files / "llava", dtype=torch.bfloat16)
    found = evaluate(model, AutoProcessor.from_pretrained(files / "llava"), task_files(files, TASKS))
    assert found["likely"].score > 1


def test_what_cannot_be_evaluated_is_refused(files):
    model = AutoModelForImageTextToText.from_pretrained(files / "llava")
    processor, tasks = AutoProcessor.from_pretrained(files / "llava"), TinyData().evaluation_tasks()
    for given, message in (
        (nn.DataParallel(model), r"got DataParallel, .*give its \.module"),
        (torch.compile(model), r"got OptimizedModule, .*give its \._orig_mod"),
        (str(files / "llava"), "got str, expected a Hugging Face model"),
    ):
        with pytest.raises(DowserError, match=message):
            evaluate(given, processor, tasks)
    with pytest.raises(DowserError, match="got no processor"):
        evaluate(model, None, tasks)
    with pytest.raises(DowserError, match=r"got no task, .*Fix: such as \[TaskFile"):
        evaluate(model, processor, [])
    with pytest.raises(DowserError, match="got a dict among 3 tasks"):
        evaluate(model, processor, [*tasks, TASKS[0]])
    with pytest.raises(MissingFileError, match=r"none\.json"):
        evaluate(model, processor, [TaskFile("a", str(files / "none.json"))])
    with pytest.raises(DowserError, match="eval_batch_size must be at least 1"):
        evaluate(model, processor, tasks, batch_size=0)


@pytest.mark.slow
def test_before_and_after_as_the_page_prints_it(tmp_path, monkeypatch, capsys):
    (block,) = (each for each in blocks(PAGE) if each.text.startswith("tasks = "))
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "test.jsonl").write_text(json.dumps({"question": "what is 2 plus 3 ?", "answer": "red"}))
    monkeypatch.chdir(tmp_path)
    model, processor = dowser_pl.load_model("embedded:world"), dowser_pl.load_processor("embedded:world")
    magnitude = dowser_pl.Magnitude(0.1)
    masks = dowser_pl.choose_masks(dowser_pl.measure_importance(model, processor, method=magnitude), magnitude)

    def steps(trained):
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
        model(input_ids=torch.tensor([[5, 9, 11]]), labels=torch.tensor([[5, 9, 11]])).loss.backward()
        optimizer.step()

    text = block.text.replace("...", "steps(trained)").replace("num_eval=20", "num_eval=1")
    text = text.replace("moved=True", "moved=True, per_source=2")
    names = {name: getattr(dowser_pl, name) for name in ("TaskFile", "WorldData", "evaluate", "drift", "train_only")}
    exec(text, names | {"model": model, "processor": processor, "masks": masks, "steps": steps})
    said = capsys.readouterr().out
    assert "moved most: " in said and "\n0.0 " in said and "upstream mean" in said
