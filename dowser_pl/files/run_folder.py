"""What a run leaves in its folder, and that another run does not replace it unasked.

A second run of a folder is refused, not given a folder of another name: whoever looks into `runs/mine` after a run
shall find that run there. It is refused before a model is loaded, so a mistake costs seconds.
"""

import shutil
from pathlib import Path

from dowser_pl.errors import DowserError

__all__ = ["clear", "goes_on", "refuse_another_run"]

_FILES = (
    "report.json",
    "report.md",
    "report.html",
    "report.png",
    "curve.png",
    "answers.jsonl",
    "patch.safetensors",
)
_FOLDERS = {"model": "config.json", "adapter": "adapter_config.json"}  # with a file that tells that one is ours
_EARLIER = "previous.ckpt"


def refuse_another_run(folder: Path, ckpt_path: str | Path | None) -> None:
    """Refuse to train into a folder that holds another run, finished or not.

    Args:
        folder: of the run that is to begin.
        ckpt_path: what it goes on from, as the Trainer takes it; a run goes on in its own folder.

    Raises:
        DowserError: saying what is there, and all ways out.
    """
    if goes_on(folder, ckpt_path):
        return
    results = [name for name in (*_FILES, *_FOLDERS) if (folder / name).exists()]
    checkpoints = [str(path.relative_to(folder)) for path in _checkpoints(folder)]
    if not results and not checkpoints:
        return
    kind = "another run" if results else "a run that has not ended"
    ways = [f"Choose another folder (--trainer.default_root_dir {_free(folder)})"]
    if checkpoints:
        ways.append("go on with that run (--ckpt_path last)")
    ways.append("replace it (--overwrite true)")
    raise DowserError(
        f"{folder} holds {kind} ({', '.join([*results, *checkpoints][:4])}), expected a folder without one; nothing "
        f"was changed. {', or '.join(ways)}"
    )


def goes_on(folder: Path, ckpt_path: str | Path | None) -> bool:
    """Whether a run with this checkpoint goes on with what the folder holds, rather than beginning anew beside it."""
    if ckpt_path is None:
        return False
    if ckpt_path == "last":  # the Trainer begins anew where there is none
        return any(path.name.startswith(("last", ".last")) for path in _checkpoints(folder))
    if ckpt_path == "hpc":
        return True
    path = Path(ckpt_path).resolve()
    return path.name != _EARLIER and folder.resolve() in path.parents


def clear(folder: Path, base: str) -> None:
    """Delete what another run left, so that nothing of it is taken for what comes; checkpoints are not touched.

    Args:
        folder: of a run that is about to train.
        base: path of its model, which stays wherever it lies.
    """
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for name, told_by in _FOLDERS.items():
        path = folder / name
        if (path / told_by).is_file() and path.resolve() not in (Path(base).resolve(), *Path(base).resolve().parents):
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    """Also those that a kill left under a hidden name; files and folders."""
    found = [*folder.glob("checkpoints/*.ckpt"), *folder.glob("checkpoints/.*.ckpt.*.old"), *folder.glob("hpc_ckpt_*")]
    return sorted(path for path in found if path.name != _EARLIER and not path.name.endswith(".tmp.ckpt"))


def _free(folder: Path) -> Path:
    """The same name with the first number that is free."""
    number = 1
    while (path := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return path
