"""Write the pages of docs/ that are made from the code: options, methods, and the notebook as a page.

    python tools/write_docs.py

`tests/docs/test_made_pages.py` says when they are old.
"""

import base64
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser

import dowser_pl.methods
from dowser_pl import ConversationData, Method, WorldData
from dowser_pl.cli import main as command_line

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "tutorials" / "steps.ipynb"
MADE = "<!-- made by tools/write_docs.py -->"
SECTIONS = {
    "model": "The model, what of it is tuned, and how.",
    "dowser": "The method, the importance pass and what is kept. The options of a method: [methods](methods.md).",
    "curve": "",
    "budget": "",
    "export": "",
    "report": "",
    "patch": "",
    "checkpoint": "",
    "overwrite": "",
}
LINKED = {"help", "budget.ratios", "checkpoint.folder"}  # taken from other options
OF_VERBS = {"tokens", "tokens_per_second", "json", "format"}  # others are Lightning's
STAGES = {
    "before_fit": "before training: a mask",
    "each_step": "after every step: a rule",
    "after_fit": "after training: a merge",
}


OPTIONS_HEAD = f"""{MADE}

# Every option

What `fit` takes, on the command line as `--section.option value` and in YAML as `section: {{option: value}}`. The other
training verbs take the same. [Options that matter](options.md) has the short list.
"""
TRAINER_HEAD = """## trainer

Every argument of Lightning's `Trainer` is an option under `trainer.`, by the same name and with the same meaning. These
have another default here:
"""
OPTIONS_END = """
## Beside them

`seed_everything` and `ckpt_path` as in Lightning; `-c` or `--config` names a configuration, and may come several times;
`--print_config` shows what they come to.
"""
METHODS_HEAD = f"""{MADE}

# Methods

`--dowser.method NAME`, or in YAML `dowser: {{method: {{class_path: NAME, init_args: {{…}}}}}}`. [When a method
decides](../explanation/methods.md) says what the three times mean; [one of your own](../how-to/extend.md) is named by
its path.

| method | decides | published |
| :-- | :-- | :-- |"""


class _BuiltError(Exception):
    """Carries the parser out of the command line before it reads anything."""


def training_parser() -> Any:
    """The parser of the training verbs, as a command line that names none builds it."""
    original = command_line.DowserCLI.parse_arguments

    def carry_out(_cli: Any, parser: Any, _args: Any) -> None:
        raise _BuiltError(parser)

    command_line.DowserCLI.parse_arguments = carry_out
    try:
        command_line.main([])
    except _BuiltError as built:
        return built.args[0]
    finally:
        command_line.DowserCLI.parse_arguments = original
    raise RuntimeError("the command line read its arguments without LightningCLI.parse_arguments")


def kind(hint: Any) -> str:
    """A type as words of a table: `int or null`, `last or all`."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(kind(each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    if hint is NoneType:
        return "`null`"
    if get_origin(hint) in (list, tuple) or str(get_origin(hint)).endswith("Sequence'>"):
        return f"list of {kind(get_args(hint)[0])}"
    if "Callable" in str(hint):
        return "class"
    return str(getattr(hint, "__name__", hint))


def value(default: Any) -> str:
    """A default as YAML writes it; a class by its name."""
    if default is None or default == "==SUPPRESS==":
        return ""
    if hasattr(default, "get") and default.get("class_path"):
        settings = default.get("init_args") or {}
        arguments = ", ".join(f"{name} {value(each).strip('`')}" for name, each in settings.items())
        return f"`{default['class_path'].rpartition('.')[2]}`{f', {arguments}' if arguments else ''}"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def cell(text: str | None) -> str:
    """A help text in one cell of a table."""
    plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", (text or "").replace("``", "`"))
    return re.sub(r"\s+", " ", plain).replace("|", "\\|").strip()


def options(parser: Any) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, meaning) of every option that is one."""
    for action in parser._actions:
        hint = getattr(action, "_typehint", None) or action.type
        if hint is not None and not action.dest.endswith(".help") and action.dest not in LINKED:
            yield action.dest, kind(hint), value(action.default), cell(action.help)


def table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    """Options as a table."""
    head = ["| option | takes | default | meaning |", "| :-- | :-- | :-- | :-- |"]
    return [*head, *(f"| `{name}` | {takes} | {default} | {meaning} |" for name, takes, default, meaning in rows)]


def class_options(cls: type, prefix: str) -> list[tuple[str, str, str, str]]:
    """Options of a class that YAML names."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, prefix)
    return [(name, *rest) for name, *rest in options(parser)]


def summary(cls: type) -> str:
    """The first paragraph of a docstring."""
    return cell((inspect.getdoc(cls) or "").split("\n\n")[0])


def every_option() -> str:
    """The page of all options of `fit`."""
    verbs = training_parser()._subcommands_action._name_parser_map
    parser = verbs["fit"]
    found = list(options(parser))
    lines = [OPTIONS_HEAD]
    for section, words in SECTIONS.items():
        rows = [row for row in found if row[0].split(".")[0] == section]
        if rows:
            lines += [f"## {section}", "", *([words, ""] if words else []), *table(rows), ""]
    for cls in (ConversationData, WorldData):
        lines += [f"## data: {cls.__name__}", "", summary(cls), ""]
        lines += [*table(class_options(cls, "data")), ""]
    lines += [TRAINER_HEAD]
    own = parser.get_defaults()["trainer"]
    for name in ("default_root_dir", "num_sanity_val_steps", "enable_model_summary"):
        lines.append(f"- `trainer.{name}`: {value(own[name])}")
    lines += [OPTIONS_END]
    for verb, other in verbs.items():
        rows = [row for row in options(other) if row[0] not in {name for name, *_ in found} and row[0] in OF_VERBS]
        if rows:
            lines += [f"## Of {verb} alone", "", *table(rows), ""]
    return "\n".join(lines)


def methods() -> list[type[Method]]:
    """The methods that YAML can name, in the order in which they decide."""
    found = [each for each in vars(dowser_pl.methods).values() if inspect.isclass(each) and issubclass(each, Method)]
    real = {each for each in found if not inspect.isabstract(each) and hasattr(each, "reference")}
    order = list(STAGES)
    return sorted(real, key=lambda each: (order.index(each.stage), each.__name__ != "ModelDowser", each.__name__))


def every_method() -> str:
    """The page of all methods."""
    lines = [METHODS_HEAD]
    for method in methods():
        name = method.__name__
        lines.append(f"| [{name}](#{name.lower()}) | {STAGES[method.stage]} | {published(method)} |")
    for method in methods():
        lines += ["", f"## {method.__name__}", "", summary(method), ""]
        reference = method.reference
        words = [f"{reference.authors}: *{reference.title}*" if reference.authors else "", published(method)]
        lines += [f"{', '.join(filter(None, words))}.", ""] if reference.year else []
        rows = class_options(method, "dowser.method")
        lines += table(rows) if rows else ["It has no options."]
    return "\n".join(lines) + "\n"


def published(method: type[Method]) -> str:
    """Year and link of a method's source."""
    year, arxiv = method.reference.year, method.reference.arxiv
    return f"{year}, [arXiv {arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else str(year or "")


def notebook_page() -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by file name."""
    parts, pictures = [MADE], {}
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for each in cells:
        source = "".join(each["source"])
        if each["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in each["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            else:
                name = f"steps_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![what the cell draws](../assets/{name})")
    where = "It is a notebook, [steps.ipynb](steps.ipynb), which a test runs from top to bottom."
    parts.insert(2, where)
    return "\n\n".join(parts) + "\n", pictures


def pages() -> dict[Path, bytes]:
    """Everything that is made, by its file."""
    text, pictures = notebook_page()
    made = {
        DOCS / "reference" / "every_option.md": every_option(),
        DOCS / "reference" / "methods.md": every_method(),
        DOCS / "tutorials" / "steps.md": text,
    }
    written = {path: content.encode() for path, content in made.items()}
    return written | {DOCS / "assets" / name: picture for name, picture in pictures.items()}


def main() -> int:
    """Write what differs."""
    for path, content in pages().items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
            print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
