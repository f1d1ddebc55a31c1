"""Training only what the mask allows."""

from dowser_pl.training.base_model import BaseModel
from dowser_pl.training.buckets import leave_out_of_buckets
from dowser_pl.training.clipping import clip_by_norm
from dowser_pl.training.entries import TrainableEntries
from dowser_pl.training.finite import check_gradients, check_images, check_loss, check_precision, make_optimizer
from dowser_pl.training.frozen import FrozenEntries
from dowser_pl.training.local_parameters import LocalParameters
from dowser_pl.training.nested import NestedUpdates
from dowser_pl.training.protection import Changes, Protection
from dowser_pl.training.sharded_entries import ShardedEntries, local_state
from dowser_pl.training.sharded_frozen import ShardedFrozen, frozen_of
from dowser_pl.training.sharded_soft import ShardedSoftEntries
from dowser_pl.training.soft import SoftEntries
from dowser_pl.training.window import Window, count_targets

__all__ = [
    "BaseModel",
    "Changes",
    "FrozenEntries",
    "LocalParameters",
    "NestedUpdates",
    "Protection",
    "ShardedEntries",
    "ShardedFrozen",
    "ShardedSoftEntries",
    "SoftEntries",
    "TrainableEntries",
    "Window",
    "check_gradients",
    "check_images",
    "check_loss",
    "check_precision",
    "clip_by_norm",
    "count_targets",
    "frozen_of",
    "leave_out_of_buckets",
    "local_state",
    "make_optimizer",
]
