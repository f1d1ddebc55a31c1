"""Training only what the mask allows."""

from dowser_pl.masking.base import Changes, Protection
from dowser_pl.masking.base_model import BaseModel
from dowser_pl.masking.compact import CompactEntries
from dowser_pl.masking.contract import (
    ReportedModule,
    TunedModule,
    reported_module,
    trained_whole,
    tuned_module,
)
from dowser_pl.masking.dense import DenseEntries
from dowser_pl.masking.gradients import (
    LocalParameters,
    by_rate,
    check_gradients,
    check_images,
    check_loss,
    check_precision,
    check_reached,
    clip_by_norm,
    leave_out_of_buckets,
    make_optimizer,
)
from dowser_pl.masking.held import HeldEntries
from dowser_pl.masking.nested import NestedUpdates
from dowser_pl.masking.projected import ProjectedEntries, ShardedProjectedEntries
from dowser_pl.masking.sharded import ShardedDenseEntries, ShardedEntries, ShardedSoftEntries, frozen_of, local_state
from dowser_pl.masking.soft import SoftEntries

__all__ = [
    "BaseModel",
    "Changes",
    "CompactEntries",
    "DenseEntries",
    "HeldEntries",
    "LocalParameters",
    "NestedUpdates",
    "ProjectedEntries",
    "Protection",
    "ReportedModule",
    "ShardedDenseEntries",
    "ShardedEntries",
    "ShardedProjectedEntries",
    "ShardedSoftEntries",
    "SoftEntries",
    "TunedModule",
    "by_rate",
    "check_gradients",
    "check_images",
    "check_loss",
    "check_precision",
    "check_reached",
    "clip_by_norm",
    "frozen_of",
    "leave_out_of_buckets",
    "local_state",
    "make_optimizer",
    "reported_module",
    "trained_whole",
    "tuned_module",
]
