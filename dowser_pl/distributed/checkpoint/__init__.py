"""Checkpoints as folders, to which every process writes what it holds (`torch.distributed.checkpoint`).

A folder holds two things. What is sharded over processes, and all weights that are in the checkpoint, are tensors of
PyTorch's format, whole ones to whoever reads them: `.metadata` and one `.distcp` file of each process. All else is
plain data and small, in `meta.pt`: the checkpoint of one process with a note in the place of each of those tensors.
Checkpoints of both forms carry digests, which are compared when they are read.
"""

from dowser_pl.distributed.checkpoint.layout import Share, extents, share_of, shares_of
from dowser_pl.distributed.checkpoint.reading import Stored, is_folder, open_folder, read_folder
from dowser_pl.distributed.checkpoint.sealing import checked, read_file, sealed
from dowser_pl.distributed.checkpoint.writing import write_folder

__all__ = [
    "Share",
    "Stored",
    "checked",
    "extents",
    "is_folder",
    "open_folder",
    "read_file",
    "read_folder",
    "sealed",
    "share_of",
    "shares_of",
    "write_folder",
]
