"""What the folder of a run says of the checkpoints in it."""

from typing import Any

from dowser_pl.masking.checkpoint_patch import CheckpointPatch
from dowser_pl.reporting import read_report

__all__ = ["run_head"]


def run_head(found: CheckpointPatch) -> dict[str, Any]:
    """Configuration and scores of a run, for the head of a patch; what is not known is left out.

    The scores of a report belong to the end of a run, so they are taken where the checkpoint is of that very moment.

    Args:
        found: a checkpoint, in ``RUN/checkpoints``.

    Raises:
        ValueError: if the report cannot be read.
    """
    run, head = found.file.absolute().parent.parent, dict[str, Any]()
    if found.file.name == "previous.ckpt":  # of an earlier run, whose folder this was
        return head
    if (run / "config.yaml").is_file():
        head["config"] = (run / "config.yaml").read_text(encoding="utf-8")
    if (run / "report.json").is_file():
        report = read_report(run)
        if (report.steps, report.frozen_digest.get("before")) == (found.steps, found.frozen_digest):
            head["scores"] = report.scores()
    return head
