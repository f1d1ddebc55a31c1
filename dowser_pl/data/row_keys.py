"""The keys of a row beside its turns: what is there, what is refused, and what nobody reads."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from dowser_pl.errors import DowserError

LOSS_KEYS = ("loss", "weight", "train", "training", "loss_weight")
"""How files say whether a turn is learnt."""
_ROW_LOSS_KEYS = ("loss", "weight", "loss_weight")  # "train" of a row may say of which split it is
SYSTEM_KEYS = ("system", "system_prompt")
_READ = frozenset({"conversations", "messages", "image", "images", *SYSTEM_KEYS})
# Where a row comes from, what it is called, and what its picture is like: nothing that a model is to be told.
_HARMLESS = (
    "id uid idx index question_id image_id answer_id sample_id data_id source dataset dataset_name data_source "
    "data_type split task task_name category subcategory sub_category l2-category type question_type answer_type "
    "topic subject domain difficulty language lang license author model metadata meta meta_data tags image_source "
    "width height image_width image_height image_size"
)
_KNOWN = _READ | set(_HARMLESS.split())
_TURN = frozenset({"from", "role", "value", "content", "name", "id", *LOSS_KEYS})
_PART = frozenset({"type", "text", "image", "path", "url", "base64", "bytes", "image_url", "index", "detail", "id"})
_MEDIA = re.compile(r"(?:video|audio|speech)s?(?:_?(?:path|file|url|bytes))?s?", re.IGNORECASE)
_MEDIA_PLACEHOLDER = re.compile(r"<\|?(?:video|audio|speech)(?:_?(?:pad|bos|eos|start|end|\d+))?\|?>", re.IGNORECASE)
_ADVICE = (
    "Videos and sound are not read, only text and images: remove the row, give frames as `images`, or leave such rows "
    "out and have them counted with `skip_bad_rows: true`."
)


def absent(value: Any) -> bool:
    """Whether nothing stands there: null, NaN (an empty cell of a table), or an empty text, list or object."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def is_blank(value: Any) -> bool:
    """Whether nothing stands there at any depth: tables fill the columns that a row lacks with objects of nulls."""
    if isinstance(value, dict):
        return all(map(is_blank, value.values()))
    return all(map(is_blank, value)) if isinstance(value, list | tuple) else absent(value)


def refuse_media(name: str, row: dict[str, Any]) -> None:
    """Raise ValueError for a row that brings a video or sound."""
    for key, value in row.items():
        if _MEDIA.fullmatch(key) and value is not False and not is_blank(value):
            raise DowserError(f"{name}: got {key}={str(value)[:60]!r}. {_ADVICE}")


def refuse_media_part(turn: str, part: Any) -> None:
    """Raise ValueError for a part of a turn that is a video or sound."""
    kind = str(part.get("type", "")) if isinstance(part, dict) else ""
    if "video" in kind or "audio" in kind:
        raise DowserError(f"{turn}: got a part of type {kind!r}. {_ADVICE}")


def refuse_media_placeholder(turn: str, text: str) -> None:
    """Raise ValueError for a question with a place for a video or sound."""
    if found := _MEDIA_PLACEHOLDER.search(text):
        raise DowserError(f"{turn}: got the placeholder {found[0]!r}. {_ADVICE}")


def refuse_switched_off(name: str, row: dict[str, Any]) -> None:
    """Raise ValueError for a row whose loss is off as a whole."""
    for key in _ROW_LOSS_KEYS:
        if isinstance(row.get(key), bool | int | float) and row[key] == 0:
            raise DowserError(
                f"{name}: got {key}: {row[key]!r} for the whole row, so that nothing of it is learnt. Remove the row, "
                "or switch off single turns by such a key of their own; `skip_bad_rows: true` leaves such rows out."
            )


def unread_keys(row: dict[str, Any], read: Collection[str] = ()) -> Iterator[str]:
    """The keys with a value that nobody reads; those of turns and parts as "messages[].name".

    Args:
        row: a conversation, or a question with its answer.
        read: which keys of the row are read beside the usual ones.
    """
    spoken = next((key for key in ("conversations", "messages") if not absent(row.get(key))), None)
    for key in (row.keys() - _KNOWN) | {"messages"} & row.keys() - {spoken}:
        if key not in read and not is_blank(row[key]):
            yield key
    turns = row[spoken] if spoken and isinstance(row[spoken], list) else []
    for turn in turns:
        if isinstance(turn, dict):
            yield from (f"{spoken}[].{key}" for key in turn.keys() - _TURN if not is_blank(turn[key]))
            parts = turn.get("content")
            for part in parts if isinstance(parts, list) else []:
                if isinstance(part, dict):
                    yield from (f"content[].{key}" for key in part.keys() - _PART if not is_blank(part[key]))


def warn_of_unread(what: str, unread: Iterable[Iterable[str]]) -> None:
    """One warning that names all keys that are not read, and in how many rows they are.

    Args:
        what: the file or the set.
        unread: per row, as `unread_keys` finds them.
    """
    counts: Counter[str] = Counter()
    num_rows = 0
    for keys in unread:
        counts.update(set(keys))
        num_rows += 1
    if counts:
        shown = ", ".join(f"{key!r} ({count})" for key, count in sorted(counts.items()))
        rank_zero_warn(
            f"{what}: nothing reads these keys of its {num_rows} rows (in how many of them): {shown}. If the model is "
            "to see them, write them into the turns or the question.",
            category=UserWarning,
        )
