"""Training only what the mask allows."""

from dowser_pl.masking.base import Changes, Protection
from dowser_pl.masking.base_model import BaseModel
from dowser_pl.masking.buckets import leave_out_of_buckets
from dowser_pl.masking.clipping import clip_by_norm
from dowser_pl.masking.compact import TrainableEntries
from dowser_pl.masking.dense import FrozenEntries
from dowser_pl.masking.gradients import check_gradients, check_images, check_loss, check_precision, make_optimizer
from dowser_pl.masking.local_parameters import LocalParameters
from dowser_pl.masking.nested import NestedUpdates
from dowser_pl.masking.sharded import ShardedEntries, local_state
from dowser_pl.masking.sharded_frozen import ShardedFrozen, frozen_of
from dowser_pl.masking.sharded_soft import ShardedSoftEntries
from dowser_pl.masking.soft import SoftEntries

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
    "check_gradients",
    "check_images",
    "check_loss",
    "check_precision",
    "clip_by_norm",
    "frozen_of",
    "leave_out_of_buckets",
    "local_state",
    "make_optimizer",
]
