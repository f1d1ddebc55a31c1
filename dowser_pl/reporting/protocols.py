"""How the numbers of a report were measured: told under the table, and a reason not to compare two reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from dowser_pl.errors import DowserError
from dowser_pl.reporting.report import Report

OWN = "own"
"""The protocol of a task that follows none of a name."""


def check_protocols(reports: Sequence[Report]) -> None:
    """Refuse to put numbers side by side that were measured in different ways.

    Reports of versions that did not tell are compared as they are.

    Raises:
        DowserError: two reports have a task of one name that was asked or scored by different protocols.
    """
    first: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for number, report in enumerate(reports, 1):
        for name, task in report.tasks.items():
            if not task.protocol:
                continue
            earlier, protocol = first.setdefault(name, (number, task.protocol))
            if told := _difference(protocol, task.protocol, earlier, number):
                raise DowserError(
                    f"Task {name!r} was not measured in the same way: {told}. Evaluate both by one protocol, or give "
                    "the tasks different names."
                )


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], first: int, second: int) -> str:
    one, other = ({"padding": "processor", **told} for told in (one, other))  # earlier versions knew no other
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
    return "; ".join(f"{key} is {one.get(key)!r} in run {first}, {other.get(key)!r} in run {second}" for key in keys)


def protocol_facts(report: Report) -> list[tuple[str, str]]:
    """For the foot of a table: ("protocol llava", what is asked how), a line for each protocol that has a name."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, task in report.tasks.items():
        if task.protocol.get("name", OWN) != OWN:
            found.setdefault(task.protocol["name"], {})[name] = task.protocol
    return [(f"protocol {name}", _told(tasks)) for name, tasks in found.items()]


def _told(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """How each task was asked, and of all of them who scored and whose pictures were padded."""
    scorers = dict.fromkeys(str(each.get("scorer", "?")) for each in tasks.values())
    squares = [name for name, each in tasks.items() if each.get("padding") == "square"]
    whose = "" if len(squares) == len(tasks) else f" of {', '.join(squares)}"
    padded = [f"pictures{whose} padded to squares"] if squares else []
    asked = [f"{name}: {_asked(each)}" for name, each in tasks.items()]
    return "; ".join([*asked, f"scored by {', '.join(scorers)}", *padded])


def _asked(protocol: Mapping[str, Any]) -> str:
    tokens = protocol.get("max_new_tokens")
    asked = "" if tokens is None else f", {tokens} new tokens"
    return f"{protocol.get('metric')}{asked}{', with OCR tokens' if protocol.get('ocr_tokens') else ''}"
