"""Docstrings are read alone, in a help text or on a page: so each begins with a sentence of its own, in Markdown."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "dowser_pl"
FILES = sorted(PACKAGE.rglob("*.py"))
LEAN = {"As", "Of", "These", "Those", "That", "See", "It", "Its", "Them", "Their", "Beside", "With", "Both"}


def public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{child.name}.")


def test_public_docstrings_stand_alone():
    lean = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for name, node in public(tree):
            said = ast.get_docstring(node)
            if said is None:  # hooks whose name says it
                continue
            first, words = said.splitlines()[0].rstrip(), said.split()
            if len(first.split()) < 3 or words[0] in LEAN or not (first[-1] in ".:;!?" or "\n" in said):
                lean.append(f"{path.relative_to(PACKAGE)}: {name}: {first}")
    assert not lean, "\n".join(lean)


def test_docstrings_are_markdown():
    """One backtick and no roles, as the pages of the API are built from them."""
    other = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                said = (ast.get_docstring(node) or "").replace("```", "")
                if "``" in said or any(f":{role}:`" in said for role in ("func", "class", "meth", "mod", "attr")):
                    other.append(f"{path.relative_to(PACKAGE)}: {said.splitlines()[0]}")
    assert not other, "\n".join(other)
