"""InstructBLIP on the command line, from files of the official layouts to one model of two tasks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

from dowser_pl.__main__ import main
from dowser_pl.patches.patch import Patch
from dowser_pl.reporting import read_report
from tests.data.builders import picture
from tests.test_paper_configs import root
from tests.tiny_models import EOS, VOCABULARY, save_tiny_instructblip, tiny_instructblip

assert root  # a fixture: all files that the experiments want
TASKS = ("flickr30k", "okvqa")
QUESTIONS = ("what colour?", "which one?")
MOVED = 0.1  # update_ratio of the experiments


def on_command_line(*words: object) -> None:
    """Run one command, which is to end well."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as end:
        status = end.code
    assert not status


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """One that says "red" or "blue" and no more; which, hangs on the question, and on what is tuned."""
    model, folder = tiny_instructblip(), tmp_path_factory.mktemp("base")
    red, blue, unknown = (VOCABULARY.index(word) for word in ("red", "blue", "<unk>"))
    torch.nn.init.normal_(model.query_tokens, std=0.5, generator=torch.Generator().manual_seed(0))  # zeros in a new one
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        words[:, :2], head[:, :2] = torch.tensor([8.0, 0.0]), 0.0
        words[[red, blue], :2] = torch.tensor([0.0, 8.0])  # by which the next token is the end
        head[[red, blue], 0], head[EOS, 1] = 2.0, 8.0
        between, last = head[red, 2:] - head[blue, 2:], words[unknown, 2:]  # all instructions end in an unknown word
        head[red, 2:] = head[blue, 2:] + 5 * (between - last * (between @ last) / (last @ last))
        save_tiny_instructblip(folder, model)
        seen = [said(model, folder, question, output_hidden_states=True) for question in QUESTIONS]
        leaning = torch.stack([each.logits[0, -1, red] - each.logits[0, -1, blue] for each in seen])
        head[red, 0] -= leaning.mean() / seen[0].language_model_outputs.hidden_states[-1][0, -1, 0]
    return save_tiny_instructblip(folder, model.bfloat16())


def said(model, folder: Path, question: str, **options):
    """What transformers alone makes of a question of OK-VQA, in the words of InstructBLIP, to a red picture."""
    processor = InstructBlipProcessor.from_pretrained(folder)
    asked = processor(images=picture(), text=f"Question: {question} Short Answer:", return_tensors="pt")
    with torch.no_grad():
        if options:
            return model.eval()(**asked, **options)
        asked["pixel_values"] = asked["pixel_values"].to(model.dtype)
        tokens = model.eval().generate(**asked, max_new_tokens=10, do_sample=False)[0]
    return processor.tokenizer.decode(tokens[asked["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def runs(base, root, tmp_path_factory) -> dict[str, Path]:
    """Both experiments of the paper, on all of a few rows, at a rate that moves what bfloat16 holds."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        changed = {
            "model.path": base,
            "model.optimizer.lr": 0.05,
            "data.root": root,
            "data.batch_size": 2,
            "trainer.accumulate_grad_batches": 1,
            "trainer.max_epochs": 4,
            "trainer.accelerator": "cpu",
            "trainer.default_root_dir": folder / task,
            "trainer.enable_progress_bar": "false",
        }
        words = [word for key, value in changed.items() for word in (f"--{key}", value)]
        on_command_line("fit", "-c", f"paper/model_tailor/instructblip_{task}", *words)
    return {task: folder / task for task in TASKS}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.int16).numpy()


def is_tailored(name: str) -> bool:
    return name.startswith("qformer.encoder.layer.") and name.endswith(("query", "key", "value", "dense"), 0, -7)


def model_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_from_official_files_to_one_model_of_two_tasks(base, runs, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before, tailored = weights(base), {task: weights(run / "model") for task, run in runs.items()}
    for task, run in runs.items():
        check_run(before, tailored[task], run)
        on_command_line("patch", "apply", base, run / "patch.safetensors", "--out", f"{task}/on")
        after = weights(Path(f"{task}/on"))
        assert all((bits(after[name]) == bits(tailored[task][name])).all() for name in before)
        on_command_line("patch", "remove", f"{task}/on", "--out", f"{task}/off")
        assert model_files(Path(f"{task}/off")) == model_files(base)
    words = [word for run in runs.values() for word in ("--tuned", run)]
    on_command_line("merge", "--base", base, *words, "--method", "ModelTailor", "--out", "both")
    check_stitched(before, list(tailored.values()), weights(Path("both")))
    models = [word for model in (base, *runs.values(), "both") for word in ("--model", model)]
    shared = ["--data.root", root, "--trainer.accelerator", "cpu", "--out", "eval"]
    on_command_line("evaluate", *models, "-c", "eval/instructblip", *shared)
    check_scores(runs, root)
    assert "both" in capsys.readouterr().out


def check_run(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], run: Path) -> None:
    """A tenth of each matrix of the Q-Former at most; all else has the bits of the base."""
    assert before.keys() == after.keys()
    moved = {name: int((bits(before[name]) != bits(after[name])).sum()) for name in before}
    assert {name for name, count in moved.items() if count} <= {name for name in before if is_tailored(name)}
    assert sum(is_tailored(name) for name in before) == 24
    for name, count in moved.items():
        assert count <= round(MOVED * before[name].numel()), name
    assert sum(moved.values()) > 0.05 * sum(before[name].numel() for name in before if is_tailored(name))
    report = read_report(run)
    assert report.frozen.changed == 0 and report.frozen_digest["before"] == report.frozen_digest["after"]
    with Patch.open(run / "patch.safetensors") as patch:
        assert patch.head["method"]["method"] == "ModelTailor"
        assert set(patch.names) <= {name for name in before if is_tailored(name)}


def check_stitched(before, tailored, found) -> None:
    """In NumPy, of the exported models alone: the moves of both, added where both have one."""
    overlapping = 0
    for name, tensor in before.items():
        start = tensor.double().numpy()
        moves = [each[name].double().numpy() - start for each in tailored]
        overlapping += int((np.prod([move != 0 for move in moves], axis=0) > 0).sum())
        stitched = torch.from_numpy(start + sum(moves)).bfloat16()
        alone = np.sum([move != 0 for move in moves], axis=0) < 2
        assert (bits(stitched)[alone] == bits(found[name])[alone]).all(), name
        torch.testing.assert_close(stitched, found[name], rtol=1e-2, atol=0)
    assert overlapping > 10


def check_scores(runs: dict[str, Path], root: Path) -> None:
    """As the runs themselves had them; OK-VQA as transformers alone answers it, by the official rule."""
    models = json.loads(Path("eval/evaluation.json").read_text())["models"]
    base, *tuned, both = ({name: task["score"] for name, task in model["tasks"].items()} for model in models)
    for scores, run in zip(tuned, runs.values(), strict=True):
        told = read_report(run).tasks
        assert base == {name: task.before for name, task in told.items()}
        assert scores == {name: task.after for name, task in told.items()}
    content = json.loads((root / "okvqa" / "mscoco_val2014_annotations.json").read_text())["annotations"]
    people = {row["question_id"]: [each["answer"] for each in row["answers"]] for row in content}
    asked = json.loads((root / "okvqa" / "OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    folders = [models[0]["name"], *(run / "model" for run in runs.values()), "both"]
    for scores, folder in zip((base, *tuned, both), map(Path, folders), strict=True):
        model = InstructBlipForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
        rule = []
        for row in asked:
            answer, given = said(model, folder, row["question"].lower()), people[row["question_id"]]
            rule += [min(1, (given[:n] + given[n + 1 :]).count(answer) / 3) for n in range(10)]
        assert scores["okvqa"] == pytest.approx(sum(rule) / len(rule)), folder
    assert len({scores["okvqa"] for scores in (base, *tuned)}) > 1
