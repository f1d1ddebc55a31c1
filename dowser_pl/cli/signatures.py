"""What a class takes, read from its source: a typo or `--help` is answered without importing torch, which takes long.

Nothing is run. What cannot be read this way (a class that another program makes, a type of many kinds) counts as open,
and is left to the parser of the command line, which imports everything.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

__all__ = ["OPEN", "Class", "Kinds", "Option", "Signature", "class_at", "classes_in", "method_of", "signature"]

OPEN = "anything"  # a kind of value that is not looked at
_PLAIN = ("int", "float", "bool", "str", "None")


@dataclass(frozen=True)
class Literally:
    """A value that is one of those an option takes."""

    text: str


@dataclass(frozen=True)
class ListOf:
    """A list whose items are of these kinds."""

    kinds: "Kinds"


@dataclass(frozen=True)
class Class:
    """A class by its module and name; `node` is its source."""

    module: str
    name: str
    node: ast.ClassDef = field(compare=False, repr=False)

    @property
    def is_settings(self) -> bool:
        """Whether it is a dataclass: then its arguments are all that may be given, as none derives from it."""
        return any("dataclass" in ast.unparse(decorator) for decorator in self.node.decorator_list)


Kinds: TypeAlias = "tuple[str | Literally | ListOf | Class, ...]"


@dataclass(frozen=True)
class Option:
    """One argument of a class; `annotation` and `default` are source text, no default says that it is required."""

    name: str
    kinds: Kinds
    annotation: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class Signature:
    """The arguments of a class, by name; `closed` if it takes no others."""

    options: dict[str, Option]
    closed: bool
    purpose: str


@cache
def _source(module: str) -> ast.Module | None:
    path = _file(module)
    return None if path is None else ast.parse(path.read_text(encoding="utf-8"))


@cache
def _file(module: str) -> Path | None:
    top, *rest = module.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return None
    for folder in (found.submodule_search_locations or ()) if found else ():
        place = Path(folder).joinpath(*rest)
        for path in (place / "__init__.pyi", place / "__init__.py", place.with_suffix(".py")):
            if path.is_file() and not (path.suffix == ".pyi" and rest):  # the stub of our public names
                return path
    return None


def _find(module: str, name: str, depth: int = 0) -> tuple[str, ast.AST] | None:
    """Where a name that a module knows is defined, and its source."""
    tree = _source(module)
    for node in tree.body if tree and depth < 8 else ():
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return (module, node.value) if node.value else None
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_absolute(node, module), alias.name, depth + 1)
    return None


def _absolute(node: ast.ImportFrom, module: str) -> str:
    file, parts = _file(module), module.split(".")
    package = file is not None and file.stem == "__init__"
    parents = parts[: len(parts) - node.level + package] if node.level else []
    return ".".join([*parents, *([node.module] if node.module else [])])


def class_at(module: str, name: str) -> Class | None:
    """A class that a module has or imports; None if its source is not found."""
    found = _find(module, name)
    return Class(found[0], name, found[1]) if found and isinstance(found[1], ast.ClassDef) else None


@cache
def classes_in(module: str, base: str) -> tuple[str, ...]:
    """Names of the classes that a module or a package's `__init__` gives and that derive from one named `base`."""
    tree = _source(module)
    nodes = tree.body if tree else []
    names = [alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    names += [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    found = {name: class_at(module, name) for name in names if name != base and not name.startswith("_")}
    return tuple(sorted(name for name, each in found.items() if each and _derives(each, base)))


def _derives(each: Class, base: str) -> bool:
    return any(name == base or (found and _derives(found, base)) for name, found in _bases(each))


def _bases(each: Class) -> Iterator[tuple[str, Class | None]]:
    for node in each.node.bases:
        name = ast.unparse(node).partition("[")[0].rpartition(".")[2]
        yield name, None if name == each.name else class_at(each.module, name)


@cache
def signature(each: Class) -> Signature:
    """The arguments of a class, with those that `**kwargs` hands on to its base."""
    purpose = _first_sentence(ast.get_docstring(each.node) or "")
    texts = _meanings(each.node)
    if each.is_settings:
        return Signature(_fields(each, texts), True, purpose)
    start = next((n for n in each.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    above = [signature(found) if found else None for _, found in _bases(each)]
    inherited = next((found for found in above if found), Signature({}, False, ""))
    if start is None:
        return Signature(inherited.options, inherited.closed or not each.node.bases, purpose)
    texts |= {name: text for name, text in _meanings(start).items() if text}
    own = _arguments(start, each.module, texts)
    if start.args.kwarg is None:
        return Signature(own, True, purpose)
    return Signature(inherited.options | own, inherited.closed and _hands_on(start, start.args.kwarg.arg), purpose)


def _hands_on(start: ast.FunctionDef, rest: str) -> bool:
    """Whether `**kwargs` go to the base alone."""
    calls = [n for n in ast.walk(start) if isinstance(n, ast.Call) and ast.unparse(n.func) == "super().__init__"]
    given = [word for call in calls for word in call.keywords if word.arg is None]
    used = [n for n in ast.walk(start) if isinstance(n, ast.Name) and n.id == rest]
    return len(used) == len(given) == 1


def method_of(each: Class, name: str) -> dict[str, Option] | None:
    """The arguments of a method of a class, or of the nearest base that has it."""
    for node in each.node.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node, each.module, _meanings(node))
    above = (method_of(found, name) for _, found in _bases(each) if found)
    return next((found for found in above if found is not None), None)


def _arguments(node: ast.FunctionDef, module: str, texts: dict[str, str]) -> dict[str, Option]:
    given = [*node.args.posonlyargs, *node.args.args][1:]
    missing: list[ast.expr | None] = [None] * (len(given) - len(node.args.defaults))
    defaults = [*missing, *node.args.defaults[-len(given) :]] if given else []
    pairs = [*zip(given, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return {each.arg: _option(each.arg, each.annotation, default, module, texts) for each, default in pairs}


def _fields(each: Class, texts: dict[str, str]) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for _, base in _bases(each):
        options |= signature(base).options if base else {}
    for node in each.node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            if "ClassVar" not in ast.unparse(node.annotation):
                options[name] = _option(name, node.annotation, _field_default(node.value), each.module, texts)
    return options


def _field_default(node: ast.expr | None) -> ast.expr | None:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "field":
        given = {word.arg: word.value for word in node.keywords}
        factory = given.get("default_factory")
        empty = ast.Call(factory, [], []) if factory is not None else None
        return given.get("default", empty)
    return node


def _option(
    name: str, annotation: ast.expr | None, default: ast.expr | None, module: str, texts: dict[str, str]
) -> Option:
    kinds = (OPEN,) if annotation is None else tuple(_kinds(annotation, module))
    written = "" if annotation is None else ast.unparse(annotation)
    constant = _find(module, default.id) if isinstance(default, ast.Name) else None
    default = constant[1] if constant and isinstance(constant[1], ast.expr) else default
    return Option(name, kinds, written, None if default is None else ast.unparse(default), texts.get(name, ""))


def _kinds(node: ast.expr, module: str, depth: int = 0) -> Iterator[str | Literally | ListOf | Class]:
    """The kinds of values that an annotation stands for."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # an annotation in quotes
            yield from _kinds(ast.parse(node.value, mode="eval").body, module, depth)
        else:
            yield str(node.value)
    elif isinstance(node, ast.BinOp):
        yield from (*_kinds(node.left, module, depth), *_kinds(node.right, module, depth))
    elif isinstance(node, ast.Subscript):
        yield from _subscript(node, module, depth)
    elif isinstance(node, ast.Name) and node.id in _PLAIN:
        yield node.id
    else:
        found = _find(module, node.id) if isinstance(node, ast.Name) and depth < 8 else None
        if found and isinstance(found[1], ast.ClassDef):
            yield Class(found[0], found[1].name, found[1])
        elif found and isinstance(found[1], ast.expr):
            yield from _kinds(found[1], found[0], depth + 1)
        else:
            yield OPEN


def _subscript(node: ast.Subscript, module: str, depth: int) -> Iterator[str | Literally | ListOf | Class]:
    outer = ast.unparse(node.value).rpartition(".")[2]
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "Literal":
        yield from (Literally(str(each.value)) for each in inner if isinstance(each, ast.Constant))
    elif outer in ("Union", "Optional"):
        for each in inner:
            yield from _kinds(each, module, depth)
        yield from ["None"] if outer == "Optional" else []
    elif outer in ("list", "List", "Sequence"):
        yield ListOf(tuple(_kinds(inner[0], module, depth)))
    else:
        yield OPEN


def _meanings(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """What a docstring says of each argument."""
    text = ast.get_docstring(node) or ""
    _, _, block = text.partition("Args:\n")
    found: dict[str, str] = {}
    indent, name = None, ""
    for line in block.splitlines():
        here = len(line) - len(line.lstrip())
        if line.strip() and here == 0:
            break
        indent = here if indent is None and line.strip() else indent
        start = re.match(r"\s*\*{0,2}(\w+)(?: \([^)]*\))?:\s*(.*)", line) if here == indent else None
        if start:
            name, found[start[1]] = start[1], start[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return {key: value.replace("``", "").strip() for key, value in found.items()}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.:])\s", " ".join(text.split("\n\n", maxsplit=1)[0].split()), maxsplit=1)[0]
