"""Pages that are made from the code are those of this code, and the notebook is the page."""

import json
import sys

import pytest

from tests.docs.pages import ROOT, blocks

sys.path.insert(0, str(ROOT / "tools"))
import write_docs


@pytest.fixture(scope="module")
def made():
    return write_docs.pages()


def test_they_are_new(made):
    old = [
        str(path.relative_to(ROOT)) for path, text in made.items() if not path.is_file() or path.read_bytes() != text
    ]
    assert not old, f"{', '.join(old)}: run python tools/write_docs.py"


def test_every_method_and_its_options_are_there(made):
    text = made[ROOT / "docs" / "reference" / "methods.md"].decode()
    for name in ("ModelDowser", "Spider", "Dare", "Ties", "Lora"):
        assert f"\n## {name}\n" in text
    assert "| `dowser.method.update_ratio` | float | `0.1` |" in text
    assert len(write_docs.methods()) == 21


def test_options_have_type_default_and_meaning(made):
    text = made[ROOT / "docs" / "reference" / "every_option.md"].decode()
    assert "| `dowser.probe.num_prompts` | int or `auto` | `128` | synthetic prompts" in text
    assert "| `model.optimizer` | class | `AdamW`, lr 2e-05, weight_decay 0.0 |" in text
    assert "| `overwrite` | bool | `false` |" in text
    assert not [line for line in text.splitlines() if line.startswith("| `") and line.endswith("|  |")]


def test_the_page_of_the_notebook_has_its_cells():
    page = ROOT / "docs" / "tutorials" / "steps.md"
    cells = json.loads(write_docs.NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code"]
    assert [block.text for block in blocks(page) if block.language == "python"] == code


def test_the_site_lists_every_page():
    listed = set((ROOT / "mkdocs.yml").read_text().split("nav:")[1].replace("- ", "").split())
    docs = ROOT / "docs"
    assert {str(path.relative_to(docs)) for path in docs.rglob("*.md")} <= listed
