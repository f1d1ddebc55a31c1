"""A callback that writes what every process ended with."""

import hashlib
from pathlib import Path

from lightning.pytorch import Callback
from torch import uint8

from dowser_pl.callbacks import Dowser


class RankDigest(Callback):
    """Writes `<run>/rank<n>`: digests of masks and tuned weights, and the scores."""

    def on_train_end(self, trainer, pl_module):
        entries = next(c for c in trainer.callbacks if isinstance(c, Dowser)).entries
        lines = [str(pl_module.scores)]
        for tensors in (entries.masks, entries.weights):
            content = b"".join(bytes(t.detach().contiguous().view(-1).view(uint8).numpy()) for t in tensors.values())
            lines.append(hashlib.sha256(content).hexdigest())
        (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}").write_text("\n".join(lines))
