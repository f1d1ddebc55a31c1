"""JSON files changed in one place: every other byte, the order of the keys and the spaces stay as they were."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dowser_pl.errors import DowserError
from dowser_pl.patches.safetensors_file import FLOATING, dtype_name

__all__ = ["edit", "read_object", "with_dtype", "with_total_size", "with_value"]

_SPACE = re.compile(r"[ \t\r\n]*")
_DTYPES = "|".join(sorted(dtype_name(dtype) for dtype in FLOATING))
# beside them VILA's model_dtype, which is an expression: torch.bfloat16
_DTYPE = re.compile(rf'("(?:torch_)?dtype"\s*:\s*"|"model_dtype"\s*:\s*"torch\.)(?:torch\.)?(?:{_DTYPES})"')
_TOTAL_SIZE = re.compile(r'("total_size"\s*:\s*)[0-9.eE+]+')


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DowserError: if it holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DowserError(f"{path} is no JSON ({error}); copy or download it again") from error
    if not isinstance(content, dict):
        raise DowserError(f"{path} holds no JSON object; copy or download it again")
    return content


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Write a JSON file again where something is changed in its text."""
    before = path.read_bytes().decode("utf-8")  # line ends as they are
    after = change(before)
    json.loads(after)
    if after != before:
        path.write_bytes(after.encode("utf-8"))


def with_value(text: str, key: str, value: Any, part: str | None = None) -> str:
    """The text of an object with another value of one of its keys, which is put last where it does not have it.

    Args:
        text: of the object.
        key: one of its keys.
        value: the new one.
        part: key of an object in it that is meant instead, if it is there.
    """
    where = None if part is None else _last_value(text, part)[0]
    if where is not None:
        return text[: where[0]] + with_value(text[slice(*where)], key, value) + text[where[1] :]
    new = json.dumps(value, ensure_ascii=False)
    found, end = _last_value(text, key)
    if found is not None:
        return text[: found[0]] + new + text[found[1] :]
    indent = re.search(r"\{(\s*)\"", text)
    space = indent[1] if indent else ""
    comma = "," if json.loads(text) else ""
    return f"{text[:end]}{comma}{space or (' ' if comma else '')}{json.dumps(key)}: {new}{text[end:]}"


def with_dtype(text: str, dtype: str) -> str:
    """The text of a config with every floating `dtype`, also those of its parts (text_config ...), replaced."""
    return _DTYPE.sub(rf'\g<1>{dtype}"', text)


def with_total_size(text: str, size: int) -> str:
    """The text of an index with another size of all tensors."""
    return _TOTAL_SIZE.sub(rf"\g<1>{size}", text, count=1)


def _last_value(text: str, key: str) -> tuple[tuple[int, int] | None, int]:
    """Where the value of a key lies in an object (of equal keys, the last one), and where the last entry ends."""
    found, end = None, text.index("{") + 1
    position = _skip(text, end)
    while text[position] == '"':
        name, position = json.JSONDecoder().raw_decode(text, position)
        start = _skip(text, _skip(text, position) + 1)  # behind the colon
        _, end = json.JSONDecoder().raw_decode(text, start)
        if name == key:
            found = start, end
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return found, end


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()
