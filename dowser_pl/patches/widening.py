"""A folder converted to a dtype that holds every number it had, and back: every file is then as it was, byte for byte.

The numbers of the shards come back by converting them again; how a file was laid out does not, and is kept.
"""

from pathlib import Path

from dowser_pl.patches.applied import Widening, file_digest
from dowser_pl.patches.conversion import fits, write_under
from dowser_pl.patches.model_folder import CONFIG, INDEX, find_shards, find_slots
from dowser_pl.patches.safetensors_file import CASTABLE, dtype_name, read_header

__all__ = ["check_narrowable", "describe_widening", "narrow"]

_DESCRIPTIONS = (CONFIG, INDEX)


def describe_widening(base: Path, widened: Path) -> Widening:
    """What brings a converted folder back; reads every shard of the base once.

    Args:
        base: the folder before.
        widened: its converted copy, before any patch.
    """
    before = {dtype_name(slot.dtype) for slot in find_slots(base).values() if slot.code in CASTABLE}
    shards = _shards(base)
    described = [name for name in _DESCRIPTIONS if (widened / name).is_file()]
    contents = {name: read_header(base / name)[0].decode() for name in shards}
    contents |= {name: (base / name).read_bytes().decode() for name in described}
    return Widening(
        ", ".join(sorted(before)),
        contents,
        {name: file_digest(base / name) for name in contents},
        {name: file_digest(widened / name) for name in described},
    )


def check_narrowable(folder: Path, widening: Widening) -> None:
    """Refuse a folder whose files are not those that were converted.

    Raises:
        ValueError: naming the first one.
    """
    described = {name for name in _DESCRIPTIONS if (folder / name).is_file()}
    odd = sorted(set(widening.contents) ^ {*_shards(folder), *described} or set(widening.written) ^ described)
    if odd:
        raise ValueError(_changed(folder, odd[0]))
    for name, content in widening.contents.items():
        if name in widening.written:
            same = file_digest(folder / name) == widening.written[name]
        else:
            same = fits(folder / name, content.encode())
        if not same:
            raise ValueError(_changed(folder, name))


def narrow(folder: Path, widening: Widening, called: Path) -> None:
    """Convert a folder that is ours back, in place, once all of its patches are off.

    Args:
        folder: a copy of one that :func:`check_narrowable` let pass.
        widening: what it was.
        called: the name under which a person knows it.

    Raises:
        ValueError: if a file does not come out as it was, or was not what it was converted to (also where the base
            itself held a NaN, whose bits a conversion need not keep); the folder is half converted then.
    """
    for name, content in widening.contents.items():
        path, exact = folder / name, True
        if name in widening.written:
            path.write_bytes(content.encode())
        else:
            narrowed = path.with_name(f".{path.name}.narrowed")
            exact = write_under(path, narrowed, content.encode())
            narrowed.replace(path)
        if not exact or file_digest(path) != widening.digests[name]:
            raise ValueError(_changed(called, name))


def _shards(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_shards(folder)]


def _changed(folder: Path, name: str) -> str:
    return (
        f"{name} in {folder} was changed after it was converted for the patch, expected it as `patch apply` left it. "
        "Nothing was written; undo that change, or apply the patch to its base again and go on from there"
    )
