"""Evaluation sets: files of one's own, and published benchmarks as they are downloaded."""

from dowser_pl.data.benchmarks.base import question_of, read_task
from dowser_pl.data.benchmarks.task_file import TaskFile

__all__ = ["TaskFile", "question_of", "read_task"]
