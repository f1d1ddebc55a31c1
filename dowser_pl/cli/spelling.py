"""Names and values of a command line and of its YAML files that cannot be meant, told before anything is imported.

What is not known for certain is let through: the parser of the command line decides later, with everything imported.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from dowser_pl.cli.options import LEAST, REGISTERED, ROOMS, Table, class_signature, near_class, table, usable
from dowser_pl.cli.signatures import OPEN, Kinds, Literally
from dowser_pl.errors import DowserError

__all__ = ["Word", "check_model", "check_spelling", "words_of"]

_THEIRS = ("bitsandbytes", "dowser_pl", "lightning", "torch", "transformers")
_WITHOUT_VALUE = ("--print_config", "--help", "-h")
_BOOLEAN = ("true", "false", "yes", "no", "on", "off")


@dataclass(frozen=True)
class Word:
    """An option as it was written.

    Attributes:
        name: dotted, without `--` and `+`.
        value: a text or number; None = it has options of its own.
        where: `file.yaml:3: ` or nothing.
        bare: whether it was given no value.
    """

    name: str
    value: Any
    where: str
    bare: bool = False

    @property
    def shown(self) -> str:
        """The word as it was written."""
        return self.name if self.where else f"--{self.name}"


def check_spelling(verb: str, arguments: Sequence[str]) -> None:
    """Refuse an option, class or value that does not exist.

    Args:
        verb: a training verb.
        arguments: what follows it, with paths of configurations.

    Raises:
        DowserError: naming the first that is wrong, where it stands and what was probably meant.
    """
    words = list(words_of(arguments))
    options, chosen = table(verb), _chosen(words)
    for word in words:
        owner = names_class(word)
        if owner is not None and word.value not in options.texts(owner):
            _check_class(owner, word, options.texts(owner))
    own = any(name.partition(".")[0] not in _THEIRS for names in chosen.values() for name in names if "." in name)
    for word in words:
        if not word.name:
            raise DowserError(f"not understood: {word.value}. Help: python -m dowser_pl {verb} --help")
        if not options.knows(word.name, chosen):
            raise DowserError(_unknown(word, options, chosen, verb))
        if word.bare and word.name in options.options:
            raise DowserError(f"{word.shown}: expected a value after it")
        kinds = options.kinds(word.name, chosen)
        if not own:  # which may register names as they are imported
            _check_registered(word)
        if word.value is not None and not _fits(word.value, kinds):
            raise DowserError(
                f"{word.where}{word.shown}: got {word.value}, expected {_shown(kinds)}{_near_value(word.value, kinds)}"
            )
        _check_least(word)


def check_model(arguments: Sequence[str]) -> None:
    """Refuse to begin without a model.

    Args:
        arguments: what follows a training verb, with paths of configurations.

    Raises:
        DowserError: if none is named, and no help is asked for.
    """
    asks = any(each.startswith(("--print_config", "-h", "--help")) or each.endswith(".help") for each in arguments)
    if not asks and not {"model", "model.path"} & {word.name for word in words_of(arguments) if word.value is not None}:
        raise DowserError(
            "there is no model: set --model.path to a folder or a hub id, or add a configuration that does, such as "
            "-c model/world"
        )


def words_of(arguments: Sequence[str]) -> Iterator[Word]:
    """The options of a command line and of the files after `-c`, in their order."""
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        name, equals, value = argument.partition("=")
        if name in _WITHOUT_VALUE:
            continue
        bare = not equals and (position == len(arguments) or arguments[position].startswith("--"))
        if argument.startswith("-") and not equals and not bare:
            value = arguments[position]
            position += 1
        if name in ("-c", "--config") and not bare:
            yield from _of_file(Path(value))
        elif name.startswith("--"):
            yield Word(name[2:].removesuffix("+"), _scalar(value), "", bare)
        elif not argument.startswith("-"):
            yield Word("", argument, "")


def _scalar(text: str) -> Any:
    """The value of a text as YAML has it; None of what is no plain value."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return text if isinstance(value, str) else None if isinstance(value, (list, dict)) else value


def _of_file(path: Path) -> Iterator[Word]:
    if not path.is_file():
        return
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DowserError(f"{path}{line}: this is no YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DowserError(f"{path}: this is no YAML: {' '.join(str(error).split())}") from error
    if node is not None:
        yield from _of_node(node, "", f"{path}:")


def _of_node(node: yaml.Node, prefix: str, file: str, above: tuple[yaml.Node, ...] = ()) -> Iterator[Word]:
    if any(node is each for each in above):  # an alias of what it lies in
        return
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from () if isinstance(item, yaml.ScalarNode) else _of_node(item, prefix, file, above)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                yield from _of_node(value, prefix, file, above)
                continue
            name = f"{prefix}.{key.value}" if prefix else str(key.value)
            scalar = isinstance(value, yaml.ScalarNode)
            plain = _plain(value) if scalar else None
            yield Word(name.removesuffix("+"), plain, f"{file}{key.start_mark.line + 1}: ")
            yield from _of_node(value, name.removesuffix("+"), file, above)


def _plain(value: yaml.Node) -> Any:
    """What a scalar stands for; what YAML cannot make of it is left to the parser."""
    try:
        return yaml.SafeLoader("").construct_object(value)
    except (yaml.YAMLError, ValueError):
        return value.value


def _chosen(words: Sequence[Word]) -> Mapping[str, set[str]]:
    """The classes that are named anywhere, by the option that takes them."""
    found: dict[str, set[str]] = {}
    for word in words:
        owner = names_class(word)
        if owner is not None:
            found.setdefault(owner, set()).add(word.value)
    return found


def names_class(word: Word) -> str | None:
    """The option whose class a word names, by a short name or a path; None if it names none."""
    owner = word.name.removesuffix(".class_path")
    value = word.value
    return owner if owner in ROOMS and isinstance(value, str) and value.replace(".", "_").isidentifier() else None


def _check_class(owner: str, word: Word, texts: Sequence[str]) -> None:
    module, _, name = word.value.rpartition(".")
    if class_signature(owner, word.value) is not None or Path(word.value).is_file():
        return
    said = f"{word.where}{word.shown}"
    try:
        lost = module and importlib.util.find_spec(module.partition(".")[0]) is None
    except (ValueError, ImportError):
        return
    if lost:
        raise DowserError(
            f"{said}: there is no module {module.partition('.')[0]!r} for {word.value}, neither installed nor in "
            f"{Path.cwd()}{_meant(near_class(owner, name))}"
        )
    near = ([] if module else get_close_matches(name, texts, n=1)) or near_class(owner, name)
    known = module in ("dowser_pl", ROOMS[owner][0])
    if near and (known or not module):
        raise DowserError(f"{said}: there is no class {word.value}{_meant([f'{module}.' * bool(module) + near[0]])}")
    if known:
        there = ", ".join(each.name for each in usable(owner))
        raise DowserError(f"{said}: there is no class {word.value}; {ROOMS[owner][0]} has {there}")


def _check_least(word: Word) -> None:
    least = LEAST.get(word.name.replace(".init_args", ""))
    number = isinstance(word.value, (int, float)) and not isinstance(word.value, bool)
    if number and least is not None and word.value < least:
        raise DowserError(f"{word.where}{word.shown}: got {word.value}, expected at least {least}")


def _check_registered(word: Word) -> None:
    """Refuse what is nearly a registered name; what is far from all of them Lightning may know."""
    names, value = REGISTERED.get(word.name, ()), str(word.value)
    near = [] if value in names or "." in value else get_close_matches(value, names, cutoff=0.75)
    if near:
        raise DowserError(f"{word.where}{word.shown}: there is no {value}{_meant(near)}")


def _unknown(word: Word, options: Table, chosen: Mapping[str, set[str]], verb: str) -> str:
    kind = "key" if word.where else "option"
    near = [each if word.where else f"--{each}" for each in options.meant(word.name, chosen)]
    return f"{word.where}there is no {kind} {word.shown}{_meant(near)} All: python -m dowser_pl {verb} --help-all"


def _meant(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else "."


def _fits(value: Any, kinds: Kinds) -> bool:
    if any(kind in (OPEN, "str") or not isinstance(kind, (str, Literally)) for kind in kinds):
        return True
    return any(_is(value, kind) for kind in kinds if isinstance(kind, (str, Literally)))


def _is(value: Any, kind: str | Literally) -> bool:
    text = str(value)
    if isinstance(kind, Literally):
        return text == kind.text
    if kind == "bool":
        return isinstance(value, (bool, int)) or text.lower() in _BOOLEAN
    if kind == "None":
        return value is None or text.lower() in ("none", "null")
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(kinds: Kinds) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "None": "null"}
    texts = [kind.text if isinstance(kind, Literally) else words.get(str(kind), str(kind)) for kind in kinds]
    *first, last = dict.fromkeys(texts)
    return f"{', '.join(first)} or {last}" if first else last


def _near_value(value: Any, kinds: Kinds) -> str:
    near = get_close_matches(str(value), [kind.text for kind in kinds if isinstance(kind, Literally)], n=1)
    return _meant(near) if near else ""
