"""The notebook runs from top to bottom; what it says about scores and frozen entries it asserts itself."""

import json

import pytest

from tests.docs.pages import ROOT

NOTEBOOK = ROOT / "docs" / "tutorials" / "steps.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = {"__name__": "notebook"}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["after"]["digits"] > 0.5
    assert names["frozen"].changed == 0
    assert not list(tmp_path.iterdir())  # nothing is left where it was run


def test_it_was_run_from_top_to_bottom():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
