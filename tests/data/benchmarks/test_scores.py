"""Answers to official files, scored by the metric of their task, and anew by the rule of each set's own script."""

import json

import pytest

from dowser_pl.data import TaskFile
from dowser_pl.data.benchmarks import read_task
from dowser_pl.metrics import build_metric
from tests.data.benchmarks import official_files


def official(root, name):
    return json.loads((root / name).read_text())


def vqa_rule(said: str, answers: list[str]) -> float:
    """Leave one annotator out: min(1, others who said the same / 3), the mean over who is left out."""
    shares = [min(1, sum(said == other for j, other in enumerate(answers) if j != i) / 3) for i in range(len(answers))]
    return sum(shares) / len(shares)


def textvqa(root, said):
    data = official(root, "TextVQA_0.5.1_val.json")["data"]
    return sum(vqa_rule(said[entry["question_id"]], entry["answers"]) for entry in data) / len(data)


def okvqa(root, said, prefix=""):
    data = official(root, f"{prefix}mscoco_val2014_annotations.json")["annotations"]
    return sum(vqa_rule(said[e["question_id"]], [a["answer"] for a in e["answers"]]) for e in data) / len(data)


def aokvqa(root, said):
    entries = json.loads((root / "aokvqa_v1p0_val.json").read_text())
    counted = [entry for entry in entries if entry["difficult_direct_answer"] is False]
    hits = [sum(said[e["question_id"]] == answer for answer in e["direct_answers"]) for e in counted]
    return sum(min(1.0, number / 3) for number in hits) / len(counted)


def vizwiz(root, said):
    data = official(root / "Annotations", "val.json")
    return sum(vqa_rule(said[e["image"]].lower(), [a["answer"] for a in e["answers"]]) for e in data) / len(data)


def gqa(root, said):
    data = official(root, "testdev_balanced_questions.json")
    return sum(said[number].rstrip(".").lower() == entry["answer"] for number, entry in data.items()) / len(data)


def ocrvqa(root, said):
    found = [
        said[f"{book}/{place}"].strip().lower() == answer.strip().lower()
        for book, entry in official(root, "dataset.json").items()
        if entry["split"] == 3
        for place, answer in enumerate(entry["answers"])
    ]
    return sum(found) / len(found)


def iconqa(root, said):
    problems = official(root / "iconqa_data", "problems.json")
    wanted = official(root / "iconqa_data", "pid_splits.json")["choose_txt_test"]
    right = [said[pid].lower() == f"Answer: {'ABCDE'[problems[pid]['answer']]}".lower() for pid in wanted]
    return sum(right) / len(right)


def scienceqa(root, said):
    problems = official(root, "problems.json")
    wanted = official(root, "pid_splits.json")["test"]
    return sum(said[pid][0] == "ABCDE"[problems[pid]["answer"]] for pid in wanted) / len(wanted)


def scienceqa_img(root, said):
    problems = official(root, "problems.json")
    wanted = [pid for pid in official(root, "pid_splits.json")["test"] if problems[pid]["image"] is not None]
    return sum(said[pid][0] == "ABCDE"[problems[pid]["answer"]] for pid in wanted) / len(wanted)


def imagenet_r(root, said):
    lines = (root / "imagenet-r" / "README.txt").read_text().splitlines()
    names = dict(line.split() for line in lines if line.startswith("n"))
    right = [said[place].lower() == names[place.split("/")[0]].replace("_", " ").lower() for place in said]
    return sum(right) / len(right)


def mmbench(root, said, name="mmbench_dev_20230712.tsv"):
    lines = [line.split("\t") for line in (root / name).read_text().splitlines()[1:]]
    hits = {int(line[0]): said[int(line[0])] == line[7] for line in lines}
    main = [index for index in hits if index < 1_000_000]
    return sum(all(hit for index, hit in hits.items() if index % 1_000_000 == one) for one in main) / len(main)


def pope(root, said):
    right = []
    for kind in ("random", "popular", "adversarial"):
        for line in (root / "coco" / f"coco_pope_{kind}.json").read_text().splitlines():
            entry = json.loads(line)
            right.append(said[f"{kind}/{entry['question_id']}"].lower() == entry["label"])
    return sum(right) / len(right)


CASES = {
    "textvqa": (textvqa, {34602: "dakota", 34603: "oslo"}, 0.5),
    "okvqa": (okvqa, {420000: "red", 730001: "green"}, 0.45),
    "aokvqa": (aokvqa, {"22MexNkBPpdZGX6sxbxVBH": "train", "2ZfTFDBsnsBe7RBoTnoHJn": "Man"}, 1 / 3),
    "gqa": (gqa, {"201307251": "No.", "201640614": "the woman"}, 0.5),
    "ocrvqa": (
        ocrvqa,
        {"0761183272/0": "author 0 ", "0761183272/1": "Art", "1490497323/0": "Author 0", "1490497323/1": "crafts"},
        0.5,
    ),
    "iconqa": (iconqa, {"68525": "answer: a"}, 1),
    "scienceqa": (scienceqa, {"4": "B. apostrophe", "5": "B"}, 0.5),
    "mmbench": (mmbench, {241: "B", 252: "A", 1000241: "B"}, 0.5),
    "vqav2": (lambda root, said: okvqa(root, said, "v2_"), {420000: "blue", 730001: "red"}, 0.95),
    "vizwiz": (vizwiz, {"VizWiz_val_00000000.jpg": "Unanswerable"}, 1),
    "scienceqa_img": (scienceqa_img, {"5": "A"}, 1),
    "mmbench_cn": (
        lambda root, said: mmbench(root, said, "mmbench_dev_cn_20231003.tsv"),
        {241: "B", 252: "A", 1000241: "A"},
        1,
    ),
    "imagenet_r": (
        imagenet_r,
        {"n01443537/art_0.jpg": "Goldfish", "n01443537/toy_1.jpg": "fish", "n01484850/art_3.jpg": "great white shark"},
        2 / 3,
    ),
    "pope": (pope, {f"{kind}/{n}": "Yes" for kind in ("random", "popular", "adversarial") for n in (1, 2)}, 0.5),
}


WRITE = {
    "okvqa": official_files.vqa,
    "vqav2": lambda root: official_files.vqa(root, "v2_"),
    "scienceqa_img": official_files.scienceqa,
    "mmbench_cn": lambda root: official_files.mmbench(root, "mmbench_dev_cn_20231003.tsv"),
}


def write(root, benchmark):
    """The official files of a set."""
    WRITE.get(benchmark, getattr(official_files, benchmark, None))(root)


def scored(root, benchmark):
    said = CASES[benchmark][1]
    task = read_task(TaskFile(benchmark=benchmark, root=str(root)))
    metric = build_metric(task.metric)
    for question in task.questions:
        metric.update([said[question.given["id"]]], [question.references])
    return float(metric.compute())


@pytest.mark.parametrize("benchmark", CASES)
def test_scores(benchmark, tmp_path):
    rule, said, expected = CASES[benchmark]
    write(tmp_path, benchmark)
    assert scored(tmp_path, benchmark) == pytest.approx(rule(tmp_path, said)) == pytest.approx(expected)
