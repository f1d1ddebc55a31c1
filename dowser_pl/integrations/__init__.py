"""The method in training code that is not ours: loops by hand, LightningModules of others, Hugging Face Trainers."""

from dowser_pl.integrations.drift import BaseHeld, DriftFromBase, drift
from dowser_pl.integrations.evaluate import Answers, evaluate
from dowser_pl.integrations.huggingface import DowserCallback
from dowser_pl.integrations.importance import Importance, measure_importance
from dowser_pl.integrations.masks import Masks, choose_masks
from dowser_pl.integrations.protectable import Protectable
from dowser_pl.integrations.train_only import Trained, train_only

__all__ = [
    "Answers",
    "BaseHeld",
    "DowserCallback",
    "DriftFromBase",
    "Importance",
    "Masks",
    "Protectable",
    "Trained",
    "choose_masks",
    "drift",
    "evaluate",
    "measure_importance",
    "train_only",
]
