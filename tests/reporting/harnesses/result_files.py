"""Result files in the layouts that lmms-eval 0.7.3 and VLMEvalKit write, small."""

import csv
import json
from pathlib import Path
from statistics import fmean, stdev

from openpyxl import Workbook

DATE = "20261128_125141"


def lmms_task(scores, metric="exact_match", *, error="N/A", target="yes", **config):
    """A task with these scores of single questions, of which the file tells the mean."""
    return {"scores": list(scores), "metric": metric, "error": error, "target": target, "config": config}


def write_lmms_eval(folder, model, tasks, /, *, samples=True, **changes):
    """The results of a model, and its samples; `changes` are of the options of the command."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "results": {
            name: {
                "alias": name,
                f"{task['metric']},none": fmean(task["scores"]),
                f"{task['metric']}_stderr,none": task["error"],
                f"{task['metric']}_stderr_clt,none": 0.5,
                f"{task['metric']}_stderr_clustered,none": "N/A",
            }
            for name, task in tasks.items()
        }
        | {"a_group": {"alias": "a group", "exact_match,none": 0.9}},
        "configs": {name: _config(name, task) for name, task in tasks.items()},
        "versions": dict.fromkeys(tasks, "Yaml"),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {name: {task["metric"]: True} for name, task in tasks.items()},
        "n-samples": {name: {"original": 99, "effective": len(task["scores"])} for name, task in tasks.items()},
        "config": {
            "model": "llava_hf",
            "model_args": f"pretrained={model},device_map=auto,dtype=float32",
            "model_backend": "lmms_eval.models.chat.llava_hf.LlavaHf (chat)",
            "limit": None,
            "offset": 0,
            "gen_kwargs": "",
            "random_seed": 0,
        }
        | changes,
        "lmms_eval_version": "unknown@unknown",
        "model_name": str(model),
    }
    path = folder / f"{DATE}_results.json"
    path.write_text(json.dumps(content))
    for name, task in tasks.items() if samples else ():
        lines = [_sample(number, task, score) for number, score in enumerate(task["scores"])]
        # in the order in which two processes leave them
        (folder / f"{DATE}_samples_{name}.jsonl").write_text("".join(lines[::2] + lines[1::2]))
    return path


def _config(name, task):
    functions = {"doc_to_text": f"<function text at {hex(id(task))}>", "dataset_path": f"lmms-lab/{name}"}
    return (
        {"task": name, "generation_kwargs": {"max_new_tokens": 16}, "score_key": "score"} | functions | task["config"]
    )


def _sample(number, task, score):
    told = {
        "doc_id": number,
        "target": task["target"],
        "filtered_resps": "yes" if score else "no",
        "doc_hash": "the same for all",
        task["metric"]: score,
        "input": f"is it {number} ?",
    }
    return json.dumps(told) + "\n"


def change(path, *keys, to):
    """Write another value into a JSON file."""
    content = json.loads(Path(path).read_text())
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = to
    Path(path).write_text(json.dumps(content))


def write_table(path, rows):
    """As pandas writes it: every cell of a .csv or .tsv in quotes, a sheet of an .xlsx."""
    if path.suffix == ".xlsx":
        book = Workbook()
        for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
            book.active.append(row)
        book.save(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), quoting=csv.QUOTE_ALL, delimiter={".csv": ",", ".tsv": "\t"}[path.suffix]
            )
            writer.writeheader()
            writer.writerows(rows)


def answers(scores, column, **more):
    """Rows of single questions."""
    return [
        {"index": number, "question": f"is it {number} ?", "answer": "yes", "prediction": "yes" if score else "no"}
        | {column: score}
        | more
        for number, score in enumerate(scores)
    ]


def write_vlmevalkit(
    folder, model, *, kind="xlsx", status=True, choice=(1, 0, 1, 1), words=(1.0, 0.3, 0.6), yes=(True, False)
):
    """Multiple choice as shares, words in percent, yes or no in percent by rows, captions in percent."""
    folder = Path(folder) / model / "T20261128-101010"
    folder.mkdir(parents=True)
    table = {"split": "none", "Overall": fmean(choice), "AR": 0.5}
    write_table(folder / f"{model}_MMBench_DEV_EN_acc.csv", [table])
    write_table(folder / f"{model}_MMBench_DEV_EN_exact_matching_result.{kind}", answers(choice, "hit"))
    write_table(folder / f"{model}_TextVQA_VAL_acc.csv", [{"Overall": 100 * fmean(words)}])
    write_table(folder / f"{model}_TextVQA_VAL_results.{kind}", answers(words, "eval_score"))
    right = 100 * fmean(map(float, yes))
    rows = [{"split": split, "Overall": 60.0, "acc": right, "precision": 55.0} for split in ("Overall", "popular")]
    write_table(folder / f"{model}_POPE_score.csv", rows)
    write_table(folder / f"{model}_POPE_auxmatch.{kind}", answers(yes, "score"))
    captions = {"Bleu": [70.0, 50.0, 40.0, 30.0], "ROUGE_L": 55.0, "CIDEr": 110.0}
    (folder / f"{model}_COCO_VAL_score.json").write_text(json.dumps(captions))
    write_table(folder / f"{model}_COCO_VAL.{kind}", answers([0] * 7, "category"))
    if status:
        datasets = {"MMBench_DEV_EN": {"status": "done", "judge_model": "exact_matching"}}
        told = {"schema_version": "1.0", "model_name": model, "commit": "e8e78f05", "datasets": datasets}
        (folder / "status.json").write_text(json.dumps(told))
    return folder


def standard_error(scores):
    return stdev(scores) / len(scores) ** 0.5
