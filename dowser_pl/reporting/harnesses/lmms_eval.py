"""The files of lmms-eval: `<date>_results.json`, and with `--log_samples` a `<date>_samples_<task>.jsonl` a task.

Of the results, `results` has "metric,filter" -> score and "metric_stderr,filter" -> standard error or "N/A" for every
task and group, `configs` how each task is asked, `n-samples` how many questions, `config` the options of the command.
The version of a pip installation is not in it, and `versions` has the word "Yaml" for most tasks. A line of the samples
has `doc_id`, `target`, `input`, the answer and, by the name of the metric, its score.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from dowser_pl.errors import DowserError
from dowser_pl.reporting.answers import Row
from dowser_pl.reporting.fields import Fields
from dowser_pl.reporting.harnesses.measured import Measured, Value

__all__ = ["is_lmms_eval", "read_lmms_eval"]

_OF_REPEATS = ("_expected_accuracy", "_consensus_accuracy", "_internal_variance", "_consistency_rate")
_NO_SCORES = ("_stderr", "_stderr_clt", "_stderr_clustered", *_OF_REPEATS)
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
_OF_COMMAND = ("model", "model_backend", "limit", "offset", "gen_kwargs", *_SEEDS)
_OF_PROMPT = ("system_instruction", "chat_template_sha", "fewshot_as_multiturn")
_WHICH_MODEL = ("pretrained", "peft", "delta", "revision", "model_name", "device", "device_map")
_UNKNOWN = "unknown@unknown"  # what a pip installation writes for its version


def is_lmms_eval(content: Any) -> bool:
    """Whether a JSON file is one of its results."""
    return isinstance(content, dict) and {"results", "configs"} <= set(content)


def read_lmms_eval(path: Path, content: Any, version: str | None = None) -> tuple[str, dict[str, Measured]]:
    """The name of the model, and its tasks.

    Args:
        path: of the results.
        content: what is in it.
        version: of lmms-eval, for whom knows it.

    Raises:
        DowserError: a field, or a line of the samples, is not what lmms-eval writes; it is named.
    """
    fields = Fields(content, str(path))
    results, configs = fields.section("results"), fields.section("configs")
    name = fields.optional("model_name", fields.text) or path.parent.name
    # groups are told of questions that their tasks are told of too
    return name, {task: _task(path, fields, task, version) for task in results.value if task in configs.value}


def _task(path: Path, fields: Fields, task: str, version: str | None) -> Measured:
    told = fields.section("results").section(task).value
    config = fields.section("configs").section(task).value
    samples = _samples(path, task)
    better = fields.section_or_empty("higher_is_better").section_or_empty(task).value
    values = {}
    for key, score in told.items():
        metric, comma, filtered = key.rpartition(",")
        if comma and not metric.endswith(_NO_SCORES) and _is_number(score):
            error = told.get(f"{metric}_stderr,{filtered}")
            values[metric if filtered == "none" else key] = Value(
                float(score),
                float(error) if _is_number(error) else None,
                _singles(samples, metric, config.get("score_key") or "score"),
                better.get(metric) is False,
            )
    return Measured(str(path), values, _protocol(fields, task, version), _count(fields, task, samples), _rows(samples))


def _count(fields: Fields, task: str, samples: list[dict[str, Any]]) -> int | None:
    asked = fields.section_or_empty("n-samples").section_or_empty(task).value
    told = [asked.get("effective"), asked.get("original")]  # the first is -1 with `--limit -1`, which is no limit
    return len(samples) or next((int(number) for number in told if _is_number(number) and number > 0), None)


def _protocol(fields: Fields, task: str, version: str | None) -> dict[str, Any]:
    config, told = fields.section_or_empty("config").value, fields.value
    asked = fields.section("configs").section(task).value
    commit = told.get("lmms_eval_version")
    known = version or (None if commit == _UNKNOWN else commit)
    arguments = [part for part in str(config.get("model_args") or "").split(",") if part]
    return {
        "name": "lmms-eval",
        "scorer": f"lmms-eval {known}" if known else "lmms-eval",
        "max_new_tokens": (asked.get("generation_kwargs") or {}).get("max_new_tokens"),
        "version": fields.section_or_empty("versions").value.get(task),
        "n-shot": fields.section_or_empty("n-shot").value.get(task),
        "model_args": sorted(part for part in arguments if part.partition("=")[0] not in _WHICH_MODEL),
        **{key: config.get(key) for key in _OF_COMMAND},
        **{key: told.get(key) for key in _OF_PROMPT},
        **{f"task.{key}": value for key, value in _without_addresses(asked).items()},
    }


def _without_addresses(value: Any) -> Any:
    """Functions are written as `<function text at 0x7f...>`, which is another in every process."""
    return json.loads(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value)))


def _samples(path: Path, task: str) -> list[dict[str, Any]]:
    """In the order of the questions; none where a task has several filters, whose lines cannot be told apart."""
    file = path.with_name(path.name.removesuffix("_results.json") + f"_samples_{task}.jsonl")
    if file == path or not file.is_file():
        return []
    samples = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
            samples.append(sample | {"doc_id": int(sample["doc_id"])})
        except (ValueError, LookupError, TypeError) as error:
            raise DowserError(
                f"{file}, line {number}: {error!r}, expected an object with doc_id, as lmms-eval writes it. Fix: move "
                "the file away; what it tells of single questions is then not used"
            ) from error
    ids = {sample["doc_id"] for sample in samples}
    return sorted(samples, key=lambda sample: int(sample["doc_id"])) if len(ids) == len(samples) else []


def _rows(samples: list[dict[str, Any]]) -> list[Row]:
    return [
        {
            "id": str(sample["doc_id"]),
            "question": sample["input"] if isinstance(sample.get("input"), str) else "",
            "references": [str(sample.get("target"))],
            "prediction": _said(sample),
        }
        for sample in samples
    ]


def _said(sample: Mapping[str, Any]) -> str:
    said = sample.get("filtered_resps")
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def _singles(samples: list[dict[str, Any]], metric: str, key: str) -> tuple[float, ...]:
    told = [sample.get(metric) for sample in samples]
    found = [each.get(key) if isinstance(each, dict) else each for each in told]
    if not all(isinstance(each, bool) or _is_number(each) for each in found):
        return ()
    return tuple(float(each) for each in found if each is not None)


def _is_number(value: Any) -> TypeGuard[float]:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
