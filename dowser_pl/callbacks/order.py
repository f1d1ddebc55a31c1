"""In which order callbacks must stand where training ends, what each makes being for the next; and finding one."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

from dowser_pl.errors import DowserError

__all__ = ["BEFORE", "check_order", "find_callback", "need_dowser"]

T = TypeVar("T")

BEFORE = (
    ("Dowser", "Export", "it checks that no frozen entry moved and merges the model, which is exported then"),
    ("Dowser", "Forgetting", "it counts what moved, and the report is of the model that it merged"),
    ("Dowser", "PatchFile", "the patch holds the entries that are left when it has merged the model"),
    ("Forgetting", "PatchFile", "the patch tells the scores of the report"),
)
"""(earlier, later, why), by the names of classes; all other callbacks may stand anywhere."""

_EXPECTED = ("Dowser", "Export", "Forgetting", "PatchFile")
_ONCE = ("Dowser", "Curve", "Forgetting", "PatchFile", "Export")


def check_order(trainer: Trainer) -> None:
    """Refuse, before anything runs, an order that would fail or give a wrong file when training ends.

    Raises:
        DowserError: saying all that is wrong with it, and the right order.
    """
    callbacks = enabled(trainer)
    names = [name for each in callbacks if (name := _kind(each)) is not None]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DowserError(
            f"got {names.count(twice[0])} callbacks {twice[0]}, expected one: both would mask the model, or write the "
            "same file. Fix: remove one from trainer.callbacks; on the command line there is one already"
        )
    wrong = [
        f"{first} before {second}, as {why}"
        for first, second, why in BEFORE
        if first in names and second in names and names.index(first) > names.index(second)
    ]
    if wrong:
        got = ", ".join(type(each).__name__ for each in callbacks)
        right = ", ".join(name for name in _EXPECTED if name in names)
        raise DowserError(f"got trainer.callbacks {got}; expected {'; '.join(wrong)}. Fix: give them as {right}")


def need_dowser(trainer: Trainer, asker: Callback) -> None:
    """Refuse a callback that works with what `Dowser` found out, where there is none.

    Raises:
        DowserError: saying so.
    """
    if "Dowser" not in map(_kind, enabled(trainer)):
        raise DowserError(
            f"{type(asker).__name__} tells what the callback Dowser did, and got trainer.callbacks without one. Fix: "
            f"put Dowser before it, or leave {type(asker).__name__} out"
        )


def find_callback(trainer: Trainer, kind: type[T]) -> T | None:
    """The first callback of a run that is of this kind; None = there is none."""
    return next((each for each in trainer.callbacks if isinstance(each, kind)), None)  # type: ignore[attr-defined]


def enabled(trainer: Trainer) -> list[Callback]:
    """The callbacks of a run, but for those that are switched off."""
    return [each for each in trainer.callbacks if getattr(each, "enabled", True)]  # type: ignore[attr-defined]


def _kind(callback: Callback) -> str | None:
    """Which of those that the order is about it is, or is a subclass of."""
    return next((each.__name__ for each in type(callback).__mro__ if each.__name__ in _ONCE), None)
