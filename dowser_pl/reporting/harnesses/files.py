"""Which files of another program a person means, and what they hold."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dowser_pl.errors import DowserError, MissingFileError, nearest_path
from dowser_pl.reporting.harnesses.lmms_eval import is_lmms_eval, read_lmms_eval
from dowser_pl.reporting.harnesses.measured import Measured
from dowser_pl.reporting.harnesses.vlmevalkit import ENDINGS, read_vlmevalkit

__all__ = ["read_results"]

_EXPECTED = "the *_results.json of lmms-eval, or *_acc.csv, *_score.csv or *_score.json of VLMEvalKit"


def read_results(paths: Sequence[str | Path], lmms_eval: str | None = None) -> tuple[str, dict[str, Measured]]:
    """The name of one model, and its tasks.

    Args:
        paths: result files, or folders of such.
        lmms_eval: its version, for whom knows it.

    Raises:
        FileNotFoundError: nothing is there.
        DowserError: there are no results, or damaged ones, or those of several models, or of one task twice.
    """
    name, found = "", dict[str, Measured]()
    for file in [file for path in paths for file in _files(Path(path))]:
        model, tasks = _read(file, lmms_eval)
        if name and model != name:
            raise DowserError(f"got results of two models, {name} and {model} ({file}). Fix: name the files of one")
        for task in tasks:
            if task in found:
                raise DowserError(f"task {task} is in {found[task].file} and in {file}. Fix: name the file that counts")
        name, found = model, found | tasks
    return name, found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingFileError(f"There is no file or folder {path}{nearest_path(path)}. Expected {_EXPECTED}.")
    dated = "[0-9]*_results.json"  # VLMEvalKit may write answers to `<model>_<dataset>_results.json`
    patterns = (dated, f"*/{dated}", *(f"*{ending}" for ending in ENDINGS))
    found = sorted({file for pattern in patterns for file in path.glob(pattern)})
    if not found:
        raise DowserError(f"{path} has no results. Expected {_EXPECTED}.")
    return found


def _read(file: Path, version: str | None) -> tuple[str, dict[str, Measured]]:
    content: Any = None
    if file.suffix == ".json":
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DowserError(f"{file} is not valid JSON: {error}") from error
    if is_lmms_eval(content):
        return read_lmms_eval(file, content, version)
    if file.name.endswith(ENDINGS):
        return read_vlmevalkit(file)
    if isinstance(content, dict) and "tasks" in content:
        raise DowserError(f"{file} is a report of our own, which `report A B` compares, without --base and --tuned")
    raise DowserError(f"{file} is no result file. Expected {_EXPECTED}.")
