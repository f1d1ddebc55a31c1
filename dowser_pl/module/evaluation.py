"""Evaluation of a model: answers or likelihoods, one metric per task, scores in the log."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torchmetrics import Metric
from transformers import PreTrainedModel

from dowser_pl.data.encoders import turn_ends
from dowser_pl.data.images import open_image
from dowser_pl.data.templates import ChatTemplate
from dowser_pl.errors import DowserError
from dowser_pl.metrics import build_metric, metric_label, score_here
from dowser_pl.models.generation import Ending, greedy_answers, own_ends
from dowser_pl.models.likelihood import measured_likelihoods
from dowser_pl.models.text_only import tokenizer_of
from dowser_pl.module.evaluation_identity import limited, protocol
from dowser_pl.reporting import LOWER_IS_BETTER, role_means

__all__ = ["EvaluatedModule"]


class EvaluatedModule(LightningModule):
    """Validation, test and prediction loops over the tasks of the data module.

    Attributes:
        scores: task name -> score of the latest evaluation.
        answers: task name -> the rows of `predict_step`, of the latest evaluation, of this process.
        own_settings: whether answers are written with the settings of the model's generation config, not greedily.
        chat_template: as that of the data module, where there is none.
    """

    own_settings = False
    chat_template: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.scores: dict[str, float] = {}
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self._endings: dict[str | None, Ending] = {}
        self._metrics: list[Metric] = []

    @property
    @abstractmethod
    def network(self) -> PreTrainedModel:
        """The Hugging Face model of the module."""

    @property
    @abstractmethod
    def processor(self) -> Any:
        """The Hugging Face processor of the model; the tokenizer of one of text alone."""

    def tasks(self) -> list[Any]:
        """The evaluation tasks of the data module, one per evaluation loader."""
        tasks = getattr(self.trainer.datamodule, "tasks", None)  # type: ignore[attr-defined]
        if tasks is None:
            raise DowserError(
                f"{type(self.trainer.datamodule).__name__} has no `tasks`: evaluation needs one "  # type: ignore[attr-defined]
                "dowser_pl.data.Task per validation loader (name, role, metric, max_new_tokens), in their order"
            )
        return list(tasks)

    def ending(self) -> Ending:
        """What ends an answer: all that the chat template writes behind one, and the model's own end tokens."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        template = getattr(data, "chat_template", self.chat_template)
        if template not in self._endings:
            own = own_ends(self.network, tokenizer_of(self.processor))
            ids, text = turn_ends(self.processor, template)
            self._endings[template] = Ending(tuple(dict.fromkeys([*own, *ids])), text)
            rank_zero_info(_ending_line(tokenizer_of(self.processor), own, ids, text))
        return self._endings[template]

    def openers(self) -> tuple[str, str, str | None] | None:
        """What the chat template writes around a user's words; see `dowser_pl.data.templates.ChatTemplate.openers`."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        try:
            return ChatTemplate(self.processor, getattr(data, "chat_template", self.chat_template)).openers()
        except DowserError:  # there is none
            return None

    def protocol(self) -> dict[str, Any] | None:
        """What scores of the validation data depend on beside the weights; None = that is not known."""
        return protocol(self)

    @torch.no_grad()
    def score_tasks(self, tasks: Sequence[Any], loaders: Sequence[Any]) -> dict[str, float]:
        """Scores of the model as it is, outside of any loop; nothing is logged.

        Args:
            tasks: what the loaders ask.
            loaders: one per task, as for validation; `trainer.limit_val_batches` holds for them as well.
        """
        scores = {}
        self.network.eval()
        with self.trainer.precision_plugin.val_step_context():
            for task, loader in zip(tasks, loaders, strict=True):
                metric = build_metric(task.metric).to(self.device)
                for batch in limited(loader, self.trainer.limit_val_batches):
                    moved = self.trainer.strategy.batch_to_device(batch)
                    metric.update(self._answers_of(moved, task), moved["references"])
                scores[task.name] = round(float(metric.compute()), 6)
        self.network.train()
        return scores

    def on_validation_epoch_start(self) -> None:
        """Fresh metrics and answers, of each task."""
        self._metrics = [build_metric(task.metric).to(self.device) for task in self.tasks()]
        self.answers = {task.name: [] for task in self.tasks()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer one batch of one task and score it."""
        rows = self.predict_step(batch, batch_idx, dataloader_idx)
        self._metrics[dataloader_idx].update([row["prediction"] for row in rows], batch["references"])
        self.answers[self.tasks()[dataloader_idx].name] += rows

    def on_validation_epoch_end(self) -> None:
        """Log `val/<task>/<metric>` and the aggregates."""
        self._log_scores("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log `test/<task>/<metric>` and the aggregates."""
        self._log_scores("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Answers of one batch as rows `task, id, question, images, prediction, references`."""
        task = self.tasks()[dataloader_idx]
        answers = self._answers_of(batch, task)
        told = batch.get("told") or [{"id": row} for row in batch["ids"]]
        return [
            {"task": task.name, **row, "prediction": answer, "references": references}
            for row, answer, references in zip(told, answers, batch["references"], strict=True)
        ]

    def score_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write `score` into the rows of `predict_step` that have references, and their mean into the log."""
        for task in self.tasks():
            mine = [row for row in rows if row["task"] == task.name]
            known = [row for row in mine if row["references"]]
            if not known:
                rank_zero_info(f"{task.name}: {len(mine)} answers, no reference to score them by")
                continue
            try:
                scores = self.row_scores(task, known)
                mean = sum(scores) / len(scores) if scores else self._score_of(task, known)
            except ValueError as error:
                rank_zero_info(f"{task.name}: no scores: {error}")
                continue
            label, over = metric_label(task.metric), f"the {len(known)} of {len(mine)} with references"
            rank_zero_info(f"{task.name}: {label} {mean:.3f} over {over}")

    def row_scores(self, task: Any, rows: Sequence[dict[str, Any]]) -> list[float]:
        """Score the rows of a task, which must have references; each score is written into its row as `score`.

        Returns:
            Nothing for a metric of anybody's, which says nothing of rows by themselves.

        Raises:
            DowserError: as the metric of the task.
        """
        metric: Any = build_metric(task.metric)
        if not hasattr(metric, "row_scores"):
            return []
        scores = metric.row_scores([row["prediction"] for row in rows], [row["references"] for row in rows])
        for row, score in zip(rows, scores, strict=True):
            row["score"] = round(score, 6)
        return list(scores)

    def _score_of(self, task: Any, rows: Sequence[dict[str, Any]]) -> float:
        answers, references = [row["prediction"] for row in rows], [row["references"] for row in rows]
        return score_here(build_metric(task.metric), answers, references)

    def pictures(self, task: Any, row: dict[str, Any], place: int) -> list[Any]:
        """The images of a question, as Pillow has them; none where the data module does not keep its questions.

        Args:
            task: that the row belongs to.
            row: with the `id` of the question.
            place: of the question in the task.
        """
        questions = getattr(task, "questions", ())
        if place >= len(questions) or questions[place].told()["id"] != row["id"]:
            return []
        return [open_image(source, questions[place].id) for source in questions[place].images]

    def _answers_of(self, batch: dict[str, Any], task: Any) -> list[str]:
        if "candidates" in batch:
            return self._measured(batch["inputs"], batch["candidates"], task)
        tokenizer, inputs = tokenizer_of(self.processor), batch["inputs"]
        return greedy_answers(
            self.network, tokenizer, inputs, task.max_new_tokens, self.ending(), own_settings=self.own_settings
        )

    def _measured(self, inputs: Sequence[Any], candidates: Sequence[Sequence[str]], task: Any) -> list[str]:
        """What a metric of likelihood says of each question."""
        metric: Any = build_metric(task.metric)  # by `checked_tasks`, where there are candidates
        nats, tokens = (iter(each) for each in measured_likelihoods(self.network, inputs))
        return [
            metric.prediction(texts, list(islice(nats, len(texts))), list(islice(tokens, len(texts))))
            for texts in candidates
        ]

    def _log_scores(self, stage: str) -> None:
        tasks = self.tasks()
        self.scores = {
            task.name: round(float(metric.compute()), 6) for task, metric in zip(tasks, self._metrics, strict=True)
        }
        for task in tasks:
            if not 0 <= self.scores[task.name] < math.inf:
                raise DowserError(
                    f"the metric {metric_label(task.metric)} of task {task.name!r} gave {self.scores[task.name]}, "
                    "expected a finite score of at least 0. Choose another metric, or scale it"
                )
        for task in tasks:
            self.log(f"{stage}/{task.name}/{metric_label(task.metric)}", self.scores[task.name])
        # the others count in relation to the base model, which the report alone knows
        scores = [
            (task.role, self.scores[task.name]) for task in tasks if metric_label(task.metric) not in LOWER_IS_BETTER
        ]
        for name, value in role_means(scores).items():
            self.log(f"{stage}/{name}", value, prog_bar=True)


def _ending_line(tokenizer: Any, own: Sequence[int], ids: Sequence[int], text: str) -> str:
    """For the log: where answers end, and who says so."""

    def named(ends: Sequence[int]) -> str:
        return " and ".join(f"{tokenizer.convert_ids_to_tokens(one)!r} ({one})" for one in ends)

    said = [f"the model's own {named(own)}"] if own else []
    if added := [one for one in ids if one not in own]:
        said.append(f"{named(added)}, which the chat template writes behind them")
    if text:
        said.append(
            f"the words {text!r}, which the chat template writes behind them (and which no generation config can name: "
            "elsewhere give them to generate as stop_strings)"
        )
    if not said:
        return "Answers end at max_new_tokens alone: neither model nor chat template has an end token"
    return f"Answers end at {', and at '.join(said)}" + ("" if ids or text else "; the chat template writes no end")
