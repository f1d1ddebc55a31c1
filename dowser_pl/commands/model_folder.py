"""The local folder behind a model that a person names: a folder, an embedded model, or a hub id in the cache."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from dowser_pl.nearest import nearest_path

__all__ = ["model_folder"]


def model_folder(name: str) -> Path:
    """Find it, without the network.

    Raises:
        FileNotFoundError: if there is no such folder and the cache has no such model.
        ValueError: if it is something else.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    from dowser_pl.models.sources import locate  # noqa: PLC0415 - loads transformers, which a plain folder does not need

    located = locate(name)
    if Path(located).is_dir():
        return Path(located)
    try:
        return Path(snapshot_download(located, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"got {name!r}: there is no such folder{nearest_path(folder)}, and the cache of the hub has no such model; "
            f"correct the name, or fetch the model once (hf download {name})"
        ) from error
