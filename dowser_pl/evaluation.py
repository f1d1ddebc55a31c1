"""Evaluation of a multimodal model: greedy answers, one metric per task, scores in the log."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torchmetrics import Metric
from transformers import PreTrainedModel

from dowser_pl.metrics import build_metric
from dowser_pl.models.generation import greedy_answers
from dowser_pl.reporting import role_means

__all__ = ["EvaluatedModule"]


class EvaluatedModule(LightningModule):
    """Validation, test and prediction loops over the tasks of the data module.

    Attributes:
        scores: task name -> score of the latest evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: dict[str, float] = {}
        self._metrics: list[Metric] = []

    @property
    @abstractmethod
    def network(self) -> PreTrainedModel:
        """The Hugging Face model."""

    @property
    @abstractmethod
    def processor(self) -> Any:
        """Its processor."""

    def tasks(self) -> list[Any]:
        """The evaluation tasks of the data module, one per evaluation loader."""
        tasks = getattr(self.trainer.datamodule, "tasks", None)  # type: ignore[attr-defined]
        if tasks is None:
            raise ValueError(
                f"{type(self.trainer.datamodule).__name__} has no `tasks`: evaluation needs one "  # type: ignore[attr-defined]
                "dowser_pl.data.Task per validation loader (name, role, metric, max_new_tokens), in their order"
            )
        return list(tasks)

    @torch.no_grad()
    def score_tasks(self, tasks: Sequence[Any], loaders: Sequence[Any]) -> dict[str, float]:
        """Scores of the model as it is, outside of any loop; nothing is logged.

        Args:
            tasks: what the loaders ask.
            loaders: one per task, as for validation; ``trainer.limit_val_batches`` holds for them as well.
        """
        scores = {}
        self.network.eval()
        with self.trainer.precision_plugin.val_step_context():
            for task, loader in zip(tasks, loaders, strict=True):
                metric = build_metric(task.metric).to(self.device)
                for batch in _limited(loader, self.trainer.limit_val_batches):
                    moved = self.trainer.strategy.batch_to_device(batch)
                    metric.update(self._answers_of(moved, task), moved["references"])
                scores[task.name] = round(float(metric.compute()), 6)
        self.network.train()
        return scores

    def on_validation_epoch_start(self) -> None:
        """Fresh metrics, one per task."""
        self._metrics = [build_metric(task.metric).to(self.device) for task in self.tasks()]

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer one batch of one task and score it."""
        answers = self._answer(batch, dataloader_idx)
        self._metrics[dataloader_idx].update(answers, batch["references"])

    def on_validation_epoch_end(self) -> None:
        """Log ``val/<task>/<metric>`` and the aggregates."""
        self._log_scores("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log ``test/<task>/<metric>`` and the aggregates."""
        self._log_scores("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Answers of one batch as rows ``task, id, prediction, references``."""
        task = self.tasks()[dataloader_idx]
        answers = self._answer(batch, dataloader_idx)
        return [
            {"task": task.name, "id": row, "prediction": answer, "references": references}
            for row, answer, references in zip(batch["ids"], answers, batch["references"], strict=True)
        ]

    def _answer(self, batch: dict[str, Any], dataloader_idx: int) -> list[str]:
        return self._answers_of(batch, self.tasks()[dataloader_idx])

    def _answers_of(self, batch: dict[str, Any], task: Any) -> list[str]:
        return greedy_answers(self.network, self.processor.tokenizer, batch["inputs"], task.max_new_tokens)

    def _log_scores(self, stage: str) -> None:
        tasks = self.tasks()
        self.scores = {
            task.name: round(float(metric.compute()), 6) for task, metric in zip(tasks, self._metrics, strict=True)
        }
        for task in tasks:
            self.log(f"{stage}/{task.name}/{task.metric}", self.scores[task.name])
        for name, value in role_means([(task.role, self.scores[task.name]) for task in tasks]).items():
            self.log(f"{stage}/{name}", value, prog_bar=True)


def _limited(loader: Any, limit: float | None) -> Iterator[Any]:
    """The first batches: a number of them, or a share of all."""
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return iter(loader)
    return islice(loader, int(len(loader) * limit) if isinstance(limit, float) else limit)
