"""Evaluation sets: files of one's own, and published benchmarks as they are downloaded."""

from dowser_pl.data.benchmarks.base import TaskFile, question_of, read_task

__all__ = ["TaskFile", "question_of", "read_task"]
