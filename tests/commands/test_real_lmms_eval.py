"""What a run wrote is loaded and asked by a real lmms-eval, whose answers are those that we get ourselves.

It needs an environment of its own, of gigabytes: a variable names its interpreter, see CONTRIBUTING.md.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dowser_pl.__main__ import main
from dowser_pl.commands.evaluated_tasks import file_name
from dowser_pl.methods import Magnitude
from tests.tiny_models import FAMILIES, make_processor_folder, save_tiny_llava
from tests.tiny_run import TinyData, TinyTextData, build_module, build_trainer

VARIABLE = "DOWSER_LMMS_EVAL"
PYTHON = os.environ.get(VARIABLE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason=f"needs an interpreter with lmms_eval that {VARIABLE} names"),
]
COLOURS = ["red", "green", "blue", "yellow", "black", "white"]
QUESTION = "what colour is it ?"
FUNCTIONS = """
from PIL import Image


def visuals(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that tuned a small LLaVA, with its `model/` and its patch."""
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny_llava(folder / "base")
    trainer = build_trainer(folder / "run", Magnitude(0.5), export=True, max_epochs=1)
    trainer.fit(build_module(base, lr=3e-1), datamodule=TinyData())
    return folder / "run"


@pytest.fixture(scope="module")
def ours(run, tmp_path_factory):
    """The folder of the pictures, and what base and tuned model answer when we ask them."""
    folder = tmp_path_factory.mktemp("ours")
    rows = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20 + number, 14), colour).save(folder / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "question": QUESTION, "answer": colour})
    (folder / "rows.json").write_text(json.dumps(rows))
    task = {"name": "colours", "file": str(folder / "rows.json"), "image_folder": str(folder), "max_new_tokens": 3}
    data = {"class_path": "ConversationData", "init_args": {"tasks": [task]}}
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"trainer": trainer, "data": data}))
    assert main(["evaluate", "--model", str(run), "-c", str(folder / "mine.yaml"), "--out", str(folder / "out")]) == 0
    found = [json.loads(path.read_text()) for path in folder.glob("out/tasks/*/colours.json")]
    said = {"added" in each["model"]: [row["prediction"] for row in each["rows"]] for each in found}
    assert said[False] != said[True], "tuning changed nothing"
    return folder, said


def write_task(folder, ours, answers):
    """A task of lmms-eval: a YAML with its functions beside it, and its rows as JSON lines."""
    folder.mkdir()
    lines = [
        json.dumps({"image": str(ours / f"{number}.png"), "question": QUESTION, "answer": answer})
        for number, answer in enumerate(answers)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "local.py").write_text(FUNCTIONS)
    settings = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(folder / "rows.jsonl")},
        "test_split": "train",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 3},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    functions = "doc_to_visual: !function local.visuals\ndoc_to_text: !function local.text\n"
    (folder / "colours.yaml").write_text(yaml.safe_dump(settings) + functions)
    return folder


def asked(model, task, out, *more):
    """Have lmms-eval ask a model and its base; the status."""
    named = [
        "--model",
        str(model),
        "--tasks",
        "colours",
        "--downstream",
        "colours",
        "--python",
        PYTHON,
        "--out",
        str(out),
    ]
    theirs = ["--model_args", "device_map=cpu", "--device", "cpu", "--include_path", str(task), *more]
    return main(["evaluate", "--engine", "lmms-eval", *named, *theirs])


def answers(out, model):
    """What lmms-eval keeps as the answers of a model, in order."""
    (path,) = Path(out, "lmms-eval", file_name(model)).glob("results/*/*_samples_colours.jsonl")
    rows = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["doc_id"])
    return [row["filtered_resps"] for row in rows]


@pytest.fixture
def task(ours, tmp_path, monkeypatch):
    """A task of which what the tuned model says is right, but for two questions, for which it is what the base says."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, said = ours
    return write_task(tmp_path / "task", folder, [said[place > 1][place] for place in range(len(COLOURS))])


def right(task, said):
    rows = [json.loads(line) for line in (task / "rows.jsonl").read_text().splitlines()]
    return sum(row["answer"] == answer for row, answer in zip(rows, said, strict=True)) / len(rows)


@pytest.mark.parametrize(
    ("part", "more"), [("", []), ("patch.safetensors", ["--force_simple"])], ids=["chat, model/", "simple, a patch"]
)
def test_llava_answers_as_when_we_ask_it(part, more, run, ours, task, tmp_path, capsys):
    tuned = str(run / part)
    assert asked(tuned, task, tmp_path / "out", *more) == 0
    assert "scored by lmms-eval" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    told = {model["name"]: model["tasks"]["colours"] for model in found["models"]}
    for name, said in ((str(run.parent / "base"), ours[1][False]), (tuned, ours[1][True])):
        assert answers(tmp_path / "out", name) == said
        assert told[name]["score"] == pytest.approx(right(task, said)) and told[name]["count"] == len(COLOURS)
    assert told[tuned]["score"] >= 4 / 6 and found["models"][1]["differences"]["colours"]["value"] > 0


QWEN_PROCESSOR = """
import sys
from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.image_token, tokenizer.video_token = "<image>", "<video>"
    images, videos = (each(patch_size=4, merge_size=2) for each in (Qwen2VLImageProcessor, Qwen2VLVideoProcessor))
    Qwen2_5_VLProcessor(images, tokenizer, videos, tokenizer.chat_template).save_pretrained(folder)
"""


def test_qwen2_5_vl(ours, task, tmp_path):
    """Its processor needs torchvision, which lmms-eval has and we do without: it is put into the folders there."""
    base, run = tmp_path / "base", tmp_path / "run"
    FAMILIES["qwen2_5_vl"]().save_pretrained(base)
    make_processor_folder(base)
    trainer = build_trainer(run, Magnitude(0.5), export=True, max_epochs=1)
    trainer.fit(build_module(base, lr=3e-1), datamodule=TinyTextData())
    subprocess.run([PYTHON, "-c", QWEN_PROCESSOR, str(base), str(run / "model")], check=True)
    small = ["--model_args", "device_map=cpu,min_pixels=64,max_pixels=1024"]
    assert asked(str(run), task, tmp_path / "out", *small) == 0
    before, after = (answers(tmp_path / "out", str(each)) for each in (base, run))
    assert before != after and len(before) == len(after) == len(COLOURS) and "" not in before


def test_the_generic_model(run, task, tmp_path, capsys):
    """Of lmms-eval 0.7.3 it loads the classes of no family that sees, and gives processors what they no longer take."""
    try:
        assert asked(str(run), task, tmp_path / "out", "--as", "huggingface") == 0
    except SystemExit as stop:
        assert "error: lmms-eval left no results for" in stop.code
        pytest.xfail(stop.code)
    assert "scored by lmms-eval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--tasks", "shapes"], "lmms-eval left no results for .*: Tasks not found: shapes"),
        (
            ["--gen_kwargs", "max_new_tokens=0"],
            "lmms-eval scored 6 answers that it failed to generate for .*in generating",
        ),
        (["--limmit", "3"], "lmms-eval ended with status 2 for .*: unrecognized arguments: --limmit 3"),
    ],
)
def test_its_failures_are_told(more, told, run, task, tmp_path):
    with pytest.raises(SystemExit, match=f"error: {told}"):
        asked(str(run), task, tmp_path / "out", *more)
