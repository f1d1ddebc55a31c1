"""Reading a JSON object field by field, so that an error names the file, the field, what it is and should be."""

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from dowser_pl.errors import DowserError

T = TypeVar("T")

KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


def kind(value: Any) -> str:
    """What a JSON value is, for an error message."""
    return "null" if value is None else KINDS.get(type(value), f"the number {value}")


class Fields:
    """One object of a JSON file; `where` is its place in errors ("runs/a/report.json: tasks.colour")."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise DowserError(f"{where} is {kind(value)}, expected an object with named fields.")
        self.value, self.where = value, where

    @classmethod
    def parse(cls, text: str, source: str) -> "Fields":
        """Parse a whole file; ValueError with line and column if it is not JSON."""
        try:
            return cls(json.loads(text), source)
        except json.JSONDecodeError as error:
            raise DowserError(
                f"{source} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}."
            ) from error

    def get(self, key: str) -> Any:
        """The value of a field that must be there."""
        if key not in self.value:
            raise DowserError(f"{self.where} has no field {key!r}; it has: {', '.join(self.value) or 'none'}.")
        return self.value[key]

    def wrong(self, key: str, expected: str) -> DowserError:
        """The error for a field that is there but is not what it should be."""
        return DowserError(f"{self.where}: the field {key!r} is {kind(self.get(key))}, expected {expected}.")

    def section(self, key: str) -> "Fields":
        """A field that is itself an object."""
        return Fields(self.get(key), f"{self.where}: {key}")

    def section_or_empty(self, key: str) -> "Fields":
        """A field that is an object, null or missing."""
        return self.section(key) if self.given(key) else Fields({}, f"{self.where}: {key}")

    def sections(self, key: str) -> list["Fields"]:
        """A field that is a list of objects."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list of objects")
        return [Fields(entry, f"{self.where}: {key}[{place}]") for place, entry in enumerate(value)]

    def text(self, key: str) -> str:
        """Read a value that is a text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def number(self, key: str) -> float:
        """Read a value that is a finite number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "a number")
        return float(value)

    def count(self, key: str) -> int:
        """A whole number, at least 0."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(key, "a whole number of at least 0")
        return value

    def flag(self, key: str) -> bool:
        """Read a value that is true or false."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def nullable(self, key: str, read: Callable[[str], T]) -> T | None:
        """A field that must be there but may be null."""
        return None if self.get(key) is None else read(key)

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """A field that may be null or missing."""
        return read(key) if self.given(key) else None

    def given(self, key: str) -> bool:
        """False if a field is missing or null."""
        return self.value.get(key) is not None
