"""Which of the models that a run validates is the best, and what that one was."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dowser_pl.callbacks.dowser.callback import Dowser
from dowser_pl.callbacks.forgetting import Forgetting
from dowser_pl.callbacks.order import find_callback
from dowser_pl.distributed import collectives
from dowser_pl.errors import DowserError
from dowser_pl.masking import Protection, ReportedModule, reported_module
from dowser_pl.metrics import metric_label
from dowser_pl.reporting import LOWER_IS_BETTER, KeptModel, Validated, role_means
from dowser_pl.strategies.sharded import ShardedStrategy

__all__ = ["BestModel"]


class BestModel:
    """What was trained at the best validation so far, on the host: 4 bytes of each trainable entry.

    The best one has the highest H-score of the tasks that validation measures; the highest mean, where they are all of
    one role. Of equal ones the last. Where the data has questions to choose on (`selection_tasks`) of the same roles,
    none of them a perplexity, which counts in relation to the base, it is chosen on these.
    """

    def __init__(self) -> None:
        self.validated: list[Validated] = []
        self._entries: dict[str, Tensor] = {}
        self._whole: dict[str, Tensor] = {}
        self._knows = False  # what a checkpoint knew
        self._chosen = False

    def check(self, trainer: Trainer) -> None:
        """Refuse, before anything is loaded, what could not be done when training ends.

        Raises:
            DowserError: saying what to change.
        """
        if isinstance(trainer.strategy, ShardedStrategy):
            raise DowserError(
                "checkpoint.keep best holds what was trained on one process, got --trainer.strategy "
                f"{type(trainer.strategy).__name__}, under which each has a part. Fix: keep last, or use ddp"
            )
        if find_callback(trainer, Forgetting) is None or find_callback(trainer, Dowser) is None:
            raise DowserError(
                "checkpoint.keep best chooses by the scores of the report, got trainer.callbacks without Dowser and "
                "Forgetting. Fix: add them, or keep last"
            )

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to go on where earlier validations are not known; a fresh run forgets those of another one.

        Raises:
            DowserError: saying so, or that there is nothing to choose by.
        """
        self._chosen, knows, self._knows = False, self._knows, False
        if not reported_module(pl_module, self).tasks():
            raise DowserError(
                "checkpoint.keep best chooses by evaluation tasks, got none. Fix: give some, or keep last"
            )
        if trainer.ckpt_path is None:
            self.validated = []
        elif trainer.global_step and not knows:
            raise DowserError(
                f"checkpoint.keep best: the checkpoint, of step {trainer.global_step}, does not know how models before "
                "it scored. Fix: resume with the checkpoint options that its run began with, or keep last"
            )

    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation has ended: copy what is trained, if it is the best so far; the same on every process."""
        if self._chosen:
            return
        dowser, forgetting = _callbacks(trainer)
        means = self._means(trainer, reported_module(pl_module, self), forgetting)
        score = collectives.from_rank_zero(lambda: round(means.get("h_score", next(iter(means.values()))), 6))
        if score >= max((each.score for each in self.validated), default=score):
            state = pl_module.state_dict()
            self._entries, self._whole = {}, {}  # before the next ones are made
            self._entries = dowser.entries.copies()
            self._whole = {key: state[key].detach().to("cpu", copy=True) for key in dowser.base.whole}
        self.validated.append(Validated(trainer.global_step, _epoch(trainer), score))

    def _means(self, trainer: Trainer, module: ReportedModule, forgetting: Forgetting) -> dict[str, float]:
        """On questions to choose on, where there are some; else on those of the validation that has just ended."""
        tasks = _apart(trainer, module)
        if not tasks:
            return forgetting.means(module, forgetting.after)
        loaders = trainer.datamodule.selection_dataloader()  # type: ignore[attr-defined]
        scores = module.score_tasks(tasks, loaders if isinstance(loaders, list | tuple) else [loaders])
        return role_means((task.role, scores[task.name]) for task in tasks)

    def put_back(self, trainer: Trainer, pl_module: LightningModule, entries: Protection) -> None:
        """Make the model what it was at the best validation, and measure it once more unless it is the last one."""
        _, forgetting = _callbacks(trainer)
        forgetting.evaluate(trainer)
        self._chosen, best = True, max(self.validated, key=lambda each: (each.score, each.step))
        if best is not self.validated[-1]:
            entries.go_back(self._entries)
            state = pl_module.state_dict()
            for key, values in self._whole.items():
                state[key].copy_(values)
        apart = bool(_apart(trainer, reported_module(pl_module, self)))
        forgetting.kept = KeptModel(best.step, tuple(self.validated), apart)
        rank_zero_info(f"The model of step {best.step} is kept, whose validation scored best: {best.score:.3f}")
        if best is not self.validated[-1]:
            forgetting.evaluate(trainer, anew=True)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        validated = [dict(vars(each)) for each in self.validated]
        return {"validated": validated, "entries": self._entries, "whole": self._whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.validated = [Validated(**each) for each in state["validated"]]
        self._entries, self._whole, self._knows = dict(state["entries"]), dict(state["whole"]), True


def _callbacks(trainer: Trainer) -> tuple[Dowser, Forgetting]:
    dowser, forgetting = find_callback(trainer, Dowser), find_callback(trainer, Forgetting)
    assert dowser is not None and forgetting is not None  # by `check`
    return dowser, forgetting


def _apart(trainer: Trainer, module: ReportedModule) -> list[Any]:
    """Tasks of questions that the report does not use, where they ask for all that it asks for."""
    tasks = list(getattr(trainer.datamodule, "selection_tasks", []))  # type: ignore[attr-defined]
    covered = {task.role for task in tasks} == {task.role for task in module.tasks()}
    return tasks if covered and not LOWER_IS_BETTER & {metric_label(task.metric) for task in tasks} else []


def _epoch(trainer: Trainer) -> int:
    """The epoch, from 1, that the last step was in; Lightning counts one more when training has ended."""
    batches = trainer.num_training_batches
    steps = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else math.inf
    return max(1, math.ceil(trainer.global_step / steps))
