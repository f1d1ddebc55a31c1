"""Result files of the programs that others evaluate with, lmms-eval and VLMEvalKit, as tasks of our tables."""

from dowser_pl.reporting.harnesses.files import read_results
from dowser_pl.reporting.harnesses.measured import Measured, Value
from dowser_pl.reporting.harnesses.terms import Terms, comparable_answers

__all__ = ["Measured", "Terms", "Value", "comparable_answers", "read_results"]
