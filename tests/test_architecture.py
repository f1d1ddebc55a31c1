"""Who may import whom. Reads the imports; fails on every edge that is not listed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dowser_pl"
OUR = "dowser_pl"

# layer -> layers of ours that it may import (itself always)
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "functional": {"errors"},
    "metrics": {"errors", "files"},
    "reporting": {"__init__", "errors", "files"},
    "data": {"errors", "metrics", "models"},
    "methods": {"errors", "functional"},
    "distributed": {"errors", "files", "functional"},
    "models": {"distributed", "errors", "functional"},
    "importance": {"__init__", "distributed", "errors", "files", "functional", "models", "reporting"},
    "masking": {"distributed", "errors", "files", "functional"},
    "patches": {"__init__", "distributed", "errors", "files", "functional", "masking", "methods", "models"},
    "strategies": {"distributed", "errors", "models"},
    "module": {
        "data",
        "distributed",
        "errors",
        "files",
        "masking",
        "metrics",
        "models",
        "reporting",
        "strategies",
    },
    "planning": {"distributed", "errors", "files", "functional", "methods", "models", "reporting"},
    "callbacks": {
        "__init__",
        "distributed",
        "errors",
        "files",
        "functional",
        "importance",
        "masking",
        "methods",
        "metrics",
        "models",
        "patches",
        "planning",
        "reporting",
        "strategies",
    },
    "cli": {
        "callbacks",
        "data",
        "distributed",
        "errors",
        "files",
        "methods",
        "module",
        "planning",
        "strategies",
    },
    "integrations": {
        "__init__",
        "callbacks",
        "data",
        "distributed",
        "errors",
        "files",
        "functional",
        "importance",
        "masking",
        "methods",
        "models",
        "module",
        "patches",
        "reporting",
    },
    "bench": {"__main__", "callbacks", "cli", "errors", "files", "patches", "reporting"},
    "commands": {
        "__init__",
        "bench",
        "cli",
        "errors",
        "files",
        "importance",
        "masking",
        "methods",
        "models",
        "module",
        "patches",
        "reporting",
    },
    "__main__": {"__init__", "cli", "errors"},
    "__init__": set(),
}
# layer -> heavy libraries that it may import
LIBRARIES = {
    "torch": {
        "callbacks",
        "commands",
        "cli",
        "data",
        "distributed",
        "files",
        "functional",
        "importance",
        "integrations",
        "masking",
        "methods",
        "metrics",
        "models",
        "module",
        "patches",
        "planning",
        "strategies",
    },
    "transformers": {"data", "importance", "integrations", "models", "module", "strategies"},
    "lightning": {"callbacks", "cli", "data", "module", "planning", "strategies"},
    "torchmetrics": {"metrics", "module"},
    "matplotlib": {"bench", "reporting"},
    "peft": {"models"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
    return found


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_imports_follow_the_layers(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        if module.split(".")[0] == OUR:
            target = layer_of(module)
            assert target == layer or target in ALLOWED[layer], f"{layer} must not import {module}"
        for library, layers in LIBRARIES.items():
            if module.split(".")[0] == library:
                assert layer in layers, f"{layer} must not import {module}"


def test_what_is_allowed_is_used():
    """So that the table above is what the package looks like, and an arrow that is gone stays gone."""
    used = {layer: set() for layer in ALLOWED}
    for path in FILES:
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        used[layer] |= {layer_of(module) for module in imports(path) if module.split(".")[0] == OUR} - {layer}
    assert used == ALLOWED


def test_rooms_and_floors_stay_few():
    """A room is a file or folder of the package's root; its floor is above all that it imports."""
    floors: dict[str, int] = {}

    def floor(room: str, trail: tuple[str, ...] = ()) -> int:
        assert room not in trail, " -> ".join((*trail, room))
        if room not in floors:
            floors[room] = 1 + max((floor(other, (*trail, room)) for other in ALLOWED[room]), default=0)
        return floors[room]

    assert max(map(floor, ALLOWED)) <= 10
    assert len(ALLOWED) <= 22
    entries = {path.relative_to(PACKAGE).parts[0] for path in FILES} - {"__init__.py"}
    assert {entry.removesuffix(".py") for entry in entries} == set(ALLOWED) - {"__init__"}
    assert len(entries) <= 21


def test_functional_imports_torch_alone():
    allowed = {"torch", "hashlib", "collections", "concurrent", "dataclasses", "os", "typing", OUR}
    for path in (PACKAGE / "functional").rglob("*.py"):
        assert {module.split(".")[0] for module in imports(path)} <= allowed, path


def test_no_circle_between_files():
    graph = {}
    for path in FILES:
        name = ".".join([OUR, *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        graph[name] = {m for m in imports(path) if m.split(".")[0] == OUR}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done or name not in graph:
            return
        for target in graph[name]:
            visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_files_are_small_and_have_no_grab_bag_names():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, f"{path} holds more than one idea"
        assert path.stem not in {"utils", "util", "helpers", "misc", "common"}, path


@pytest.mark.parametrize(
    "verb",
    [
        ["--help"],
        ["report", "--help"],
        ["patch", "--help"],
        ["patch", "apply", "--help"],
        ["merge", "--help"],
        ["chat", "--help"],
        ["push", "--help"],
        ["evaluate", "--help"],
        ["bench", "--help"],
        ["bench", "-c", "bench/quick", "--list"],
    ],
)
def test_offline_verbs_load_nothing_heavy(verb):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['dowser_pl', *{verb!r}]\n"
        "try: runpy.run_module('dowser_pl', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
