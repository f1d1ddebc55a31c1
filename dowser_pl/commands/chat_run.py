"""What `chat` does; loads torch, so `--help` does without this file."""

import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import yaml

from dowser_pl.commands.tuned import dtype_of, loaded, named_base, tuned, tuned_path
from dowser_pl.errors import DowserError, MissingFileError, nearest_path
from dowser_pl.module import MultimodalModule
from dowser_pl.module.asking import ask, check_images_are_read

__all__ = ["run"]


def run(options: Namespace) -> str:
    """Ask, and print each answer as it comes where questions are read line by line; returns what is left to print."""
    if options.max_new_tokens < 1:
        raise DowserError(f"got --max-new-tokens {options.max_new_tokens}, expected at least 1")
    images = [Path(name).expanduser() for name in options.image]
    for image in images:
        if not image.is_file():
            raise MissingFileError(f"there is no image {image}{nearest_path(image)}")
    what = tuned_path(options.tuned)
    given = Path(options.tuned).expanduser()
    path = options.base or named_base(given) or named_base(what)
    if path is None:
        raise DowserError(f"{given} does not say which model it was tuned from. Fix: give it with --base")
    dtype = dtype_of(what) or "auto" if options.dtype == "auto" else options.dtype
    check_images_are_read(MultimodalModule(path), images)
    base = loaded(path, dtype)
    base.chat_template = options.chat_template or _template_of(given)
    with ExitStack() as stack:
        second = None
        if what.is_dir() and not (what / "adapter_config.json").is_file():  # loaded once, not for each question
            second = stack.enter_context(tuned(base, what, dtype))

        def both(question: str) -> str:
            said = ask(base, base.network, question, images, options.max_new_tokens)
            if second is not None:
                return _side(said, ask(base, second, question, images, options.max_new_tokens))
            with tuned(base, what, dtype) as network:
                return _side(said, ask(base, network, question, images, options.max_new_tokens))

        if options.question:
            return "\n\n".join(f"> {question}\n{both(question)}" for question in options.question)
        asked = 0
        for question in _lines():
            print(both(question), end="\n\n", flush=True)
            asked += 1
        return f"{asked} questions."


def _lines() -> Iterator[str]:
    """What a person types, until an empty line or the end; asked for where there is a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _side(base: str, other: str) -> str:
    said = {"base": base, "tuned": other}
    return "\n".join(f"{name:<7}{textwrap.indent(text or '(nothing)', ' ' * 7)[7:]}" for name, text in said.items())


def _template_of(given: Path) -> str | None:
    """The chat template that a run was trained with, where it was another than the model's own."""
    config = given / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    data = ((settings or {}).get("data") or {}).get("init_args") or {}
    template = data.get("chat_template")
    return None if template is None else str(template)
