"""A loaded model and the tasks of a command line, for `evaluate`: built as for `validate`, asked in parts."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from dowser_pl.callbacks.each_task import EachTask, Keep
from dowser_pl.cli.main import built
from dowser_pl.data.base import EvaluatedData
from dowser_pl.errors import DowserError

__all__ = ["Evaluator"]

_OF_MODEL = ("attn_implementation", "quantization", "generation")
_OF_TRAINER = ("precision", "limit_val_batches")
_SPEED = ("eval_batch_size", "num_workers", "evaluation_cache_mb", "check")  # of data: they change no question
_TRAINING = ("batch_size", "split_batches", "seed", "choose_on")


class Evaluator:
    """What `validate` would run with.

    Args:
        arguments: of `validate`, with paths of configurations.
        dtype: of the weights, where the command line leaves it open; None = that of the files.

    Attributes:
        tasks: all of them.
    """

    def __init__(self, arguments: Sequence[str], dtype: str | None = None) -> None:
        cli = built(["validate", *arguments])
        self._trainer, self._module, data = cli.trainer, cli.model, cli.datamodule
        if not isinstance(data, EvaluatedData):
            raise DowserError(
                f"got the data module {type(data).__name__}, expected ConversationData or another one of this package, "
                "whose tasks can be asked one by one. Fix: use `validate` for it"
            )
        self._config = json.loads(json.dumps(cli.config["validate"].as_dict(), default=str))
        if dtype is not None and self._module.dtype_name == "auto":
            self._module.dtype_name = dtype
        data.processor = self._module.processor
        data.setup("validate")
        self._data = data
        self.tasks = list(data.tasks)
        if not self.tasks:
            raise DowserError("there is nothing to ask: got no task. Fix: name some under data.init_args.tasks")

    @property
    def is_first(self) -> bool:
        """Whether this is the first process."""
        return bool(self._trainer.is_global_zero)

    def settings(self, task: Any) -> dict[str, Any]:
        """What the score of a task depends on beside the weights, as it was written, JSON-able."""
        data = self._config["data"]
        given = dict(data.get("init_args") or {})
        files = given.pop("tasks", None) or []
        of_data = {key: value for key, value in given.items() if key not in (*_SPEED, *_TRAINING)}
        return {
            "dtype": self._module.dtype_name,
            **{f"model.{key}": self._config["model"][key] for key in _OF_MODEL},
            **{f"trainer.{key}": self._config["trainer"][key] for key in _OF_TRAINER},
            "data": data["class_path"].rpartition(".")[2],
            **{f"data.{key}": value for key, value in of_data.items()},
            "questions": len(task.questions),
            "metric": repr(task.metric),
            "max_new_tokens": task.max_new_tokens,
            "protocol": task.protocol,
            **{key: value for file in files if _named(file) == task.name for key, value in file.items()},
        }

    def ask(
        self, tasks: Sequence[Any], keep: Keep, put_on: Callable[[Any], AbstractContextManager[None]] | None
    ) -> None:
        """Ask the model some of the tasks.

        Args:
            tasks: of `tasks`.
            keep: gets the answers of each, see `EachTask`.
            put_on: what is put on the model meanwhile.
        """
        self._data.tasks = list(tasks)
        each = EachTask(keep, put_on)
        self._trainer.callbacks.append(each)  # type: ignore[attr-defined]
        try:
            self._trainer.validate(self._module, datamodule=self._data, verbose=False)
        finally:
            self._trainer.callbacks.remove(each)  # type: ignore[attr-defined]


def _named(file: dict[str, Any]) -> str:
    return str(file.get("name") or file.get("benchmark"))
