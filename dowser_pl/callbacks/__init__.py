"""Lightning callbacks: the method, the report, the exported model, the patch, exact resume, a common end."""

from dowser_pl.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from dowser_pl.callbacks.curve import Curve
from dowser_pl.callbacks.dowser.callback import Dowser
from dowser_pl.callbacks.each_task import EachTask, ScoreTable
from dowser_pl.callbacks.end_on_sigterm import EndOnSigterm
from dowser_pl.callbacks.export import Export
from dowser_pl.callbacks.fail_together import FailTogether
from dowser_pl.callbacks.forgetting import Forgetting
from dowser_pl.callbacks.patch_file import PatchFile
from dowser_pl.callbacks.predictions import Predictions
from dowser_pl.callbacks.progress import Progress
from dowser_pl.callbacks.resume import EpochProgress, RandomState

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "Curve",
    "Dowser",
    "EachTask",
    "EndOnSigterm",
    "EpochProgress",
    "Export",
    "FailTogether",
    "Forgetting",
    "PatchFile",
    "Predictions",
    "Progress",
    "RandomState",
    "ScoreTable",
]
