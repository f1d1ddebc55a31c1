"""Fine-tune multimodal LLMs without forgetting what they already know."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# the public names and the modules that they come from, in the one list that type checkers read as well
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOMES = {name: module for module, name in re.findall(r"^from (\S+) import (\w+)", _STUB, flags=re.MULTILINE)}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - all are strings


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the package alone loads neither torch nor Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(_HOMES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    """What is there and what can be had."""
    return sorted({*globals(), *__all__})
