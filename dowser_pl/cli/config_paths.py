"""Short names of the shipped configurations: ``-c base`` is ``configs/base.yaml``."""

from pathlib import Path

from dowser_pl.errors import nearest_of

__all__ = ["resolve_configs"]

_PACKAGED = Path(__file__).parents[1] / "configs"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "configs"  # in a clone


def resolve_configs(args: list[str]) -> list[str]:
    """Replace short names after ``-c``, ``--config`` and ``--config=`` by paths; other values stay as they are.

    A file of that path wins; then ``configs/<name>[.yaml]`` under the working folder, then the shipped ones.

    Args:
        args: the command line without the program.

    Raises:
        ValueError: if neither exists, naming what there is and what was probably meant.
    """
    resolved = []
    for position, argument in enumerate(args):
        if argument.startswith("--config="):
            resolved.append("--config=" + _find(argument.removeprefix("--config=")))
        elif position and args[position - 1] in ("-c", "--config"):
            resolved.append(_find(argument))
        else:
            resolved.append(argument)
    return resolved


def _find(name: str) -> str:
    if Path(name).is_file():
        return name
    relative = name.removeprefix("configs/")
    for folder in (Path("configs"), _PACKAGED, _CHECKOUT):
        for candidate in (folder / relative, folder / f"{relative}.yaml"):
            if candidate.is_file():
                return str(candidate)
    raise ValueError(
        f"there is no configuration file {name!r}, neither under {Path.cwd()} nor among the shipped ones "
        f"({', '.join(shipped())}){_meant(relative.removesuffix('.yaml'))}"
    )


def shipped() -> list[str]:
    """Short names of the configurations that come with the package."""
    folder = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _meant(name: str) -> str:
    """What was probably meant; ``dare`` and ``modle/world`` find ``method/dare`` and ``model/world``."""
    folder = Path("configs")
    own = (str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    names = sorted({*own, *shipped()})
    without_folder: dict[str, str] = {}
    for each in names:
        last = each.rpartition("/")[2]
        without_folder[last] = f"{without_folder[last]} or {each}" if last in without_folder else each
    whole = dict(zip(names, names, strict=True))
    first, second = (whole, without_folder) if "/" in name else (without_folder, whole)
    return nearest_of(name, first) or nearest_of(name, second)
