"""What an evaluation keeps of every task that is answered, so that one that was killed goes on with the others.

`<out>/tasks/<model>/<task>.json` has the score, every answer, and what both depend on: the files of the model, and how
the task was asked. Where that is something else now, the evaluation is refused rather than mixed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dowser_pl.commands.tuned import Candidate
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import file_name, write_atomically
from dowser_pl.models.sources import locate
from dowser_pl.reporting.evaluation import Answered, Asked

__all__ = ["EvaluatedTasks", "difference", "model_identity"]


@dataclass(frozen=True)
class EvaluatedTasks:
    """The tasks that a model has answered.

    Args:
        out: folder of the evaluation.
        model: its name.
        identity: what tells it from others, see `model_identity`.
    """

    out: Path
    model: str
    identity: Mapping[str, Any]

    def path(self, task: str) -> Path:
        """The file of a task."""
        return self.out / "tasks" / file_name(self.model) / f"{file_name(task)}.json"

    def find(self, task: str, settings: Mapping[str, Any]) -> Answered | None:
        """What was answered; None where it was not.

        Raises:
            DowserError: it was another model, or asked in another way; or the file is damaged.
        """
        path = self.path(task)
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {part: dict(content[part]) for part in ("model", "settings")}
            asked = Asked(**content["asked"])
            found = Answered(asked, float(content["score"]), list(content["rows"]), float(content["seconds"]))
        except (ValueError, LookupError, TypeError) as error:
            raise DowserError(f"{path} is damaged ({error!r}). Fix: delete it, and the task is asked again") from error
        now = json.loads(json.dumps({"model": self.identity, "settings": settings}, default=str))
        for part, what in (("model", f"the model {self.model}"), ("settings", f"the task {task}")):
            if told := difference(known[part], now[part]):
                raise DowserError(
                    f"{self.out} holds an evaluation with other settings: of {what} {told}. Fix: set what it was, "
                    f"give another --out, or delete {path.parent}"
                )
        return found

    def keep(self, task: str, settings: Mapping[str, Any], answered: Answered) -> None:
        """Write what was answered, atomically."""
        content = {
            "model": dict(self.identity),
            "settings": dict(settings),
            "asked": vars(answered.asked),
            "score": answered.score,
            "seconds": answered.seconds,
            "rows": answered.rows,
        }
        write_atomically(self.path(task), json.dumps(content, ensure_ascii=False, default=str) + "\n")


def model_identity(candidate: Candidate) -> dict[str, Any]:
    """Where a model lies and what its files look like from outside: names, sizes, times of change; no hub is asked."""
    located = locate(candidate.base)
    folder = Path(located)
    found: dict[str, Any] = {"base": candidate.base, "files": _look(folder) if folder.is_dir() else None}
    if candidate.added is not None:
        found |= {"added": str(candidate.added), "added files": _look(candidate.added)}
    return found


def _look(path: Path) -> str:
    files: Sequence[Path] = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.suffix != ".lock"]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def difference(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that is another, with what it is and what it was; empty where there is none."""
    keys = [key for key in dict.fromkeys([*known, *now]) if known.get(key) != now.get(key)]
    return "" if not keys else f"{keys[0]} is {now.get(keys[0])!r:.120}, it was {known.get(keys[0])!r:.120}"
