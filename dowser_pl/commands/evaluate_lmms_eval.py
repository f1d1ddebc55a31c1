"""What `evaluate --engine lmms-eval` does: has lmms-eval ask each model, in its own interpreter, and reads its files.

lmms-eval ends with status 0 where it failed, and goes on with an empty answer where generation did. So what counts is
whether it left results, and that its log tells of no such answer.
"""

import json
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.cli.main import ended_in_words
from dowser_pl.commands.evaluate_run import written
from dowser_pl.commands.evaluated_tasks import difference, model_identity
from dowser_pl.commands.harness import evaluation_of, terms_of
from dowser_pl.commands.tuned import Candidate, candidates
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import atomic_path, file_name, remove
from dowser_pl.files.locking import alone
from dowser_pl.models.sources import stored_folder
from dowser_pl.patches.apply import apply_patches
from dowser_pl.reporting.harnesses import Measured, read_results

__all__ = ["run"]

_CLASSES = {
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "internvl": "internvl_hf",
    "instructblip": "instructblip",
}
_ARGUMENTS = {"llava_hf": "device_map=auto"}  # its own default, "", is an error to transformers
_ASKED, _RESULTS = "asked.json", "results"
_VERSION = "import importlib.metadata as m; print(m.version('lmms_eval'))"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_AROUND = re.compile(r"^.*?\| ERROR .*? - (Error during evaluation: )?|\.* Please set `--verbosity=DEBUG`.*$")
_NOT_GENERATED = re.compile(r"Error.* in generating\s*$")
_LONGEST_LINE = 300


def run(options: Namespace, arguments: Sequence[str], argv: Sequence[str]) -> str:
    """Evaluate and write; returns what to print.

    Args:
        options: of the verb.
        arguments: for lmms-eval, as they are.
        argv: what followed the verb.
    """
    found, out, terms = candidates(options.model), Path(options.out), terms_of(options)
    python = options.python or sys.executable
    engine = _Engine(python, _version(python), options.tasks, options.as_, options.model_args, arguments)
    with alone(out, "evaluation"), ended_in_words(["evaluate"]):
        models = {}
        for candidate in found:
            models[candidate.name] = _measured(candidate, out / "lmms-eval", engine)
            terms.answered(models[candidate.name])  # what is refused of it is told before the next one is asked
        return written(out, evaluation_of(models, terms), argv)


@dataclass(frozen=True)
class _Engine:
    """An installation of lmms-eval, and how it is to ask."""

    python: str
    version: str
    tasks: Sequence[str]
    loader: str | None
    model_args: str | None
    more: Sequence[str]

    def command(self, model: Path, name: str) -> list[str]:
        """To ask the model in a folder, but for where it writes."""
        kind = json.loads((model / "config.json").read_text(encoding="utf-8")).get("model_type")
        loader = self.loader or _CLASSES.get(kind)
        if loader is None:
            raise DowserError(
                f"{name} is of the family {kind!r}. Fix: say which model of lmms-eval loads it, with --as, out of "
                f"{self.python} -m lmms_eval models"
            )
        path = str(model.resolve())
        if set(path) & {",", "="}:
            raise DowserError(f"lmms-eval cannot be given the path {path}, with a comma or an equals sign in it")
        more = self.model_args or _ARGUMENTS.get(loader)
        told = f"pretrained={path},{more}" if more else f"pretrained={path}"
        words = ["--model", loader, "--model_args", told, "--tasks", ",".join(self.tasks), "--log_samples"]
        return [self.python, "-m", "lmms_eval", *self.more, *words]


def _version(python: str) -> str:
    """Of the lmms-eval that an interpreter has."""
    try:
        done = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True, check=False)
    except OSError as error:
        raise DowserError(f"got --python {python}, which cannot be started ({error.strerror})") from error
    if done.returncode:
        raise DowserError(
            f"{python} has no lmms_eval ({_end(done.stderr)}). Fix: {python} -m pip install lmms_eval, or name the "
            "interpreter that has it with --python"
        )
    return done.stdout.strip()


def _measured(candidate: Candidate, out: Path, engine: _Engine) -> dict[str, Measured]:
    """What lmms-eval says of one model, now or earlier."""
    folder = out / file_name(candidate.name)
    settings = {key: value for key, value in vars(engine).items() if key != "python"}
    asked = json.loads(json.dumps({"model": model_identity(candidate), "settings": settings}))
    if (folder / _ASKED).is_file():
        _check_same(folder, json.loads((folder / _ASKED).read_text(encoding="utf-8")), asked)
    else:
        log = folder.with_name(f"{folder.name}.log")
        with atomic_path(folder) as unfinished:
            unfinished.mkdir()
            with _as_folder(candidate, unfinished / "model") as model:
                command = engine.command(model, candidate.name)
                _ask(candidate.name, [*command, "--output_path", str(unfinished / _RESULTS)], log)
            if not list((unfinished / _RESULTS).glob("*/*_results.json")):
                raise _failed(candidate.name, log, "left no results")
            (unfinished / _ASKED).write_text(json.dumps(asked, indent=2, ensure_ascii=False), encoding="utf-8")
    return read_results([folder / _RESULTS], engine.version)[1]


def _check_same(folder: Path, known: dict[str, Any], now: dict[str, Any]) -> None:
    for part, what in (("model", "the model"), ("settings", "how it is asked")):
        if told := difference(known[part], now[part]):
            raise DowserError(
                f"{folder} holds an evaluation with other settings: of {what} {told}. Fix: set what it was, give "
                f"another --out, or delete {folder}"
            )


@contextmanager
def _as_folder(candidate: Candidate, exported: Path) -> Iterator[Path]:
    """The model as lmms-eval loads it: the folder that its run wrote, or one that is there for so long."""
    added = candidate.added
    if added is None:
        yield stored_folder(candidate.base)
    elif (added.parent / "report.json").is_file() and (added.parent / "model").is_dir():
        yield added.parent / "model"
    elif added.is_file():
        apply_patches(stored_folder(candidate.base), [added], exported)
        try:
            yield exported
        finally:
            remove(exported)
    else:
        raise DowserError(
            f"{added} is an adapter, which lmms-eval is not given. Fix: name a folder that it is merged into"
        )


def _ask(name: str, command: Sequence[str], log: Path) -> None:
    print(f"lmms-eval asks {name}, and says what it does in {log}", file=sys.stderr)
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise _failed(name, log, f"ended with status {done.returncode}")
    empty = [line for line in _lines(log.read_text(encoding="utf-8", errors="replace")) if _NOT_GENERATED.search(line)]
    if empty:
        raise _failed(name, log, f"scored {len(empty)} answers that it failed to generate", empty[0])


def _failed(name: str, log: Path, what: str, line: str | None = None) -> DowserError:
    told = _end(line or log.read_text(encoding="utf-8", errors="replace"))
    return DowserError(f"lmms-eval {what} for {name}: {told}. Its log: {log}")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in re.split(r"[\r\n]+", _COLOURS.sub("", text)) if line.strip()]


def _end(text: str) -> str:
    """The last line that tells of an error; where there is none, the last."""
    lines = _lines(text)
    told = [line for line in lines if "error" in line.lower()] or lines or ["it says nothing"]
    return _AROUND.sub("", told[-1]).rstrip(".")[:_LONGEST_LINE]
