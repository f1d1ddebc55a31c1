"""The local folder behind a model that a person names: a folder, an embedded model, or a hub id in the cache."""

from pathlib import Path

__all__ = ["model_folder"]


def model_folder(name: str) -> Path:
    """Find it, without the network.

    Raises:
        FileNotFoundError: if there is no such folder and the cache has no such model.
        DowserError: if it is something else.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    from dowser_pl.models.sources import stored_folder  # noqa: PLC0415 - slow, and a plain folder does not need it

    return stored_folder(name)
