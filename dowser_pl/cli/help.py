"""`--help` of a training verb in one screen, and `--help-all`: both read from source, without importing torch."""

import ast
import re
import textwrap
from collections.abc import Iterator

from dowser_pl.cli.options import DEFAULT_CLASSES, GROUPS, ROOMS, class_signature, settings_of, table, usable
from dowser_pl.cli.signatures import Kinds, ListOf, Literally, Option, signature

__all__ = ["MATTERS", "default_of", "full_help", "short_help"]

_WIDTH = 80
_COLUMN = 42
_RUN = "python -m dowser_pl"
_OWN = "-c base -c model/llava_1_5_7b -c method/model_dowser"
_FILES = "--data ConversationData --data.train_file my/train.json --data.image_folder my/images"
EXAMPLES = {
    "fit": (
        ("a first run", "fit -c quickstart"),
        ("your data", f"fit {_OWN} {_FILES}"),
        ("go on after it was ended", f"fit {_OWN} {_FILES} --ckpt_path last"),
    ),
    "validate": (
        ("the base model", "validate -c quickstart"),
        ("a tuned one", "validate -c quickstart --model.path runs/quickstart/model"),
        ("a checkpoint", "validate -c quickstart --ckpt_path last"),
    ),
    "test": (
        ("the base model", "test -c quickstart"),
        ("a tuned one", "test -c quickstart --model.path runs/quickstart/model"),
        ("a checkpoint", "test -c quickstart --ckpt_path last"),
    ),
    "predict": (
        ("of a tuned model", "predict -c quickstart --model.path runs/quickstart/model"),
        ("of a checkpoint", "predict -c quickstart --ckpt_path last"),
        ("for servers", "predict -c eval/textvqa_gqa --data.root my --model.path my/model --format server"),
    ),
    "probe": (
        ("fill the cache", "probe -c quickstart"),
        ("with more prompts", "probe -c quickstart --dowser.probe.num_prompts 256"),
        ("a model of yours", "probe --model.path my/model"),
    ),
    "plan": (
        ("a run", "plan -c quickstart"),
        ("on eight cards", f"plan {_OWN} -c strategy/fsdp2 --trainer.devices 8"),
        ("rows of this length", f"plan {_OWN} --tokens 800"),
    ),
}
# the options that matter: what a person sets first comes first
MATTERS = {
    "model.path": "a folder, a hub id or embedded:world",
    "model.last_n_layers": "tune only the last n layers; null: all",
    "model.lora": "tune adapters instead: {r: 16}",
    "model.optimizer.lr": "learning rate (of torch.optim.AdamW)",
    "data": "ConversationData, WorldData, your own",
    "data.train_file": "LLaVA JSON, JSONL, Parquet or hub:name",
    "data.image_folder": "where the paths of images begin",
    "data.tasks": "what else is scored, before and after",
    "data.batch_size": "rows of a process and step",
    "dowser.method": "what to freeze; more in configs/method",
    "dowser.method.update_ratio": "share of entries that may move",
    "dowser.probe.num_prompts": "that the importance is measured on",
    "curve": "smaller ratios to measure as well",
    "budget.max_upstream_drop": "choose the largest that loses no more",
    "trainer.max_epochs": "passes over the data; or .max_steps",
    "trainer.devices": "GPUs to use",
    "trainer.strategy": "ddp, or -c strategy/fsdp2 to shard",
    "trainer.default_root_dir": "where all of the run is written",
    "ckpt_path": "last: go on where the run ended",
    "overwrite": "replace the run of that folder",
}
_DATA = "ConversationData"  # whose options are shown


def short_help(verb: str, purpose: str) -> str:
    """What a verb is for, three examples and the options that matter.

    Args:
        verb: a training verb.
        purpose: of it.
    """
    lines = [f"{_RUN} {verb} [options]", f"  {purpose}", ""]
    for meaning, example in EXAMPLES[verb]:
        lines += [f"  # {meaning}", *_command(f"{_RUN} {example}")]
    lines += ["", f"{'Options, and what they are unless set':<{_COLUMN}}(YAML: nested by the dots)"]
    lines.append(_line("-c, --config FILE", "a YAML, or a name in configs; several"))
    known = table(verb).options
    for name, meaning in MATTERS.items():
        if name in known or name.rpartition(".")[0] in ROOMS:
            default = default_of(name)
            lines.append(_line(f"--{name}" if default is None else f"--{name} {default}", meaning))
    others = f"All {len(known)} options, and those of methods: {_RUN} {verb} --help-all"
    return "\n".join([*lines, "", others, "What a command line sets: the same with --print_config"])


def full_help(verb: str, purpose: str) -> str:
    """Every option of a verb, then those of each method and kind of data."""
    lines = [
        f"{_RUN} {verb} [options]",
        f"  {purpose}",
        "",
        "-c, --config FILE: a YAML of options, or a name in configs; repeatable",
    ]
    group = ""
    for name, option in sorted(table(verb).options.items(), key=_order):
        if name.partition(".")[0] != group and "." in name:
            group = name.partition(".")[0]
            lines += ["", f"{group}:"]
        lines += _entry(f"--{name}", option)
    for owner in ("dowser.method", "data"):
        lines += ["", f"--{owner} is one of these, or a class of yours as my_package.Mine:"]
        for each in usable(owner):
            found = signature(each)
            lines += ["", *textwrap.wrap(f"{each.name}: {found.purpose}", _WIDTH, subsequent_indent="  ")]
            for name, option in found.options.items():
                lines += _entry(f"--{owner}.{name}", option)
    return "\n".join(lines)


def default_of(name: str) -> str | None:
    """What an option is unless it is set, as one writes it in YAML; None: it has to be set, or is off."""
    options, owner = table("fit").options, name.rpartition(".")[0]
    if name == "model.optimizer.lr":
        text = re.search(r"\blr=([^,)]+)", options["model.optimizer"].default or "")
        return text[1] if text else None
    if name in DEFAULT_CLASSES:
        return DEFAULT_CLASSES[name]
    if owner in ROOMS:
        found = class_signature(owner, _DATA if owner == "data" else DEFAULT_CLASSES[owner])
        option = signature(found).options[name.rpartition(".")[2]] if found else None
    else:
        option = options[name]
    return _yaml(option.default) if option and option.default else None


def _yaml(source: str) -> str | None:
    try:
        value = ast.literal_eval(source)
    except ValueError:
        return None
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _order(item: tuple[str, Option]) -> tuple[int, str]:
    groups = ["", *GROUPS]
    name = item[0]
    group = name.partition(".")[0] if "." in name else ""
    return groups.index(group) if group in groups else len(groups), ""


def _command(text: str) -> Iterator[str]:
    together = re.sub(r"(?<= )(-\S+) (?=[^-])", "\\1\0", text)  # an option and its value stay on one line
    lines = textwrap.wrap(together, _WIDTH - 2, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    yield from " \\\n".join(lines).replace("\0", " ").split("\n")


def _line(left: str, right: str) -> str:
    return f"  {left:<{_COLUMN - 3}} {right}"


def _entry(name: str, option: Option) -> Iterator[str]:
    kinds = _kinds(option.kinds)
    default = _yaml(option.default) if option.default else None
    yield from textwrap.wrap(
        f"  {name}{f' {kinds}' if kinds else ''}{'' if default is None else f' (default {default})'}",
        _WIDTH,
        subsequent_indent="      ",
        break_on_hyphens=False,
    )
    yield from textwrap.wrap(
        option.meaning, _WIDTH, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
    )
    for each in settings_of(option.kinds) or ():
        for inner in signature(each).options.values():
            yield from _entry(f"{name}.{inner.name}", inner)


def _kinds(kinds: Kinds) -> str:
    texts = []
    for kind in kinds:
        if isinstance(kind, Literally):
            texts.append(kind.text)
        elif isinstance(kind, ListOf):
            texts.append(f"[{_kinds(kind.kinds)}, ...]")
        elif isinstance(kind, str) and kind in ("int", "float", "bool", "str", "None"):
            texts.append("null" if kind == "None" else kind)
        else:
            texts.append("..." if isinstance(kind, str) else kind.name)
    shown = "|".join(dict.fromkeys(texts))
    return "" if shown == "..." else shown
