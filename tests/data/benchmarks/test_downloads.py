"""Official files as people have them: other folders, endings, line ends and types of ids, and the same scores."""

import json
import shutil

import pytest
import yaml

from dowser_pl.__main__ import main
from dowser_pl.module.evaluation import EvaluatedModule
from tests.data.benchmarks.test_scores import CASES, scored, write
from tests.data.builders import picture
from tests.tiny_models import save_tiny_llava


def with_more(value):
    """The same with keys that nobody knows."""
    if isinstance(value, dict):
        return {"odd key": [1, None], **{key: with_more(each) for key, each in value.items()}}
    return [with_more(each) for each in value] if isinstance(value, list) else value


def records_with_more(path):
    """Extra keys in the objects of a file that stand for rows, and in the file itself where it has a head."""
    text = path.read_text(encoding="utf-8")
    if path.name.startswith("coco_pope"):
        lines = [json.dumps(with_more(json.loads(line))) for line in text.splitlines()]
        path.write_text("\n".join(lines))
        return
    content = json.loads(text)
    by_id = path.name in ("testdev_balanced_questions.json", "dataset.json", "problems.json", "pid_splits.json")
    more = {key: with_more(each) for key, each in content.items()} if by_id else with_more(content)
    path.write_text(json.dumps(more, ensure_ascii=False), encoding="utf-8")


def as_on_windows(root):
    for path in [*root.rglob("*.json"), *root.rglob("*.tsv"), *root.rglob("*.token"), *root.rglob("*.txt")]:
        text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))


def as_png(root):
    for path in [*root.rglob("[!at]*.jpg")]:  # but those of ImageNet-R, which has no other list of them
        picture().save(path.with_suffix(".png"))
        path.unlink()


def ids_as_text(root):
    """The ids of annotations as text, where those of questions are numbers."""
    for path in root.rglob("*annotations.json"):
        content = json.loads(path.read_text())
        for entry in content["annotations"]:
            entry |= {key: str(entry[key]) for key in ("question_id", "image_id")}
        path.write_text(json.dumps(content))


def in_folders(root):
    """Questions, annotations and pictures each in a folder of their kind."""
    for path in [*root.iterdir()]:
        kind = "questions" if path.name.endswith("questions.json") else ""
        kind = "annotations" if path.name.endswith("annotations.json") else kind
        kind = "images" if path.name in ("val2014", "train_images", "val") and path.is_dir() else kind
        if kind:
            (root / kind).mkdir(exist_ok=True)
            shutil.move(path, root / kind / path.name)


def flat(root):
    """All pictures in `images`."""
    for name in ("val2014", "train_images", "val"):
        if (root / name).is_dir():
            (root / name).rename(root / "images")


VARIANTS = {
    "as they are": [],
    "more keys": [lambda root: [*map(records_with_more, root.rglob("*.json"))]],
    "Windows": [as_on_windows],
    "png": [as_png],
    "ids as text, in folders": [ids_as_text, in_folders],
    "flat": [flat, as_on_windows],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("benchmark", CASES)
def test_another_form_of_the_files_changes_no_score(benchmark, variant, tmp_path):
    rule, said, _ = CASES[benchmark]
    write(tmp_path / "official", benchmark)
    write(tmp_path / "here", benchmark)
    for change in VARIANTS[variant]:
        change(tmp_path / "here")
    assert scored(tmp_path / "here", benchmark) == pytest.approx(rule(tmp_path / "official", said))


@pytest.mark.slow
def test_the_verb_scores_as_the_sets_own_rules(tmp_path, monkeypatch):
    """All sets by one command, on a model whose answers are put into its mouth, with the answers read back."""
    monkeypatch.chdir(tmp_path)
    tasks = []
    for benchmark in CASES:
        write(tmp_path / "official" / benchmark, benchmark)
        write(tmp_path / "sets" / benchmark, benchmark)
        tasks.append({"benchmark": benchmark, "root": benchmark})
    as_png(tmp_path / "sets")
    as_on_windows(tmp_path / "sets")
    config = {"data": {"class_path": "ConversationData", "init_args": {"root": "sets", "tasks": tasks}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config | {"trainer": {"accelerator": "cpu"}}))
    model = str(save_tiny_llava(tmp_path / "model"))

    def answers(self, batch, task):
        return [CASES[task.name][1][row["id"]] for row in batch["told"]]

    monkeypatch.setattr(EvaluatedModule, "_answers_of", answers)
    assert main(["evaluate", "--model", model, "-c", "mine.yaml", "--out", "out"]) == 0
    (found,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]
    assert list(found["tasks"]) == list(CASES)
    for benchmark, (rule, *_) in CASES.items():
        (kept,) = (tmp_path / "out" / "tasks").glob(f"*/{benchmark}.json")
        said = {row["id"]: row["prediction"] for row in json.loads(kept.read_text())["rows"]}
        expected = rule(tmp_path / "official" / benchmark, said)
        assert found["tasks"][benchmark]["score"] == pytest.approx(expected, abs=1e-6), benchmark
